"""A cohort in this process: one sample fails, the others are done, and all of it is told."""

import csv
import errno
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.app.conftest import COHORT, TOY_PARTS, stores_of

from histoscribe.app import prepare_sample as one_sample
from histoscribe.app import workspace
from histoscribe.app.cohort import (
    MAX_LOST,
    CohortConfig,
    Ended,
    SampleRecord,
    SampleTask,
    run_cohort,
)
from histoscribe.app.study import open_study
from histoscribe.app.workers import check_study, check_versions, open_workers
from histoscribe.app.workspace import Workspace
from histoscribe.data.store import read_cells
from histoscribe.errors import ConfigError
from histoscribe.preprocess.preparation import PrepareConfig

TWO = ("--sample", "s1", "--sample", "s2")


@pytest.fixture
def study(cohort_files, tmp_path, call) -> Path:
    """Six sound samples, ingested."""
    assert call("ingest", cohort_files / "manifest.csv", tmp_path / "study").code == 0
    return tmp_path / "study"


@pytest.fixture(scope="module")
def prepared(cohort_files, tmp_path_factory) -> Path:
    """The study of six, one of them torn, after its first run; read only."""
    from histoscribe.app.cli import main

    study = tmp_path_factory.mktemp("cohort") / "study"
    assert main(["ingest", str(cohort_files / "torn.csv"), str(study), "--json"]) == 0
    assert main(["prepare", str(study), *TOY_PARTS, "--json"]) == 6
    return study


def summary_of(study: Path) -> dict[str, dict]:
    record = json.loads((study / "prepare-summary.json").read_text())
    return {row["sample"]: row for row in record["samples"]}


def log_of(study: Path) -> list[dict]:
    lines = (study / "log.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["step"] == "prepare"]


def test_one_torn_slide_among_six_stops_no_other(prepared):
    rows = summary_of(prepared)
    assert {name: row["state"] for name, row in rows.items()} == {
        name: "failed" if name == "s3" else "done" for name in COHORT
    }
    for name in COHORT:
        if name != "s3":
            assert len(read_cells(prepared / "samples" / name)) == rows[name]["n_nuclei"] > 50
    torn = rows["s3"]
    assert torn["error"] == "DataError"
    assert "torn.tif" in torn["message"]
    assert "histoscribe doctor" in torn["mend"]
    assert torn["attempts"] == 1  # it cannot pass
    assert not (prepared / "samples" / "s3" / "cells.zarr").exists()


def test_the_log_tells_of_each(prepared):
    lines = {line["sample"]: line for line in log_of(prepared)}
    assert set(lines) == set(COHORT)
    assert lines["s3"]["kind"] == "DataError"
    assert lines["s1"]["stages"]["busy_s"]["reading"] > 0


def test_the_csv_has_a_line_a_sample(prepared):
    with (prepared / "prepare-summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["sample"] for row in rows] == list(COHORT)
    assert float(rows[0]["seconds_per_mm2"]) == pytest.approx(
        float(rows[0]["seconds"]) / float(rows[0]["tissue_mm2"]), rel=0.2
    )
    assert rows[2]["n_nuclei"] == ""


def test_the_failed_one_is_tried_again_and_the_others_are_kept(prepared, tmp_path, call):
    shutil.copytree(prepared, tmp_path / "study")
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    for sample in record["samples"]:
        sample["slide"] = str((prepared / sample["slide"]).resolve())
    (tmp_path / "study" / "study.json").write_text(json.dumps(record))
    answer = call("prepare", tmp_path / "study", *TOY_PARTS, "--json")
    assert answer.code == 6
    assert answer.record["exit_code"] == 6
    assert "1 of 6 samples failed (s3), 5 are done" in answer.record["message"]
    states = {row["sample"]: row["state"] for row in answer.record["samples"]}
    assert states == {name: "failed" if name == "s3" else "kept" for name in COHORT}


def test_the_only_sample_fails_with_its_own_code(prepared, tmp_path, call):
    answer = call("prepare", prepared, *TOY_PARTS, "--sample", "s3")
    assert answer.code == 3
    assert "DataError: " in answer.message
    assert "torn.tif" in answer.message


def test_a_fault_that_may_pass_is_tried_again(study, call, monkeypatch):
    plan, faults = one_sample.plan_preparation, iter([OSError(errno.EIO, "Input/output error")])

    def stumble(*words: object) -> object:
        for fault in faults:
            raise fault
        return plan(*words)

    monkeypatch.setattr(one_sample, "plan_preparation", stumble)
    assert call("prepare", study, *TOY_PARTS, *TWO).code == 0
    rows = summary_of(study)
    assert (rows["s1"]["state"], rows["s1"]["attempts"]) == ("done", 2)
    assert (rows["s2"]["state"], rows["s2"]["attempts"]) == ("done", 1)
    assert rows["s4"]["state"] == "not tried"
    assert [(line["sample"], line["attempt"]) for line in log_of(study)] == [
        ("s1", 1), ("s2", 1), ("s1", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.EIO, "Input/output error"), "OSError", "Input/output error"),
        (OSError(errno.ENOSPC, "No space", "/x"), "MissingExtra", "disk is full at /x"),
        (MemoryError("array of 9 GB"), "MemoryError", "array of 9 GB"),
        (RuntimeError("can't allocate memory: 9 GB"), "MemoryError", "9 GB"),
        (ValueError("surprise"), "Bug", "bug in histoscribe"),
    ],
)
def test_whatever_fails_is_a_record(study, call, monkeypatch, error, kind, words):
    plan = one_sample.plan_preparation

    def fail(slide: object, *words: object) -> object:
        if slide.slide_id == "s1":
            raise error
        return plan(slide, *words)

    monkeypatch.setattr(one_sample, "plan_preparation", fail)
    answer = call("prepare", study, *TOY_PARTS, *TWO, "--retries", "0")
    assert answer.code == 6
    assert "Traceback" not in answer.err
    rows = summary_of(study)
    assert rows["s2"]["state"] == "done"
    assert (rows["s1"]["error"], rows["s1"]["attempts"]) == (kind, 1)
    assert words in rows["s1"]["message"]
    assert rows["s1"]["mend"]
    record = study / "samples" / "s1" / "fault.log"
    assert record.exists() == (kind == "Bug")
    if kind == "Bug":
        assert "ValueError: surprise" in record.read_text()
        assert str(record) in rows["s1"]["mend"]
        monkeypatch.setattr(one_sample, "plan_preparation", plan)
        assert call("prepare", study, *TOY_PARTS, *TWO).code == 0
        assert not record.exists()


def test_what_is_wrong_for_all_is_said_before_any_slide(study, call):
    answer = call("prepare", study, *TOY_PARTS, "--set", "prepare.tile_side_um=33.3")
    assert answer.code == 2
    assert "tile_side_um 33.3" in answer.message
    assert not list(study.glob("samples/*/.preparing"))
    assert not (study / "prepare-summary.json").exists()


def test_a_sample_that_cannot_be_as_asked_stops_no_other(study, call):
    """That no sample has regions is a wrong request, but each sample's own."""
    answer = call("prepare", study, *TOY_PARTS, *TWO, "--around-regions")
    assert answer.code == 6
    assert {row["error"] for row in summary_of(study).values()} == {"ConfigError", ""}


def test_an_interrupt_leaves_a_summary_and_no_lock(study, call, monkeypatch):
    plan = one_sample.plan_preparation

    def interrupt(slide: object, *words: object) -> object:
        if slide.slide_id == "s2":
            raise KeyboardInterrupt
        return plan(slide, *words)

    monkeypatch.setattr(one_sample, "plan_preparation", interrupt)
    answer = call("prepare", study, *TOY_PARTS, *TWO)
    assert answer.code == 130
    assert "the same command goes on from there" in answer.message
    record = json.loads((study / "prepare-summary.json").read_text())
    assert not record["is_finished"]
    assert record["counts"] == {"done": 1, "kept": 0, "failed": 0, "not tried": 5}
    monkeypatch.setattr(one_sample, "plan_preparation", plan)
    assert call("prepare", study, *TOY_PARTS, *TWO).code == 0
    assert summary_of(study)["s1"]["state"] == "kept"


def test_a_second_prepare_is_refused(study, call):
    with open_study(study).lock():
        answer = call("prepare", study, *TOY_PARTS)
    assert answer.code == 2
    assert "is being written by process" in answer.message


def test_debris_of_a_killed_run_is_swept(study, call):
    assert call("prepare", study, *TOY_PARTS, *TWO).code == 0
    before, home = stores_of(study), study / "samples" / "s1"
    (home / ".cells.zarr.new" / "X").mkdir(parents=True)
    (home / ".tiles.zarr.old").mkdir()
    (home / ".prepare.json.4711").write_text("{")
    (home / ".preparing" / "parts").mkdir(parents=True)
    assert call("prepare", study, *TOY_PARTS, *TWO).code == 0
    assert stores_of(study) == before
    assert sorted(path.name for path in home.iterdir()) == [
        ".lock", "cells.outlines.parquet", "cells.zarr", "prepare.json", "tiles.zarr",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workers", "0"), "--workers 0"),
        (("--retries", "-1"), "--retries -1"),
        (("--threads", "0"), "--threads 0"),
        (("--memory", "0.1"), "--memory 0.1"),
        (("--workers", "2", "--scheduler", "tcp://x:1"), "one of the two"),
    ],
)
def test_a_wrong_request(study, call, words, message):
    answer = call("prepare", study, *words)
    assert answer.code == 2
    assert message in answer.message


@pytest.mark.slow
def test_dask_is_imported_only_when_it_is_asked_for(study):
    code = (
        "import sys; from histoscribe.app.cli import main;"
        f"code = main(['prepare', {str(study)!r}, '--sample', 's1', *{TOY_PARTS!r}]);"
        "found = {'distributed'} & set(sys.modules);"
        "sys.exit(f'code {code}, imported {found}' if code or found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# ---- the workspace


def test_a_worker_that_lives_on_is_waited_for(tmp_path):
    space, heard = Workspace(tmp_path / "s1"), []

    def wait() -> None:
        with Workspace(tmp_path / "s1").lock():
            heard.append("waited")

    with space.lock():
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.5)
        assert not heard
    waiter.join(10)
    assert heard == ["waited"]


def test_a_worker_that_does_not_end_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "WAIT_S", 0.3)
    with (
        Workspace(tmp_path / "s1").lock(),
        pytest.raises(ConfigError, match="'s1' is being prepared by process"),
        Workspace(tmp_path / "s1").lock(),
    ):
        pass


def test_attempts_are_counted_by_run(tmp_path):
    space = Workspace(tmp_path)
    assert space.last_attempt("a") is None
    assert [space.begin("a").number, space.begin("a").number] == [1, 2]
    assert space.begin("b").number == 1
    assert space.last_attempt("a") is None
    (space.folder / "attempt.json").write_text('{"run": "b", "num')  # no machine is perfect
    assert space.last_attempt("b") is None


# ---- what is tried again


class Scripted:
    """Workers of which each task ends as a script says."""

    def __init__(self, ends: dict[str, list[str]]) -> None:
        self.ends = ends
        self.waiting: list[SampleTask] = []

    def call(self, function, *arguments):
        return function(*arguments)

    def submit(self, function, task) -> None:
        self.waiting.append(task)

    def next_ended(self) -> Ended:
        task = self.waiting.pop(0)
        end = self.ends[task.sample.sample].pop(0)
        if end == "lost":
            return Ended(task, None)
        attempt = task.workspace.begin(task.run)
        if end == "died":
            return Ended(task, None)
        return Ended(task, SampleRecord(task.sample.sample, "done", {}, attempts=attempt.number))


@pytest.mark.parametrize(
    ("ends", "n_attempts", "states"),
    [
        (["done"], 1, ["done"]),
        (["died", "done"], 2, ["failed", "done"]),
        (["died", "died"], 2, ["failed", "failed"]),
        (["lost", "lost", "done"], 1, ["done"]),
        (["lost"] * (MAX_LOST + 1), 2, ["failed"]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_a_dead_worker_costs_an_attempt_only_of_what_it_had_begun(
    study, tmp_path, ends, n_attempts, states
):
    sample = open_study(study).find("s1")
    config = PrepareConfig(segmenter="toy", encoder="toy")
    task = SampleTask(tmp_path, sample, config, "run", attempts=n_attempts)
    workers = Scripted({"s1": list(ends)})
    records = list(run_cohort(workers, one_sample.prepare_sample, [task]))
    assert [record.state for record in records] == states
    assert not workers.ends["s1"]
    assert not workers.waiting
    for record in records:
        if record.fault is not None:
            assert record.fault.kind == "WorkerDied"


def test_threads_are_shared_among_workers():
    assert CohortConfig(workers=1).threads_each is None
    assert CohortConfig(workers=10_000).threads_each == 1
    assert CohortConfig(workers=3, threads=5).threads_each == 5
    assert CohortConfig(scheduler="tcp://x:1").threads_each is None


# ---- machines of a cluster

HERE = {"python": "3.11", "distributed": "2026.8.0", "histoscribe": "0.1.0", "study": "5f0c"}


@pytest.mark.parametrize("name", ["python", "distributed", "histoscribe"])
@pytest.mark.parametrize("came", ["9.9", None])
def test_another_environment_is_refused(name, came):
    with pytest.raises(ConfigError, match=f"Worker x has {name} {came or 'none'}, here it is"):
        check_versions("worker x", {**HERE, name: came}, HERE)


def test_the_scheduler_needs_no_histoscribe():
    check_versions("the scheduler", {"python": "3.11", "distributed": "2026.8.0"}, HERE)


@pytest.mark.parametrize("came", [None, "77aa"])
def test_a_worker_that_does_not_see_the_study_is_refused(came):
    check_study("worker x", HERE, HERE, Path("/shared/study"))
    with pytest.raises(ConfigError, match=r"see the study at /shared/study\. .*share"):
        check_study("worker x", {**HERE, "study": came}, HERE, Path("/shared/study"))


@pytest.mark.slow
def test_workers_that_may_take_more_than_the_machine_has_are_warned_of(study):
    heard: list[str] = []
    with open_workers(CohortConfig(workers=2, memory_gb=1e6), study, heard.append):
        pass
    assert "2e+06 GB in all, and this machine has" in heard[0]


def test_notes_are_bounded():
    notes: list[str] = ["first"]
    with one_sample.gather_warnings(notes):
        for number in range(3 * one_sample.MAX_NOTES):
            logging.getLogger("histoscribe.preprocess").warning("field %d", number)
    assert notes[:2] == ["first", "field 0"]
    assert len(notes) == one_sample.MAX_NOTES + 1
    assert notes[-1] == one_sample.AND_MORE
