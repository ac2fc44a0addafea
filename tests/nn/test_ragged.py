import math

import pytest
import torch
from torch import Tensor

from histoscribe.nn.ragged import (
    draw_cells,
    draw_few_cells,
    gather_bags,
    pad,
    plan_padding,
    segment_max,
    segment_mean,
    segment_softmax,
    segment_sum,
    unpad,
)

LENGTHS = [
    [1],
    [5, 5, 5],
    [7, 1, 13, 2, 2, 41, 3],
    [1] * 11,
    list(range(1, 30)),
    [300, 1, 299],
]


def bags_of(lengths: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_padding_and_back_is_the_identity(lengths):
    bag = bags_of(lengths)
    values = torch.randn(len(bag), 3, generator=torch.Generator().manual_seed(1))
    padding = plan_padding(bag, len(lengths))
    padded = [pad(values, bucket) for bucket in padding.buckets]
    assert torch.equal(unpad(padded, padding), values)
    for bucket, part in zip(padding.buckets, padded, strict=True):
        own = bag[bucket.rows]
        assert bool((own == bucket.bags[:, None]).all())
        assert bucket.is_full == bool(bucket.is_cell.all())
        lengths_back = bucket.is_cell.sum(1)
        assert lengths_back.tolist() == [lengths[b] for b in bucket.bags.tolist()]
        assert part.shape[1] == int(lengths_back.max())
    assert sorted(torch.cat([b.bags for b in padding.buckets]).tolist()) == list(
        range(len(lengths))
    )


@pytest.mark.parametrize("lengths", LENGTHS)
def test_what_stands_in_free_slots_does_not_come_back(lengths):
    bag = bags_of(lengths)
    values = torch.randn(len(bag), 2, generator=torch.Generator().manual_seed(2))
    padding = plan_padding(bag, len(lengths))
    spoiled = [
        pad(values, bucket).masked_fill(~bucket.is_cell[..., None], torch.nan)
        for bucket in padding.buckets
    ]
    assert torch.equal(unpad(spoiled, padding), values)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_padding_is_little(lengths):
    padding = plan_padding(bags_of(lengths), len(lengths), most_padding=0.2)
    n_slots = sum(bucket.rows.numel() for bucket in padding.buckets)
    assert n_slots <= sum(lengths) / 0.8


@pytest.mark.parametrize("lengths", LENGTHS)
def test_bag_rows_come_back_in_order(lengths):
    padding = plan_padding(bags_of(lengths), len(lengths))
    parts = [bucket.bags[:, None, None].float() for bucket in padding.buckets]
    assert gather_bags(parts, padding)[:, 0, 0].tolist() == list(range(len(lengths)))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_segments_equal_a_loop_over_bags(lengths):
    bag, n_bags = bags_of(lengths), len(lengths)
    x = 30 * torch.randn(len(bag), 5, generator=torch.Generator().manual_seed(3))
    own = [x[bag == b] for b in range(n_bags)]
    torch.testing.assert_close(segment_sum(x, bag, n_bags), torch.stack([o.sum(0) for o in own]))
    torch.testing.assert_close(segment_mean(x, bag, n_bags), torch.stack([o.mean(0) for o in own]))
    assert torch.equal(segment_max(x, bag, n_bags), torch.stack([o.amax(0) for o in own]))
    torch.testing.assert_close(
        segment_softmax(x, bag, n_bags), torch.cat([o.softmax(0) for o in own])
    )


def test_segment_softmax_holds_for_large_logits_and_has_the_right_gradient():
    bag = bags_of([3, 1, 4])
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert bool(segment_softmax(1e5 * x, bag, 3).isfinite().all())
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: segment_softmax(v, bag, 3), (x,))


def test_reductions_of_an_empty_bag():
    bag, x = torch.tensor([0, 0, 2]), torch.ones(3, 1)
    assert segment_sum(x, bag, 3)[1] == 0
    assert segment_mean(x, bag, 3)[1] == 0
    assert segment_max(x, bag, 3)[1] == -torch.inf


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("n_drawn", [1, 4])
def test_of_each_bag_some_cells_are_drawn_one_of_them_inside(lengths, n_drawn):
    bag, n_bags = bags_of(lengths), len(lengths)
    is_inside = torch.rand(len(bag), generator=torch.Generator().manual_seed(5)) < 0.2
    first = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    is_inside[first] = True
    torch.manual_seed(6)
    rows = draw_cells(is_inside, bag, n_bags, n_drawn)
    assert torch.equal(rows, rows.unique())
    kept = torch.bincount(bag[rows], minlength=n_bags)
    assert kept.tolist() == [min(n_drawn, length) for length in lengths]
    assert bool((segment_sum(is_inside[rows, None].float(), bag[rows], n_bags) > 0).all())


def test_each_cell_has_its_chance():
    torch.manual_seed(7)
    bag, is_inside = bags_of([9, 2]), torch.ones(11, dtype=torch.bool)
    drawn = [draw_cells(is_inside, bag, 2, 3) for _ in range(900)]
    share = torch.bincount(torch.cat(drawn), minlength=11) / 900
    assert bool(((share[:9] - 1 / 3).abs() < 0.08).all())
    assert bool((share[9:] == 1).all())


@pytest.mark.parametrize("most", [1, 3, 7])
def test_as_many_bags_are_of_1_cell_as_of_2_to_3(most):
    n_bags, n_each = 6000, 8
    bag = torch.arange(n_bags * n_each) // n_each
    torch.manual_seed(0)
    rows = draw_few_cells(bag, n_bags, most)
    n_of_bag = torch.bincount(bag[rows], minlength=n_bags)
    assert (int(n_of_bag.min()), int(n_of_bag.max())) == (1, most)
    assert len(rows.unique()) == len(rows)
    share_of_one = float((n_of_bag == 1).float().mean())
    assert share_of_one == pytest.approx(math.log(2) / math.log(most + 1), abs=0.03)
    places = torch.bincount(rows % n_each, minlength=n_each).float()
    assert float(places.std() / places.mean()) < 0.05  # any cell of a bag, as often
    assert draw_few_cells(torch.tensor([0, 1, 1]), 2, 4).tolist()[0] == 0  # a bag of one has one
