"""The contract of a model: a batch of bags in, expression of each bag out."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from histoscribe.data.bags import BagBatch


@runtime_checkable
class Predictor(Protocol):
    """Any model that `fit` can train."""

    def forward(self, batch: BagBatch) -> Float[Tensor, "bag gene"]:
        """Expression of each bag, in training space (z-scored log1p)."""
        ...

    def attention(self, batch: BagBatch) -> Float[Tensor, "cell gene"]:
        """Share of each cell in its bag, summing to 1 over a bag; 0 for context cells."""
        ...


MODELS = {"bitro": "histoscribe.models.bitro:Bitro"}
"""name -> "module:class", imported when asked for."""
