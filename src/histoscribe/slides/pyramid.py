"""PyramidSlide: a Slide over any PixelSource; chooses the level and resamples."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from histoscribe.errors import DataError
from histoscribe.slides.pixels import PixelSource, StatedMpp, is_shaped_as
from histoscribe.slides.resample import AxisFilter, apply_filters, axis_filter, spans
from histoscribe.types import Box

LARGEST_ENLARGEMENT = 2.0  # beyond it there is nothing in the pixels for an encoder to see
ROUNDING = 1e-6  # 0.5 µm/px asked of a level of 0.5 µm/px is no enlargement
BLOCK_PX = 16_000_000  # source pixels filtered at a time: 200 MB as float32 RGB
LARGE_PX = 64_000_000  # a level that takes seconds to decode


@dataclass(frozen=True)
class Reading:
    """How pixels at some resolution are made from a slide: part of the provenance.

    Attributes:
        level: Level read from, 0 the finest.
        level_mpp: Its resolution, (x, y).
        filter: "area" when shrinking, "bilinear" when enlarging.
        enlargement: Output pixels per source pixel along the axis enlarged most, at least 1.
    """

    level: int
    level_mpp: tuple[float, float]
    filter: Literal["area", "bilinear"]
    enlargement: float


class PyramidSlide:
    """An image file as a Slide.

    Pickles as (path, mpp, slide_id) and opens the file again where it arrives.

    Attributes:
        notes: What a user should know of it though nothing stops (anisotropic pixels, ...).
    """

    def __init__(
        self,
        source: PixelSource,
        mpp: tuple[float, float],
        slide_id: str,
        notes: tuple[str, ...],
        reopen: tuple[Callable[..., Any], tuple[Any, ...]],
    ) -> None:
        self._source = source
        self._mpp = mpp
        self._slide_id = slide_id
        self._reopen = reopen
        self.notes = notes
        self._downsamples = tuple(
            (_downsample(full[0], size[0]), _downsample(full[1], size[1]))
            for full, size in ((source.level_size_px[0], s) for s in source.level_size_px)
        )

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._reopen

    def __repr__(self) -> str:
        return f"<{self.slide_id}: {self.size_px} px, {self.mpp} µm/px, {self.path.name}>"

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self._slide_id

    @property
    def path(self) -> Path:
        """The file, or the folder."""
        return self._source.path

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the full-resolution level."""
        return self._source.level_size_px[0]

    @property
    def mpp(self) -> tuple[float, float]:
        """µm per pixel of the full-resolution level, (x, y)."""
        return self._mpp

    @property
    def level_mpp(self) -> tuple[tuple[float, float], ...]:
        """µm per pixel of every level, finest first."""
        return tuple((self._mpp[0] * x, self._mpp[1] * y) for x, y in self._downsamples)

    @property
    def level_piece_px(self) -> tuple[tuple[int, int], ...]:
        """Width and height of what each level decodes at once: a tile, a strip, or all of it."""
        return self._source.level_piece_px

    @property
    def stated_mpp(self) -> StatedMpp | None:
        """The resolution that the file claims, or None, whichever is used."""
        return self._source.stated_mpp

    def describe_reading(self, mpp: float) -> Reading:
        """How `read` makes pixels of `mpp` µm: the coarsest level that is fine enough.

        Raises:
            DataError: Not a positive number, or more than twice finer than the file holds.
        """
        if not (np.isfinite(mpp) and mpp > 0):
            msg = f"{self.path}: asked for {mpp} µm/px; wanted a positive number."
            raise DataError(msg)
        fine = [
            level
            for level, (x, y) in enumerate(self.level_mpp)
            if max(x, y) <= mpp * (1 + ROUNDING)
        ]
        level = max(fine, key=lambda one: self.level_mpp[one], default=0)
        level_mpp = self.level_mpp[level]
        enlargement = max(*level_mpp, mpp) / mpp
        if enlargement > LARGEST_ENLARGEMENT * (1 + ROUNDING):
            msg = (
                f"{self.path}: its finest level has {level_mpp[0]:.4g} µm/px, {mpp:.4g} were "
                f"asked, an enlargement of {enlargement:.2f}x; at most "
                f"{LARGEST_ENLARGEMENT:.0f}x is made. Ask for {level_mpp[0] / 2:.3g} µm/px or "
                "more, or give a finer scan."
            )
            raise DataError(msg)
        is_enlarged = enlargement > 1 + ROUNDING
        return Reading(
            level,
            level_mpp,
            "bilinear" if is_enlarged else "area",
            enlargement if is_enlarged else 1.0,
        )

    def read(self, box: Box, mpp: float) -> UInt8[np.ndarray, "y x 3"]:
        """The box at `mpp` µm per pixel; see `Slide.read`.

        Raises:
            DataError: A box of no size, a resolution beyond the file's, or a broken file.
        """
        reading = self.describe_reading(mpp)
        n_x, n_y = round(box.width_um / mpp), round(box.height_um / mpp)
        if n_x < 1 or n_y < 1:
            msg = f"{self.path}: {box} holds no pixel of {mpp:.4g} µm; wanted at least one."
            raise DataError(msg)
        width, height = self._source.level_size_px[reading.level]
        step_x, step_y = mpp / reading.level_mpp[0], mpp / reading.level_mpp[1]
        if reading.filter == "area":
            step_x, step_y = max(step_x, 1.0), max(step_y, 1.0)  # 0.9999999 is 1
        start_x, start_y = box.x_um / reading.level_mpp[0], box.y_um / reading.level_mpp[1]
        wide, high = self._source.level_piece_px[reading.level]
        image = np.empty((n_y, n_x, 3), dtype=np.uint8)
        # strips from top to bottom, so that the pieces two blocks share are still at hand
        for column, n in spans((start_x, step_x, n_x, width), max(wide, BLOCK_PX // high), wide):
            across = axis_filter(start_x + column * step_x, step_x, n, width)
            most = BLOCK_PX // max(across.stop - across.first, 1)
            for row, n_rows in spans((start_y, step_y, n_y, height), most, high):
                down = axis_filter(start_y + row * step_y, step_y, n_rows, height)
                image[row : row + n_rows, column : column + n] = apply_filters(
                    self._pixels(reading.level, across, down), down, across
                )
        return image

    def _pixels(
        self, level: int, across: AxisFilter, down: AxisFilter
    ) -> UInt8[np.ndarray, "y x 3"]:
        """What the filters need of a level."""
        size = (across.stop - across.first, down.stop - down.first)
        if min(size) == 0:
            return np.empty((0, 0, 3), dtype=np.uint8)
        return self._source.read_pixels(level, (across.first, down.first), size)

    def thumbnail(self, max_px: int) -> UInt8[np.ndarray, "y x 3"]:
        """The whole slide, its longer side `max_px` pixels or fewer; pixels are square.

        From the level just finer than needed. Where that is a large level 0, from the largest
        level below it, or from the thumbnail that the file holds, even if these are smaller than
        asked; only a file that has neither is read whole, strip by strip. The label and the
        macro image, which may show a name, are never used.

        Raises:
            DataError: `max_px` below 1, or a broken file.
        """
        if max_px < 1:
            msg = f"{self.path}: a thumbnail of {max_px} px; wanted at least 1."
            raise DataError(msg)
        width_um, height_um = (n * one for n, one in zip(self.size_px, self._mpp, strict=True))
        mpp = max(width_um / max_px, height_um / max_px, *self._mpp)
        width, height = self.size_px
        if self.describe_reading(mpp).level == 0 and width * height > LARGE_PX:
            if len(self.level_mpp) > 1:
                mpp = max(self.level_mpp[1])
            else:
                small = self._source.read_thumbnail()
                if small is not None and is_shaped_as(small.shape[1::-1], self.size_px):
                    mpp = max(mpp, width_um / small.shape[1], height_um / small.shape[0])
                    return _shrunk(small, round(width_um / mpp), round(height_um / mpp))
        return self.read(Box(0.0, 0.0, width_um, height_um), mpp)


def _shrunk(
    image: UInt8[np.ndarray, "source_y source_x 3"], n_x: int, n_y: int
) -> UInt8[np.ndarray, "y x 3"]:
    height, width = image.shape[:2]
    down = axis_filter(0.0, height / n_y, n_y, height)
    return apply_filters(image, down, axis_filter(0.0, width / n_x, n_x, width))


def _downsample(full: int, size: int) -> float:
    """Full-resolution pixels per level pixel.

    Writers halve and drop the odd last pixel: 3567 -> 1783 is a factor of 2, not 2.0006, which
    would shift the far end of a large slide.
    """
    ratio = full / size
    return float(round(ratio)) if abs(full / round(ratio) - size) <= 1 else ratio
