"""Bags are concatenated: taking and collating move rows and nothing else."""

from dataclasses import fields, replace

import pytest
import torch

from histoscribe.data import bags as bags_module
from histoscribe.data.bags import BagConfig
from histoscribe.data.collate import collate
from histoscribe.data.toy import toy_bag_batch
from histoscribe.errors import ConfigError, DataError, MismatchError


def batch(seed=0, **sizes):
    return toy_bag_batch(torch.Generator().manual_seed(seed), **sizes)


def assert_same(a, b):
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, field.name


def test_take_equals_collating_bag_by_bag():
    bags = batch(n_bags=9)
    for order in ([8, 0, 3], [4, 4, 1, 4], [7], list(range(9))):
        taken = bags.take(torch.tensor(order))
        assert_same(taken, collate([bags.take(torch.tensor([bag])) for bag in order]))
    assert_same(bags, bags.take(torch.arange(9)))


def test_take_moves_a_bag_as_it_is():
    bags = batch(n_bags=7)
    taken = bags.take(torch.tensor([5, 2]))
    rows = (bags.bag_of_cell == 2).nonzero()[:, 0]
    mine = (taken.bag_of_cell == 1).nonzero()[:, 0]
    assert torch.equal(taken.features[mine], bags.features[rows])
    old, new = bags.neighbours[rows], taken.neighbours[mine]
    assert torch.equal(new >= 0, old >= 0)
    assert torch.equal((new - mine[0])[new >= 0], (old - rows[0])[old >= 0])
    assert torch.equal(taken.target[1], bags.target[2])
    assert torch.equal(taken.field[1], bags.field[2])


@pytest.mark.parametrize("most_blocks", [1, 4])
def test_blocks_are_taken_as_they_are(most_blocks):
    bags = batch(n_bags=9, most_blocks=most_blocks)
    assert bags.n_blocks == len(bags.field) > (most_blocks > 1) * 9
    whole = bags.take(torch.tensor([7, 1, 4]))
    rows = torch.cat([(bags.bag_of_block == b).nonzero()[:, 0] for b in (7, 1, 4)])
    bag_of_block = torch.repeat_interleave(torch.arange(3), bags.n_blocks_of_bag[[7, 1, 4]])
    assert_same(replace(whole, target=None), bags.take_blocks(rows, bag_of_block, 3))
    one_each = bags.take_blocks(bags.first_block_of_bag, torch.arange(9), 9)
    for bag in range(9):
        block = int(bags.first_block_of_bag[bag])
        own = bags.features[bags.block_of_cell == block]
        assert torch.equal(one_each.features[one_each.bag_of_cell == bag], own)


def test_parts_are_merged_into_their_region():
    bags = batch(n_bags=5, most_blocks=3)
    merged = bags.merge(torch.tensor([0, 0, 1, 2, 2]), 3)
    assert torch.equal(merged.features, bags.features)
    assert torch.equal(merged.target, bags.target[[0, 2, 3]])
    assert merged.bag_of_cell.tolist() == [[0, 0, 1, 2, 2][b] for b in bags.bag_of_cell.tolist()]


def test_what_is_not_there_cannot_be_taken():
    bags = batch()
    for wrong in ([5], [-1], []):
        with pytest.raises(DataError):
            bags.take(torch.tensor(wrong, dtype=torch.int64))


def test_collate_refuses_strangers():
    with pytest.raises(MismatchError, match="features"):
        collate([batch(), batch(n_features=8)])
    with pytest.raises(MismatchError, match="target"):
        collate([batch(), replace(batch(), target=None)])
    with pytest.raises(DataError, match="no bags"):
        collate([])


def test_a_batch_is_checked_when_made():
    bags = batch()
    shuffled = bags.bag_of_cell.flip(0)
    with pytest.raises(DataError, match="not ascending"):
        replace(bags, block_of_cell=shuffled)
    with pytest.raises(DataError, match="does not run from 0"):
        replace(bags, block_of_cell=bags.block_of_cell + 1)
    outside = bags.is_inside & (bags.bag_of_cell != 3)
    with pytest.raises(DataError, match="bag 3 has a block without a cell inside"):
        replace(bags, is_inside=outside)
    alone = bags.neighbours.clone()
    alone[:, 0] = 0
    with pytest.raises(DataError, match="not the cell itself"):
        replace(bags, neighbours=alone)
    stray = bags.neighbours.clone()
    stray[0, 1] = bags.n_cells - 1
    with pytest.raises(DataError, match="another block"):
        replace(bags, neighbours=stray)


def test_the_toy_target_is_in_the_inside_cells_and_the_field():
    bags = batch(n_bags=301)
    inside = torch.zeros(301, bags.n_cells)
    inside[bags.bag_of_cell, torch.arange(bags.n_cells)] = bags.is_inside.float()
    means = inside / inside.sum(1, keepdim=True) @ bags.features
    design = torch.cat([means, bags.field[:, 0]], dim=1)
    fitted = design @ torch.linalg.lstsq(design, bags.target).solution
    assert (fitted - bags.target).abs().max() < 1e-3


def test_settings_are_checked():
    assert BagConfig().n_rings == 4
    wrong = ({"neighbours": -1}, {"ring_um": -1.0}, {"field_side_um": 0.0})
    for fault in (*wrong, {"rings_um": (450.0, 250.0)}, {"rings_um": (0.0,)}):
        with pytest.raises(ConfigError):
            BagConfig(**fault)


def test_a_batch_is_checked_to_its_end_in_small_parts(monkeypatch):
    monkeypatch.setattr(bags_module, "CHECKED_CELLS", 7)
    whole = batch(n_bags=6, most_blocks=3)
    assert whole.n_cells > 3 * 7
    last = whole.n_cells - 1
    for column, wrong, words in ((0, 0, "column 0"), (1, last + 1, "name row"), (1, 0, "leaves")):
        neighbours = whole.neighbours.clone()
        neighbours[last, column] = wrong
        with pytest.raises(DataError, match=words.replace("leaves", "another block")):
            replace(whole, neighbours=neighbours)
    for row in (6, 7, 13, 14, last):  # at the borders of the parts as well
        block_of_cell = whole.block_of_cell.clone()
        block_of_cell[row:] += 2
        with pytest.raises(DataError, match="not ascending"):
            replace(whole, block_of_cell=block_of_cell)
