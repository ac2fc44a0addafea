"""How sharply similarities are told apart: one learned scale with an upper bound."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

FIRST_LOG_SCALE = math.log(1 / 0.07)  # Wu et al. 2018; Radford et al. 2021, section 2.5
LARGEST_LOG_SCALE = math.log(100)  # Radford et al. 2021: beyond it training became unstable


class _Bounded(torch.autograd.Function):
    """min(x, bound), whose gradient never pushes beyond the bound, but leads back from there."""

    @staticmethod
    def forward(ctx, x: Tensor, largest: float) -> Tensor:  # noqa: ANN001 - PyTorch's own
        ctx.save_for_backward(x >= largest)
        return x.clamp(max=largest)

    @staticmethod
    def backward(ctx, *of_answer: Tensor) -> tuple[Tensor, None]:  # noqa: ANN001
        (is_over,) = ctx.saved_tensors
        (gradient,) = of_answer
        # A descent step goes against the gradient: one below 0 would go further up.
        return torch.where(is_over & (gradient < 0), 0.0, gradient), None


def bounded_scale(log_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    r"""The factor of all similarities, s = exp(min(tau, ln 100)).

    Source: Radford et al. 2021. Departs from a plain clamp, whose gradient is 0 beyond the bound:
    a scale that had once got there by a step too long would stay for ever.

    Args:
        log_scale: tau, as it is learned.
    """
    bounded = _Bounded.apply(log_scale, LARGEST_LOG_SCALE)
    assert isinstance(bounded, Tensor)
    return bounded.exp()
