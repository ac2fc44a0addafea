"""The second, light level of context: a block among the blocks around it."""

from jaxtyping import Float
from torch import Tensor, nn


class RegionContext(nn.Module):
    r"""One vector from a block's own field and the means over rings of its neighbours.

        c = f(sum_r W_r t_r + b)                                         r = 0: the block itself

    with t_r the descriptor of ring r. Pooling over the neighbours of a ring is done where the
    descriptors are made; here every ring has a map of its own and the rings are added up, which
    is one linear map of their concatenation. f is GELU, or with two layers GELU, linear, GELU.

    Source: ours; the paper has no second level, it attends over the whole slide.

    Args:
        n_in: Width of a token times the tokens of a block.
        width: Of the context vector.
        n_layers: Linear maps, at least one.
        input_dropout: Of the descriptors.
        dropout: After each GELU.
    """

    def __init__(
        self, n_in: int, width: int, n_layers: int, input_dropout: float, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten(), nn.Dropout(input_dropout)]
        for _ in range(n_layers):
            layers += [nn.Linear(n_in, width), nn.GELU(), nn.Dropout(dropout)]
            n_in = width
        self.layers = nn.Sequential(*layers)

    def forward(self, field: Float[Tensor, "block ring descriptor"]) -> Float[Tensor, "block d"]:
        """The context vector of each block."""
        return self.layers(field)
