"""What steps draw from one batch of all bags is what they drew from a batch of their own."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from histoscribe.data.toy import toy_bag_batch
from histoscribe.train import draw
from histoscribe.train.draw import Bags, Draw, HeldOut, mix
from histoscribe.train.processes import Processes

ROWS = torch.tensor([9, 2, 5, 6, 0])


@pytest.fixture(scope="module")
def batch():
    return toy_bag_batch(torch.Generator().manual_seed(4), n_bags=11, most_blocks=8)


def assert_same(a, b):
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        assert same, field.name


def draw_plainly(batch, bags, most_blocks, seed):
    """Bags out of a batch of their own, one by one: their number there draws their blocks."""
    rows, bag_of_block = [], []
    for place, bag in enumerate(bags.tolist()):
        own = (batch.bag_of_block == bag).nonzero()[:, 0].numpy()
        if most_blocks and len(own) > most_blocks:
            generator = np.random.default_rng([seed, bag])
            own = own[np.sort(generator.choice(len(own), most_blocks, False, shuffle=False))]
        rows += own.tolist()
        bag_of_block += [place] * len(own)
    drawn = batch.take_blocks(torch.tensor(rows), torch.tensor(bag_of_block), len(bags))
    return replace(drawn, target=batch.target[bags])


@pytest.mark.parametrize("most_blocks", [0, 1, 3, 8])
def test_draws_are_those_from_a_copy_of_the_bags(batch, most_blocks):
    assert int(batch.n_blocks_of_bag.max()) > 3
    copied, held = batch.take(ROWS), Bags(batch, most_blocks, rows=ROWS)
    assert held.batch is batch
    assert len(held) == 5
    for seed in (0, 7):
        asked = Draw(torch.tensor([4, 0, 3]), seed)
        wanted = draw_plainly(copied, asked.bags, most_blocks, seed)
        assert_same(held[asked], wanted)
        assert_same(Bags(copied, most_blocks)[asked], wanted)
        share = Bags(batch, most_blocks, Processes(1, 2, 2), ROWS)[asked]
        assert_same(share, wanted.take(torch.tensor([1])))


@pytest.mark.parametrize("most_blocks", [0, 5])
def test_a_bag_that_is_too_large_comes_in_portions(batch, most_blocks, monkeypatch):
    monkeypatch.setattr(draw, "EVALUATED_AT_ONCE", 3)
    bags = Bags(batch, most_blocks, rows=ROWS)
    whole = [portion.batch for portion in HeldOut(bags, 5, is_streamed=False)]
    assert sum(part.n_bags for part in whole) == 5
    held_out = HeldOut(bags, 5, is_streamed=True)
    portions = [held_out[number] for number in range(len(held_out))]
    assert any(not portion.is_whole for portion in portions)
    assert all(p.batch.n_bags == 1 and p.batch.n_blocks <= 3 for p in portions if not p.is_whole)
    assert max(p.batch.n_blocks_of_bag.max() for p in portions) <= 3
    together = torch.cat([portion.batch.features for portion in portions])
    assert torch.equal(together, torch.cat([part.features for part in whole]))
    ended = [portion.batch.target for portion in portions if portion.is_last]
    assert torch.equal(torch.cat(ended), batch.target[ROWS])
    assert not [p for p in HeldOut(bags, 5, is_streamed=False) if not p.is_whole]


def test_held_out_bags_are_drawn_by_the_seed_of_their_portion(batch):
    bags = Bags(batch, 2, rows=ROWS)
    (only,) = HeldOut(bags, 13, is_streamed=True)
    wanted = draw_plainly(batch.take(ROWS), torch.arange(5), 2, mix(13, 4, 0))
    assert_same(only.batch, wanted)
