"""What a worker process of this machine does first; Dask calls it by this module's name."""

import signal


def dask_setup(worker: object) -> None:  # noqa: ARG001 - Dask hands it over
    """Leave Ctrl-C, which reaches all processes of a terminal, to the one that was started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
