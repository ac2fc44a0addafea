import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from histoscribe.errors import DataError, MismatchError
from histoscribe.train import scaling as module
from histoscribe.train.rows import CHUNK, SomeRows, draw_rows, regroup
from histoscribe.train.scaling import (
    Scaling,
    TargetScaling,
    Transformed,
    fit_field,
    fit_pca,
    fit_phenotypes,
    fit_target,
    rotate_field,
)


def rows(n, seed=0, n_features=11):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(n_features, n_features))
    return (rng.normal(size=(n, n_features)) @ mix + 40).astype(np.float16)


@pytest.mark.parametrize("n", [203, 7], ids=["more rows", "fewer rows than features"])
def test_pca_equals_sklearn_up_to_one_factor(n):
    x = rows(n)
    ours = fit_pca([x[: n // 3], x[n // 3 :]], 5).apply(x)
    standard = StandardScaler().fit_transform(x.astype(np.float64))
    theirs = PCA(5, svd_solver="full").fit_transform(standard)
    theirs /= np.sqrt(theirs.var(axis=0).mean())
    theirs *= np.sign((theirs * ours).sum(axis=0))
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert abs(ours.var(axis=0).mean() - 1) < 1e-4


def test_pca_does_not_hang_on_the_way_rows_are_parted():
    x = rows(101)
    whole, parted = fit_pca([x], 4), fit_pca([x[:1], x[1:60], x[60:]], 4)
    np.testing.assert_allclose(whole.components, parted.components, rtol=1e-4, atol=1e-6)


def test_pca_gives_fewer_components_where_there_are_fewer():
    x = rows(30, n_features=4)
    x[:, 2] = 7.0
    pca = fit_pca([x], 9)
    assert pca.components.shape[1] == 3
    assert np.isfinite(pca.apply(x)).all()


def test_pca_refuses_rows_without_variance_and_other_widths():
    with pytest.raises(DataError, match="constant"):
        fit_pca([np.ones((9, 3), np.float16)], 2)
    with pytest.raises(MismatchError, match="11 features, these rows have 3"):
        fit_pca([rows(20)], 2).apply(np.ones((2, 3), np.float16))


def test_phenotypes_are_seeded_and_assign_the_nearest():
    cells = rows(400, n_features=3).astype(np.float32)
    first, second = fit_phenotypes([cells], 5, 3), fit_phenotypes([cells], 5, 3)
    assert np.array_equal(first.centroids, second.centroids)
    distance = np.linalg.norm(cells[:, None] - first.centroids, axis=2)
    nearest = distance[np.arange(400), first.assign(cells)]
    np.testing.assert_allclose(nearest, distance.min(axis=1), rtol=1e-4)


def test_every_block_of_every_ring_has_unit_spread_and_cells_stay_out_of_the_context():
    rng = np.random.default_rng(1)
    parts = [rng.normal(3, [[[5.0]], [[0.2]]], (40, 2, 1, 9))[:, :, 0].astype(np.float32)]
    field = fit_field(parts, 5, 2, has_cell_context=False)
    out = field.apply(parts[0])
    assert out.shape == (40, 2, 2 + 2 + 1)
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-4)
    for ring in (0, 1):
        np.testing.assert_allclose(out[:, ring, :2].var(axis=0).mean(), 1, rtol=1e-3)
    np.testing.assert_allclose(out[:, 0, 2:4].var(axis=0).mean(), 1, rtol=1e-3)
    assert not out[:, 1, 2:].any()
    assert fit_field(parts, 5, 2, has_cell_context=True).apply(parts[0])[:, 1, 2:].any()


def test_targets_go_there_and_back_and_can_fall_below_the_mean():
    rng = np.random.default_rng(2)
    y = rng.gamma(1.0, size=(31, 4)).astype(np.float32)
    y[:, 3] = 2.5
    seen = np.ones_like(y, bool)
    scaling = fit_target(y, seen, "log1p_counts")
    z = scaling.standardise(y)
    np.testing.assert_allclose(z[:, :3].std(axis=0), 1, rtol=1e-4)
    assert scaling.sigma[3] == 1.0
    assert not z[:, 3].any()
    np.testing.assert_allclose(scaling.restore(z), y, atol=1e-5)
    assert (scaling.restore(z - 9) < scaling.mu).all()


def test_unmeasured_targets_do_not_count_as_zero():
    y = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 4.0]], np.float32)
    scaling = fit_target(y, np.isfinite(y), "log1p_counts")
    np.testing.assert_allclose(scaling.mu, [3, 3])
    np.testing.assert_allclose(scaling.sigma, [np.sqrt(8 / 3), 1])
    with pytest.raises(DataError, match="measured in no training region"):
        fit_target(y, np.isfinite(y) & np.array([True, False]), "log1p_counts")


def test_a_scaling_survives_as_arrays_and_a_missing_array_is_told():
    x = rows(50)
    cells = fit_pca([x], 3)
    scaling = Scaling(
        cells,
        fit_phenotypes([cells.apply(x)], 2, 0),
        fit_field([x.reshape(25, 2, 11).astype(np.float32)], 4, 2, has_cell_context=True),
        TargetScaling("log1p_cp10k", np.ones(2, np.float32), np.ones(2, np.float32)),
    )
    arrays = scaling.to_arrays()
    again = Scaling.from_arrays(arrays, "log1p_cp10k").to_arrays()
    assert arrays.keys() == again.keys()
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    for name in arrays:
        with pytest.raises(DataError, match="lacks"):
            Scaling.from_arrays({k: v for k, v in arrays.items() if k != name}, "log1p_cp10k")


def many_rows(seed):
    """More than two chunks, and some of them in an order of their own."""
    x = rows(2 * CHUNK + 4321, seed)
    return x, np.random.default_rng(seed).permutation(len(x))[: 2 * CHUNK + 1234]


def test_rows_that_are_never_held_give_the_bits_of_those_that_are():
    tables = [many_rows(seed) for seed in (3, 4)]
    held, asked = [x[some] for x, some in tables], [SomeRows(x, some) for x, some in tables]
    pca, again = fit_pca(held, 5), fit_pca(asked, 5)
    for name in ("mean", "scale", "components"):
        assert np.array_equal(getattr(pca, name), getattr(again, name))
    transformed = np.concatenate([pca.apply(part) for part in held])
    lazy = [Transformed(part, pca) for part in asked]
    assert lazy[0].shape == pca.apply(held[0]).shape
    assert np.array_equal(draw_rows(lazy, 10**9, seed=1), transformed)
    few = SomeRows(x := rows(9), np.arange(7))  # fewer than features
    assert np.array_equal(fit_pca([few], 3).components, fit_pca([x[:7]], 3).components)


def test_of_too_many_rows_some_are_drawn_each_alike():
    parts = [np.arange(0, 300.0)[:, None], np.empty((0, 1)), np.arange(300.0, 1000.0)[:, None]]
    first = draw_rows(parts, 400, seed=6)[:, 0]
    assert np.array_equal(first, draw_rows(parts, 400, seed=6)[:, 0])
    assert len(np.unique(first)) == 400
    assert (np.diff(first) > 0).all()
    count = np.zeros(1000)
    for seed in range(300):
        count[draw_rows(parts, 400, seed)[:, 0].astype(int)] += 1
    assert abs(count / 300 - 0.4).max() < 0.13  # 4.5 standard errors
    assert abs(count[:300].mean() / 300 - 0.4) < 0.01
    assert np.array_equal(draw_rows(parts, 1000, 0)[:, 0], np.arange(1000.0))


def test_phenotypes_of_too_many_cells_are_those_of_the_drawn(monkeypatch):
    cells = [rows(400, n_features=3).astype(np.float32), rows(301, 1, 3).astype(np.float32)]
    everything = fit_phenotypes(cells, 4, 2).centroids
    monkeypatch.setattr(module, "PHENOTYPE_CELLS", 701)
    assert np.array_equal(fit_phenotypes(cells, 4, 2).centroids, everything)
    monkeypatch.setattr(module, "PHENOTYPE_CELLS", 99)
    drawn = fit_phenotypes(cells, 4, 2).centroids
    assert not np.array_equal(drawn, everything)
    assert np.array_equal(drawn, fit_phenotypes([draw_rows(cells, 99, 2)], 4, 2).centroids)


@pytest.mark.parametrize("n_rings", [3, 4])
def test_the_field_of_many_regions_has_the_bits_of_all_at_once(n_rings):
    rng = np.random.default_rng(5)
    sizes = (CHUNK + 17, 1, 2 * CHUNK // 3, 901)
    parts = [rng.normal(2, 3, (n, n_rings, 9)).astype(np.float32) for n in sizes]
    field = fit_field(parts, 5, 3, has_cell_context=True)
    rotated = rotate_field(np.concatenate(parts), field.tiles, field.cells).astype(np.float64)
    assert np.array_equal(field.mean, rotated.mean(axis=0).astype(np.float32))
    spread = np.sqrt(rotated.var(axis=0)[:, 3:6].mean(axis=1, keepdims=True))
    assert np.array_equal(field.weight[:, 3:6], np.repeat(1 / spread, 3, 1).astype(np.float32))


def test_regrouped_rows_are_all_rows_in_order():
    parts = [np.arange(0, 7), np.arange(7, 7), np.arange(7, 20), np.arange(20, 21)]
    groups = list(regroup(parts, 5))
    assert [len(group) for group in groups] == [5, 5, 5, 5, 1]
    assert np.concatenate(groups).tolist() == list(range(21))
