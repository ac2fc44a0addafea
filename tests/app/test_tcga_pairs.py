"""Smoke test: six real TCGA tiles and their RSEM go all the way. It says nothing of accuracy."""

import json

import pytest
from tests.app.conftest import check

from histoscribe.data.store import read_prediction

pytestmark = pytest.mark.slow

TEST = ("TCGA-69-7764-01A-01-TS1", "TCGA-A6-6782-01A-01-BS1")
SETTINGS = ("--genes", "23", "--panel", "variance", "-s", "fit.target_space=log1p_rsem",
            "-s", "fit.max_epochs=2", "-s", "fit.n_folds=2")  # fmt: skip


def test_slides_of_any_type_and_their_rna_go_all_the_way(data_dir, tmp_path, call):
    pairs = data_dir / "tcga_pairs"
    matched, study = tmp_path / "matched", tmp_path / "study"
    types = ("--slide-type", "DX", "--slide-type", "TS", "--slide-type", "BS")
    words = (pairs / "rsem_genes_x_patients.csv.gz", pairs / "tiles", *types, "--mpp", "0.25")
    for step in (
        ("match", *words, "--unit", "rsem", "--out", matched),
        ("ingest", matched / "manifest.csv", study),
        ("prepare", study, "--segmenter", "threshold", "--encoder", "toy"),
        ("fit", study, "--test", TEST[0], "--test", TEST[1], *SETTINGS),
        ("predict", study, "--run", "first"),
    ):
        answer = call(*step)
        assert answer.code == 0, answer.err
    scores = json.loads((study / "runs" / "first" / "scores.json").read_text())
    assert scores["unit"] == "log1p_rsem"
    assert "No patient is on both sides." in scores["protocol"]
    (model,) = [r for r in scores["rows"] if (r["method"], r["slide"]) == ("model", "mean")]
    assert model["n_regions"] == 2
    said = read_prediction(study / "runs" / "first" / "predictions" / f"{TEST[0]}.zarr")
    assert said.kind == "bulk"
    assert said.mean.shape == (1, 23)
    check(call("fit", study, "--run", "counts", "--test", TEST[0]), 3, ["rsem", "panel.rule"])
