from dataclasses import replace
from unittest.mock import patch

import jaxtyping
import pytest
import torch
from torch import Tensor

from histoscribe.data.bags import BagBatch
from histoscribe.data.collate import collate
from histoscribe.data.toy import toy_bag_batch
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.models import bitro
from histoscribe.models.bitro import Bitro
from histoscribe.models.bitro_config import BitroConfig, paper_config
from histoscribe.models.predictor import Branched, Predictor
from histoscribe.nn import gat, transformer
from histoscribe.nn.gat import sum_neighbours_plain
from histoscribe.nn.gene_query import pool_by_gene_plain
from histoscribe.nn.transformer import attend_within_bags_plain
from histoscribe.train.losses import objective

SIZES = {"n_features": 7, "n_descriptors": 6, "n_rings": 4, "n_genes": 11}
SMALL = {
    "width": 24, "gat_width": 20, "gat_heads": 4, "transformer_heads": 3, "context_width": 13
}  # fmt: skip

VARIANTS = {
    "default": {},
    "cells only": {"has_context": False},
    "context only": {"has_cells": False},
    "no graph": {"gat_layers": 0},
    "no transformer": {"transformer_layers": 0},
    "mean pooling": {"pooling": "mean"},
    "shared readout": {"readout": "shared"},
    "fourier": {"position": "fourier"},
    "no position": {"position": "none"},
    "cells drawn": {"cells_in_training": 2},
}


def model(seed: int = 0, **settings: object) -> Bitro:
    torch.manual_seed(seed)
    return Bitro(BitroConfig(**SIZES, **{**SMALL, **settings}))


def bags(seed: int = 1, n_bags: int = 17) -> BagBatch:
    return toy_bag_batch(torch.Generator().manual_seed(seed), n_bags=n_bags)


def shuffled(batch: BagBatch, generator: torch.Generator) -> tuple[BagBatch, Tensor]:
    """The same bags with the cells of each in another order; row i was row order[i]."""
    noise = torch.rand(batch.n_cells, generator=generator)
    order = (batch.bag_of_cell + noise).argsort()
    new_row = order.argsort()
    neighbours = batch.neighbours[order]
    renamed = torch.where(neighbours < 0, neighbours, new_row[neighbours.clamp(min=0)])
    return (
        replace(
            batch,
            features=batch.features[order],
            offset_um=batch.offset_um[order],
            is_inside=batch.is_inside[order],
            phenotype=batch.phenotype[order],
            neighbours=renamed,
        ),
        order,
    )


def loss_of(net: Bitro, batch: BagBatch) -> float:
    with torch.no_grad():
        return float(objective(net.eval(), batch)["loss"])


@pytest.fixture(params=VARIANTS, ids=str)
def net(request) -> Bitro:
    return model(**VARIANTS[request.param]).eval()


def test_is_a_predictor(net):
    assert isinstance(net, Predictor)
    assert isinstance(net, Branched)


def test_order_of_cells_does_not_matter(net):
    batch = bags()
    other, order = shuffled(batch, torch.Generator().manual_seed(5))
    assert not torch.equal(order, torch.arange(batch.n_cells))
    torch.testing.assert_close(net(other), net(batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        net.attention(other), net.attention(batch)[order], atol=1e-5, rtol=1e-5
    )


def test_neighbours_in_the_batch_do_not_matter(net):
    batch = bags()
    together, share = net(batch), net.attention(batch)
    for b in range(batch.n_bags):
        one = batch.take(torch.tensor([b]))
        torch.testing.assert_close(net(one)[0], together[b], atol=1e-5, rtol=1e-5)
        own = share[batch.bag_of_cell == b]
        torch.testing.assert_close(net.attention(one), own, atol=1e-5, rtol=1e-5)
    other = bags(seed=2)
    mixed = net(collate([other, batch]))[other.n_bags :]
    torch.testing.assert_close(mixed, together, atol=1e-5, rtol=1e-5)


def test_says_the_same_twice_and_without_grad(net):
    batch = bags()
    first = net(batch)
    assert torch.equal(first, net(batch))
    with torch.no_grad():
        torch.testing.assert_close(net(batch), first, atol=1e-6, rtol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(net(batch), first, atol=1e-6, rtol=1e-6)


def test_attention_is_a_share_of_the_cells_inside(net):
    batch = bags()
    share = net.attention(batch)
    assert share.shape == (batch.n_cells, SIZES["n_genes"])
    assert bool((share[~batch.is_inside] == 0).all())
    sums = torch.zeros(batch.n_bags, share.shape[1]).index_add(0, batch.bag_of_cell, share)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_every_parameter_gets_a_gradient(net):
    objective(net.train(), bags(n_bags=300))["loss"].backward()
    still = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert all(name.endswith(".key.bias") for name in still)
    for name, parameter in net.named_parameters():
        if name in still:
            continue
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_the_origin_of_the_slide_does_not_matter(net):
    """On a grid of 1/4 µm, where sums are exact, moving slide and regions changes nothing."""
    batch = bags()
    batch = replace(batch, offset_um=(batch.offset_um * 4).round() / 4)
    shift = torch.tensor([5000.0, -300.25])
    centre = torch.arange(2.0 * batch.n_bags).view(-1, 2) * 100 + shift
    slide = batch.offset_um + centre[batch.bag_of_cell]
    again = replace(batch, offset_um=slide - centre[batch.bag_of_cell])
    assert torch.equal(net(again), net(batch))
    if net.config.has_cells and net.config.position != "none":
        turned = replace(batch, offset_um=-batch.offset_um)
        assert not torch.allclose(net(turned), net(batch))


def test_bags_of_a_single_cell(net):
    batch = bags()
    first = batch.cells_per_bag().cumsum(0) - batch.cells_per_bag()
    single = replace(
        batch,
        features=batch.features[first],
        offset_um=batch.offset_um[first],
        is_inside=torch.ones(batch.n_bags, dtype=torch.bool),
        neighbours=torch.where(
            torch.arange(4) == 0, torch.arange(batch.n_bags)[:, None], torch.tensor(-1)
        ),
        phenotype=batch.phenotype[first],
        block_of_cell=torch.arange(batch.n_bags),
        bag_of_block=torch.arange(batch.n_bags),
    )
    assert bool(net(single).isfinite().all())
    assert bool((net.attention(single) == 1).all())


@pytest.mark.parametrize("pooling", ["gene_query", "mean"])
def test_context_cells_are_heard_but_not_pooled(pooling):
    batch = bags()
    moved = replace(batch, features=batch.features + (~batch.is_inside)[:, None] * 2.0)
    deaf = model(pooling=pooling, gat_layers=0, transformer_layers=0).eval()
    torch.testing.assert_close(deaf(moved), deaf(batch))
    hearing = model(pooling=pooling).eval()
    assert not torch.allclose(hearing(moved), hearing(batch))


def test_rings_reach_the_answer_and_the_cells():
    batch = bags()
    moved = replace(batch, field=batch.field + torch.eye(4)[3][:, None])
    net = model().eval()
    before, after = net.answer(batch), net.answer(moved)
    for one, other in zip(before.branches, after.branches, strict=True):
        assert not torch.allclose(one, other)
    without = model(has_context=False).eval()
    assert torch.equal(without(batch), without(moved))


def test_the_answer_is_the_mix_of_its_branches():
    net, batch = model(cell_share=0.25).eval(), bags()
    answer = net.answer(batch)
    by_context, by_cells = answer.branches
    torch.testing.assert_close(answer.expression, 0.75 * by_context + 0.25 * by_cells)
    assert torch.equal(net(batch), answer.expression)


def test_region_by_region_with_plain_forms_gives_the_same_loss():
    batch, net = bags(n_bags=41), model().eval()
    fast = objective(net, batch)["loss"]
    fast.backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.requires_grad}
    net.zero_grad()
    with (
        patch.object(gat, "sum_neighbours", sum_neighbours_plain),
        patch.object(transformer, "attend_within_bags", attend_within_bags_plain),
        patch.object(bitro, "pool_by_gene", pool_by_gene_plain),
    ):
        alone = [objective(net, batch.take(torch.tensor([b])))["loss"] for b in range(41)]
        plain = torch.stack(alone).mean()
    plain.backward()
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    learning = dict(net.named_parameters())
    for name, gradient in gradients.items():
        torch.testing.assert_close(learning[name].grad, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["default", "cells only", "context only", "shared readout"])
def test_learns_the_planted_signal(name):
    everything = bags(seed=3, n_bags=260)
    train = everything.take(torch.arange(200))
    held_out = everything.take(torch.arange(200, 260))
    net = model(dropout=0.0, context_dropout=0.1, **VARIANTS[name])
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    start = loss_of(net, train)
    generator = torch.Generator().manual_seed(4)
    net.train()
    for _ in range(12):
        for rows in torch.randperm(200, generator=generator).split(40):
            loss = objective(net, train.take(rows))["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    net.eval()
    assert loss_of(net, train) < 0.9 * start
    assert train.target is not None
    assert held_out.target is not None
    by_mean = float((held_out.target - train.target.mean(0)).square().mean())
    by_net = float((held_out.target - net(held_out).detach()).square().mean())
    assert by_net < 0.97 * by_mean


def test_same_seed_same_weights():
    one, same, other = model(seed=1), model(seed=1), model(seed=2)
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_the_papers_own_configuration():
    config = paper_config(**SIZES)
    assert (config.readout, config.width, config.has_context) == ("shared", 256, False)
    assert (config.gat_layers, config.transformer_layers, config.transformer_heads) == (2, 2, 8)
    batch = bags()
    answer = Bitro(config).eval().answer(batch)
    assert len(answer.branches) == 1
    assert answer.expression.shape == (batch.n_bags, SIZES["n_genes"])


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"has_cells": False, "has_context": False}, "nothing is left"),
        ({"width": 25}, "divisible"),
        ({"gat_width": 21}, "divisible"),
        ({"width": 27, "transformer_heads": 3}, "even"),
        ({"readout": "softplus"}, "readout"),
        ({"pooling": "max"}, "pooling"),
        ({"position": "polar"}, "position"),
        ({"dropout": 1.0}, "dropout"),
        ({"cell_share": 1.5}, "cell_share"),
        ({"window_um": 0.0}, "window_um"),
        ({"cells_in_training": -1}, "cells_in_training"),
        ({"gat_layers": -1}, "gat_layers"),
        ({"context_layers": 0}, "context_layers"),
    ],
)
def test_wrong_settings_are_refused(settings, word, monkeypatch):
    # The types refuse some of these as well, where they are checked; users run without.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ConfigError, match=word):
        BitroConfig(**SIZES, **{**SMALL, **settings})


def test_bags_of_other_sizes_are_refused():
    batch = toy_bag_batch(torch.Generator().manual_seed(1), n_features=9)
    with pytest.raises(MismatchError, match="takes 7 cell features"):
        model()(batch)
