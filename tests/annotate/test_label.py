"""Words put to toy worlds: what was planted comes out, at both levels and by both routes."""

from dataclasses import replace

import numpy as np
import pytest

from histoscribe.annotate.label import annotate, name_phenotypes, search
from histoscribe.annotate.queries import WordClass, embed_classes, fill
from histoscribe.annotate.word_model import AnnotateConfig
from histoscribe.data.store import read_annotation, write_annotation
from histoscribe.data.texts import Term
from histoscribe.data.toy import toy_world
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.train.assemble import SlideData

WORLDS = [toy_world(seed, f"s{seed}", f"p{seed}", has_lumen=seed == 8) for seed in (7, 8)]
SLIDES = [SlideData(world.cells, world.tiles, world.regions) for world in WORLDS]
ALPHA = WordClass("alpha cells", (Term("alpha", ("alpha cell", "alpha-like")),))
BETA = WordClass("beta cells", (Term("beta", ("beta cell",)),))
CLASSES = [ALPHA, BETA]


def test_every_name_goes_into_every_template_once(toy_words):
    texts = fill(("{x}", "a {x}"), ("B cell", "B cell", "b"))
    assert texts == ["B cell", "a B cell", "b", "a b"]
    queries = embed_classes(toy_words, CLASSES, ("{x}", "a {x}"))
    rows = toy_words.embed_texts(["alpha cell", "a alpha cell", "alpha-like", "a alpha-like"])
    mean = rows.astype(np.float64).mean(axis=0)
    assert np.allclose(queries.embedding[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert queries.prompts[1] == ("beta cell", "a beta cell")


def test_cells_get_the_kind_that_was_planted(toy_words):
    said = annotate(toy_words, SLIDES, CLASSES, AnnotateConfig(level="cell", abstention="none"))
    kind = np.concatenate([world.kind_of_cell for world in WORLDS])
    right = np.array(said.label) == np.array(["alpha cells", "beta cells"])[kind]
    assert len(said) == sum(len(slide.cells) for slide in SLIDES)
    assert right.mean() > 0.95
    # without calibration the bias of one class takes most labels
    config = AnnotateConfig(level="cell", abstention="none", calibration="none")
    biased = replace(toy_words, bias=1.6)
    raw = annotate(biased, SLIDES, CLASSES, config)
    mended = annotate(biased, SLIDES, CLASSES, replace(config, calibration="reference"))
    assert raw.label.count("beta cells") > 1.3 * (kind == 1).sum()
    assert abs(mended.label.count("beta cells") - (kind == 1).sum()) < 0.15 * len(kind)
    assert np.array_equal(raw.score, mended.score)


def test_regions_get_the_kind_that_is_more_frequent_and_a_lumen_gets_none(toy_words):
    said = annotate(toy_words, SLIDES, CLASSES, AnnotateConfig())
    assert said.kind == "spot"
    assert said.label.count("") == 1
    empty = said.label.index("")
    assert said.slide_id[empty] == "s8"
    assert np.isnan(said.score[empty]).all()
    assert np.isnan(said.label_probability[empty])
    counts = np.concatenate([slide.regions.expression.toarray() for slide in SLIDES])
    is_beta = counts[:, 4:8].sum(axis=1) > counts[:, :4].sum(axis=1)
    sure = [row for row, label in enumerate(said.label) if label not in ("", "unsure")]
    right = [is_beta[row] == (said.label[row] == "beta cells") for row in sure]
    assert len(sure) > 0.7 * len(said)
    assert np.mean(right) > 0.85


def test_two_routes_share_the_label_and_their_disagreement_is_kept(toy_words):
    both = annotate(toy_words, SLIDES, CLASSES, AnnotateConfig(level="cell", route="both"))
    image = annotate(toy_words, SLIDES, CLASSES, AnnotateConfig(level="cell", route="image"))
    other = annotate(toy_words, SLIDES, CLASSES, AnnotateConfig(level="cell", route="expression"))
    assert set(both.calibration) == {"image", "expression"}
    assert set(image.calibration) == {"image"}
    assert np.allclose(both.probability, (image.probability + other.probability) / 2, atol=1e-6)
    assert np.array_equal(both.score, image.score)
    assert np.array_equal(both.expression_score, other.score)
    assert np.isnan(image.uncertainty).all()
    assert image.expression_score is None
    differs = np.array(image.label) != np.array(other.label)
    assert both.uncertainty[differs].mean() > 5 * both.uncertainty[~differs].mean()
    unasked = annotate(toy_words, SLIDES, CLASSES, AnnotateConfig(level="cell"))
    assert (unasked.label, unasked.probability.tolist()) == (
        image.label,
        image.probability.tolist(),
    )
    assert np.array_equal(unasked.uncertainty, both.uncertainty)


def test_what_the_model_cannot_give_is_refused(toy_words):
    mute = replace(toy_words, predicts_expression=False)
    assert set(annotate(mute, SLIDES, CLASSES, AnnotateConfig()).calibration) == {"image"}
    with pytest.raises(ConfigError, match="predicts no expression"):
        annotate(mute, SLIDES, CLASSES, AnnotateConfig(route="both"))
    bare = replace(toy_words, has_reference=False)
    with pytest.raises(ConfigError, match="holds no reference"):
        annotate(bare, SLIDES, CLASSES, AnnotateConfig())
    with pytest.raises(ConfigError, match="search"):
        annotate(toy_words, SLIDES, [ALPHA], AnnotateConfig())
    with pytest.raises(DataError, match="unsure"):
        annotate(toy_words, SLIDES, [ALPHA, WordClass("unsure", BETA.members)], AnnotateConfig())
    with pytest.raises(DataError, match="no slides"):
        annotate(toy_words, [], CLASSES, AnnotateConfig())
    with pytest.raises(MismatchError, match="length"):
        annotate(_Long(toy_words), SLIDES, CLASSES, AnnotateConfig())


def test_a_label_depends_on_the_others_only_where_calibration_is_transductive(toy_words):
    for calibration, is_same in (("reference", True), ("transductive", False)):
        config = AnnotateConfig(calibration=calibration)
        together = annotate(toy_words, SLIDES, CLASSES, config).of_slide("s7")
        alone = annotate(toy_words, SLIDES[:1], CLASSES, config)
        assert np.array_equal(together.probability, alone.probability) == is_same
        assert together.calibration["image"].source == calibration


def test_an_annotation_survives_the_disk(toy_words, tmp_path):
    said = annotate(toy_words, SLIDES, CLASSES, AnnotateConfig())
    write_annotation(said, tmp_path / "a.zarr")
    back = read_annotation(tmp_path / "a.zarr")
    for name in ("score", "probability", "uncertainty", "xy_um", "expression_score"):
        assert np.array_equal(getattr(back, name), getattr(said, name), equal_nan=True), name
    for name in ("label", "unit_id", "slide_id", "terms", "prompts", "model_id", "radius_um"):
        assert getattr(back, name) == getattr(said, name), name
    assert back.provenance == said.provenance
    assert back.provenance.settings["terms"]["alpha cells"] == [["alpha cell", "alpha-like"]]
    for route, fitted in said.calibration.items():
        assert np.allclose(back.calibration[route].mean, fitted.mean)
        assert back.calibration[route].n_units == fitted.n_units == len(toy_regions())


def toy_regions():
    return toy_world(31, "s31", "p31").regions


def test_other_programs_read_it(toy_words, tmp_path):
    import anndata

    said = annotate(toy_words, SLIDES, CLASSES, AnnotateConfig())
    write_annotation(said, tmp_path / "a.zarr")
    table = anndata.read_zarr(tmp_path / "a.zarr")
    assert list(table.obs["label"]) == list(said.label)
    assert list(table.obs["label"].cat.categories) == ["alpha cells", "beta cells", "unsure", ""]
    assert table.obsm["score"].shape == (len(said), 2)


def test_clusters_are_named_by_what_is_in_them(toy_words):
    names = name_phenotypes(toy_words, SLIDES, CLASSES, AnnotateConfig())
    assert [one.label for one in names] == ["alpha cells", "beta cells"]
    assert sum(one.n_cells for one in names) == sum(len(slide.cells) for slide in SLIDES)
    assert names[0].score[0] - names[1].score[0] > 0.2


def test_a_search_ranks_units_and_leaves_out_those_without_a_nucleus(toy_words):
    found = search(toy_words, SLIDES, BETA, AnnotateConfig())
    order = found.ranking()
    assert len(order) == len(found.score) - 1
    assert (np.diff(found.score[order]) <= 0).all()
    said = annotate(toy_words, SLIDES, CLASSES, AnnotateConfig())
    assert np.allclose(found.score, said.score[:, 1], atol=1e-6, equal_nan=True)
    share = np.concatenate([slide.regions.expression.toarray()[:, 4:8].sum(1) for slide in SLIDES])
    assert share[order[:20]].mean() > 3 * share[order[-20:]].mean()


class _Long:
    """A model whose embeddings are not of unit length."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def embed_regions(self, slides):
        return 2 * self._model.embed_regions(slides)
