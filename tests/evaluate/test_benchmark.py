import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from histoscribe.data.bags import BagConfig
from histoscribe.data.splits import Split
from histoscribe.data.toy import toy_study, toy_world
from histoscribe.errors import DataError
from histoscribe.evaluate.baselines import (
    CELL_RIDGE,
    RIDGES,
    STRONG_RIDGE,
    TRAINING_MEAN,
    predict_baselines,
)
from histoscribe.evaluate.benchmark import ScoreConfig, benchmark, describe_protocol, score
from histoscribe.evaluate.bootstrap import BootstrapConfig
from histoscribe.train.assemble import SlideData
from histoscribe.train.fit import FitConfig, fit
from histoscribe.train.gene_panel import PanelConfig, choose_panel


@pytest.fixture(scope="module")
def slides():
    worlds = [*toy_study(3, n_slides=3), toy_world(21, "holed", "patient-h", has_lumen=True)]
    return [SlideData(w.cells, w.tiles, w.regions) for w in worlds]


@pytest.fixture(scope="module")
def panel(slides):
    return choose_panel([s.regions for s in slides[:2]], PanelConfig(n_genes=5))


@pytest.fixture(scope="module")
def table(slides, panel):
    config = FitConfig(n_components=9, n_field_components=6, max_epochs=1)
    split = Split(("toy-0", "toy-1"), ("toy-2", "holed"), "patient")
    settings = {"width": 6, "has_cells": False, "transformer_heads": 3}
    checkpoint = fit(slides, split, panel, config=config, model_settings=settings)
    return benchmark(checkpoint, slides, ScoreConfig(BootstrapConfig(n_draws=50)))


def test_every_score_stands_beside_every_baseline(table):
    methods = {"model", TRAINING_MEAN, *RIDGES}
    assert {row.method for row in table.rows} == methods
    assert {row.slide for row in table.rows} == {"toy-2", "holed", "mean"}
    assert table.row(TRAINING_MEAN).metrics.gene_pcc == 0
    assert table.row("colour + ridge").metrics.gene_pcc > 0.5
    one, two = (table.row("model", s).metrics for s in ("toy-2", "holed"))
    mean = table.row("model").metrics
    assert mean.gene_pcc == pytest.approx((one.gene_pcc + two.gene_pcc) / 2)
    assert mean.n_regions == one.n_regions + two.n_regions == 2 * 62 - 1
    text = table.to_text()
    assert "No patient is on both sides" in text
    assert all(method in text for method in methods)


def test_the_table_as_csv_and_json(table):
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(rows) == len(table.rows)
    assert float(rows[0]["gene_pcc"]) == pytest.approx(table.rows[0].metrics.gene_pcc)
    record = json.loads(table.to_json())
    assert record["protocol"] == table.protocol
    assert len(record["gains"]) == 3 * 2
    with pytest.raises(DataError, match="no score of 'modle'"):
        table.row("modle")


def test_baselines_do_not_look_at_the_expression_of_the_test_slide(slides, panel):
    def answers(test):
        return predict_baselines(slides[:2], [test], panel, "log1p_cp10k", BagConfig())

    regions = slides[2].regions
    other = csr_array(np.full(regions.expression.shape, 3.0, np.float32))
    poisoned = replace(slides[2], regions=replace(regions, expression=other))
    first, second = answers(slides[2]), answers(poisoned)
    assert all(np.array_equal(first[name][0], second[name][0]) for name in first)


def test_all_methods_are_scored_on_the_regions_that_all_answer():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(19, 4)) + 3
    a, b = (y + rng.normal(size=y.shape) for _ in range(2))
    a[3] = np.nan
    table = score(
        {"model": [a], CELL_RIDGE: [b]}, [y], ["s"], "log1p_counts", "p",
        ScoreConfig(over=(CELL_RIDGE, STRONG_RIDGE)),
    )  # fmt: skip
    assert {row.metrics.n_regions for row in table.rows} == {18}
    (gain, mean) = table.gains
    assert gain.gain.value == pytest.approx(
        table.row("model").metrics.gene_pcc - table.row(CELL_RIDGE).metrics.gene_pcc
    )
    assert mean.slide == "mean"


def test_the_protocol_says_how_honest_it_is(slides):
    one = [
        replace(s, regions=replace(s.regions, patient_id=("p",) * len(s.regions))) for s in slides
    ]
    sections = Split(("toy-0",), ("toy-1",), "section")
    assert "Optimistic: p has sections on both sides" in describe_protocol(sections, one)
    strips = Split(("toy-0",), ("toy-1",), "strip")
    assert "Illustration, not evidence" in describe_protocol(strips, slides)
