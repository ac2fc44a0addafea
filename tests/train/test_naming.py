"""Slides and checkpoints that name their genes in different ways meet as if they did not."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array
from tests.train.test_transfer import SOURCE, TARGET

from histoscribe.data.gene_names import human_genes, rename_panel
from histoscribe.data.genes import GenePanel
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.errors import MismatchError
from histoscribe.evaluate.benchmark import ScoreConfig, benchmark
from histoscribe.evaluate.bootstrap import BootstrapConfig
from histoscribe.predict import predict_regions
from histoscribe.readers.marker_lists import MarkerSet
from histoscribe.train.align import TextSource, fit_align
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_genes import Words, name_words
from histoscribe.train.align_text import find_text_tower
from histoscribe.train.fit import fit
from histoscribe.train.gene_panel import PanelConfig, choose_panel
from histoscribe.train.naming import name_alike
from histoscribe.train.targets import library_size, measure
from histoscribe.train.transfer import Start

STRANGER = "LOST-SYMBOL"
MOUSE = GenePanel(("ENSMUSG00000029580", "ENSMUSG00000059552"), ("Actb", "Trp53"), "ensembl")


def with_real_genes(slide, namespace, stranger=None):
    """The slide with real genes in place of the toy's; one of them perhaps unknown."""
    n_genes = len(slide.regions.genes)
    pairs = [
        pair
        for pair in sorted(human_genes().id_of.items())
        if not pair[0].startswith(("ENSG", "MT-", "RPS", "RPL"))
    ][:n_genes]
    symbols, ids = (list(names) for names in zip(*pairs, strict=True))
    if stranger is not None:
        symbols[stranger] = ids[stranger] = STRANGER
    names = tuple(ids if namespace == "ensembl" else symbols)
    panel = GenePanel(names, tuple(symbols), namespace)
    return replace(slide, regions=replace(slide.regions, genes=panel))


@pytest.fixture(scope="module")
def by_symbol(slides):
    return [with_real_genes(slide, "symbol") for slide in slides]


@pytest.fixture(scope="module")
def by_id(slides):
    return [with_real_genes(slide, "ensembl") for slide in slides]


def with_mouse_genes(slide):
    """Few regions of the slide, with two genes of a mouse."""
    regions = replace(
        slide.regions.take(np.arange(3)),
        genes=MOUSE,
        expression=csr_array(np.ones((3, 2), np.float32)),
        gene_observed=np.ones(2, dtype=bool),
    )
    return replace(slide, regions=regions)


def choose(slides):
    return choose_panel([slide.regions for slide in slides], PanelConfig(n_genes=7))


def weights_of(checkpoint):
    return [{name: t.numpy() for name, t in net.items()} for net in checkpoint.merged().nets]


def same(one, other):
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)
        for a, b in zip(weights_of(one), weights_of(other), strict=True)
    )


@pytest.mark.parametrize("namespace", ["symbol", "ensembl"])
def test_a_fit_goes_on_from_genes_of_the_other_namespace(namespace, by_symbol, by_id, quick, small):
    """Both directions; the outcome is that of data in the checkpoint's own names, bit for bit."""
    alike, other = (by_symbol, by_id) if namespace == "symbol" else (by_id, by_symbol)
    source = fit(alike, SOURCE, choose(alike[:2]), config=quick, model_settings=small)
    brief = replace(quick, max_epochs=2, stop_on="loss")
    wanted = fit(alike, TARGET, choose(alike[2:3]), config=brief, start=Start(source))
    got = fit(other, TARGET, choose(other[2:3]), config=brief, start=Start(source))
    assert got.panel.namespace == source.panel.namespace == namespace
    # the order of ties may hang on names; here the same genes come in the same order
    assert got.panel.ids == wanted.panel.ids
    assert same(got, wanted)
    config = ScoreConfig(BootstrapConfig(n_draws=20))
    # answers and truths of the test slide, genes named as they came
    assert benchmark(got, other, config).to_json() == benchmark(wanted, alike, config).to_json()
    assert predict_regions(got, other[3:]).genes == got.panel


def test_a_fit_takes_slides_of_both_namespaces(by_symbol, by_id, split, quick, small):
    told = []
    mixed = name_alike([by_symbol[0], by_id[1], by_symbol[2], by_id[3]], tell=told.append)
    n_genes = len(by_id[0].regions.genes)
    assert told == [f"{n_genes} of {n_genes} genes are matched by their Ensembl id (GENCODE 48)"]
    panel = choose(mixed[:3])
    assert panel.namespace == "ensembl"
    wanted = fit(by_id, split, panel, config=quick, model_settings=small)
    unnamed = [by_symbol[0], by_id[1], by_symbol[2], by_id[3]]
    assert same(fit(unnamed, split, panel, config=quick, model_settings=small), wanted)
    assert same(fit(mixed, split, panel, config=quick, model_settings=small), wanted)


def words_by(namespace, genes):
    """Ten profiles of two kinds and a marker list of one, by the names of the namespace."""
    rng = np.random.default_rng(2)
    panel = rename_panel(genes, namespace)
    kind = tuple(("alpha cell", "beta cell")[row % 2] for row in range(10))
    profiles = Profiles(
        profile_id=tuple(f"p{row}" for row in range(10)),
        expression=csr_array(rng.poisson(3, (10, len(panel))).astype(np.float32)),
        expression_unit="counts",
        genes=panel,
        gene_observed=np.ones(len(panel), dtype=bool),
        provenance=Provenance("test"),
        text=kind,
        text_key=kind,
    )
    return Words((profiles,), (MarkerSet("beta cell", panel.ids[4:6], (1.0, 2.0)),))


@pytest.mark.parametrize("namespace", ["symbol", "ensembl"])
def test_words_meet_slides_of_the_other_namespace(
    namespace, by_symbol, by_id, split, quick, small, tiny_bert
):
    """Both directions; the space is that of words in the slides' own names, bit for bit."""
    slides, other = (by_symbol, "ensembl") if namespace == "symbol" else (by_id, "symbol")
    genes = slides[0].regions.genes
    # the study's own symbols, if it has some, are not what they meet by
    bare = replace(genes, symbols=genes.ids)
    slides = [replace(one, regions=replace(one.regions, genes=bare)) for one in slides]
    alike, strange = (words_by(name, genes) for name in (namespace, other))
    told = []
    named = name_words(strange, [one.regions for one in slides[:3]], told.append)
    assert [line.split(" genes")[0] for line in told] == [f"{len(genes)} of {len(genes)}"]
    assert named.profiles[0].genes.ids == alike.profiles[0].genes.ids
    assert named.markers == alike.markers
    same_words = name_words(alike, [slides[0].regions], told.append)
    assert same_words.profiles[0] is alike.profiles[0]
    assert same_words.markers == alike.markers
    assert len(told) == 1
    text = TextSource(find_text_tower(str(tiny_bert)), str(tiny_bert))
    align = AlignConfig(n_nets=1, n_steps=3, image_gene_rows=23, embedding_width=8)
    settings = {"config": align, "fit": quick, "model_settings": small}
    wanted, got = (
        fit_align(slides, split, choose(slides[:3]), one, text, **settings)
        for one in (alike, strange)
    )
    assert got.table.ids == wanted.table.ids
    assert got.standardiser.platforms == ("", "toy")
    for name, weights in wanted.nets[0].items():
        np.testing.assert_array_equal(got.nets[0][name], weights)


def test_words_of_a_mouse_meet_no_man(by_symbol):
    words = words_by("symbol", by_symbol[0].regions.genes)
    mouse = with_mouse_genes(by_symbol[0]).regions
    assert name_words(Words((), words.markers), [mouse]).markers == words.markers
    of_mouse = replace(
        words.profiles[0],
        genes=MOUSE,
        expression=csr_array(np.ones((10, 2), np.float32)),
        gene_observed=np.ones(2, dtype=bool),
    )
    with pytest.raises(MismatchError, match="human"):
        name_words(Words((of_mouse,)), [by_symbol[0].regions])


def test_genes_without_a_pair_are_masked_and_count_in_the_library(slides, by_id):
    strange = with_real_genes(slides[0], "symbol", stranger=2)
    panel = by_id[0].regions.genes
    (named,) = name_alike([strange], panel)
    values, is_observed = measure(named.regions, panel, "log1p_cp10k")
    wanted, _ = measure(by_id[0].regions, panel, "log1p_cp10k")
    absent = np.arange(len(panel)) == 2
    assert not is_observed[:, absent].any()
    assert np.isnan(values[:, absent]).all()
    assert np.array_equal(values[:, ~absent], wanted[:, ~absent])
    assert np.array_equal(library_size(named.regions), library_size(slides[0].regions))


def test_scoring_does_not_look_at_slides_of_no_side(by_symbol, by_id, quick, small):
    """One of a mouse, say, which could not be renamed."""
    brief = replace(quick, max_epochs=1)
    made = fit(by_symbol, TARGET, choose(by_symbol[2:3]), config=brief, model_settings=small)
    assert by_id[0].slide_id not in (*TARGET.train, *TARGET.test)
    config = ScoreConfig(BootstrapConfig(n_draws=20))
    wanted = benchmark(made, by_id[1:], config).to_json()
    assert benchmark(made, [with_mouse_genes(by_id[0]), *by_id[1:]], config).to_json() == wanted


def test_slides_named_alike_are_not_touched(by_id, slides):
    told = []
    for given in (by_id, slides):
        made = name_alike(given, given[0].regions.genes, told.append)
        assert all(a is b for a, b in zip(made, given, strict=True))
    assert told == []


def test_other_species_are_refused_with_the_mend(by_symbol, slides):
    with pytest.raises(MismatchError, match="ENSMUSG00000029580 is not the id of a human gene"):
        name_alike(by_symbol, MOUSE)
    with pytest.raises(MismatchError, match="only human genes can be renamed"):
        name_alike([with_mouse_genes(slides[0])], by_symbol[0].regions.genes)


def test_a_panel_goes_both_ways(by_id):
    panel = by_id[0].regions.genes
    assert rename_panel(rename_panel(panel, "symbol"), "ensembl") == panel
