"""A line of stages that work at the same time: threads, with bounded queues between them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

AtWork = Mapping[str, Sequence[int]]
"""Stage -> the numbers of the items it has in hand."""


class Stage(NamedTuple):
    """One step of a line.

    Attributes:
        name: What times and status call it.
        work: From what the stage before gave to what the next one wants; called by several
            threads at once where there are several workers.
        n_workers: Threads.
        splits: Its answer is not one value but a sequence of numbered items, each of which goes
            on by itself.
    """

    name: str
    work: Callable[[Any], Any]
    n_workers: int = 1
    splits: bool = False


@dataclass(frozen=True)
class StageTimes:
    """How long each stage was at work; a matter of the machine, so kept out of every result.

    Attributes:
        wall_s: From the first item to the last, in seconds.
        busy_s: Stage -> seconds at work, summed over its workers.
        n_workers: Stage -> threads.
    """

    wall_s: float
    busy_s: Mapping[str, float]
    n_workers: Mapping[str, int]

    def share(self, stage: str) -> float:
        """The share of the wall time that a worker of a stage was busy, 0 to 1 of each."""
        n_workers = self.n_workers.get(stage, 1)
        return self.busy_s.get(stage, 0.0) / max(n_workers * self.wall_s, 1e-9)

    def to_record(self) -> dict[str, Any]:
        """For a log: JSON-able, rounded to milliseconds."""
        return {
            "wall_s": round(self.wall_s, 3),
            "busy_s": {name: round(value, 3) for name, value in self.busy_s.items()},
            "n_workers": dict(self.n_workers),
        }


class Clock:
    """Measures how long stages work, and tells what each has in hand."""

    def __init__(self, on_change: Callable[[AtWork], object] | None = None) -> None:
        """Start the wall clock.

        Args:
            on_change: Told what is at work whenever a stage takes an item up or puts one down;
                called under a lock, by any thread.
        """
        self._on_change = on_change
        self._lock = threading.Lock()
        self._started = time.perf_counter()
        self._busy_s: dict[str, float] = {}
        self._at_work: dict[str, list[int]] = {}

    @contextmanager
    def at(self, stage: str, number: int) -> Iterator[None]:
        """A stage works on an item of this number."""
        with self._lock:
            self._at_work.setdefault(stage, []).append(number)
            self._tell()
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            with self._lock:
                self._busy_s[stage] = self._busy_s.get(stage, 0.0) + seconds
                self._at_work[stage].remove(number)
                self._tell()

    def times(self, stages: Sequence[Stage]) -> StageTimes:
        """What was measured so far."""
        wall_s = time.perf_counter() - self._started
        with self._lock:
            busy_s = dict(self._busy_s)
        return StageTimes(wall_s, busy_s, {stage.name: stage.n_workers for stage in stages})

    def _tell(self) -> None:
        if self._on_change:
            self._on_change(self._at_work)


def run_stages(
    items: Iterable[tuple[int, Any]], stages: Sequence[Stage], depth: int, clock: Clock
) -> Generator[tuple[int, Any], None, None]:
    """Put numbered items through all stages; give results as they are ready, in any order.

    All stages work at the same time, on different items. A queue holds at most `depth` items, so
    that a slow stage holds up those before it and memory stays bounded. The first error of any
    thread stops the line and is raised here; so does an error (Ctrl-C too) in what consumes the
    results, if the iterator is closed. When this ends, by any way, its threads have ended.

    Args:
        items: Numbers and values; taken as the first stage asks for them.
        stages: In their order.
        depth: At most so many items wait before each stage, and at the end.
        clock: Measures.
    """
    line = _Line(iter(items), len(stages), depth)
    line.n_sources = [0, *(stage.n_workers for stage in stages)]
    threads = [
        threading.Thread(target=_work, args=(line, index, stage, clock), name=stage.name)
        for index, stage in enumerate(stages)
        for _ in range(stage.n_workers)
    ]
    started: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
        while (item := line.take(len(stages))) is not None:
            yield item
    finally:
        line.stop()
        for thread in started:
            thread.join()
    if line.fault is not None:
        raise line.fault


@dataclass
class _Line:
    """What the threads of a line share, all under one lock.

    Attributes:
        items: What is still to come.
        n_stages: Number of stages; queue i is before stage i, the last one holds results.
        depth: Of each queue.
        queues: Items that wait; the first queue is `items` itself.
        n_sources: How many threads still put something into each queue.
        fault: The first error.
        is_stopped: Everybody is to go home.
    """

    items: Iterator[tuple[int, Any]]
    n_stages: int
    depth: int
    queues: list[deque[tuple[int, Any]]] = field(init=False)
    n_sources: list[int] = field(default_factory=list)
    fault: BaseException | None = None
    is_stopped: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.queues = [deque() for _ in range(self.n_stages + 1)]

    def take(self, index: int) -> tuple[int, Any] | None:
        """The next item before a stage; None when there will be no more."""
        with self.changed:
            if not index:
                return None if self.is_stopped else next(self.items, None)
            queue = self.queues[index]
            self.changed.wait_for(lambda: self.is_stopped or queue or not self.n_sources[index])
            if self.is_stopped or not queue:
                return None
            self.changed.notify_all()
            return queue.popleft()

    def put(self, index: int, item: tuple[int, Any]) -> None:
        """Give an item to a stage, when there is room; to nobody once the line is stopped."""
        with self.changed:
            queue = self.queues[index]
            self.changed.wait_for(lambda: self.is_stopped or len(queue) < self.depth)
            if not self.is_stopped:
                queue.append(item)
                self.changed.notify_all()

    def leave(self, index: int) -> None:
        """A thread puts nothing more into a queue."""
        with self.changed:
            self.n_sources[index] -= 1
            self.changed.notify_all()

    def stop(self, fault: BaseException | None = None) -> None:
        """Let all threads end; of several errors the first stays."""
        with self.changed:
            if not self.is_stopped:
                self.is_stopped, self.fault = True, fault
            for queue in self.queues:
                queue.clear()
            self.changed.notify_all()


def _work(line: _Line, index: int, stage: Stage, clock: Clock) -> None:
    """A worker's life: take, work, put, until nothing comes or the line is stopped."""
    try:
        while (item := line.take(index)) is not None:
            number, value = item
            with clock.at(stage.name, number):
                result = stage.work(value)
            del item, value  # or this thread holds them until the next one comes
            made = deque(result if stage.splits else ((number, result),))
            del result
            while made:
                line.put(index + 1, made.popleft())
    except BaseException as fault:  # noqa: BLE001 - raised in the thread that waits for results
        line.stop(fault)
    finally:
        line.leave(index + 1)
