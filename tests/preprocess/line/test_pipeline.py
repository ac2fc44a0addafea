"""Stages overlap, order and bounds hold, and whatever goes wrong, no thread stays behind."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from histoscribe.preprocess.line.pipeline import Clock, Stage, run_stages

NAMES = ("double", "add", "tell")


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def stages(*works: Callable[[int], int], n_workers: int = 2) -> list[Stage]:
    return [Stage(name, work, n_workers) for name, work in zip(NAMES, works, strict=False)]


def same(value: int) -> int:
    return value


def test_every_item_goes_through_all_stages_once() -> None:
    items = [(i, i) for i in range(301)]
    line = stages(lambda x: 2 * x, lambda x: x + 1, same, n_workers=3)
    clock = Clock()
    results = dict(run_stages(iter(items), line, 2, clock))
    assert results == {i: 2 * i + 1 for i in range(301)}
    times = clock.times(line)
    assert set(times.busy_s) == set(NAMES)
    assert all(0 < times.share(name) <= 1 for name in NAMES)
    assert times.to_record()["n_workers"] == dict.fromkeys(NAMES, 3)


def test_a_stage_may_split_an_item_into_many() -> None:
    def split(values: range) -> list[tuple[int, int]]:
        return [(i, 10 * i) for i in values]

    line = [Stage("double", split, 2, splits=True), Stage("add", lambda x: x + 1, 3)]
    items = [(i, range(i, min(i + 4, 30))) for i in range(0, 30, 4)]
    assert dict(run_stages(items, line, 1, Clock())) == {i: 10 * i + 1 for i in range(30)}


def test_no_items_give_no_results() -> None:
    assert list(run_stages([], stages(same, same), 1, Clock())) == []


def test_stages_work_at_the_same_time() -> None:
    """All three must be at work to go on, the first two items ahead of the last."""
    meet = threading.Barrier(3, timeout=30)

    def work_ahead(n_items: int) -> Callable[[int], int]:
        def work(value: int) -> int:
            if 0 <= value - n_items < 10:
                meet.wait()
            return value

        return work

    line = stages(work_ahead(2), work_ahead(1), work_ahead(0), n_workers=1)
    assert len(list(run_stages([(i, i) for i in range(12)], line, 1, Clock()))) == 12


@pytest.mark.parametrize("depth", [1, 3])
def test_a_slow_consumer_holds_up_the_first_stage(depth: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[tuple[int, int]]:
        for i in range(200):
            taken.append(i)
            yield i, i

    with closing(run_stages(items(), stages(same, same, n_workers=1), depth, Clock())) as line:
        next(line)
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert len(taken) <= 1 + 2 * (depth + 1) + 1


@pytest.mark.parametrize("where", range(3))
def test_the_first_error_of_any_stage_is_raised(where: int) -> None:
    def fail(value: int) -> int:
        if value == 17:
            raise KeyError("seventeen")
        return value

    works = [same, same, same]
    works[where] = fail
    seen: list[int] = []
    with pytest.raises(KeyError, match="seventeen"):
        consume(run_stages([(i, i) for i in range(500)], stages(*works), 2, Clock()), seen)
    assert len(seen) < 100


def test_an_error_where_items_come_from_is_raised() -> None:
    def items() -> Iterator[tuple[int, int]]:
        yield 0, 0
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(run_stages(items(), stages(same), 1, Clock()))


def test_of_several_errors_one_is_raised_and_the_line_ends() -> None:
    def fail(value: int) -> int:
        raise ValueError(str(value))

    for _ in range(20):
        with pytest.raises(ValueError, match=r"\d"):
            list(run_stages([(i, i) for i in range(50)], stages(fail, n_workers=4), 1, Clock()))


def test_a_consumer_that_fails_ends_the_line() -> None:
    line = run_stages(((i, i) for i in range(10**9)), stages(same, same), 2, Clock())
    with pytest.raises(RuntimeError, match="enough"), closing(line) as results:
        consume(results, [], most=5)


def consume(results: Iterator[tuple[int, int]], seen: list[int], most: int = 10**9) -> None:
    for number, _ in results:
        seen.append(number)
        if len(seen) > most:
            raise RuntimeError("enough")


def test_an_interrupt_ends_the_line() -> None:
    """Ctrl-C comes to the main thread, which waits for a result that takes long."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    started = threading.Event()

    def slow(value: int) -> int:
        started.set()
        time.sleep(0.5)
        return value

    def interrupt() -> None:
        started.wait()
        time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    sender = threading.Thread(target=interrupt)
    sender.start()
    line = run_stages(((i, i) for i in range(100)), stages(slow), 1, Clock())
    with pytest.raises(KeyboardInterrupt), closing(line) as results:
        list(results)
    sender.join()


def test_the_clock_tells_what_is_at_work() -> None:
    told: list[dict[str, list[int]]] = []
    clock = Clock(lambda at_work: told.append({k: list(v) for k, v in at_work.items()}))
    with clock.at("reading", 3), clock.at("writing", 1):
        pass
    assert told == [
        {"reading": [3]},
        {"reading": [3], "writing": [1]},
        {"reading": [3], "writing": []},
        {"reading": [], "writing": []},
    ]
    with pytest.raises(KeyError), clock.at("reading", 4):
        raise KeyError
    assert told[-1]["reading"] == []
