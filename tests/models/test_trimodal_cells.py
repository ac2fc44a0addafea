"""Single cells in the space: seen alone, or as their region has them."""

from dataclasses import replace

import pytest
import torch
from tests.models.test_trimodal import bags, model

from histoscribe.data.bags import BagBatch
from histoscribe.errors import ConfigError


def one_cell_each(batch: BagBatch) -> BagBatch:
    first = batch.cells_per_bag().cumsum(0) - batch.cells_per_bag()
    rows = torch.arange(batch.n_bags)
    return replace(
        batch,
        features=batch.features[first],
        offset_um=batch.offset_um[first],
        is_inside=torch.ones(batch.n_bags, dtype=torch.bool),
        neighbours=torch.where(torch.arange(4) == 0, rows[:, None], torch.tensor(-1)),
        phenotype=batch.phenotype[first],
        block_of_cell=rows,
        bag_of_block=rows,
        field=batch.field[: batch.n_bags],
    )


@pytest.mark.parametrize("has_context", [True, False])
def test_a_region_of_one_cell_is_that_cell(has_context):
    net, batch = model(bitro={"has_context": has_context}).eval(), one_cell_each(bags())
    seen = net.see(batch)
    torch.testing.assert_close(seen.branches[-1], net.embed_cells(batch))
    assert torch.equal(seen.embedding, seen.branches[-1]) != has_context


STILL = {
    "cells_in_training": 0, "dropout": 0.0, "context_input_dropout": 0.0, "context_dropout": 0.0
}  # fmt: skip


def test_a_lone_cell_is_what_it_looks_like_and_nothing_around_it_counts():
    net, batch = model(has_lone_cells=True).eval(), bags()
    own = net.embed_cells(batch)
    moved = replace(
        batch,
        field=batch.field + 1,
        offset_um=batch.offset_um + 3,
        neighbours=torch.arange(batch.n_cells)[:, None].expand_as(batch.neighbours).clone(),
        features=torch.where((torch.arange(batch.n_cells) == 5)[:, None], 2.0, batch.features),
    )
    again = net.embed_cells(moved)
    is_other = torch.arange(batch.n_cells) != 5
    torch.testing.assert_close(again[is_other], own[is_other])
    assert not torch.allclose(again[5], own[5])
    with pytest.raises(ConfigError, match="no cells"):
        model(bitro={"has_cells": False}, has_lone_cells=True).eval().embed_cells(batch)


def test_a_region_is_also_learned_by_a_few_lone_cells():
    net, batch = model(bitro=STILL, has_lone_cells=True), bags()
    with torch.no_grad():
        around, cells, few = net.see(batch, few_cells=1).branches
        own, bag = net.embed_cells(batch), batch.bag_of_block[batch.block_of_cell]
        for number in range(batch.n_bags):  # of one cell each: one of those inside
            inside = own[(bag == number) & batch.is_inside]
            assert bool((few[number] - inside).abs().amax(dim=1).lt(1e-5).any())
        assert not torch.allclose(few, net.see(batch, few_cells=1).branches[2])  # drawn anew
        one = one_cell_each(batch)
        torch.testing.assert_close(net.see(one, few_cells=4).branches[2], net.embed_cells(one))
        torch.testing.assert_close(net.eval().see(batch, few_cells=4).branches, (around, cells))


def test_context_cells_are_embedded_but_not_pooled():
    batch = bags()
    moved = replace(batch, features=batch.features + (~batch.is_inside)[:, None] * 2.0)
    net = model(bitro={"gat_layers": 0, "transformer_layers": 0}).eval()
    torch.testing.assert_close(net.embed_regions(moved), net.embed_regions(batch))
    assert not torch.allclose(net.embed_cells(moved), net.embed_cells(batch))
    assert len(net.embed_cells(batch)) == batch.n_cells
