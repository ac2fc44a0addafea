"""A cohort: many samples on one or many processes; one that fails never stops the others."""

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from histoscribe import __version__
from histoscribe.app.faults import Fault, worker_died
from histoscribe.app.study import Sample
from histoscribe.app.workspace import Workspace
from histoscribe.errors import ConfigError, HistoscribeError
from histoscribe.preprocess.line.budget import Budget, n_cores
from histoscribe.preprocess.preparation import PrepareConfig

State = Literal["done", "kept", "failed", "not tried"]

MAX_LOST = 3
"""How often a task may get lost with its worker before it was begun: the worker fell, not it."""


@dataclass(frozen=True)
class CohortConfig:
    """On what samples are prepared; nothing of it changes a result.

    Attributes:
        workers: Processes on this machine; 1 works in this process.
        scheduler: Address of a Dask scheduler whose workers are used instead.
        memory_gb: What one sample may take, in GB of 1e9 bytes.
        retries: Further attempts at a sample after a fault that may pass.
        threads: Threads of each worker; None shares this machine's cores among its workers, and
            leaves those of a cluster as they were started.
    """

    workers: int = 1
    scheduler: str | None = None
    memory_gb: float = Budget.memory_gb
    retries: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, least in {"workers": 1, "retries": 0, "threads": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name} {value}: {least} or more is wanted.")
        if self.scheduler is not None and self.workers != 1:
            raise ConfigError(
                "--workers starts processes on this machine, --scheduler uses those of a cluster: "
                "give one of the two."
            )
        Budget(self.memory_gb)  # refuses too little

    @property
    def threads_each(self) -> int | None:
        """Threads of a worker; None leaves what its process has."""
        if self.threads is not None or self.scheduler is not None or self.workers == 1:
            return self.threads
        return max(1, n_cores() // self.workers)


@dataclass(frozen=True)
class SampleTask:
    """All that a worker is told.

    Attributes:
        folder: The study, by its absolute path; every worker sees it there.
        sample: What to prepare.
        config: How.
        run: Name of this run of the command, no other has it.
        attempts: How often the sample may be begun in this run.
        budget: Memory and threads for the sample; with threads None, what the process has.
        version: Of histoscribe, which every worker must have.
    """

    folder: Path
    sample: Sample
    config: PrepareConfig
    run: str
    attempts: int = 2
    budget: Budget = field(default_factory=Budget)
    version: str = __version__

    @property
    def workspace(self) -> Workspace:
        """Where the work is."""
        return Workspace(self.folder / "samples" / self.sample.sample)


@dataclass(frozen=True)
class SampleRecord:
    """What became of a sample.

    Attributes:
        sample: Its name.
        state: Done now; kept from before; failed; or not tried.
        stored: What `prepare.json` says of it; {} where nothing is stored.
        seconds: What the last attempt took; None unless it is done.
        attempts: How often it was begun.
        fault: Why it failed.
        notes: What is to be known of it: what the slide file left open, what was left out.
        worker: Who prepared it.
        stages: How long each stage was at work; for the log.
        taken_up: Share of the work that an earlier run had done, which `seconds` do not hold.
    """

    sample: str
    state: State
    stored: dict[str, Any]
    seconds: float | None = None
    attempts: int = 0
    fault: Fault | None = None
    notes: tuple[str, ...] = ()
    worker: str = ""
    stages: Mapping[str, Any] = field(default_factory=dict)
    taken_up: float = 0.0


class CohortError(HistoscribeError):
    """Some samples of a cohort failed; the others are done.

    Attributes:
        records: What became of each.
    """

    exit_code = 6

    def __init__(self, message: str, records: Sequence[SampleRecord]) -> None:
        super().__init__(message)
        self.records = tuple(records)


Prepare = Callable[[SampleTask], SampleRecord]


@dataclass(frozen=True)
class Ended:
    """A task that a worker is through with.

    Attributes:
        task: What was asked for.
        record: What came of it; None if its worker was lost on the way.
    """

    task: SampleTask
    record: SampleRecord | None


@runtime_checkable
class Workers(Protocol):
    """Where samples are prepared: this process, others, or other machines."""

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        """Run something once where the samples will be; what it raises is raised here."""
        ...

    def submit(self, function: Prepare, task: SampleTask) -> None:
        """Line a task up."""
        ...

    def next_ended(self) -> Ended:
        """Wait until some task has ended, whichever is the first."""
        ...


def run_cohort(
    workers: Workers, function: Prepare, tasks: Sequence[SampleTask]
) -> Iterator[SampleRecord]:
    """Bring every task to an end, again where a fault may pass.

    Args:
        workers: Where.
        function: What prepares one sample; it raises nothing but for an interrupt.
        tasks: One a sample.

    Yields:
        Every end, in the order in which they come. A failure that is tried again is one, too: a
        sample's last record is the one that counts.
    """
    for task in tasks:
        workers.submit(function, task)
    n_open, n_ends = len(tasks), Counter[str]()
    while n_open:
        ended = workers.next_ended()
        n_ends[ended.task.sample.sample] += 1
        record = ended.record or _lost(ended.task, n_ends[ended.task.sample.sample])
        if record is None:
            workers.submit(function, ended.task)
            continue
        n_tried = max(record.attempts, n_ends[record.sample])
        yield record
        if record.fault is not None and record.fault.can_pass and n_tried < ended.task.attempts:
            workers.submit(function, ended.task)
        else:
            n_open -= 1


def _lost(task: SampleTask, n_ends: int) -> SampleRecord | None:
    """The record of a task whose worker died; None if that was no fault of this task."""
    attempt = task.workspace.last_attempt(task.run)
    if attempt is None and n_ends <= MAX_LOST:
        return None
    n_begun = attempt.number if attempt else 0
    return failed(task, worker_died(n_begun), n_begun)


def failed(task: SampleTask, fault: Fault, n_attempts: int) -> SampleRecord:
    """The record of a failure."""
    return SampleRecord(task.sample.sample, "failed", {}, attempts=n_attempts, fault=fault)


def raise_failures(records: Sequence[SampleRecord]) -> None:
    """Say how many failed, if any did; a single sample's fault is said itself.

    Raises:
        CohortError: Some of several samples failed.
        HistoscribeError: The only sample failed; with the exit code of its fault.
    """
    faults = {record.sample: record.fault for record in records if record.fault is not None}
    if not faults:
        return
    if len(records) == 1:
        (fault,) = faults.values()
        raise fault.to_error()
    n_done = sum(record.state in ("done", "kept") for record in records)
    raise CohortError(
        f"{len(faults)} of {len(records)} samples failed ({', '.join(faults)}), {n_done} are done. "
        "The same command tries the failed ones again.",
        records,
    )


def name_run() -> str:
    """A name that no other run has."""
    return f"{platform.node()}-{os.getpid()}-{time.time_ns()}"
