"""A step of an alignment: each pair over the rows that own both sides, and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from histoscribe.data.toy_words import KINDS, N_FEATURES, N_GENES, toy_words_world
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.models.trimodal import Trimodal
from histoscribe.models.trimodal_config import TrimodalConfig
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_data import (
    AlignData,
    HeldBags,
    HeldOut,
    MappedPatches,
    MeasuredGenes,
    StackedGenes,
    TextRows,
)
from histoscribe.train.align_step import Aligner, losses_of, score_held_out
from histoscribe.train.gene_standardiser import fit_gene_standardiser, gene_values
from histoscribe.train.pairs import PairDraw, PairStream, draw_step, pair_rows, pair_texts

N_IMAGES, N_PROFILES = 40, 30
LOSSES = ["softmax", "siglip", "anchor"]


def config_of(loss: str) -> AlignConfig:
    space = "fixed" if loss == "anchor" else "learned"
    return AlignConfig(loss=loss, gene_space=space, gene_dropout=0.0, cycle_weight=0.5, few_cells=0)


def net_of(config: AlignConfig) -> Aligner:
    torch.manual_seed(1)
    bitro = BitroConfig(
        N_FEATURES, 1, 1, N_GENES, has_context=False, cells_in_training=0, width=12,
        gat_layers=0, transformer_layers=0, position="none", dropout=0.0,
    )  # fmt: skip
    kind = "siglip" if config.loss == "siglip" else "softmax"
    net = Trimodal(
        TrimodalConfig(
            bitro,
            n_text=9,
            embedding_width=7,
            gene_width=8,
            gene_space=config.gene_space,
            loss=kind,
        )
    )
    if net.gene_map is not None:
        net.gene_map.normal_()
    return Aligner(net)


@pytest.fixture(scope="module")
def data():
    world = toy_words_world(3, N_IMAGES, N_PROFILES)
    values = gene_values([world.of_images, world.profiles], world.of_images.genes)
    target = torch.randn(N_IMAGES, N_GENES, generator=torch.Generator().manual_seed(0))
    keys = ("",) * N_IMAGES + (world.profiles.text_key or ())
    rows = np.arange(30)
    said = tuple(KINDS[row % 3] for row in range(N_IMAGES))
    number = [world.texts.keys.index(key) for key in world.texts.text_key]
    return AlignData(
        HeldBags(replace(world.images, target=target)),
        StackedGenes((MeasuredGenes(values, fit_gene_standardiser(values)),)),
        TextRows(
            np.array(number),
            np.random.default_rng(0).normal(size=(len(number), 9)).astype(np.float32),
        ),
        (
            pair_rows("image-gene", rows, rows),
            pair_texts("gene-text", keys, world.texts, N_IMAGES + np.arange(20)),
            pair_texts("image-text", said, world.texts, rows),
        ),
        HeldOut(
            np.arange(30, 40),
            np.arange(30, 40),
            np.arange(N_IMAGES + 20, N_IMAGES + 30),
            np.array([world.texts.keys.index(keys[N_IMAGES + 20 + row]) for row in range(10)]),
        ),
    )


def draws_of(data: AlignData) -> dict:
    sizes = {"image-gene": 11, "gene-text": 13, "image-text": 9}
    return dict(draw_step([PairStream(p, sizes[p.kind], 5) for p in data.pairs], 2))


@pytest.mark.parametrize("loss", LOSSES)
def test_order_within_a_step_does_not_matter(data, loss):
    config = config_of(loss)
    net, draws = net_of(config), draws_of(data)
    before = losses_of(net, data, draws, config, seed=1)
    rng, mixed = np.random.default_rng(1), {}
    for kind in reversed(draws):
        order = rng.permutation(len(draws[kind].left))
        mixed[kind] = PairDraw(*(part[order] for part in draws[kind]))
    after = losses_of(net, data, mixed, config, seed=1)
    assert set(before) == {"loss", *draws, "expression", "cycle"}
    for name in before:
        torch.testing.assert_close(before[name], after[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_pair_is_not_changed_by_rows_that_lack_its_sides(data, loss):
    config = config_of(loss)
    net, draws = net_of(config), draws_of(data)
    together = losses_of(net, data, draws, config, seed=1)
    for kind in draws:
        alone = losses_of(net, data, {kind: draws[kind]}, config, seed=1)
        torch.testing.assert_close(alone[kind], together[kind], atol=1e-5, rtol=1e-5)
        others = set(draws) - {kind}
        assert not others & set(alone)
        assert ("expression" in alone) == (kind != "gene-text")


@pytest.mark.parametrize("loss", LOSSES)
def test_all_that_should_learn_gets_a_gradient(data, loss):
    config = config_of(loss)
    net = net_of(config).train()
    torch.nn.init.normal_(net.space.pool.weigh.weight)  # zero at first, and idle before it
    losses_of(net, data, draws_of(data), config, seed=1)["loss"].backward()
    idle = {n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.any())}
    if loss == "anchor":
        assert idle == {"space.log_scale"}
    else:
        assert not idle


def test_the_weights_are_those_of_the_equation(data):
    config = replace(
        config_of("softmax"), image_gene_weight=3.0, image_text_weight=0.5, expression_weight=0.7
    )
    said = losses_of(net_of(config), data, draws_of(data), config, seed=1)
    pairs = 3 * said["image-gene"] + said["gene-text"] + 0.5 * said["image-text"]
    wanted = pairs / 4.5 + 0.7 * said["expression"] + 0.5 * said["cycle"]
    torch.testing.assert_close(said["loss"], wanted)


def test_held_out_rows_are_scored_against_wrong_partners(data):
    net = net_of(config_of("softmax"))
    said = score_held_out(net, data, at_once=3)
    assert said["score"] == pytest.approx((said["image-gene"] + said["gene-text"]) / 2)
    assert said == pytest.approx(score_held_out(net, data, at_once=100))
    assert not net.space.training or net.training
    net.space.embed_regions = lambda batch: net.embed_genes(data, data.held_out.gene)
    assert score_held_out(net, data)["image-gene"] == 1


def test_mapped_patches_are_regions_of_one_cell(tmp_path):
    features = np.memmap(tmp_path / "x", np.float16, "w+", shape=(6, 5))
    features[:] = np.arange(30).reshape(6, 5)
    batch = MappedPatches(features).bags(np.array([4, 1, 4]), 0)
    assert batch.n_bags == batch.n_cells == 3
    assert batch.features.tolist() == features[[4, 1, 4]].astype(float).tolist()
