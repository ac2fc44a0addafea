"""Block by block or at once: the same answer, for any cut."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histoscribe.data.toy import toy_bag_batch
from histoscribe.errors import ConfigError
from histoscribe.models.bitro import Bitro
from histoscribe.models.bitro_config import BitroConfig

SMALL = {"width": 6, "gat_width": 10, "gat_heads": 2, "transformer_heads": 3, "context_width": 14}
KINDS = ({}, {"pooling": "mean"}, {"has_context": False}, {"has_cells": False},
         {"readout": "shared"})  # fmt: skip


def bags():
    return toy_bag_batch(torch.Generator().manual_seed(4), n_bags=7, most_blocks=5)


def net(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Bitro(BitroConfig(7, 6, 4, 11, **SMALL, **changes)).eval()


@settings(max_examples=25, deadline=None)
@given(data=st.data(), kind=st.sampled_from(range(len(KINDS))))
def test_any_cut_gives_the_answer_of_one_pass(data, kind):
    batch, model = bags(), net(**KINDS[kind])
    with torch.no_grad():
        whole = model.answer(batch)
    for bag in (0, 3, 6):
        first, n = int(batch.first_block_of_bag[bag]), int(batch.n_blocks_of_bag[bag])
        order = data.draw(st.permutations(range(first, first + n)))
        stream, at = model.stream(1), 0
        while at < n:
            step = data.draw(st.integers(1, n))
            rows = torch.tensor(order[at : at + step])
            stream.add(batch.take_blocks(rows, torch.zeros_like(rows), 1))
            at += step
        assert torch.allclose(stream.answer()[0], whole.expression[bag], atol=1e-5)
        one = batch.take(torch.tensor([bag]))
        own = whole.attention[batch.bag_of_cell == bag]
        assert torch.allclose(stream.share(one), own, atol=1e-5)


def test_a_bag_is_the_merge_of_its_parts():
    batch, model = bags(), net()
    parts = replace(batch, target=None)
    apart = replace(parts, bag_of_block=torch.arange(batch.n_blocks), n_bags=batch.n_blocks)
    again = apart.merge(batch.bag_of_block, batch.n_bags)
    with torch.no_grad():
        assert torch.equal(model(again), model(parts))
        of_parts = model.answer(apart)
    # each block alone is another region: it answers otherwise, and yet shares add up to 1
    assert of_parts.expression.shape[0] == batch.n_blocks
    sums = torch.zeros(batch.n_blocks, 11).index_add(0, apart.bag_of_cell, of_parts.attention)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)


def test_a_bag_does_not_depend_on_its_neighbours_or_the_order_of_its_blocks():
    batch, model = bags(), net()
    with torch.no_grad():
        whole = model(batch)
        for bag in range(7):
            alone = model(batch.take(torch.tensor([bag])))[0]
            assert torch.allclose(alone, whole[bag], atol=1e-5)
            first, n = int(batch.first_block_of_bag[bag]), int(batch.n_blocks_of_bag[bag])
            rows = torch.arange(first, first + n).flip(0)
            turned = model(batch.take_blocks(rows, torch.zeros_like(rows), 1))[0]
            assert torch.allclose(turned, whole[bag], atol=1e-5)


def test_a_bag_that_was_not_seen_has_no_answer():
    batch, model = bags(), net()
    stream = model.stream(2)
    rows = torch.arange(int(batch.n_blocks_of_bag[0]))
    stream.add(batch.take_blocks(rows, torch.zeros_like(rows), 1))
    answer = stream.answer()
    assert torch.isfinite(answer[0]).all()
    assert torch.isnan(answer[1]).all()


def test_a_region_as_a_vector_is_the_mean_of_its_parts():
    batch, model = bags(), net()
    stream = model.stream(7)
    stream.add(batch)
    vectors = stream.represent()
    assert vectors.shape == (7, 14 + 6)
    inside = batch.is_inside.double()
    for bag in range(7):
        of_bag = batch.bag_of_block == bag
        weight = torch.zeros(batch.n_blocks, dtype=torch.float64)
        weight.index_add_(0, batch.block_of_cell, inside)
        with torch.no_grad():
            context = model.context(batch.field).double()
        mean = (context * weight[:, None])[of_bag].sum(0) / weight[of_bag].sum()
        assert torch.allclose(vectors[bag, :14].double(), mean, atol=1e-5)


def test_a_stream_is_refused_in_training():
    with pytest.raises(ConfigError, match="call eval"):
        net().train().stream(1)
