import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from histoscribe.nn.ragged import plan_padding
from histoscribe.nn.transformer import Transformer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from windowed import (
    BlockOrder,
    WindowedTransformer,
    hilbert_index,
    order_blocks,
    plan_windows,
)

WIDTH, WINDOW, CELL_UM = 12, 7, 100.0
BAGS = torch.repeat_interleave(torch.arange(3), torch.tensor([31, 1, 18]))
SLIDES = torch.tensor([0] * 19 + [1] * 12 + [1] + [2] * 18)  # slide 1 has blocks of two bags
N_BLOCKS = len(BAGS)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squares(n: int, seed: int) -> Tensor:
    """Centres of different squares of a grid."""
    found = torch.randperm(23 * 17, generator=torch.Generator().manual_seed(seed))[:n]
    return (torch.stack([found % 23, found // 23], dim=1) + 0.5) * CELL_UM


def net(n_layers: int = 2, dropout: float = 0.0) -> WindowedTransformer:
    torch.manual_seed(0)
    return WindowedTransformer(WIDTH, n_layers, 3, 2, dropout, WINDOW)


def curve_plainly(order: int) -> list[tuple[int, int]]:
    """The Hilbert curve of 2^order cells a side, from four of half the side."""
    if order == 0:
        return [(0, 0)]
    part, s = curve_plainly(order - 1), 2 ** (order - 1)
    return [
        *((y, x) for x, y in part),
        *((x, y + s) for x, y in part),
        *((x + s, y + s) for x, y in part),
        *((2 * s - 1 - y, s - 1 - x) for x, y in part),
    ]


@pytest.mark.parametrize("order", [0, 2, 4, 6])
def test_index_equals_the_recursive_curve(order):
    """Of even orders: of an odd order, the larger curve begins with the mirrored one."""
    cells = torch.tensor(curve_plainly(order))
    assert hilbert_index(cells).tolist() == list(range(4**order))


def test_neighbours_on_the_curve_are_neighbours_on_the_grid():
    x, y = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    cells = torch.stack([x.flatten(), y.flatten()], dim=1)
    index = hilbert_index(cells)
    assert sorted(index.tolist()) == list(range(1024))
    steps = cells[index.argsort()].diff(dim=0).abs().sum(1)
    assert bool((steps == 1).all())


def test_the_largest_grid_has_an_index_of_its_own_for_each_corner():
    far = 2**24 - 1
    corners = hilbert_index(torch.tensor([[0, 0], [0, far], [far, far], [far, 0]]))
    assert corners[0] == 0
    assert corners[3] == 4**24 - 1
    assert bool((corners.diff() > 0).all())


def order_of(xy_um: Tensor, rows: Tensor | None = None) -> BlockOrder:
    rows = torch.arange(N_BLOCKS) if rows is None else rows
    return order_blocks(xy_um[rows], BAGS[rows], SLIDES[rows], CELL_UM)


def test_each_slide_of_each_bag_is_a_sequence_along_its_own_curve():
    xy_um = squares(N_BLOCKS, seed=1)
    order = order_of(xy_um)
    assert torch.bincount(order.sequence).tolist() == [19, 12, 1, 18]
    for s, rows in enumerate([range(19), range(19, 31), range(31, 32), range(32, N_BLOCKS)]):
        got = order.rows[order.sequence == s].tolist()
        cell = (
            (xy_um[rows.start : rows.stop] - xy_um[rows.start : rows.stop].amin(0)) / 100
        ).long()
        along = {c: i for i, c in enumerate(curve_plainly(6))}
        assert got == sorted(rows, key=lambda r: along[tuple(cell[r - rows.start].tolist())])


@pytest.mark.parametrize("shift_um", [(300.0, -1700.0), (12_345.67, 0.31), (-0.4, 54_321.0)])
def test_moving_the_origin_changes_nothing(shift_um):
    xy_um = squares(N_BLOCKS, seed=2)
    moved = xy_um + torch.tensor(shift_um)
    assert torch.equal(order_of(moved).rows, order_of(xy_um).rows)
    one_slide = torch.where((SLIDES == 0)[:, None], moved, xy_um)
    assert torch.equal(order_of(one_slide).rows, order_of(xy_um).rows)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), pitch_um=st.sampled_from([37.0, 100.0, 250.0]))
def test_order_does_not_hang_on_how_blocks_come_even_with_some_in_one_cell(seed, pitch_um):
    xy_um = squares(N_BLOCKS, seed) / CELL_UM * pitch_um
    shuffled = torch.randperm(N_BLOCKS, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(shuffled[order_of(xy_um, shuffled).rows], order_of(xy_um).rows)


def test_blocks_permuted_are_answers_permuted():
    model, tokens, xy_um = net(3), draw(N_BLOCKS, WIDTH, seed=1), squares(N_BLOCKS, seed=3)
    shuffled = torch.randperm(N_BLOCKS, generator=torch.Generator().manual_seed(5))
    permuted = model(tokens[shuffled], order_of(xy_um, shuffled))
    assert torch.equal(permuted, model(tokens, order_of(xy_um))[shuffled])


def test_neighbours_in_the_batch_change_nothing():
    model, tokens, xy_um = net(3), draw(N_BLOCKS, WIDTH, seed=2), squares(N_BLOCKS, seed=4)
    together = model(tokens, order_of(xy_um))
    for bag in range(3):
        own = (bag == BAGS).nonzero()[:, 0]
        alone = model(tokens[own], order_of(xy_um, own))
        torch.testing.assert_close(alone, together[own], atol=1e-5, rtol=1e-5)


def test_bags_and_slides_never_hear_of_each_other():
    model, xy_um = net(4), squares(N_BLOCKS, seed=5)
    tokens = draw(N_BLOCKS, WIDTH, seed=3).requires_grad_()
    order = order_of(xy_um)
    for s in range(4):
        own = order.rows[order.sequence == s]
        (grad,) = torch.autograd.grad(model(tokens, order)[own].square().sum(), tokens)
        is_own = torch.zeros(N_BLOCKS, dtype=torch.bool).index_fill(0, own, value=True)
        assert bool((grad[~is_own] == 0).all())
        assert bool((grad[is_own] != 0).any(1).all())


@pytest.mark.parametrize(("n_blocks", "n_layers"), [(1, 3), (4, 3), (5, 1), (WINDOW, 1)], ids=str)
def test_where_all_blocks_share_a_window_it_is_plain_attention(n_blocks, n_layers):
    """In every layer up to ceil(7 / 2) = 4 blocks, in even layers up to 7."""
    windowed = net(n_layers)
    plain = Transformer(WIDTH, n_layers, 3, 2, 0.0)
    plain.load_state_dict(windowed.state_dict())
    tokens, one = draw(n_blocks, WIDTH, seed=4), torch.zeros(n_blocks, dtype=torch.int64)
    order = order_blocks(squares(n_blocks, seed=6), one, one, CELL_UM)
    expected = plain(tokens, plan_padding(one, 1))
    torch.testing.assert_close(windowed(tokens, order), expected, atol=1e-5, rtol=1e-5)


def test_one_block_more_and_shifted_layers_cut():
    n_blocks = WINDOW - WINDOW // 2 + 1
    windowed, plain = net(2), Transformer(WIDTH, 2, 3, 2, 0.0)
    plain.load_state_dict(windowed.state_dict())
    tokens, one = draw(n_blocks, WIDTH, seed=4), torch.zeros(n_blocks, dtype=torch.int64)
    order = order_blocks(squares(n_blocks, seed=6), one, one, CELL_UM)
    assert not torch.allclose(windowed(tokens, order), plain(tokens, plan_padding(one, 1)))


def windows_of(sequence: Tensor, window: int, shift: int) -> list[list[int]]:
    """Rows of each window, read out of the rectangles."""
    plan = plan_windows(sequence, window, shift)
    pairs = [pair for b in plan.buckets for pair in zip(b.rows, b.is_cell, strict=True)]
    return sorted(rows[own].tolist() for rows, own in pairs)


def test_windows_are_runs_and_shifted_by_half():
    sequence = torch.repeat_interleave(torch.arange(3), torch.tensor([8, 2, 3]))
    assert windows_of(sequence, 5, 0) == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9], [10, 11, 12]]
    assert windows_of(sequence, 5, 2) == [[0, 1, 2], [3, 4, 5, 6, 7], [8, 9], [10, 11, 12]]
    assert windows_of(sequence, 1, 0) == [[i] for i in range(13)]


@pytest.mark.parametrize("window", [1, 2, 5, WINDOW])
@pytest.mark.parametrize("is_shifted", [False, True])
def test_no_number_of_blocks_is_special(window, is_shifted):
    """One more block takes no key from any other, and adds one to those of its window only."""
    shift = window // 2 if is_shifted else 0
    before = []
    for n_blocks in range(1, 4 * window + 2):
        now = windows_of(torch.zeros(n_blocks, dtype=torch.int64), window, shift)
        *others, last = now
        assert last[-1] == n_blocks - 1
        kept = [*others, last[:-1]] if len(last) > 1 else others
        assert kept == before
        before = now


def test_cost_is_linear_in_the_number_of_blocks():
    pairs = {}
    for n_blocks in (501, 2004, 8016):
        sequence = torch.zeros(n_blocks, dtype=torch.int64)
        for shift in (0, WINDOW // 2):
            plan = plan_windows(sequence, WINDOW, shift)
            n_windows = sum(len(bucket.bags) for bucket in plan.buckets)
            assert n_windows == -(-(n_blocks + shift) // WINDOW)
            pairs[n_blocks, shift] = sum(
                b.rows.shape[0] * b.rows.shape[1] ** 2 for b in plan.buckets
            )
            assert pairs[n_blocks, shift] <= 1.2 * n_blocks * WINDOW
    for shift in (0, WINDOW // 2):
        assert pairs[8016, shift] == pytest.approx(16 * pairs[501, shift], rel=0.02)


def test_windows_hear_of_each_other_through_the_shifted_layers():
    n_blocks = 3 * WINDOW
    xy_um = torch.stack([torch.arange(n_blocks) * CELL_UM, torch.zeros(n_blocks)], dim=1)
    one = torch.zeros(n_blocks, dtype=torch.int64)
    order = order_blocks(xy_um, one, one, CELL_UM)
    last_of_first = order.rows[WINDOW - 1]
    reach = []
    for n_layers in (1, 2, 3, 4):
        tokens = draw(n_blocks, WIDTH, seed=7).requires_grad_()
        out = net(n_layers)(tokens, order)[last_of_first].square().sum()
        (grad,) = torch.autograd.grad(out, tokens)
        reach.append(int((grad != 0).any(1).sum()))
    # Its windows: 0-6 in even layers, 4-10 in odd ones, whose blocks heard of 0-13 before.
    assert reach == [7, 14, 14, 21]


def test_gradients_reach_everything():
    model, xy_um = net(2), squares(N_BLOCKS, seed=8)
    tokens = draw(N_BLOCKS, WIDTH, seed=8).requires_grad_()
    (model(tokens, order_of(xy_um)) * draw(N_BLOCKS, WIDTH, seed=9)).sum().backward()
    assert tokens.grad is not None
    assert bool((tokens.grad != 0).any(1).all())
    for name, parameter in model.named_parameters():
        if name.endswith(".key.bias"):  # adds the same to all logits of a query: it stays
            continue
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 1e-4, name


def test_dropout_is_of_training_only():
    model, tokens, order = net(2, 0.3), draw(N_BLOCKS, WIDTH, seed=9), order_of(squares(50, seed=9))
    assert not torch.equal(model(tokens, order), model(tokens, order))
    model.eval()
    assert torch.equal(model(tokens, order), model(tokens, order))
