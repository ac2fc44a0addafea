"""What `prepare` keeps of a sample while it works on it: lock, attempts, progress, parts.

STUDY/samples/<sample>/.preparing/attempt.json   who works on it, for the how-manieth time
                                 /progress.json  how far it is
                                 /withdrawn.json the run that was interrupted, to those who work on
                                 /parts/         finished parts; the next run goes on from them
                                 /prepare.json   what is said of the stores, until they are written
                      /.lock                     held while a process works on the sample
                      /fault.log                 the traceback of a bug, until the sample is done
"""

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from histoscribe.errors import ConfigError

WAIT_S = 60.0  # for a process that is being ended; whoever works on goes on longer
PAUSE_S = 0.2
DEBRIS = (".*.new", ".*.old", ".prepare.json.*")
"""What a kill amid writing leaves; `data.atomic` and `study.write_text` name it so."""


@dataclass(frozen=True)
class Attempt:
    """One start of a sample.

    Attributes:
        run: The run of `prepare` that it belongs to.
        number: 1 for the first of that run.
        process: Who works, "PID on HOST".
        ended: The kind of fault that it ended with; None while it works, or when its process died.
    """

    run: str
    number: int
    process: str
    ended: str | None = None


@dataclass(frozen=True)
class Workspace:
    """The hidden folder of a sample.

    Attributes:
        home: Folder of the sample, where its stores go.
    """

    home: Path

    @property
    def folder(self) -> Path:
        """All that is removed when the sample is done."""
        return self.home / ".preparing"

    @property
    def parts(self) -> Path:
        """Where finished parts of the work are kept."""
        return self.folder / "parts"

    @property
    def record(self) -> Path:
        """What is said of the stores, while they are being written."""
        return self.folder / "prepare.json"

    def waiting_record(self) -> dict[str, Any]:
        """What waits there; {} if nothing does."""
        return _read(self.record)

    def accept_record(self) -> dict[str, Any]:
        """Put it beside the stores, which are written, and return it."""
        record = _read(self.record)
        self.record.replace(self.home / "prepare.json")
        return record

    @property
    def fault_log(self) -> Path:
        """Where the traceback of a bug goes."""
        return self.home / "fault.log"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Wait for whoever still works on this sample, and keep others out.

        A killed run can leave a worker behind that has not heard of it yet. The lock belongs to
        the process: it is free again however that ends.

        Raises:
            ConfigError: Somebody else still holds it after `WAIT_S` seconds.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / ".lock").open("a+") as stream:
            _wait_for_lock(stream, self.home)
            stream.truncate(0)
            stream.write(process_name())
            stream.flush()
            try:
                yield
            finally:
                stream.truncate(0)

    def last_attempt(self, run: str) -> Attempt | None:
        """The last start of the sample in a run; None if that run did not come to it."""
        record = _read(self.folder / "attempt.json")
        with suppress(TypeError):
            attempt = Attempt(**record)
            return attempt if attempt.run == run else None
        return None

    def begin(self, run: str) -> Attempt:
        """Note that this process starts on the sample."""
        before = self.last_attempt(run)
        attempt = Attempt(run, before.number + 1 if before else 1, process_name())
        self._note("attempt", vars(attempt))
        return attempt

    def end(self, attempt: Attempt, kind: str) -> None:
        """Note that it failed, and of what kind."""
        self._note("attempt", {**vars(attempt), "ended": kind})
        self.forget_progress()

    def note_progress(self, run: str, stage: str, **facts: object) -> None:
        """Tell whoever watches how far the work is.

        Args:
            run: The run of `prepare`.
            stage: "planning", "working" (what at, is in the status of the parts) or "writing".
            **facts: Of "working": done, total (fields), n_nuclei.
        """
        self._note("progress", {"run": run, "pid": os.getpid(), "stage": stage, **facts})

    def read_progress(self, run: str) -> dict[str, Any]:
        """How far the work of a run is; {} where none of it works, or none worked to the last."""
        progress = _read(self.folder / "progress.json")
        return progress if progress.get("run") == run else {}

    def forget_progress(self) -> None:
        """Nobody works on it."""
        (self.folder / "progress.json").unlink(missing_ok=True)

    def withdraw(self, run: str) -> None:
        """Tell whoever works on it for a run, on whatever machine, that nobody waits any more."""
        attempt = self.last_attempt(run)
        if attempt is not None and attempt.ended is None:
            self._note("withdrawn", {"run": run})

    def is_withdrawn(self, run: str) -> bool:
        """Whether nobody waits for that run any more."""
        return _read(self.folder / "withdrawn.json").get("run") == run

    def sweep(self) -> None:
        """Remove what a killed run left half-written; parts and stores stay."""
        for pattern in DEBRIS:
            for path in self.home.glob(pattern):
                remove(path)

    def clear(self) -> None:
        """Remove all but the stores: the sample is done."""
        self.sweep()
        self.fault_log.unlink(missing_ok=True)
        remove(self.folder)

    def _note(self, name: str, record: Mapping[str, object]) -> None:
        """Write in one step; not flushed, for it is worth nothing after the machine went down."""
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{name}.{os.getpid()}"
        beside.write_text(json.dumps(record, sort_keys=True))
        beside.replace(self.folder / f"{name}.json")


def process_name() -> str:
    """Who this is, for whoever reads a lock or an attempt."""
    return f"process {os.getpid()} on {platform.node()}"


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _wait_for_lock(stream: TextIO, home: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            if time.monotonic() > deadline:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise ConfigError(
                    f"Sample '{home.name}' is being prepared by {holder}. Wait for it, or end it."
                ) from fault
            time.sleep(PAUSE_S)
        else:
            return


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; {} if there is none, or none that is whole."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
