import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from histoscribe.errors import ConfigError, DataError
from histoscribe.nn.projection import unit
from histoscribe.nn.temperature import FIRST_LOG_SCALE
from histoscribe.train.contrastive import (
    anchor_loss,
    cycle_loss,
    pair_loss,
    pair_loss_plain,
    siglip_loss,
    similarities,
    weigh,
)

KEY_A = torch.tensor([5, 2, 2, 9, 5, 5, 7])
KEY_B = torch.tensor([2, 5, 9, 9, 1])
"""Several of one key on both sides; 7 and 1 have no partner."""
TAU = torch.tensor(FIRST_LOG_SCALE)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(n: int, seed: int) -> Tensor:
    return unit(draw(n, 6, seed=seed))


def as_double(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.double().requires_grad_() for x in tensors)


def test_gradient_of_the_pair_loss():
    a, b, tau = as_double(draw(7, 4, seed=1), draw(5, 4, seed=2), torch.tensor(1.1))
    assert gradcheck(lambda a, b, tau: pair_loss(unit(a), unit(b), KEY_A, KEY_B, tau), (a, b, tau))


def test_gradient_of_the_siglip_loss():
    a, b, tau, bias = as_double(
        draw(7, 4, seed=1), draw(5, 4, seed=2), torch.tensor(1.1), torch.tensor(-2.0)
    )
    assert gradcheck(
        lambda a, b, tau, bias: siglip_loss(unit(a), unit(b), KEY_A, KEY_B, tau, bias),
        (a, b, tau, bias),
    )


def test_gradient_of_the_cycle_loss():
    image, genes = as_double(draw(4, 3, seed=1), draw(4, 3, seed=2))
    assert gradcheck(lambda image: cycle_loss(image, genes), (image,))
    cycle_loss(image, genes).backward()
    assert genes.grad is None


def test_fast_and_plain_forms_agree_with_their_gradients():
    results = []
    for form in (pair_loss, pair_loss_plain):
        a, b, tau = as_double(rows(7, 3), rows(5, 4), TAU)
        loss = form(a, b, KEY_A, KEY_B, tau)
        loss.backward()
        results.append((loss.detach(), a.grad, b.grad, tau.grad))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)


def test_with_keys_of_their_own_it_is_the_loss_of_clip():
    a, b, keys = rows(7, 5), rows(7, 6), torch.arange(7)
    z = a @ b.T / 0.07
    wanted = (
        torch.nn.functional.cross_entropy(z, keys) + torch.nn.functional.cross_entropy(z.T, keys)
    ) / 2
    torch.testing.assert_close(pair_loss(a, b, keys, keys, TAU), wanted)


def test_multi_positive_targets_by_hand():
    """Two rows of one key against one partner and one stranger, all similarities known."""
    a = unit(torch.tensor([[1.0, 0], [1, 0], [0, 1]]))
    b = unit(torch.tensor([[1.0, 0], [0, 1]]))
    s = math.exp(FIRST_LOG_SCALE)
    each = math.log(math.exp(s) + 1) - s  # every row of a: partner at s, stranger at 0
    of_first = math.log(2 * math.exp(s) + 1) - s  # first of b: two partners at s, stranger at 0
    of_second = math.log(math.exp(s) + 2) - s
    wanted = (each + (of_first + of_second) / 2) / 2
    got = pair_loss(a, b, torch.tensor([4, 4, 8]), torch.tensor([4, 8]), TAU)
    assert float(got) == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_partners_of_one_key_do_not_push_each_other_away():
    """With identity targets two samples of one text are each other's negatives."""
    a = unit(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]))
    by_key = torch.tensor([1, 1, 2, 2])
    best = pair_loss(a, a, by_key, by_key, TAU)
    moved = a + 0.2 * draw(4, 2, seed=3)
    assert float(pair_loss(unit(moved), a, by_key, by_key, TAU)) > float(best)
    assert float(best) == pytest.approx(math.log(2), abs=1e-5)
    tau = TAU.clone().requires_grad_()
    pair_loss(a, a, by_key, by_key, tau).backward()
    assert abs(float(tau.grad)) < 1e-4  # nothing is left to be told apart


def test_order_of_rows_does_not_matter():
    a, b = rows(7, 7), rows(5, 8)
    one, two = torch.tensor([6, 2, 0, 5, 1, 3, 4]), torch.tensor([4, 0, 3, 1, 2])
    for loss in (pair_loss, lambda *parts: siglip_loss(*parts, torch.tensor(-3.0))):
        torch.testing.assert_close(
            loss(a[one], b[two], KEY_A[one], KEY_B[two], TAU), loss(a, b, KEY_A, KEY_B, TAU)
        )


def test_sides_can_be_swapped_and_keys_renamed():
    a, b = rows(7, 9), rows(5, 10)
    loss = pair_loss(a, b, KEY_A, KEY_B, TAU)
    torch.testing.assert_close(pair_loss(b, a, KEY_B, KEY_A, TAU), loss)
    torch.testing.assert_close(pair_loss(a, b, -3 * KEY_A, -3 * KEY_B, TAU), loss)


def test_a_row_without_partner_only_pushes():
    a, b = rows(7, 11), rows(5, 12)
    has = KEY_A != 7
    with_it = pair_loss(a, b, KEY_A, KEY_B, TAU)
    without = pair_loss(a[has], b, KEY_A[has], KEY_B, TAU)
    assert float(with_it) > float(without)
    lonely = a.clone().requires_grad_()
    pair_loss(lonely, b, KEY_A, KEY_B, TAU).backward()
    assert float(lonely.grad[6].abs().max()) > 0


def test_no_pair_at_all_is_refused():
    with pytest.raises(DataError, match="no row of this pair"):
        pair_loss(rows(3, 1), rows(2, 2), torch.arange(3), torch.tensor([8, 9]), TAU)


def test_the_scale_is_bounded_in_the_losses():
    a, b = rows(7, 13), rows(5, 14)
    far, bound = torch.tensor(30.0), torch.tensor(math.log(100))
    torch.testing.assert_close(
        pair_loss(a, b, KEY_A, KEY_B, far), pair_loss(a, b, KEY_A, KEY_B, bound)
    )
    bias = torch.tensor(-10.0)
    torch.testing.assert_close(
        siglip_loss(a, b, KEY_A, KEY_B, far, bias), siglip_loss(a, b, KEY_A, KEY_B, bound, bias)
    )


def test_siglip_by_hand():
    a, b = rows(7, 15), rows(5, 16)
    total = 0.0
    for i in range(7):
        for j in range(5):
            z = float(a[i] @ b[j]) / 0.07 - 4.0
            y = 1.0 if int(KEY_A[i]) == int(KEY_B[j]) else -1.0
            total += math.log1p(math.exp(-y * z))
    got = siglip_loss(a, b, KEY_A, KEY_B, TAU, torch.tensor(-4.0))
    assert float(got) == pytest.approx(total / 7, rel=1e-5)


def test_cycle_loss_is_zero_for_one_direction_and_two_for_opposite_ones():
    x = draw(5, 4, seed=17)
    assert float(cycle_loss(x, 3 * x)) == pytest.approx(0, abs=1e-6)
    assert float(cycle_loss(x, -x)) == pytest.approx(2, abs=1e-6)


@pytest.mark.parametrize("loss", [pair_loss, siglip_loss])
def test_descent_brings_partners_together(loss):
    a, b = (draw(6, 8, seed=s).requires_grad_() for s in (18, 19))
    keys = torch.tensor([0, 0, 1, 1, 2, 2])
    tau, bias = TAU.clone().requires_grad_(), torch.tensor(-10.0, requires_grad=True)
    extra = (bias,) if loss is siglip_loss else ()
    optimiser = torch.optim.Adam([a, b, tau, *extra], lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        loss(unit(a), unit(b), keys, keys, tau, *extra).backward()
        optimiser.step()
    z = similarities(unit(a), unit(b)).detach()
    is_pair = keys[:, None] == keys
    assert float(z[is_pair].min()) > float(z[~is_pair].max())


def test_half_precision_is_not_used_for_similarities():
    a, b = rows(7, 20), rows(5, 21)
    wanted = a @ b.T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(similarities(a, b), wanted)
        half = pair_loss(a, b, KEY_A, KEY_B, TAU)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, pair_loss(a, b, KEY_A, KEY_B, TAU))
    assert similarities(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_pairs_are_weighed_among_those_that_are_there():
    weights = {"image-gene": 1.0, "gene-text": 3.0, "image-text": 2.0}
    losses = {"image-gene": torch.tensor(4.0), "gene-text": torch.tensor(8.0)}
    assert float(weigh(losses, weights)) == pytest.approx((4 + 24) / 4)
    assert float(weigh({"gene-text": torch.tensor(8.0)}, weights)) == 8.0
    with pytest.raises(ConfigError, match="no weight is set for image-text"):
        weigh({"image-text": torch.tensor(1.0)}, {"image-gene": 1.0})
    with pytest.raises(ConfigError, match="weigh 0"):
        weigh({"image-gene": torch.tensor(1.0)}, {"image-gene": 0.0})


def test_the_anchor_loss_by_hand_and_its_gradient():
    a, b = as_double(rows(7, 3), rows(5, 4))
    loss = anchor_loss(a, b, KEY_A, KEY_B)
    away = [
        1 - torch.stack([x @ y for y, k in zip(b, KEY_B, strict=True) if k == key]).mean()
        for x, key in zip(a, KEY_A, strict=True)
        if bool((key == KEY_B).any())
    ]
    torch.testing.assert_close(loss, torch.stack(away).mean())
    assert gradcheck(lambda a: anchor_loss(a, b, KEY_A, KEY_B), (a,))
    loss.backward()
    assert b.grad is None
    assert not a.grad[6].any()
    nothing = anchor_loss(a[6:], b, KEY_A[6:], KEY_B)
    assert float(nothing.detach()) == 0
