"""What a run that was interrupted, or met a fault of the moment, leaves to the next one."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from tests.app.conftest import TOY_PARTS, stores_of

from histoscribe.app.workspace import Workspace
from histoscribe.data.store import read_cells, read_tiles
from histoscribe.errors import DataError
from histoscribe.preprocess.line import field_stages

pytestmark = pytest.mark.slow
ONE = ("--sample", "s1")
SMALL_FIELDS = ("--set", "prepare.field_px=96")


@pytest.fixture(scope="module")
def unprepared(cohort_files, tmp_path_factory) -> Path:
    """Six sound samples, ingested; read only."""
    from histoscribe.app.cli import main

    study = tmp_path_factory.mktemp("resume") / "study"
    assert main(["ingest", str(cohort_files / "manifest.csv"), str(study), "--json"]) == 0
    return study


@pytest.fixture
def study(unprepared, tmp_path) -> Path:
    """A copy of its own, of the same slides."""
    shutil.copytree(unprepared, tmp_path / "study")
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    for sample in record["samples"]:
        sample["slide"] = str((unprepared / sample["slide"]).resolve())
    (tmp_path / "study" / "study.json").write_text(json.dumps(record))
    return tmp_path / "study"


def row_of(study: Path) -> dict:
    return json.loads((study / "prepare-summary.json").read_text())["samples"][0]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def fail_once(monkeypatch: pytest.MonkeyPatch, error: Exception, at: int) -> None:
    """The field of that number fails the first time it is read."""
    read, faults = field_stages.read_field, [error]

    def stumble(slide: object, plan: object, number: int, sight: object) -> object:
        if number == at and faults:
            raise faults.pop()
        return read(slide, plan, number, sight)

    monkeypatch.setattr(field_stages, "read_field", stumble)


@pytest.mark.parametrize("moment", ["write_tiles", "accept_record"])
def test_a_kill_between_stores_and_record_leaves_no_stale_record(study, call, monkeypatch, moment):
    """The settings are other than those of the run before: its record must not live on."""
    assert call("prepare", study, *TOY_PARTS, *ONE).code == 0
    home = study / "samples" / "s1"
    first = json.loads((home / "prepare.json").read_text())
    other = ("prepare", study, *TOY_PARTS, *ONE, "--set", "prepare.tile_side_um=16")
    if moment == "accept_record":
        monkeypatch.setattr(Workspace, moment, interrupt)
    else:
        monkeypatch.setattr(f"histoscribe.app.prepare_sample.{moment}", interrupt)
    assert call(*other).code == 130
    assert json.loads((home / "prepare.json").read_text()) == first
    monkeypatch.undo()
    assert call(*other).code == 0
    record = json.loads((home / "prepare.json").read_text())
    assert record["key"] == read_cells(home).provenance.key != first["key"]
    assert record["n_tiles"] == len(read_tiles(home)) > first["n_tiles"]
    assert call(*other, "--json").record["samples"][0]["state"] == "kept"


def test_a_fault_of_the_moment_costs_no_field(study, call, monkeypatch):
    assert call("prepare", study, *TOY_PARTS, *ONE, *SMALL_FIELDS).code == 0
    wanted = stores_of(study)
    shutil.rmtree(study / "samples" / "s1")
    fail_once(monkeypatch, OSError(errno.EIO, "Input/output error"), at=55)
    assert call("prepare", study, *TOY_PARTS, *ONE, *SMALL_FIELDS).code == 0
    row = row_of(study)
    assert row["attempts"] == 2
    assert row["seconds"] > 0
    assert row["cells_per_second"] is None  # a part of the work was the first attempt's
    assert stores_of(study) == wanted


def test_a_field_that_was_left_out_is_told_of_ever_after(study, call, monkeypatch):
    tiny = ("--set", "prepare.field_px=80")  # above a hundred fields, of which one may be lost
    fail_once(monkeypatch, DataError("a torn tile"), at=3)
    assert call("prepare", study, *TOY_PARTS, *ONE, *tiny).code == 0
    assert any("torn tile" in note for note in row_of(study)["notes"])
    assert call("prepare", study, *TOY_PARTS, *ONE, *tiny).code == 0
    assert row_of(study)["state"] == "kept"
    assert "1 fields could not be read when it was prepared" in row_of(study)["notes"]


def test_parts_outlive_faults_that_change_nothing(study, call, monkeypatch):
    fail_once(monkeypatch, OSError(errno.EIO, "Input/output error"), at=55)
    once = (*SMALL_FIELDS, "--retries", "0")
    assert call("prepare", study, *TOY_PARTS, *ONE, *once).code != 0
    parts = study / "samples" / "s1" / ".preparing" / "parts"
    kept = sorted(path.name for path in parts.glob("part-*"))
    assert kept
    wrong = call("prepare", study, *TOY_PARTS, *ONE, *once, "--around-regions")
    assert wrong.code == 2
    assert sorted(path.name for path in parts.glob("part-*")) == kept
    assert call("prepare", study, *TOY_PARTS, *ONE, *once).code == 0
    assert row_of(study)["cells_per_second"] is None


@pytest.mark.parametrize("torn", ["", "{", "[]"])
def test_a_torn_record_is_made_anew(study, call, torn):
    assert call("prepare", study, *TOY_PARTS, *ONE).code == 0
    record = study / "samples" / "s1" / "prepare.json"
    wanted = record.read_bytes()
    record.write_text(torn)
    assert call("prepare", study, *TOY_PARTS, *ONE).code == 0
    assert record.read_bytes() == wanted


def test_a_worker_that_nobody_waits_for_stops(study, call, monkeypatch):
    """As after Ctrl-C on a cluster, whose workers hear nothing of it."""
    note, runs = Workspace.note_progress, []

    def withdraw(space: Workspace, run: str, stage: str, **facts: object) -> None:
        note(space, run, stage, **facts)
        if stage == "working" and not runs:
            runs.append(run)
            space.withdraw(run)

    monkeypatch.setattr(Workspace, "note_progress", withdraw)
    answer = call("prepare", study, *TOY_PARTS, *ONE, *SMALL_FIELDS)
    assert answer.code == 1
    assert "was interrupted" in answer.message
    assert call("prepare", study, *TOY_PARTS, *ONE, *SMALL_FIELDS).code == 0
