from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions
from histoscribe.errors import DataError
from histoscribe.train.gene_panel import (
    PanelConfig,
    choose_panel,
    noise_ceiling,
    normalised_dispersion,
    residual_variance,
)


def section(counts, slide_id="s", symbols=None):
    n, g = counts.shape
    symbols = symbols or tuple(f"G{i:03d}" for i in range(g))
    return Regions(
        kind="spot",
        region_id=tuple(f"r{i}" for i in range(n)),
        slide_id=(slide_id,) * n,
        patient_id=("p",) * n,
        xy_um=np.stack([np.arange(n) * 200.0, np.zeros(n)], axis=1).astype(np.float32),
        radius_um=50.0,
        pitch_um=200.0,
        genes=GenePanel(symbols, symbols, "symbol"),
        expression=csr_array(counts.astype(np.float32)),
        expression_unit="counts",
        gene_observed=np.ones(g, bool),
        platform="test",
        provenance=Provenance("test"),
    )


@pytest.fixture(scope="module")
def counts():
    """Genes 5, 17 and 29 follow a gradient; the rest is Poisson; gene 40 is hardly seen."""
    rng = np.random.default_rng(4)
    rate = np.tile(rng.uniform(0.5, 6, 43), (91, 1))
    rate[:, [5, 17, 29]] = 4 * (1 + np.sin(np.arange(91) / 9))[:, None]
    rate[:, 40] = 0.005
    return rng.poisson(rate)


def test_genes_that_vary_are_found_in_two_sections(counts):
    sections = [section(counts[:50], "a"), section(counts[50:], "b")]
    assert set(choose_panel(sections, PanelConfig(n_genes=3)).ids) == {"G005", "G017", "G029"}


def test_residual_variance_is_the_formula_over_the_regions_that_measured_a_gene(counts):
    x = counts.astype(np.float64)
    x[:50, 5] = 0  # not measured there, which is no zero
    observed = np.ones((2, 43), dtype=bool)
    observed[0, 5] = False
    seen = np.repeat(observed, [50, 41], axis=0)
    size = x.sum(axis=1, keepdims=True)
    mu = size * x.sum(axis=0) / np.where(seen, size, 0).sum(axis=0)
    n = seen.sum(axis=0)
    r = ((x - mu) / np.sqrt(mu + mu**2 / 100)).clip(-np.sqrt(n), np.sqrt(n))
    wanted = [r[seen[:, gene], gene].var() for gene in range(43)]
    tables = [csr_array(x[:50]), csr_array(x[50:])]
    np.testing.assert_allclose(residual_variance(tables, observed, np.arange(43)), wanted)
    np.testing.assert_allclose(
        residual_variance(tables, observed, np.array([9, 5])), [*np.array(wanted)[[9, 5]]]
    )


def test_normalised_dispersion_is_scanpys_flavour_seurat(counts):
    """Their code in their words: pandas.cut in 20 bins, sd with ddof 1, lone genes get 1."""
    cp10k = counts / counts.sum(axis=1, keepdims=True) * 1e4
    mean, variance = cp10k.mean(axis=0), cp10k.var(axis=0, ddof=1)
    table = pd.DataFrame({"mean": np.log1p(mean), "dispersion": np.log(variance / mean)})
    grouped = table.groupby(pd.cut(table["mean"], bins=20), observed=True)["dispersion"]
    wanted = (table["dispersion"] - grouped.transform("mean")) / grouped.transform("std", ddof=1)
    wanted[grouped.transform("size") == 1] = 1.0
    got = normalised_dispersion(csr_array(cp10k))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("rule", ["pearson", "dispersion"])
@pytest.mark.parametrize("name", ["MT-CO1", "mt-Co1", "RPL3", "Rps7"])
def test_mitochondrial_and_ribosomal_genes_are_never_chosen(counts, rule, name):
    symbols = [f"G{i:03d}" for i in range(43)]
    symbols[17] = name
    panel = choose_panel(
        [section(counts, symbols=tuple(symbols))], PanelConfig(rule=rule, n_genes=20)
    )
    assert name not in panel.symbols
    assert len(panel) == 20


@pytest.mark.parametrize("rule", ["pearson", "dispersion"])
def test_the_order_of_columns_does_not_matter(counts, rule):
    config = PanelConfig(rule=rule, n_genes=9)
    order = np.random.default_rng(0).permutation(43)
    shuffled = section(counts[:, order], symbols=tuple(f"G{i:03d}" for i in order))
    assert choose_panel([section(counts)], config).ids == choose_panel([shuffled], config).ids


def test_rare_genes_are_left_out_and_too_few_genes_are_told(counts):
    config = PanelConfig(n_genes=42)
    assert "G040" not in choose_panel([section(counts)], config).ids
    with pytest.raises(DataError, match="43 genes were asked for, only 42"):
        choose_panel([section(counts)], replace(config, n_genes=43))


def test_only_genes_measured_in_every_section_are_chosen(counts):
    second = section(counts[50:, 6:], "b", tuple(f"G{i:03d}" for i in range(6, 43)))
    panel = choose_panel([section(counts[:50], "a"), second], PanelConfig(n_genes=20))
    assert "G005" not in panel.ids


def test_dispersion_panel_is_the_smallest_k_of_eq_20(counts):
    """By brute force: the least K whose two lists share the wanted number of genes."""
    config = PanelConfig(rule="dispersion", n_genes=11, n_candidates=30)
    chosen = set(choose_panel([section(counts)], config).ids)
    nominated = choose_panel([section(counts)], replace(config, n_genes=30))
    keep = [int(gene[1:]) for gene in nominated.ids]
    logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)[:, keep]
    by_mean, by_sd = np.argsort(-logged.mean(axis=0)), np.argsort(-logged.std(axis=0))
    shared = [set(by_mean[:k]) & set(by_sd[:k]) for k in range(31)]
    k = next(k for k, both in enumerate(shared) if len(both) >= 11)
    names = {f"G{keep[i]:03d}" for i in shared[k]}
    assert chosen <= names
    assert len(shared[k - 1]) < 11


@pytest.mark.parametrize("is_normalised", [False, True])
def test_noise_ceiling_is_what_the_true_rate_reaches(is_normalised):
    """Simulated: the PCC of the measured counts with the rate they were drawn from."""
    rng = np.random.default_rng(8)
    rate = np.concatenate(
        [rng.gamma(2.0, 1.0, size=(400, 13)), rng.uniform(20, 30, size=(400, 37))], axis=1
    )
    counts = rng.poisson(rate)
    regions = section(counts)
    panel = regions.genes.take(np.arange(13))
    scale = 1e4 / rate.sum(axis=1, keepdims=True) if is_normalised else 1.0
    size = 1e4 / counts.sum(axis=1, keepdims=True) if is_normalised else 1.0
    x, y = np.log1p(rate * scale), np.log1p(counts * size)
    reached = np.mean([np.corrcoef(x[:, g], y[:, g])[0, 1] for g in range(13)])
    generator = np.random.default_rng(1)
    ceiling = noise_ceiling(regions, panel, generator, is_normalised=is_normalised)
    assert abs(ceiling - reached) < 0.06
    again = noise_ceiling(regions, panel, np.random.default_rng(1), is_normalised=is_normalised)
    assert again == ceiling


def test_noise_has_no_ceiling_to_speak_of():
    rng = np.random.default_rng(9)
    regions = section(rng.poisson(2.0, size=(300, 15)))
    ceiling = noise_ceiling(regions, regions.genes, rng, is_normalised=False)
    assert ceiling < 0.25
