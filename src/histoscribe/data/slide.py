"""Slide: the one way pixels are read, whatever the file."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from histoscribe.types import Box


@runtime_checkable
class Slide(Protocol):
    """An H&E image whose physical scale is known.

    `size_px` and `mpp` are (x, y) of the full-resolution level.
    """

    @property
    def slide_id(self) -> str:
        """Name of the slide, unique in a study."""
        ...

    @property
    def path(self) -> Path:
        """The file or the folder it is read from."""
        ...

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the full-resolution level, in pixels."""
        ...

    @property
    def mpp(self) -> tuple[float, float]:
        """µm per pixel of the full-resolution level, (x, y)."""
        ...

    def read(self, box: Box, mpp: float) -> UInt8[np.ndarray, "y x 3"]:
        """The box at `mpp` µm per pixel: round(height_um / mpp) x round(width_um / mpp) pixels.

        Area-filtered from the level just finer than needed; at most 2x enlarged (bilinear) where
        there is none; white outside the slide.
        """
        ...
