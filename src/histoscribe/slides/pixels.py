"""PixelSource: what a file format owes; the pyramid does the rest."""

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

LARGEST_PIECE_PX = 1_000_000_000  # what is decoded at once: 3 GB held, 8 GB while decoding
DECODING_BYTES = 8  # a pixel, at most: JPEG and PNG measure 4 to 8, TIFF 3 (64 million px)
SAME_HEIGHT = 0.02
ROUNDED_PX = 2.0  # writers round up, down, or pad to whole blocks


class StatedMpp(NamedTuple):
    """What a file says of its own resolution, believed or not.

    Attributes:
        x: µm per pixel of the full-resolution level, along x.
        y: The same along y.
        where: Where the file says so, for people.
        doubt: What weakens it, as a note for the user; empty where nothing does.
    """

    x: float
    y: float
    where: str
    doubt: str = ""


def is_shaped_as(size_px: tuple[int, int], full_px: tuple[int, int]) -> bool:
    """Whether a picture can be the other one made smaller: heights agree to 2 % or 2 px."""
    height = full_px[1] * size_px[0] / full_px[0]
    is_smaller = size_px[0] <= full_px[0] and size_px[1] <= full_px[1]
    return is_smaller and abs(height - size_px[1]) <= max(SAME_HEIGHT * height, ROUNDED_PX)


@runtime_checkable
class PixelSource(Protocol):
    """An open image file of one or more levels, finest first."""

    @property
    def path(self) -> Path:
        """The file, or the folder."""
        ...

    @property
    def level_size_px(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level, level 0 the finest."""
        ...

    @property
    def level_piece_px(self) -> tuple[tuple[int, int], ...]:
        """Width and height of what each level decodes at once: a tile, a strip, or all of it."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the file though its pixels can be read."""
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

    def read_thumbnail(self) -> UInt8[np.ndarray, "y x 3"] | None:
        """The small picture of the whole slide that some files hold beside the levels.

        Never the label or the macro image: they show names.
        """
        ...
