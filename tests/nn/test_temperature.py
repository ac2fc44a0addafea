import math

import pytest
import torch
from torch.autograd import gradcheck

from histoscribe.nn.temperature import LARGEST_LOG_SCALE, bounded_scale


@pytest.mark.parametrize(("tau", "scale"), [(0.0, 1.0), (math.log(14), 14.0), (7.0, 100.0)])
def test_the_scale_never_exceeds_a_hundred(tau, scale):
    assert float(bounded_scale(torch.tensor(tau))) == pytest.approx(scale, rel=1e-6)


def test_gradient_below_the_bound():
    tau = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(bounded_scale, (tau,))


@pytest.mark.parametrize(("sign", "moves"), [(1.0, True), (-1.0, False)])
def test_beyond_the_bound_it_can_come_back_but_go_no_further(sign, moves):
    tau = torch.tensor(LARGEST_LOG_SCALE + 0.5, requires_grad=True)
    (sign * bounded_scale(tau)).backward()
    assert tau.grad is not None
    assert float(tau.grad) == pytest.approx(100.0 if moves else 0.0, rel=1e-5)


def test_it_comes_back_by_descent():
    tau = torch.nn.Parameter(torch.tensor(LARGEST_LOG_SCALE + 0.3))
    optimiser = torch.optim.SGD([tau], lr=1e-3)
    for _ in range(60):
        optimiser.zero_grad()
        (bounded_scale(tau) - 20).square().backward()
        tau.grad.clamp_(-50, 50)
        optimiser.step()
    assert float(tau.detach()) < LARGEST_LOG_SCALE
