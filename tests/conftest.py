"""What every test may ask for."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from histoscribe.train.processes import NAMES

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WAIT_S = 600


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data; tests that need it skip by name where it is missing."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HISTOSCRIBE_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set HISTOSCRIBE_DATA")
    return folder


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Two processes on this machine; a hang is a failure."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in NAMES}
        command = [*TORCHRUN, *map(str, words)]
        with subprocess.Popen(
            command,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as started:
            try:
                said = started.communicate(timeout=WAIT_S)
            except subprocess.TimeoutExpired:
                started.terminate()  # it ends its two processes, which a kill would leave
                raise
        return subprocess.CompletedProcess(command, started.returncode, *said)

    return run
