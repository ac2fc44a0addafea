"""The whole thread on toy sections, through the command line."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from tests.app.conftest import SMALL_FIT, TOY_PARTS

from histoscribe.app.study import open_study
from histoscribe.data.store import read_cells, read_prediction, read_regions, write_regions
from histoscribe.preprocess.weights import list_weights

pytestmark = pytest.mark.slow  # one study goes all the way

RUN = ("runs", "first")


def test_a_study_is_laid_out_as_documented(fitted):
    for sample in ("a1", "b1", "c1"):
        home = fitted / "samples" / sample
        for name in ("regions.zarr", "cells.zarr", "tiles.zarr", "cells.outlines.parquet"):
            assert (home / name).exists(), name
        record = json.loads((home / "prepare.json").read_text())
        assert record["n_nuclei"] == len(read_cells(home))
    run = fitted.joinpath(*RUN)
    for name in ("run.json", "checkpoint", "scores.json", "scores.csv", "report.html"):
        assert (run / name).exists(), name
    assert len(read_prediction(run / "predictions" / "c1.zarr")) > 10


def test_the_test_sample_is_not_trained_on(fitted):
    scores = json.loads(fitted.joinpath(*RUN, "scores.json").read_text())
    assert "Trained on a1, b1; tested on c1." in scores["protocol"]
    methods = {row["method"] for row in scores["rows"]}
    assert {"model", "training mean", "strong ridge", "cell features + ridge"} <= methods


def test_times_stand_in_the_log_only(fitted):
    lines = [json.loads(line) for line in (fitted / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == ["ingest", *["prepare"] * 3, "fit", "evaluate"]
    year = lines[0]["time"][:4]
    for path in (fitted / "study.json", fitted.joinpath(*RUN, "run.json")):
        assert f'"{year}-' not in path.read_text()


def test_ingest_twice_gives_the_same_bytes(toy_files, tmp_path, call):
    for name in ("one", "two"):
        assert call("ingest", toy_files / "manifest.csv", tmp_path / name).code == 0
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*"))
    for file in files:
        if (tmp_path / "one" / file).is_file() and file.name not in ("log.jsonl", ".lock"):
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def copy_of(fitted: Path, study: Path) -> Path:
    """A study to be written to, on the same slides and tables."""
    shutil.copytree(fitted, study)
    copied = json.loads((study / "study.json").read_text())
    for sample in copied["samples"]:
        for role in ("slide", "expression"):
            sample[role] = str((fitted / sample[role]).resolve())
    (study / "study.json").write_text(json.dumps(copied))
    return study


def test_poisoned_test_counts_change_no_gene_and_no_weight(fitted, tmp_path, call):
    study = copy_of(fitted, tmp_path / "study")
    home = study / "samples" / "c1"
    regions = read_regions(home)
    counts = np.random.default_rng(3).poisson(40, (len(regions), len(regions.genes)))
    write_regions(replace(regions, expression=csr_array(counts.astype(np.float32))), home)
    assert call("fit", study, "--run", "poisoned", "--test", "c1", *SMALL_FIT).code == 0
    for name in ("checkpoint.json", "model.safetensors", "scaling.safetensors"):
        poisoned = (study / "runs" / "poisoned" / "checkpoint" / name).read_bytes()
        assert poisoned == fitted.joinpath(*RUN, "checkpoint", name).read_bytes(), name


def test_prepare_keeps_what_is_current_and_redoes_what_was_broken(fitted, tmp_path, call):
    study = copy_of(fitted, tmp_path / "study")
    kept = call("prepare", study, *TOY_PARTS, "--json").record
    assert [sample["is_new"] for sample in kept["samples"]] == [False, False, False]
    shutil.rmtree(study / "samples" / "b1" / "tiles.zarr")
    again = call("prepare", study, *TOY_PARTS, "--json").record
    assert [sample["is_new"] for sample in again["samples"]] == [False, True, False]


def test_the_report_needs_nothing_and_asks_nobody(fitted):
    page = fitted.joinpath(*RUN, "report.html").read_text()
    for target in re.findall(r"""(?:src|href|action|poster)\s*=\s*["']([^"']*)""", page):
        assert target.startswith("data:"), target
    assert not re.search(r"url\(|@import|<script|<link|<iframe", page)
    assert page.count("data:image/png;base64,") >= 4
    for wanted in ("strong ridge", "95 % interval", "cyan: outlines", "measured", "Settings"):
        assert wanted in page


def test_a_region_without_a_nucleus_is_not_predicted_and_counted(fitted):
    prediction = read_prediction(fitted.joinpath(*RUN, "predictions", "c1.zarr"))
    assert np.isnan(prediction.mean).all(axis=1).sum() == 1
    page = fitted.joinpath(*RUN, "report.html").read_text()
    assert "1 regions hold no nucleus: not predicted, not scored." in page


def test_evaluate_gives_the_scores_of_fit_again(fitted, call):
    before = fitted.joinpath(*RUN, "scores.json").read_bytes()
    answer = call("evaluate", fitted, "--json")
    assert answer.code == 0
    assert answer.record["report"].endswith("report.html")
    assert fitted.joinpath(*RUN, "scores.json").read_bytes() == before


def test_a_prediction_of_training_tissue_is_called_one(fitted, tmp_path, call):
    words = ("predict", fitted, "--run", "first", "--out", tmp_path, "--sample")
    assert "was trained on tissue of a1:" in call(*words, "a1").message
    assert "trained on" not in call(*words, "c1").message


def test_cells_sum_to_their_region(fitted, tmp_path, call):
    for level in ("region", "cell"):
        words = ("--run", "first", "--sample", "c1", "--level", level, "--out", tmp_path)
        assert call("predict", fitted, *words).code == 0
    regions = read_prediction(tmp_path / "c1.zarr")
    cells = read_prediction(tmp_path / "c1.cells.zarr")
    home = np.array([name.rsplit("/", 1)[0] for name in cells.region_id])
    region = regions.region_id[5]
    total = cells.mean[home == region].sum(axis=0)
    np.testing.assert_allclose(total, np.expm1(regions.mean[5]).clip(0), rtol=1e-3, atol=1e-4)


def test_a_section_cut_into_strips_is_called_an_illustration(fitted, call):
    answer = call(
        "fit", fitted, "--run", "strips", "--unit", "strip", "--test", "a1",
        "--set", "split.buffer_um=110", *SMALL_FIT,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.out.lstrip().startswith("Illustration, not evidence")
    assert "report:" in answer.out.splitlines()[-1]


def test_the_same_run_with_other_settings_is_refused(fitted, call):
    answer = call("fit", fitted, "--test", "c1", *SMALL_FIT, "--seed", "9")
    assert answer.code == 2
    assert "exists with other settings" in answer.message


def test_two_runs_at_once_are_refused(fitted, call):
    with open_study(fitted).lock():
        answer = call("evaluate", fitted)
    assert answer.code == 2
    assert "is being written by process" in answer.message
    with open_study(fitted).lock():
        pass


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".hidden"])
def test_a_run_is_named_by_a_plain_word(fitted, call, name):
    answer = call("predict", fitted, "--run", name or "/")
    assert answer.code == 2
    assert "cannot name a run" in answer.message


@pytest.mark.weights
def test_the_example_of_the_readme_runs():
    """The README and the docs show the same lines, and they hold."""
    root = Path(__file__).parents[2]
    lines = (root / "docs" / "example.py").read_text()
    assert lines in (root / "README.md").read_text()
    if list_weights()[0].state != "ready":
        pytest.skip("no weights in the cache: run 'histoscribe weights fetch'")
    exec(compile(lines, "example.py", "exec"), {})
