import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import pearsonr
from sklearn.metrics import root_mean_squared_error

from histoscribe.errors import DataError, MismatchError
from histoscribe.evaluate.metrics import gene_pcc, jensen_shannon, measure_all, pearson


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    y = rng.gamma(2.0, size=(23, 7))
    return (y + rng.normal(size=y.shape)).astype(np.float32), y.astype(np.float32)


def test_everything_equals_scipy_and_sklearn(pair):
    x, y = pair
    got = measure_all(x, y)
    by_gene = [pearsonr(x[:, g], y[:, g]).statistic for g in range(7)]
    by_region = [pearsonr(x[r], y[r]).statistic for r in range(23)]
    assert got.gene_pcc == pytest.approx(np.mean(by_gene), abs=1e-6)
    assert got.region_pcc == pytest.approx(np.mean(by_region), abs=1e-6)
    assert got.flat_pcc == pytest.approx(pearsonr(x.ravel(), y.ravel()).statistic, abs=1e-6)
    assert got.rmse == pytest.approx(root_mean_squared_error(y.ravel(), x.ravel()), rel=1e-6)
    p, q = np.expm1(x.astype(float)).clip(min=0), np.expm1(y.astype(float))
    distance = jensenshannon(p, q, axis=1)
    assert got.js == pytest.approx(np.mean(distance**2), rel=1e-5)
    assert got.js_bits == pytest.approx(np.mean(jensenshannon(p, q, base=2, axis=1) ** 2), rel=1e-5)
    assert (got.n_genes, got.n_constant, got.n_regions) == (7, 0, 23)


def test_a_constant_target_is_left_out_and_counted_a_constant_answer_is_zero(pair):
    x, y = (part.copy() for part in pair)
    y[:, 2] = 0.1
    x[:, 4] = 3.3
    got = measure_all(x, y)
    assert (got.n_genes, got.n_constant) == (6, 1)
    by_gene = gene_pcc(x, y)
    assert np.isnan(by_gene[2])
    assert by_gene[4] == 0
    assert got.gene_pcc == pytest.approx(np.nanmean(by_gene))
    assert measure_all(np.tile(y.mean(axis=0), (23, 1)), y).gene_pcc == 0


def test_large_offsets_do_not_cancel(pair):
    x, y = (part.astype(np.float64) for part in pair)
    np.testing.assert_allclose(pearson(x + 1e7, 3 * y - 1e7), pearson(x, y), rtol=1e-6)


def test_regions_without_an_answer_and_genes_not_measured_do_not_count(pair):
    x, y = (part.copy() for part in pair)
    x[5] = np.nan
    y[9] = np.nan
    y[:, 3] = np.nan
    keep = np.delete(np.arange(23), [5, 9])
    columns = np.delete(np.arange(7), 3)
    got, wanted = measure_all(x, y), measure_all(x[keep][:, columns], y[keep][:, columns])
    assert got == wanted
    assert got.n_regions == 21
    np.testing.assert_allclose(
        gene_pcc(x, y)[columns], gene_pcc(x[keep][:, columns], y[keep][:, columns])
    )


def test_divergence_stays_in_its_range():
    p = np.array([[1.0, 0, 0], [0, 0, 0], [1, 1, 1]])
    q = np.array([[0, 2.0, 3], [1, 1, 1], [-1, -1, -1]])
    got = jensen_shannon(q, p)
    assert got[0] == pytest.approx(np.log(2))
    assert np.isnan(got[1])
    assert got[2] == 0


def test_what_cannot_be_scored_is_told(pair):
    x, y = pair
    with pytest.raises(MismatchError, match="differ in shape"):
        measure_all(x[:, :3], y)
    with pytest.raises(DataError, match="1 regions"):
        measure_all(x[:1], y[:1])
