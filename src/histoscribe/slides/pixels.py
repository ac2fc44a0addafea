"""PixelSource: what a file format owes; the pyramid does the rest."""

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


class StatedMpp(NamedTuple):
    """What a file says of its own resolution, believed or not.

    Attributes:
        x: µm per pixel of the full-resolution level, along x.
        y: The same along y.
        where: Where the file says so, for people.
    """

    x: float
    y: float
    where: str


@runtime_checkable
class PixelSource(Protocol):
    """An open image file of one or more levels, finest first."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def level_size_px(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level, level 0 the finest."""
        ...

    @property
    def stated_mpp(self) -> StatedMpp | None:
        """The resolution that the file claims, or None."""
        ...

    def read_pixels(
        self, level: int, xy_px: tuple[int, int], size_px: tuple[int, int]
    ) -> UInt8[np.ndarray, "y x 3"]:
        """RGB pixels of a rectangle (x, y) + (width, height) that lies within the level.

        Raises:
            DataError: The file is broken there.
        """
        ...
