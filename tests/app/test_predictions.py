"""Predictions for whoever has slides and a checkpoint, through the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.app.conftest import SMALL_FIT, TOY_PARTS, check, row_of, write_manifest

from histoscribe.app.cli import main
from histoscribe.data.store import read_cells, read_prediction, write_cells
from histoscribe.data.toy import toy_world
from histoscribe.train.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

PATIENTS = {"d1": "dora", "d2": "dora", "e1": "emil"}
SIDE_PX = 821


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """Three prepared slides of two patients, nothing measured; written to by the tests."""
    folder = tmp_path_factory.mktemp("bare")
    pixels = toy_world(11).slide.pixels
    for number, sample in enumerate(PATIENTS):
        x, y = 331 * number, 217 * number
        Image.fromarray(pixels[y : y + SIDE_PX, x : x + SIDE_PX]).save(folder / f"{sample}.png")
    rows = [row_of(s, p, expression="", min_counts="") for s, p in PATIENTS.items()]
    write_manifest(folder / "manifest.csv", rows)
    study = folder / "study"
    assert main(["ingest", str(folder / "manifest.csv"), str(study), "--json"]) == 0
    assert main(["prepare", str(study), *TOY_PARTS, "--json"]) == 0
    return study


@pytest.fixture
def measured(fitted, tmp_path) -> Path:
    """A study with expression that may be written to."""
    shutil.copytree(fitted, tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture(scope="module")
def checkpoint(fitted) -> Path:
    return fitted / "runs" / "first" / "checkpoint"


def test_a_slide_and_a_checkpoint_are_enough(bare, checkpoint, tmp_path, call):
    answer = call("predict", bare, "--checkpoint", checkpoint, "--out", tmp_path)
    assert answer.code == 0, answer.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "d1.grid.zarr", "d2.grid.zarr", "e1.grid.zarr",
    ]  # fmt: skip
    for sample in PATIENTS:
        prediction = read_prediction(tmp_path / f"{sample}.grid.zarr")
        assert prediction.kind == "spot"
        assert len(prediction) > 5
        assert np.isfinite(prediction.mean).all(axis=1).sum() > 5
        assert len(prediction.genes) == 7
        steps = np.diff(np.unique(prediction.xy_um[:, 0]))
        np.testing.assert_allclose(steps % 100.0, 0.0)  # the pitch of the training spots
    assert "no score" not in answer.message
    closer = tmp_path / "closer"
    words = ("--pitch", 60, "--sample", "e1", "--out", closer)
    answer = call("predict", bare, "--checkpoint", checkpoint, *words)
    assert answer.code == 0, answer.err
    assert len(read_prediction(closer / "e1.grid.zarr")) > len(prediction)
    assert "trained on spots of 55 µm, 100 µm apart and predicts" in answer.message


def test_a_whole_sample_is_all_slides_of_the_patient(bare, checkpoint, tmp_path, call):
    words = ("predict", bare, "--checkpoint", checkpoint, "--regions", "sample", "--out", tmp_path)
    answer = call(*words)
    assert answer.code == 0, answer.err
    assert "predicts whole samples: no score of the one says" in answer.message
    one, two, other = (read_prediction(tmp_path / f"{s}.sample.zarr") for s in PATIENTS)
    assert one.region_id == two.region_id == ("dora",)
    np.testing.assert_array_equal(one.mean, two.mean)
    assert np.abs(one.mean - other.mean).max() > 1e-3
    answer = call(*words, "--sample", "d2")
    assert "patient dora is taken without d1" in answer.message
    assert np.abs(read_prediction(tmp_path / "d2.sample.zarr").mean - two.mean).max() > 1e-4


def test_cells_of_made_regions_for_some_genes(bare, checkpoint, tmp_path, call):
    gene = Checkpoint.load(checkpoint).panel.symbols[2]
    for made in ("grid", "sample"):
        words = ("--regions", made, "--level", "cell", "--gene", gene, "--out", tmp_path)
        assert call("predict", bare, "--checkpoint", checkpoint, *words).code == 0
        cells = read_prediction(tmp_path / f"d1.{made}.cells.zarr")
        assert cells.genes.symbols == (gene,)
        assert (cells.mean >= 0).all()
    n_cells = len(read_cells(bare / "samples" / "d1"))
    assert (
        0.9 * n_cells < len(cells) < n_cells
    )  # squares past the last whole tile are not described


def test_wrong_requests_are_refused_in_one_sentence(bare, measured, checkpoint, call):
    words = ("predict", bare, "--checkpoint", checkpoint)
    check(call(*words, "--regions", "measured"), 3, ["names no expression", "--regions grid"])
    check(call(*words, "--regions", "spot"), 2, ["measured, grid or sample"])
    check(call(*words, "--regions", "sample", "--pitch", 100), 2, ["--pitch is of a grid"])
    check(call(*words, "--pitch", 40), 2, ["cannot lie 40 µm apart", "55 µm or more"])
    check(call(*words, "--gene", "ALPHA99"), 2, ["'ALPHA99' is not among the 7"])
    check(call(*words, "--memory", 0), 2, ["--memory 0"])
    cells = ("--level", "cell", "--regions", "sample")
    check(call(*words, *cells, "--memory", 1e-6), 2, ["GB are allowed", "--gene"])
    check(call("fit", bare, *SMALL_FIT, "--test", "none"), 3, ["no sample with expression"])


def test_a_sample_with_expression_can_be_asked_for_either(measured, tmp_path, call):
    words = ("predict", measured, "--run", "first", "--sample", "c1", "--out", tmp_path / "out")
    for made in ("grid", "sample", "measured"):
        assert call(*words, "--regions", made).code == 0
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["c1.grid.zarr", "c1.sample.zarr", "c1.zarr"]
    grid, spots = (read_prediction(out / f"c1{name}.zarr") for name in (".grid", ""))
    assert len(grid) > len(spots) / 2
    assert not set(grid.region_id) <= set(spots.region_id) or grid.xy_um.shape != spots.xy_um.shape


def test_a_slide_that_was_looked_at_around_its_spots_is_not_taken_for_whole(
    measured, tmp_path, call
):
    assert call("prepare", measured, *TOY_PARTS, "--around-regions", "--sample", "c1").code == 0
    words = ("predict", measured, "--run", "first", "--sample", "c1", "--out", tmp_path / "out")
    assert call(*words).code == 0
    for made in ("grid", "sample"):
        check(call(*words, "--regions", made), 4, ["around its spots only", "histoscribe prepare"])


def test_an_old_checkpoint_is_refused(bare, checkpoint, tmp_path, call):
    old = tmp_path / "old"
    shutil.copytree(checkpoint, old)
    record = json.loads((old / "checkpoint.json").read_text())
    del record["regions"]
    (old / "checkpoint.json").write_text(json.dumps(record))
    check(call("predict", bare, "--checkpoint", old), 3, ["does not say what regions", "Fit again"])


def test_another_scale_than_was_prepared_is_refused(bare, checkpoint, tmp_path, call):
    study = tmp_path / "study"
    shutil.copytree(bare, study)
    record = json.loads((study / "study.json").read_text())
    record["samples"][0]["mpp"] *= 2
    (study / "study.json").write_text(json.dumps(record))
    check(call("predict", study, "--checkpoint", checkpoint), 4, ["another scale"])


def test_a_slide_without_nuclei_is_told(bare, checkpoint, tmp_path, call):
    study = tmp_path / "study"
    shutil.copytree(bare, study)
    home = study / "samples" / "e1"
    write_cells(read_cells(home, np.arange(0)), home)
    words = ("predict", study, "--checkpoint", checkpoint, "--sample", "e1")
    for made in ("grid", "sample"):
        check(call(*words, "--regions", made), 3, ["slide e1 has no nucleus"])


def test_a_run_on_all_samples_is_not_scored(measured, bare, tmp_path, call):
    answer = call("fit", measured, "--run", "all", "--test", "none", *SMALL_FIT)
    assert answer.code == 0, answer.err
    assert "nothing is scored" in answer.message
    run = measured / "runs" / "all"
    record = json.loads((run / "checkpoint" / "checkpoint.json").read_text())
    assert record["split"] == {
        "seed": None,
        "test": [],
        "train": ["a1", "b1", "c1"],
        "unit": "none",
    }
    page = (run / "report.html").read_text()
    assert "tested on none" in page
    assert "nothing is scored" in page
    assert "<h2>Scores" not in page
    assert not (run / "scores.json").exists()
    again = call("evaluate", measured, "--run", "all", "--json")
    assert again.code == 0, again.err
    assert again.record["scores"] is None
    words = ("predict", bare, "--checkpoint", run / "checkpoint", "--out", tmp_path / "out")
    assert call(*words).code == 0
    fit = ("fit", measured, "--run", "other", *SMALL_FIT)
    check(call(*fit, "--test", "none", "--test", "c1"), 2, ["--test none"])
    check(call(*fit, "--test", "none", "--unit", "section"), 2, ["--test none"])
    check(call(*fit, "-s", "split.unit=none", "--test", "c1"), 2, ["split.unit = none"])
