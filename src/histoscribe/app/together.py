"""One command in several processes, as `torchrun` starts them: the first one speaks and writes.

The others compute what it computes, for the nets of a fit are trained by all, and wait for it where
it writes. What they tell each other goes through the store that torchrun keeps for its processes.
Whichever fails first says why; torchrun ends the rest.

PyTorch is imported only where there are several processes.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from histoscribe.app.console import Voice
from histoscribe.app.faults import MACHINE
from histoscribe.errors import ConfigError, HistoscribeError, MissingExtra
from histoscribe.train.processes import find_processes

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from histoscribe.app.study import Study

PAUSE_S = 0.2
CONNECT_WITHIN = timedelta(minutes=5)
FAULT = "fault"
SPEAK_FIRST_S = 1.0  # torchrun ends all others as soon as one ends
BACKENDS = ("gloo", "nccl")
LOST = (
    *("closed by peer", "closed by remote peer", "reset by peer"),
    *("broken pipe", "timed out"),
)
"""What the backends of PyTorch say, in small letters, of a process that no longer answers."""


def find_voice(is_json: bool) -> Voice:
    """The voice of a command, silent in every process but the first.

    Raises:
        ConfigError: The environment is that of torchrun in part.
    """
    return Voice(is_json, is_silent=not find_processes().is_first)


def check_alone(words: Sequence[str]) -> None:
    """Refuse to do in several processes what is the work of one.

    Args:
        words: Of the command line; the first that is no option is the command.

    Raises:
        ConfigError: A command other than `fit` was started as several processes.
    """
    command = next((word for word in words if not word.startswith("-")), "fit")
    n = 1 if command == "fit" else find_processes().n
    if n > 1:
        raise ConfigError(
            f"'histoscribe {command}' works in one process and torchrun started {n}: run "
            f"'histoscribe {command}' without torchrun. Only 'histoscribe fit' shares its work "
            "among processes."
        )


@contextmanager
def hold(study: "Study") -> Iterator[None]:
    """Hold the lock of a study in the first process, for all; they go on and end together.

    Raises:
        ConfigError: Somebody else writes the study.
        HistoscribeError: Another of the processes failed.
    """
    if not find_processes().is_first:
        _wait_for("locked")
        yield
        _wait_for("done")
        return
    with study.lock():
        _tell("locked")
        yield
    _tell("done")


def after_first(name: str, write: Callable[[], None]) -> None:
    """Have the first process write something, and the others wait until it is written.

    Args:
        name: Of this step; each is taken once in a command.
        write: What the first process does.

    Raises:
        HistoscribeError: Another of the processes failed.
    """
    if not find_processes().is_first:
        _wait_for(name)
        return
    write()
    _tell(name)


def claim_fault() -> bool:
    """Take it on this process to say what failed, unless another has taken it.

    Returns:
        Whether this process is to speak. One that is not is held up a moment: torchrun ends all
        when one ends, and the other has to be heard.
    """
    try:
        processes = find_processes()
        if processes.n == 1:
            return True
        mine = str(processes.rank)
        is_mine = _store().compare_set(FAULT, "", mine).decode() == mine
    except (HistoscribeError, RuntimeError, ValueError):  # better said by each than by none
        return True
    if not is_mine:
        time.sleep(SPEAK_FIRST_S)
    return is_mine


def find_lost(error: Exception) -> HistoscribeError | None:
    """What there is to say if an error is of a process that no longer answers, else None."""
    if not isinstance(error, RuntimeError):
        return None
    try:
        n = find_processes().n
    except ConfigError:
        return None
    if n == 1 or not _is_lost(error):
        return None
    first_line = str(error).strip().partition("\n")[0]
    return MissingExtra(
        f"One of the {n} processes no longer answers: it was killed, most often for want of "
        "memory, or its machine went away. Run the same command again; it goes on from the last "
        f"state that was kept. PyTorch says: {first_line}"
    )


def _is_lost(error: RuntimeError) -> bool:
    """Whether the store of torchrun is gone, or a backend says that a connection is."""
    from torch.distributed import DistNetworkError, DistStoreError

    words = str(error).lower()
    is_of_backend = any(name in words for name in BACKENDS)
    is_of_store = isinstance(error, DistNetworkError | DistStoreError)
    return is_of_store or (is_of_backend and any(part in words for part in LOST))


def _tell(name: str) -> None:
    if find_processes().n > 1:
        _store().set(name, "")


def _wait_for(name: str) -> None:
    """Wait for the first process, for as long as it takes, or for a fault of any."""
    store = _store()
    while not store.check([name]):
        if store.check([FAULT]):
            error = HistoscribeError("Another process failed and says why.")
            error.exit_code = MACHINE
            raise error
        time.sleep(PAUSE_S)


@lru_cache(maxsize=1)
def _store() -> "Store":
    """The store of all processes; each restart by torchrun has names of its own in it."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, *_ = next(rendezvous("env://", timeout=CONNECT_WITHIN))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"histoscribe/{restart}", store)
