"""The head that brings one kind of thing into the space that all kinds share."""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from torch import Tensor, nn

SKIP_NOISE = 0.01
"""Off its diagonal the skip starts uniform in +-0.01, as in the authors' heads."""


class Projection(nn.Module):
    r"""A residual map into the shared space, before its length is taken off.

        y = LN( W2 relu(N(W1 x)) + Ws x )                e = unit(y) = y / |y|

    Source: the projection heads of CellWhisperer and SpatialWhisperer. Departs from them: N is a
    LayerNorm by default, so that a row's answer does not depend on the other rows of its batch;
    "batch" is theirs, for comparison. Ws starts near the identity in both.

    Args:
        n_in: Width of what comes in.
        width: Of the shared space.
        norm: "layer" or "batch".
        dropout: Of the hidden values, in training.
    """

    def __init__(
        self,
        n_in: int,
        width: int,
        norm: Literal["layer", "batch"] = "layer",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.widen = nn.Linear(n_in, width, bias=False)
        self.norm = nn.LayerNorm(width) if norm == "layer" else nn.BatchNorm1d(width)
        self.mix = nn.Linear(width, width)
        self.skip = nn.Linear(n_in, width, bias=False)
        self.last_norm = nn.LayerNorm(width)
        with torch.no_grad():
            nn.init.uniform_(self.skip.weight, -SKIP_NOISE, SKIP_NOISE)
            self.skip.weight.fill_diagonal_(1.0)

    def forward(self, x: Float[Tensor, "row n_in"]) -> Float[Tensor, "row width"]:
        """Where each row comes to lie: y."""
        hidden = F.dropout(F.relu(self.norm(self.widen(x))), self.dropout, self.training)
        return self.last_norm(self.mix(hidden) + self.skip(x))


def unit(x: Float[Tensor, "*row width"]) -> Float[Tensor, "*row width"]:
    """Rows of length 1 in the same directions; a row of zeros stays one."""
    return F.normalize(x, dim=-1)
