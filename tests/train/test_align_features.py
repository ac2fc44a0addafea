"""Profiles by vectors of another model: words still reach images, and vectors must fit."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.metrics import roc_auc_score

from histoscribe.annotate.label import annotate
from histoscribe.annotate.queries import WordClass
from histoscribe.annotate.word_model import AnnotateConfig, WordModel
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.data.region_features import RegionFeatures
from histoscribe.data.texts import Term
from histoscribe.data.toy import RATES
from histoscribe.data.toy_words import KINDS, N_FEATURES, N_GENES, toy_words_world
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.models.trimodal import Trimodal
from histoscribe.models.trimodal_config import TrimodalConfig
from histoscribe.readers.marker_lists import MarkerSet
from histoscribe.train.align import TextSource, fit_align
from histoscribe.train.align_checkpoint import AlignCheckpoint
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_data import AlignData, HeldBags, HeldOut, TextRows
from histoscribe.train.align_features import FeatureRows
from histoscribe.train.align_genes import Words
from histoscribe.train.align_loop import AlignTask, align_net
from histoscribe.train.align_step import Aligner
from histoscribe.train.align_text import find_text_tower
from histoscribe.train.feature_standardiser import fit_feature_standardiser
from histoscribe.train.gene_standardiser import log_cp10k
from histoscribe.train.net_task import FitLog
from histoscribe.train.pairs import pair_rows, pair_texts

KEY, WIDTH = "X_other", 40
QUICK = AlignConfig(
    loss="softmax",
    gene_space="learned",
    profile_embedding=KEY,
    n_nets=2,
    n_steps=8,
    validate_every=4,
    image_gene_rows=23,
    gene_text_rows=11,
    embedding_width=10,
    n_reference=40,
    seed=3,
)


def embed(expression, width=WIDTH, seed=3):
    """Stands for another model: a random rotation of log expression, cut, and bent by tanh."""
    counts = csr_array(expression)
    values = log_cp10k(counts, np.asarray(counts.sum(axis=1)).ravel()).toarray().astype(np.float64)
    n_genes = values.shape[1]
    turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n_genes, n_genes)))
    return np.tanh(0.35 * values @ turned[:, :width]).astype(np.float32)


@cache
def world():
    return toy_words_world(11, 1560 + 300, 500)


def transitive_auroc(*, permuted=False):
    """AUROC of what is in an image by image and text, which meet across the vectors alone."""
    toy, n_train = world(), 1500
    counts = toy.profiles.expression
    if permuted:  # the labelled cells' genes are other genes
        counts = counts[:, np.random.default_rng(5).permutation(N_GENES)]
    features = np.concatenate([embed(toy.of_images.expression), embed(counts)])
    n_images = len(toy.of_images)
    platform = toy.of_images.platform + toy.profiles.platform
    profiles = n_images + np.arange(len(toy.profiles))
    rows, held = np.arange(n_train), np.arange(n_train, n_train + 60)
    standardiser = fit_feature_standardiser(KEY, features, platform, np.r_[rows, profiles])
    keys = ("",) * n_images + (toy.profiles.text_key or ())
    number = np.array([toy.texts.keys.index(key) for key in toy.texts.text_key])
    words = np.random.default_rng(1).normal(size=(len(toy.texts.text), 64)).astype(np.float32)
    data = AlignData(
        HeldBags(toy.images),
        FeatureRows(features, platform, standardiser),
        TextRows(number, words),
        (
            pair_rows("image-gene", rows, rows),
            pair_texts("gene-text", keys, toy.texts, profiles),
        ),
        HeldOut(held, held),
    )
    torch.manual_seed(0)
    bitro = BitroConfig(
        *(N_FEATURES, 1, 1, N_GENES),
        has_context=False,
        cells_in_training=0,
        width=48,
        gat_layers=0,
        transformer_layers=0,
        position="none",
        dropout=0.0,
    )
    space = Trimodal(TrimodalConfig(bitro, n_text=64, n_profile_features=WIDTH, embedding_width=48))
    config = replace(
        QUICK,
        objective="align",
        n_steps=120,
        validate_every=60,
        image_gene_rows=96,
        gene_text_rows=96,
        embedding_width=48,
    )
    net = Aligner(space)
    net.load_state_dict(align_net(net, data, AlignTask(0, 1, 0, "toy"), config, FitLog()).weights)
    net.eval()
    test = np.arange(n_train + 60, n_images)
    with torch.no_grad():
        image = net.space.embed_regions(data.images.bags(test, 0))
        names = np.flatnonzero([text in KINDS for text in toy.texts.text])
        score = (image @ net.embed_texts(data, names).T).numpy()
    return float(roc_auc_score(toy.presence[test], score, average="macro"))


def test_words_reach_images_across_vectors_of_another_model():
    assert transitive_auroc() >= 0.85


def test_vectors_of_other_genes_carry_nothing():
    assert abs(transitive_auroc(permuted=True) - 0.5) <= 0.12


@pytest.fixture(scope="module")
def text(tiny_bert):
    return TextSource(find_text_tower(str(tiny_bert)), str(tiny_bert))


@pytest.fixture(scope="module")
def words(slides):
    """Cells of two kinds whose genes the slides do not have; vectors lead from one to the other."""
    rng, n = np.random.default_rng(2), 28
    kind = np.arange(n) % 2
    names = tuple(("alpha cell", "beta cell")[k] for k in kind)
    counts = rng.poisson(3 * RATES[kind]).astype(np.float32)
    features = embed(counts, 6)
    features[4] = np.nan
    genes = slides[0].regions.genes
    profiles = Profiles(
        profile_id=tuple(f"p{row}" for row in range(n)),
        expression=csr_array(counts),
        expression_unit="counts",
        genes=replace(genes, ids=tuple(f"ENSMUSG{row:011d}" for row in range(len(genes)))),
        gene_observed=np.ones(len(genes), dtype=bool),
        provenance=Provenance("test"),
        text=names,
        text_key=names,
        platform=("cells",) * n,
        donor_id=tuple(f"d{row % 8 // 2}" for row in range(n)),
        features=features,
        features_by=KEY,
    )
    regions = RegionFeatures(
        KEY,
        tuple(name for slide in slides for name in slide.regions.slide_id),
        tuple(name for slide in slides for name in slide.regions.region_id),
        np.concatenate([embed(slide.regions.expression, 6) for slide in slides]),
        Provenance("test"),
    )
    return Words((profiles,), region_features=regions)


@pytest.fixture(scope="module")
def aligned(slides, split, panel, words, text, quick, small):
    return fit_align(
        slides, split, panel, words, text, config=QUICK, fit=quick, model_settings=small
    )


def test_a_fitted_space_reads_vectors_and_comes_back_from_disk(
    aligned, slides, words, tmp_path, panel
):
    assert isinstance(aligned, WordModel)
    assert aligned.profile_embedding == KEY
    assert aligned.table.ids == panel.ids
    profiles = words.profiles[0]
    rows = aligned.embed_profiles(profiles)
    assert np.flatnonzero(np.isnan(rows).any(axis=1)).tolist() == [4]
    assert np.allclose(np.linalg.norm(np.delete(rows, 4, 0), axis=1), 1, atol=1e-5)
    aligned.save(tmp_path / "a")
    loaded = AlignCheckpoint.load(tmp_path / "a")
    assert loaded.model_id == aligned.model_id
    assert np.array_equal(loaded.embed_profiles(profiles), rows, equal_nan=True)
    assert np.array_equal(loaded.embed_regions(slides[3:]), aligned.embed_regions(slides[3:]))
    few = profiles.take(np.arange(3))
    assert np.allclose(loaded.embed_profiles(few), rows[:3], atol=1e-6)
    assert loaded.has_expression
    assert loaded.to_predictor().panel.ids == panel.ids


def test_there_is_the_image_route_and_no_other(aligned, slides):
    classes = [WordClass(name, (Term(name, (name,)),)) for name in ("alpha cell", "beta cell")]
    said = annotate(aligned, slides[3:], classes, AnnotateConfig())
    assert set(said.calibration) == {"image"}
    assert np.isnan(said.uncertainty).all()
    assert aligned.embed_by_expression(slides[3:], "region") is None
    assert set(aligned.references) == {"region/image", "cell/image"}
    for route in ("expression", "both"):
        with pytest.raises(ConfigError, match="vectors of another model"):
            annotate(aligned, slides[3:], classes, AnnotateConfig(route=route))


def test_a_region_that_is_tested_changes_nothing(
    aligned, slides, split, panel, words, text, quick, small
):
    given = words.region_features
    poisoned = given.features.copy()
    poisoned[np.array(given.slide_id) == "toy-3"] = 1e4
    poison = replace(words, region_features=replace(given, features=poisoned))
    again = fit_align(
        slides, split, panel, poison, text, config=QUICK, fit=quick, model_settings=small
    )
    assert again.model_id == aligned.model_id
    other = replace(given, provenance=Provenance("another file"))
    other = replace(words, region_features=other)
    config = replace(QUICK, n_steps=4)
    made = fit_align(
        slides, split, panel, other, text, config=config, fit=quick, model_settings=small
    )
    assert made.provenance.inputs["region_features"] == Provenance("another file").key


@pytest.mark.parametrize("wrong", ["name", "width", "genes"])
def test_profiles_of_another_model_are_refused(wrong, aligned, words):
    profiles = words.profiles[0]
    given = {
        "name": {"features_by": "X_third"},
        "width": {"features": profiles.features[:, :4].copy()},
        "genes": {"features": None, "features_by": None},
    }[wrong]
    with pytest.raises(MismatchError, match=KEY):
        aligned.embed_profiles(replace(profiles, **given))


def test_what_does_not_go_together_is_refused(slides, split, panel, words, text, quick, small):
    profiles, regions = words.profiles[0], words.region_features
    marked = (MarkerSet("beta cell", ("BETA1",), (1.0,)),)
    bare = replace(profiles, features=None, features_by=None)
    elsewhere = replace(regions, slide_id=("other",) * len(regions), region_id=tuple(
        f"r{row}" for row in range(len(regions))
    ))  # fmt: skip
    narrow = replace(regions, features=regions.features[:, :3].copy())
    for given, error, match in (
        (replace(words, markers=marked), ConfigError, "beta cell has no vector"),
        (replace(words, region_features=None), ConfigError, "vectors of the regions"),
        (replace(words, profiles=(bare,)), MismatchError, "labelled profiles 0 are none"),
        (replace(words, region_features=narrow), MismatchError, "width 6, wanted X_other"),
        (replace(words, region_features=elsewhere), MismatchError, "as the study does"),
    ):
        with pytest.raises(error, match=match):
            fit_align(
                slides, split, panel, given, text, config=QUICK, fit=quick, model_settings=small
            )
    by_genes = replace(QUICK, profile_embedding=None)
    with pytest.raises(ConfigError, match="name them in"):
        fit_align(
            slides, split, panel, words, text, config=by_genes, fit=quick, model_settings=small
        )


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"loss": "anchor", "gene_space": "fixed"}, "gene_space to learned"),
        ({"loss": "softmax", "gene_space": "fixed"}, "gene_space to learned"),
        ({"loss": "anchor"}, "softmax or siglip"),
        ({"cycle_weight": 0.5}, "cycle_weight"),
        ({"profile_embedding": " "}, "give a name"),
    ],
)
def test_settings_that_vectors_cannot_have_are_named(wrong, match):
    with pytest.raises(ConfigError, match=match):
        replace(QUICK, **wrong)
