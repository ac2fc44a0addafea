"""A cohort in processes of its own: the same bytes, and the death of a worker is no end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from distributed import Client
from tests.app.conftest import COHORT, TOY_PARTS, stores_of
from tests.app.test_cohort import summary_of

from histoscribe.app import workers as workers_module
from histoscribe.app.cohort import CohortConfig, SampleRecord, SampleTask
from histoscribe.app.prepare_sample import use_threads
from histoscribe.app.study import open_study
from histoscribe.app.workers import open_workers
from histoscribe.app.workspace import Workspace
from histoscribe.preprocess.preparation import PrepareConfig

pytestmark = pytest.mark.slow  # processes that load PyTorch

WAIT_S = 120


@pytest.fixture(scope="module")
def alone(cohort_files, tmp_path_factory) -> Path:
    """The study of six, prepared in one process; read only."""
    study = tmp_path_factory.mktemp("alone") / "study"
    run("ingest", cohort_files / "manifest.csv", study)
    run("prepare", study, *TOY_PARTS)
    return study


@pytest.fixture
def fresh(cohort_files, tmp_path) -> Path:
    """The study of six, ingested."""
    run("ingest", cohort_files / "manifest.csv", tmp_path / "study")
    return tmp_path / "study"


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "histoscribe.app.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )


def hear_interrupts() -> None:
    """Shells start what runs in the background deaf to SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*words: object, code: int = 0) -> str:
    process = start(*words)
    try:
        said, _ = process.communicate(timeout=3 * WAIT_S)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == code, said
    return said


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def begun(study: Path) -> dict[str, int]:
    """Samples that are worked on, and by which process."""
    found = {}
    for name in COHORT:
        path = Workspace(study / "samples" / name).folder / "attempt.json"
        if path.exists():
            found[name] = int(path.read_text().split('"process ')[1].split()[0])
    return found


def is_worked_on(study: Path) -> bool:
    """Whether some process that began a sample still lives; others may have died before."""
    return any(Path(f"/proc/{pid}").exists() for pid in begun(study).values())


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    states = subprocess.run(
        ["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True
    ).stdout.split()
    return any(not state.startswith("Z") for state in states)


def test_two_workers_give_the_bytes_of_one_process_and_one_torn_slide_stops_none(
    cohort_files, alone, tmp_path
):
    study = tmp_path / "study"
    run("ingest", cohort_files / "torn.csv", study)
    said = run("prepare", study, *TOY_PARTS, "--workers", 2, code=6)
    assert "s3 failed: DataError:" in said
    assert "Traceback" not in said
    rows = summary_of(study)
    assert {name: row["state"] for name, row in rows.items()} == {
        name: "failed" if name == "s3" else "done" for name in COHORT
    }
    assert len({row["worker"] for row in rows.values()}) == 2
    wanted = {path: one for path, one in stores_of(alone).items() if not path.startswith("s3/")}
    found = {path: one for path, one in stores_of(study).items() if not path.startswith("s3/")}
    assert found == wanted


def test_a_worker_that_is_killed_stops_nobody(alone, fresh):
    process = start("prepare", fresh, *TOY_PARTS, "--workers", 2)
    wait_for(lambda: begun(fresh))
    victim, pid = next(iter(begun(fresh).items()))
    os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=3 * WAIT_S)
    assert process.returncode == 0, said
    row = summary_of(fresh)[victim]
    assert row["attempts"] == 2
    assert "ended without a word" in row["notes"][0]
    assert stores_of(fresh) == stores_of(alone)


def test_an_end_from_outside_leaves_no_process_and_no_lock(alone, fresh, call):
    for is_asked in (True, False):
        process = start("prepare", fresh, *TOY_PARTS, "--workers", 2)
        wait_for(lambda pid=process.pid: is_worked_on(fresh) or not is_alive(pid))
        if is_asked:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        else:
            os.kill(process.pid, signal.SIGKILL)  # the command alone: its workers must notice
        said, _ = process.communicate(timeout=WAIT_S)
        wait_for(lambda pid=process.pid: not is_alive(pid))
        assert "Traceback" not in said
        if is_asked:
            assert process.returncode == 130
            assert "Interrupted." in said
    assert call("prepare", fresh, *TOY_PARTS).code == 0
    assert stores_of(fresh) == stores_of(alone)


def test_threads_are_pinned(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    cohort = CohortConfig(workers=2, threads=1)
    with open_workers(cohort, Path(), lambda _: None) as workers:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            assert workers.call(os.environ.get, name) == "1"
        assert workers.call(torch.get_num_threads) == 1
        assert workers.call(os.environ.get, "MALLOC_TRIM_THRESHOLD_") is None
    assert os.environ["OMP_NUM_THREADS"] == "7"
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


# ---- a scheduler that runs elsewhere


@pytest.fixture
def dask(tmp_path) -> Iterator[Callable[..., str]]:
    """Start a scheduler, or a worker; its address or nothing comes back."""
    running: list[subprocess.Popen[str]] = []

    def launch(*words: object) -> str:
        command = [sys.executable, "-m", "dask", *map(str, words)]
        running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True))
        if words[0] != "scheduler":
            return ""
        wait_for(lambda: (tmp_path / "scheduler.json").exists())
        return (tmp_path / "scheduler.json").read_text().split('"address": "')[1].split('"')[0]

    yield launch
    for process in running:
        process.terminate()
    for process in running:
        process.wait(WAIT_S)


def scheduler_words(tmp_path: Path) -> tuple[object, ...]:
    file = tmp_path / "scheduler.json"
    return ("scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard",
            "--scheduler-file", file)  # fmt: skip


def take_seconds(task: SampleTask) -> SampleRecord:
    """The first sample takes a little longer, so that the two workers never end together."""
    began = time.time()
    time.sleep(3.6 if task.sample.sample == COHORT[0] else 3.0)
    return SampleRecord(task.sample.sample, "done", {"began": began, "ended": time.time()})


def test_no_sample_waits_while_a_worker_is_free(fresh):
    config = PrepareConfig(segmenter="toy", encoder="toy")
    with open_workers(CohortConfig(workers=2), fresh, print) as workers:
        for sample in open_study(fresh).samples:
            workers.submit(take_seconds, SampleTask(fresh, sample, config, "run"))
        records = [workers.next_ended().record for _ in COHORT]
    times = [record.stored for record in records if record is not None]
    began, ended = (sorted(each[when] for each in times) for when in ("began", "ended"))
    waits = [start - free for start, free in zip(began[2:], ended, strict=False)]
    assert max(waits) < 0.8


def test_workers_of_a_scheduler_give_the_same_bytes(alone, fresh, tmp_path, dask, monkeypatch):
    address = dask(*scheduler_words(tmp_path))
    process = start("prepare", fresh, *TOY_PARTS, "--scheduler", address)
    assert process.stdout is not None
    assert process.stdout.readline() == "Waiting for a worker of the cluster ...\n"
    trim = "{'MALLOC_TRIM_THRESHOLD_': None}"
    monkeypatch.setenv("DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON", trim)
    for _ in range(2):
        dask("worker", address, "--nthreads", 1, "--no-dashboard")
    said, _ = process.communicate(timeout=3 * WAIT_S)
    assert process.returncode == 0, said
    assert "slowed down" not in said
    assert stores_of(fresh) == stores_of(alone)
    monkeypatch.delenv("DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON")
    dask("worker", address, "--nthreads", 3, "--no-dashboard", "--name", "wide")
    wait_for(lambda: 3 in n_threads_at(address))
    said = run("prepare", fresh, *TOY_PARTS, "--scheduler", address, code=2)
    assert "takes 3 tasks at a time" in said
    assert "slowed down by Dask's own MALLOC_TRIM_THRESHOLD_" in said
    assert "--nthreads 1" in said


def n_threads_at(address: str) -> set[int]:
    with Client(address) as client:
        return set(client.nthreads().values())


def test_a_scheduler_that_goes_away(fresh, tmp_path, dask):
    address = dask(*scheduler_words(tmp_path))
    dask("worker", address, "--nthreads", 1, "--no-dashboard")
    process = start("prepare", fresh, *TOY_PARTS, "--scheduler", address)
    wait_for(lambda: begun(fresh))
    (pid,) = scheduler_pids(address)
    os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 5, said
    assert "scheduler went away" in said


def scheduler_pids(address: str) -> list[int]:
    with Client(address) as client:
        return [client.run_on_scheduler(os.getpid)]


def test_no_scheduler_answers(fresh, monkeypatch, call):
    monkeypatch.setattr(workers_module, "CONNECT_S", 1)
    for address in ("tcp://127.0.0.1:9", "nowhere", "http://127.0.0.1:9"):
        answer = call("prepare", fresh, *TOY_PARTS, "--scheduler", address)
        assert answer.code == 2, answer.err
        assert f"--scheduler {address}: no Dask scheduler answers" in answer.message
