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

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from histoscribe.app.study import Study
    from histoscribe.train.processes import Processes

PAUSE_S = 0.2
CONNECT_WITHIN = timedelta(minutes=5)
FAULT = "fault"
LOST = ("gloo", "nccl")
"""Who speaks of a process that no longer answers, in messages of PyTorch."""


def find_voice(is_json: bool) -> Voice:
    """The voice of a command, silent in every process but the first.

    Raises:
        ConfigError: The environment is that of torchrun in part.
    """
    processes = _find()
    return Voice(is_json, is_silent=processes is not None and not processes.is_first)


def check_alone(words: Sequence[str]) -> None:
    """Refuse to do in several processes what is the work of one.

    Args:
        words: Of the command line; the first that is no option is the command.

    Raises:
        ConfigError: A command other than `fit` was started as several processes.
    """
    command = next((word for word in words if not word.startswith("-")), "fit")
    processes = None if command == "fit" else _find()
    if processes is not None and processes.n > 1:
        raise ConfigError(
            f"'histoscribe {command}' works in one process and torchrun started {processes.n}: run "
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
    processes = _find()
    if processes is not None and not processes.is_first:
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
    processes = _find()
    if processes is not None and not processes.is_first:
        _wait_for(name)
        return
    write()
    _tell(name)


def is_first_fault() -> bool:
    """Whether no other process has failed yet; from now on, this one has."""
    try:
        processes = _find()
        if processes is None or processes.n == 1:
            return True
        mine = str(processes.rank)
        return _store().compare_set(FAULT, "", mine).decode() == mine
    except (HistoscribeError, RuntimeError, ValueError):  # better said by each than by none
        return True


def find_lost(error: Exception) -> HistoscribeError | None:
    """What there is to say if an error is of a process that no longer answers, else None."""
    is_lost = isinstance(error, RuntimeError) and any(name in str(error).lower() for name in LOST)
    processes = _find() if is_lost else None
    if processes is None or processes.n == 1:
        return None
    return MissingExtra(
        f"One of the {processes.n} processes no longer answers: it was killed, most often for want "
        "of memory, or its machine went away. Run the same command again; it goes on from the "
        "last state that was kept."
    )


def _find() -> "Processes | None":
    """This process among those of torchrun; None where torchrun started nothing."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return None
    from histoscribe.train.processes import find_processes

    return find_processes()


def _tell(name: str) -> None:
    processes = _find()
    if processes is not None and processes.n > 1:
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
