"""Words reach images that were never shown with one: through the real modules and steps."""

import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from histoscribe.data.toy_words import (
    KINDS,
    N_FEATURES,
    N_GENES,
    toy_words_world,
)
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.models.trimodal import Trimodal
from histoscribe.models.trimodal_config import TrimodalConfig
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_data import (
    AlignData,
    HeldBags,
    HeldOut,
    MeasuredGenes,
    StackedGenes,
    TextRows,
    fit_gene_map,
)
from histoscribe.train.align_loop import AlignTask, align_net
from histoscribe.train.align_step import Aligner
from histoscribe.train.gene_standardiser import fit_gene_standardiser, gene_values
from histoscribe.train.net_task import FitLog
from histoscribe.train.pairs import pair_rows, pair_texts

pytestmark = pytest.mark.slow  # about twenty seconds together

N_TRAIN, N_HELD, N_TEST, N_PROFILES = 1500, 60, 300, 500
LEARNED = AlignConfig(
    objective="align",
    loss="softmax",
    gene_space="learned",
    n_steps=150,
    patience=99,
    validate_every=75,
    image_gene_rows=96,
    gene_text_rows=96,
    learning_rate=2e-3,
    gene_dropout=0.0,
    warm_up=0.03,
    embedding_width=48,
    gene_width=48,
)
FIXED = replace(LEARNED, loss="anchor", gene_space="fixed", n_steps=100, validate_every=50)


def hashed_features(texts: tuple[str, ...], width: int = 64) -> np.ndarray:
    """A bag of hashed character trigrams of each text: for this test alone."""
    rows = np.zeros((len(texts), width), np.float32)
    for row, text in enumerate(texts):
        padded = f"  {text.casefold()}  "
        for place in range(len(padded) - 2):
            number = zlib.crc32(padded[place : place + 3].encode())
            rows[row, number % width] += 1 if number >> 31 else -1
    return (rows * width**0.5 / 2 / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def net_of(config: AlignConfig, seed: int = 0) -> Trimodal:
    torch.manual_seed(seed)
    bitro = BitroConfig(
        N_FEATURES,
        1,
        1,
        N_GENES,
        has_context=False,
        cells_in_training=0,
        width=48,
        gat_layers=0,
        transformer_layers=0,
        position="none",
        dropout=0.0,
        query_std=0.5,
    )
    return Trimodal(
        TrimodalConfig(
            bitro,
            n_text=64,
            embedding_width=config.embedding_width,
            gene_width=config.gene_width,
            gene_space=config.gene_space,
        )
    )


def data_of(
    world, *, by_platform: bool = True, permuted: bool = False, shuffled: bool = False
) -> AlignData:
    """Pairs of the world, or of one with a bridge that is broken."""
    rng = np.random.default_rng(5)
    profiles = world.profiles
    if permuted:
        order = rng.permutation(N_GENES)
        profiles = replace(profiles, expression=profiles.expression[:, order].tocsr())
    values = gene_values([world.of_images, profiles], world.of_images.genes)
    if not by_platform:
        values = replace(values, platform=("",) * len(values))
    n_images = len(world.of_images)
    training = np.r_[0:N_TRAIN, n_images : n_images + N_PROFILES]
    label = ("",) * n_images + (profiles.label or ())
    standardiser = fit_gene_standardiser(values.take(training), [label[row] for row in training])
    rows, held = np.arange(N_TRAIN), np.arange(N_TRAIN, N_TRAIN + N_HELD)
    right = rng.permutation(rows) if shuffled else rows
    keys = ("",) * n_images + (profiles.text_key or ())
    pairs = (
        pair_rows("image-gene", rows, right),
        pair_texts("gene-text", keys, world.texts, n_images + np.arange(N_PROFILES)),
    )
    number = [world.texts.keys.index(key) for key in world.texts.text_key]
    texts = TextRows(np.array(number), hashed_features(world.texts.text))
    genes = StackedGenes((MeasuredGenes(values, standardiser),))
    return AlignData(HeldBags(world.images), genes, texts, pairs, HeldOut(held, held))


def transitive_auroc(data: AlignData, world, config: AlignConfig, seed: int = 0) -> float:
    """AUROC of what is in an image by the cosine of image and text; they never met."""
    assert all(pairs.kind != "image-text" for pairs in data.pairs)
    net = Aligner(net_of(config, seed))
    if net.space.gene_map is not None:
        net.space.gene_map.copy_(
            torch.from_numpy(
                fit_gene_map(*data.genes.read(np.arange(N_TRAIN)), config.embedding_width)
            )
        )
    fitted = align_net(net, data, AlignTask(0, 1, seed, "toy"), config, FitLog())
    net.load_state_dict(fitted.weights)
    net.eval()
    test = np.arange(N_TRAIN + N_HELD, len(world.of_images))
    with torch.no_grad():
        image = net.space.embed_regions(data.images.bags(test, 0))
        names = np.flatnonzero([text in KINDS for text in world.texts.text])
        score = (image @ net.embed_texts(data, names).T).numpy()
    return float(roc_auc_score(world.presence[test], score, average="macro"))


@cache
def world_of(shift: float):
    return toy_words_world(11, N_TRAIN + N_HELD + N_TEST, N_PROFILES, shift)


@pytest.mark.parametrize("config", [LEARNED, FIXED], ids=["learned", "fixed"])
def test_words_reach_images_across_expression(config):
    world = world_of(0.0)
    assert transitive_auroc(data_of(world), world, config) >= 0.88


@pytest.mark.parametrize("broken", ["permuted", "shuffled"])
@pytest.mark.parametrize("config", [LEARNED, FIXED], ids=["learned", "fixed"])
def test_a_broken_bridge_carries_nothing(broken, config):
    world = world_of(0.0)
    auroc = transitive_auroc(data_of(world, **{broken: True}), world, config)
    assert abs(auroc - 0.5) <= 0.12


def test_standardising_by_platform_pays_under_a_strong_shift():
    world = world_of(2.0)
    config = replace(LEARNED, image_gene_rows=128, n_steps=200, validate_every=100)
    by_platform = transitive_auroc(data_of(world), world, config)
    raw = transitive_auroc(data_of(world, by_platform=False), world, config)
    assert by_platform >= 0.88
    assert by_platform - raw >= 0.02
