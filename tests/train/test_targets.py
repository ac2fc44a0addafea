from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.errors import ConfigError, DataError
from histoscribe.train.targets import library_size, measure


def test_cp10k_divides_by_the_whole_transcriptome_whatever_the_panel(slides):
    regions = slides[0].regions
    counts = regions.expression.toarray()
    two = regions.genes.take(np.array([4, 1]))
    y, seen = measure(regions, two, "log1p_cp10k")
    wanted = np.log1p(counts[:, [4, 1]] / counts.sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(y, wanted, rtol=1e-5)
    assert seen.all()
    np.testing.assert_allclose(library_size(regions), counts.sum(axis=1))
    raw, _ = measure(regions, two, "log1p_counts")
    np.testing.assert_allclose(raw, np.log1p(counts[:, [4, 1]]), rtol=1e-6)


def test_missing_genes_are_masked_not_zero(slides):
    regions = slides[0].regions
    more = GenePanel((*regions.genes.ids[:2], "ABSENT"), ("a", "b", "c"), regions.genes.namespace)
    y, seen = measure(regions, more, "log1p_counts")
    assert np.isnan(y[:, 2]).all()
    assert not seen[:, 2].any()
    assert seen[:, :2].all()


def test_a_region_without_counts_has_no_cp10k(slides):
    regions = slides[0].regions
    counts = regions.expression.toarray()
    counts[3] = 0
    empty = replace(regions, expression=csr_array(counts))
    y, seen = measure(empty, regions.genes, "log1p_cp10k")
    assert not seen[3].any()
    assert np.isnan(y[3]).all()
    assert np.isfinite(np.delete(y, 3, axis=0)).all()


def test_other_units_and_spaces_are_refused(slides):
    regions = slides[0].regions
    with pytest.raises(DataError, match="is made from"):
        measure(replace(regions, expression_unit="tpm"), regions.genes, "log1p_cp10k")
    with pytest.raises(DataError, match="have no expression"):
        measure(replace(regions, expression=None), regions.genes, "log1p_cp10k")
    with pytest.raises(ConfigError, match="target space"):
        measure.__wrapped__(regions, regions.genes, "zscore")
