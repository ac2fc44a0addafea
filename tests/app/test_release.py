"""The script that makes the released checkpoint, on toy sections."""

import hashlib
import importlib
from pathlib import Path

import pytest

from histoscribe.app.prepare import load_slide
from histoscribe.app.study import open_study
from histoscribe.train.checkpoint import RECORD, Checkpoint
from histoscribe.train.fit_config import FitConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def release(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("release_her2st")


def test_scores_come_from_the_table_of_results(release):
    text = (BENCHMARKS / "RESULTS.md").read_text()
    scores = release.read_scores(text)
    assert set(scores) == set(release.METHODS)
    values = {method: float(score.split()[0]) for method, score in scores.items()}
    assert values["training mean"] == 0
    assert values["model"] > values["strong ridge"] > values["cell features + ridge"] > 0.2
    assert f"| {scores['model']} |" in text
    with pytest.raises(SystemExit, match="no table"):
        release.read_scores("nothing")
    with pytest.raises(SystemExit, match="no row of strong ridge"):
        release.read_scores(text.replace("| strong ridge |", "| weak ridge |"))


@pytest.mark.slow
def test_the_model_is_fitted_on_all_and_its_card_says_what_it_is(
    release, fitted, tmp_path, monkeypatch
):
    monkeypatch.setattr(release, "N_GENES", 6)
    study = open_study(fitted)
    slides = [load_slide(study, sample) for sample in study.samples]
    config = FitConfig(max_epochs=1, n_components=5, n_field_components=3, n_phenotypes=3)
    release.train(slides, config).save(tmp_path / "toy-c")
    checkpoint = Checkpoint.load(tmp_path / "toy-c")
    assert checkpoint.split.train == ("a1", "b1", "c1")
    assert checkpoint.split.test == ()
    assert len(checkpoint.panel) == 6
    scores = dict.fromkeys(release.METHODS, "0.5 [0.4, 0.6]")
    card = release.write_card(checkpoint, slides, scores, tmp_path / "toy-c")
    record_hash = hashlib.sha256((tmp_path / "toy-c" / RECORD).read_bytes()).hexdigest()
    for wanted in (
        checkpoint.model_id,
        record_hash,
        checkpoint.encoder_id,
        *checkpoint.panel.symbols,
        "One patient.",
        "CC BY 4.0",
        "Andersson",
        "one of the sections left out in turn",
        "--checkpoint toy-c/",
    ):
        assert wanted in card, wanted
