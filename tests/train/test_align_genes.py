"""Which genes an alignment reads, and what it makes of profiles and marker lists."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.readers.marker_lists import MarkerSet
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_genes import Words, choose_table, make_gene_side, pair_genes
from histoscribe.train.fit import make_ready
from histoscribe.train.gene_panel import PanelConfig, choose_panel
from histoscribe.train.pairs import PairStream

N_GENES = 13
NAMES = tuple(f"G{number}" for number in range(N_GENES))
GENES = GenePanel(NAMES, NAMES, "symbol")


@pytest.fixture(scope="module")
def training(slides):
    """Three toy slides with counts in which depth differs, and the last gene is rarely seen."""
    rng = np.random.default_rng(6)
    rate = rng.uniform(0.2, 4, N_GENES)
    rate[-1] = 0.01
    made = []
    for one in slides[:3]:
        n = len(one.regions)
        depth = rng.uniform(0.3, 3, (n, 1))
        own = np.exp(rng.normal(size=(n, N_GENES)) * np.linspace(0, 1, N_GENES))
        counts = rng.poisson(depth * rate * own).astype(np.float32)
        regions = replace(one.regions, genes=GENES, expression=csr_array(counts))
        made.append(replace(one, regions=regions))
    return made


@pytest.fixture(scope="module")
def bags(slides, split, panel, quick, small):
    return make_ready(slides, split, panel, config=quick, model_settings=small).assembled


def a_profile():
    return Profiles(
        profile_id=("p",),
        expression=csr_array(np.ones((1, N_GENES), np.float32)),
        expression_unit="counts",
        genes=GENES,
        gene_observed=np.ones(N_GENES, dtype=bool),
        provenance=Provenance("test"),
    )


def test_the_table_goes_on_as_panels_are_chosen(training):
    regions = [one.regions for one in training]
    words = Words((a_profile(),))
    order = choose_panel(regions, PanelConfig(n_genes=9)).ids
    panel = choose_panel(regions, PanelConfig(n_genes=2))
    assert choose_table(panel, training, words, 9).ids == order
    logs = np.concatenate([one.expression.toarray() for one in regions])
    logs = np.log1p(1e4 * logs / np.maximum(logs.sum(axis=1, keepdims=True), 1))
    by_variance = [NAMES[row] for row in np.argsort(-logs.var(axis=0))]
    assert by_variance[:9] != list(order)  # or it would not matter


def test_markers_come_before_and_need_not_be_seen_often(training):
    panel = GENES.take(np.array([4]))
    words = Words((a_profile(),), (MarkerSet("x", (NAMES[-1],), (1.0,)),))
    assert choose_table(panel, training, words, 3).ids[1] == NAMES[-1]
    assert NAMES[-1] not in choose_table(panel, training, Words(words.profiles), 99).ids


def test_regions_that_are_no_counts_go_by_their_logarithms(training):
    as_tpm = [replace(one, regions=replace(one.regions, expression_unit="tpm")) for one in training]
    words = Words((a_profile(),))
    table = choose_table(GENES.take(np.array([4])), as_tpm, words, N_GENES)
    logs = np.concatenate([one.regions.expression.toarray() for one in training])
    logs = np.log1p(1e4 * logs / np.maximum(logs.sum(axis=1, keepdims=True), 1))
    order = [NAMES[row] for row in np.argsort(-logs.var(axis=0)) if row != 4]
    assert table.ids[1:] == tuple(order)


def test_noise_of_marker_profiles_is_in_z_however_high_markers_are(bags, panel, slides):
    genes = slides[0].regions.genes
    words = Words((), (MarkerSet("x", genes.ids[:1], (1.0,)),))

    def z_of(height):
        config = AlignConfig(marker_copies=50, marker_z=height, marker_noise=0.3)
        side = make_gene_side(bags, panel, words, config)
        return side.rows.read(side.train).z[:, side.table.ids.index(panel.ids[1])]

    np.testing.assert_allclose(z_of(1.0), z_of(3.0), rtol=1e-5)
    assert 0.2 < z_of(3.0)[1:].std() < 0.4


def test_half_of_what_is_said_of_genes_comes_from_marker_lists(bags, panel, slides):
    """Three labelled profiles beside thirty-two copies of two lists."""
    genes = slides[0].regions.genes
    counts = csr_array(np.random.default_rng(0).poisson(5, (3, N_GENES)).astype(np.float32))
    some = replace(
        a_profile(),
        genes=genes,
        profile_id=("p", "q", "r"),
        expression=counts,
        text=("x",) * 3,
        platform=("cells",) * 3,
        donor_id=("",) * 3,
    )
    markers = tuple(MarkerSet(gene, (gene,), (1.0,)) for gene in genes.ids[:2])
    side = make_gene_side(bags, panel, Words((some,), markers), AlignConfig())
    pairs = pair_genes(side)
    drawn = np.concatenate([PairStream(pairs, 24, 1).draw(step).left for step in range(8)])
    assert len(side.train) == 3 + 32
    assert (drawn < side.n_measured).mean() == 0.5
    np.testing.assert_array_equal(np.unique(drawn), side.train)
