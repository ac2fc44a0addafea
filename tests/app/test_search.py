"""Settings found on the training side, from the command line."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from tests.app.conftest import SMALL_FIT, check

from histoscribe.app.runs import config_of
from histoscribe.app.study import open_study

pytestmark = pytest.mark.slow

GRID = [
    *("-s", "search.learning_rates=[0.003, 0.000001]", "-s", "search.dropouts=[0.1]"),
    *("-s", "search.cluster_weights=[0.0, 0.3]"),
]


@pytest.fixture
def study(fitted, tmp_path) -> Path:
    shutil.copytree(fitted, tmp_path / "study")
    return tmp_path / "study"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_run_fits_with_what_its_search_found(study, call):
    words = ("fit", study, "--run", "searched", "--test", "c1", *SMALL_FIT, *GRID)
    answer = call(*words, "--search")
    assert answer.code == 0, answer.err
    assert "4 trials" in answer.err
    assert "Search by held-out mean PCC of the genes" in answer.out
    folder = study / "runs" / "searched"
    record, found = read(folder / "run.json"), read(folder / "search.json")
    asked, got = record["config"], record["found"]
    assert asked["fit"]["learning_rate"] == 1e-3
    assert asked["search"]["learning_rates"] == [0.003, 0.000001]
    assert got["fit"]["learning_rate"] == 0.003
    trials = found["trials"]
    assert len(trials) == 4
    best = max(trials, key=lambda trial: trial["score"])
    assert trials[found["best"]] == best
    assert got["fit"]["cluster_weight"] == best["cluster_weight"]
    assert got["model"]["dropout"] == best["dropout"]
    checkpoint = read(folder / "checkpoint" / "checkpoint.json")
    assert checkpoint["fit_settings"]["learning_rate"] == 0.003
    assert [net["best_score"] for net in checkpoint["report"]] == best["net_scores"]
    config = config_of(open_study(study), "searched")
    assert (config.fit.learning_rate, config.model["dropout"]) == (0.003, 0.1)
    with (folder / "search.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["score"]) for row in rows] == [trial["score"] for trial in trials]
    assert [row["is_best"] for row in rows].index("1") == found["best"]
    page = (folder / "report.html").read_text()
    assert "Settings found by search" in page
    assert "Found by search" in page
    assert "Settings found by search" not in (study / "runs/first/report.html").read_text()

    check(call(*words), 2, ["exists with other settings"])
    again = call(*words, "--search", "--json")
    assert again.code == 0, again.err
    assert read(folder / "search.json") == found


def test_what_is_no_grid_is_refused_before_anything_is_written(study, call):
    words = ("fit", study, "--run", "searched", "--test", "c1", "--search")
    check(call(*words, "-s", "search.dropouts=[1.5]"), 2, ["search.dropouts = [1.5]"])
    check(
        call(*words, "-s", "search.dropout=[0.1]"), 2, ["search.dropout", "Did you mean 'dropouts'"]
    )
    assert not (study / "runs" / "searched").exists()
