import numpy as np
import pytest

from histoscribe.errors import ConfigError
from histoscribe.evaluate.bootstrap import BootstrapConfig, bootstrap_gene_pcc, interval
from histoscribe.evaluate.metrics import measure_all


@pytest.fixture
def world():
    rng = np.random.default_rng(1)
    y = rng.normal(size=(61, 5)) + 4
    near, far = (y + s * rng.normal(size=y.shape) for s in (0.5, 2.0))
    return {"near": near, "far": far, "flat": np.full_like(y, 2.2)}, y


def test_the_fast_form_equals_drawing_rows_one_by_one(world):
    answers, y = world
    config = BootstrapConfig(n_draws=17, seed=4)
    got = bootstrap_gene_pcc(answers, y, config)
    counts = np.random.default_rng(4).multinomial(61, np.full(61, 1 / 61), size=17)
    for draw, count in enumerate(counts):
        rows = np.repeat(np.arange(61), count)
        for name in ("near", "far"):
            wanted = measure_all(answers[name][rows], y[rows]).gene_pcc
            assert got[name][draw] == pytest.approx(wanted, abs=1e-9)
    assert not got["flat"].any()


def test_draws_are_paired_seeded_and_cover_the_value(world):
    answers, y = world
    config = BootstrapConfig(n_draws=400, seed=2)
    draws = bootstrap_gene_pcc(answers, y, config)
    again = bootstrap_gene_pcc(answers, y, config)
    assert np.array_equal(draws["near"], again["near"])
    alone = bootstrap_gene_pcc({"near": answers["near"]}, y, config)
    np.testing.assert_allclose(alone["near"], draws["near"])
    value = measure_all(answers["near"], y).gene_pcc
    found = interval(value, draws["near"], config)
    assert found.low < value < found.high
    assert interval(0.0, draws["near"] - draws["near"], config).high == 0
    assert (draws["near"] - draws["far"] > 0).mean() > 0.99


def test_blocks_of_alike_regions_widen_the_interval(world):
    rng = np.random.default_rng(3)
    y = np.repeat(rng.normal(size=(12, 4)), 10, axis=0) + 0.01 * rng.normal(size=(120, 4))
    x = y + np.repeat(rng.normal(size=(12, 4)), 10, axis=0)
    config = BootstrapConfig(n_draws=300)
    single = bootstrap_gene_pcc({"m": x}, y, config)["m"].std()
    blocks = bootstrap_gene_pcc({"m": x}, y, config, np.repeat(np.arange(12), 10))["m"].std()
    assert blocks > 1.5 * single


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="level = "):
        BootstrapConfig(level=1.0)
