"""Where a cell lies, relative to the centre of its region, in µm."""

import math

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from torch import Tensor, nn


class BinnedPosition(nn.Module):
    r"""Learned tables over a fixed physical window, one for each axis.

        i_x = clamp(floor((x + side / 2) / side P), 0, P - 1)        s = concat(Ex[i_x], Ey[i_y])

    Source: eq. 6 of the BiTro paper. Departs from it: the window is fixed in µm and centred on
    the region, where the authors scale each bag to its own smallest and largest position; so a
    distance means the same in every bag, and moving a slide's origin changes nothing.

    Args:
        width: Of the code; even.
        side_um: Side of the window; what lies outside takes the outermost bin.
        n_bins: P.
    """

    def __init__(self, width: int, side_um: float, n_bins: int = 128) -> None:
        super().__init__()
        self.side_um, self.n_bins = side_um, n_bins
        self.x_table = nn.Parameter(torch.empty(n_bins, width // 2))
        self.y_table = nn.Parameter(torch.empty(n_bins, width // 2))
        for table in (self.x_table, self.y_table):
            nn.init.normal_(table, std=0.02)

    def forward(self, offset_um: Float[Tensor, "cell 2"]) -> Float[Tensor, "cell d"]:
        """The code of each cell."""
        bins = ((offset_um / self.side_um + 0.5) * self.n_bins).floor()
        bins = bins.clamp(0, self.n_bins - 1).long()
        x, y = F.embedding(bins[:, 0], self.x_table), F.embedding(bins[:, 1], self.y_table)
        return torch.cat([x, y], dim=1)


class FourierPosition(nn.Module):
    r"""Sines and cosines of the offset at wavelengths from 10 µm to 30 mm, then a linear map.

    For regions that have no fixed window: a tissue section, a whole slide.

    Args:
        width: Of the code.
        n_frequencies: Log-spaced wavelengths for each axis.
        shortest_um: Shortest wavelength.
        longest_um: Longest wavelength.
    """

    frequency: Float[Tensor, " frequency"]

    def __init__(
        self,
        width: int,
        n_frequencies: int = 32,
        shortest_um: float = 10.0,
        longest_um: float = 30_000.0,
    ) -> None:
        super().__init__()
        log_um = torch.linspace(math.log(shortest_um), math.log(longest_um), n_frequencies)
        self.register_buffer("frequency", 2 * math.pi / log_um.exp(), persistent=False)
        self.project = nn.Linear(4 * n_frequencies, width)

    def forward(self, offset_um: Float[Tensor, "cell 2"]) -> Float[Tensor, "cell d"]:
        """The code of each cell."""
        angle = (offset_um[..., None] * self.frequency).flatten(1)
        return self.project(torch.cat([angle.sin(), angle.cos()], dim=1))
