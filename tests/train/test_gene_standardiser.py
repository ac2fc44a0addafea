from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.data.toy import toy_world
from histoscribe.errors import DataError, MismatchError
from histoscribe.train.gene_standardiser import (
    CLIP,
    FLOOR,
    PRIOR_ROWS,
    GeneStandardiser,
    fit_gene_standardiser,
    gene_values,
    log_cp10k,
)

GENES = GenePanel(tuple(f"g{n}" for n in range(7)), ("",) * 7, "symbol")


def profiles(n, platform, seed, factor=None, observed=None, genes=GENES):
    chance = np.random.default_rng(seed)
    rate = chance.gamma(3.0, 4.0, (n, len(genes))) * (1 if factor is None else factor)
    observed = np.ones(len(genes), dtype=bool) if observed is None else observed
    return Profiles(
        profile_id=tuple(f"{platform}{row}" for row in range(n)),
        expression=csr_array(chance.poisson(rate).astype(np.float32) * observed),
        expression_unit="counts",
        genes=genes,
        gene_observed=observed,
        provenance=Provenance("test"),
        platform=(platform,) * n,
    )


def test_values_are_shares_of_all_that_the_source_observed():
    some = profiles(11, "a", 1)
    panel = GENES.take(np.array([4, 0, 2]))
    values = gene_values([some], panel)
    x = some.expression.toarray()
    total = x.sum(axis=1)
    wanted = np.log1p(1e4 * x / total[:, None])[:, [4, 0, 2]]
    np.testing.assert_allclose(values.values.toarray(), wanted, rtol=1e-6)
    in_logs = log_cp10k(some.expression, total)
    logs = replace(some, expression=in_logs, expression_unit="log1p_cp10k")
    np.testing.assert_allclose(gene_values([logs], panel).values.toarray(), wanted, rtol=1e-4)


def test_profiles_and_regions_stand_below_one_another_with_masks_of_their_own():
    regions = toy_world(5).regions
    lacking = np.arange(len(regions.genes)) != 2
    some = profiles(5, "b", 2, observed=lacking, genes=regions.genes)
    values = gene_values([regions, some], regions.genes)
    assert len(values) == len(regions) + 5
    assert values.platform == (regions.platform,) * len(regions) + ("b",) * 5
    np.testing.assert_array_equal(values.is_observed[values.source[-1]], lacking)
    np.testing.assert_array_equal(values.is_observed[0], regions.gene_observed)
    turned = values.take(np.arange(len(values))[::-1])
    np.testing.assert_array_equal(turned.values.toarray(), values.values.toarray()[::-1])
    assert turned.platform[0] == "b"
    with pytest.raises(DataError, match="without expression"):
        gene_values([replace(regions, expression=None)], regions.genes)


def test_a_profile_of_nothing_stays_so_and_is_told():
    some = profiles(3, "a", 1)
    empty = replace(some, expression=csr_array(some.expression.toarray() * [[1], [0], [1]]))
    values = gene_values([empty], GENES)
    np.testing.assert_array_equal(values.has_values, [True, False, True])
    assert not values.values.toarray()[1].any()


def test_a_platform_of_many_rows_has_mean_0_and_deviation_1_before_the_cut():
    training = gene_values([profiles(2000, "a", 1), profiles(1500, "b", 2, np.arange(1, 8))], GENES)
    fitted = fit_gene_standardiser(training)
    z, observed = fitted.apply(training)
    assert observed.all()
    for row, rows in enumerate((slice(2000), slice(2000, None))):
        whole = (training.values.toarray()[rows] - fitted.mean[row]) / fitted.deviation[row]
        np.testing.assert_allclose(whole.mean(axis=0), 0, atol=0.02)
        np.testing.assert_allclose(whole.std(axis=0), 1, atol=0.03)
        assert np.abs(whole).max() > CLIP
        np.testing.assert_allclose(z[rows], whole.clip(-CLIP, CLIP), atol=1e-5)


def test_the_offset_of_a_platform_goes():
    factor = np.exp(np.random.default_rng(0).normal(0, 1.5, 7))
    plain, shifted = profiles(900, "a", 1), profiles(900, "b", 1, factor)
    values = gene_values([plain, shifted], GENES)
    z, _ = fit_gene_standardiser(values).apply(values)
    raw = values.values.toarray()
    before = np.abs(raw[:900].mean(axis=0) - raw[900:].mean(axis=0)).mean()
    after = np.abs(z[:900].mean(axis=0) - z[900:].mean(axis=0)).mean()
    assert before > 0.5
    assert after < 0.02


def test_shrinkage_is_the_formula():
    values = gene_values([profiles(400, "a", 1), profiles(5, "b", 2, np.arange(1, 8))], GENES)
    fitted = fit_gene_standardiser(values)
    wide = values.values.toarray().astype(np.float64)
    parts = (wide[:400], wide[400:])
    mean0 = np.mean([part.mean(axis=0) for part in parts], axis=0)
    variance0 = np.mean([part.var(axis=0) for part in parts], axis=0)
    for row, (part, n) in enumerate(zip(parts, (400, 5), strict=True)):
        k = PRIOR_ROWS
        mean = (n * part.mean(axis=0) + k * mean0) / (n + k)
        deviation = np.sqrt((n * part.var(axis=0) + k * variance0) / (n + k))
        np.testing.assert_allclose(fitted.mean[row], mean, rtol=1e-5)
        np.testing.assert_allclose(fitted.deviation[row], deviation, rtol=1e-5)


def test_each_label_of_a_platform_counts_the_same():
    """Ninety rows of one label beside nine of another and one of none; by hand."""
    parts = [
        profiles(n, "a", seed, np.roll(np.arange(1, 8), seed)) for seed, n in enumerate((90, 9, 1))
    ]
    rows = [
        replace(part, profile_id=tuple(f"{s}-{r}" for r in range(len(part))))
        for s, part in enumerate(parts)
    ]
    values = gene_values([*rows, profiles(60, "spots", 7)], GENES)
    label = ["many"] * 90 + ["few"] * 9 + [""] * 61
    fitted = fit_gene_standardiser(values, label)
    wide = values.values.toarray().astype(np.float64)
    weight = np.r_[np.full(90, 99 / 180), np.full(9, 99 / 18), 1.0]
    m = weight @ wide[:100] / 100
    s2 = weight @ (wide[:100] - m) ** 2 / 100
    spots = wide[100:]
    k, mean0, variance0 = PRIOR_ROWS, (m + spots.mean(0)) / 2, (s2 + spots.var(0)) / 2
    np.testing.assert_allclose(fitted.mean[0], (100 * m + k * mean0) / (100 + k), rtol=1e-5)
    d = np.sqrt((100 * s2 + k * variance0) / (100 + k))
    wanted = np.sqrt(d**2 + (FLOOR * np.median(d)) ** 2)
    np.testing.assert_allclose(fitted.deviation[0], wanted, rtol=1e-5)
    np.testing.assert_allclose(
        fitted.mean[1], (60 * spots.mean(0) + k * mean0) / (60 + k), rtol=1e-5
    )
    d = np.sqrt((60 * spots.var(0) + k * variance0) / (60 + k))
    np.testing.assert_allclose(fitted.deviation[1], d, rtol=1e-5)
    between = (wide[:90].mean(0) + wide[90:99].mean(0)) / 2
    plain = fit_gene_standardiser(values)
    assert np.abs(fitted.mean[0] - between).mean() < 0.2 * np.abs(plain.mean[0] - between).mean()
    with pytest.raises(DataError, match="labels of training rows has 3"):
        fit_gene_standardiser(values, ["a"] * 3)


def test_more_of_the_same_of_one_label_moves_nothing():
    own = [profiles(40, "a", 1), profiles(20, "a", 2, np.arange(1, 8))]
    again = replace(own[0], profile_id=tuple(f"again{row}" for row in range(40)))
    own[1] = replace(own[1], profile_id=tuple(f"b{row}" for row in range(20)))
    once = gene_values(own, GENES)
    more = gene_values([own[0], own[1], again], GENES)
    label = ["x"] * 40 + ["y"] * 20
    a = fit_gene_standardiser(once, label)
    b = fit_gene_standardiser(more, [*label, *["x"] * 40])
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-5)  # one platform: no other to lean on
    np.testing.assert_allclose(a.deviation, b.deviation, rtol=1e-5)


def test_genes_that_were_not_observed_are_0_and_count_in_no_mean():
    lacking = np.arange(7) != 3
    nowhere = np.arange(7) != 6
    a = profiles(300, "a", 1, observed=lacking & nowhere)
    b = profiles(300, "a", 2, observed=nowhere)
    training = gene_values([a, b], GENES)
    fitted = fit_gene_standardiser(training)
    np.testing.assert_array_equal(fitted.is_known, nowhere)
    only = gene_values([b], GENES).values.toarray()[:, 3].astype(np.float64)
    np.testing.assert_allclose(fitted.mean0[3], only.mean(), rtol=1e-5)
    z, observed = fitted.apply(training)
    assert not z[:300, 3].any()
    assert z[300:, 3].any()
    assert not observed[:, 6].any()


def test_rows_and_their_order_change_no_other_row():
    values = gene_values([profiles(31, "a", 1), profiles(17, "b", 2)], GENES)
    fitted = fit_gene_standardiser(values)
    order = np.random.default_rng(0).permutation(48)[:13]
    np.testing.assert_array_equal(fitted.apply(values.take(order)).z, fitted.apply(values).z[order])
    mixed = fit_gene_standardiser(values.take(np.random.default_rng(1).permutation(48)))
    np.testing.assert_allclose(mixed.mean, fitted.mean, rtol=1e-5)


def test_an_unknown_platform_goes_by_the_mean_or_by_itself_and_says_so():
    fitted = fit_gene_standardiser(gene_values([profiles(300, "a", 1)], GENES))
    new = gene_values([profiles(200, "new", 2, np.arange(1, 8)), profiles(4, "few", 3)], GENES)
    known, notes = fitted.know(new)
    assert known.platforms == ("a", "new")
    assert "its own 200 rows" in notes[0]
    assert "4 rows are too few" in notes[1]
    z = known.apply(new).z
    assert np.abs(z[:200].mean(axis=0)).max() < 0.2
    before = fitted.apply(new).z
    assert np.abs(before[:200].mean(axis=0)).max() > 0.5
    np.testing.assert_array_equal(z[200:], before[200:])
    wide = new.values.toarray()[200:]
    np.testing.assert_allclose(
        before[200:], ((wide - fitted.mean0) / fitted.deviation0).clip(-CLIP, CLIP), rtol=1e-4
    )
    assert fitted.know(gene_values([profiles(9, "a", 4)], GENES)) == (
        fitted,
        ("platform 'a': as in training",),
    )


def test_a_gene_that_does_not_vary_is_0():
    some = profiles(40, "a", 1)
    flat = replace(some, expression=csr_array(np.ones((40, 7))))
    values = gene_values([flat], GENES)
    np.testing.assert_allclose(fit_gene_standardiser(values).apply(values).z, 0, atol=1e-5)


def test_what_is_kept_comes_back():
    values = gene_values([profiles(31, "a", 1), profiles(17, "b", 2)], GENES)
    fitted = fit_gene_standardiser(values)
    back = GeneStandardiser.from_arrays(fitted.to_arrays(), GENES, fitted.platforms)
    np.testing.assert_array_equal(back.apply(values).z, fitted.apply(values).z)
    with pytest.raises(MismatchError, match="wanted"):
        GeneStandardiser.from_arrays(fitted.to_arrays(), GENES, ("a",))
    with pytest.raises(MismatchError, match="align"):
        fitted.apply(gene_values([profiles(3, "a", 1)], GENES.take(np.arange(3))))
    with pytest.raises(DataError, match="no training row"):
        fit_gene_standardiser(values.take(np.zeros(0, dtype=np.int64)))
