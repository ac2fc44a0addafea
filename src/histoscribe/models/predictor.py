"""The contract of a model: a batch of bags in, expression of each bag out."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from histoscribe.data.bags import BagBatch
from histoscribe.models.stream import BagStream


class Answer(NamedTuple):
    """All that a model says of a batch in one pass.

    Attributes:
        expression: What the model predicts, in training space.
        branches: The answers that are trained, each by itself; just `expression` for most models.
        attention: Share of each cell in its bag; 0 for cells that were not pooled.
        stands_for: How many cells of its block each cell stands for: 1 inside the region, 0 for
            context cells; where cells are drawn in training, those that were drawn stand for all.
    """

    expression: Float[Tensor, "bag gene"]
    branches: tuple[Float[Tensor, "bag gene"], ...]
    attention: Float[Tensor, "cell gene"]
    stands_for: Float[Tensor, " cell"]


@runtime_checkable
class Predictor(Protocol):
    """Any model that `fit` can train."""

    def forward(self, batch: BagBatch) -> Float[Tensor, "bag gene"]:
        """Expression of each bag, in training space (z-scored log1p)."""
        ...

    def attention(self, batch: BagBatch) -> Float[Tensor, "cell gene"]:
        """Share of each cell in its bag, summing to 1 over a bag; 0 for context cells."""
        ...


@runtime_checkable
class Branched(Predictor, Protocol):
    """A model whose answer is a mix of branches that are trained side by side."""

    def answer(self, batch: BagBatch) -> Answer:
        """The mix, its branches and the attention in one pass."""
        ...


@runtime_checkable
class Streamed(Predictor, Protocol):
    """A model that answers bags of any size, block by block."""

    def stream(self, n_bags: int) -> BagStream:
        """What some bags are shown to."""
        ...


MODELS = {"bitro": "histoscribe.models.bitro:Bitro"}
"""name -> "module:class", imported when asked for."""
