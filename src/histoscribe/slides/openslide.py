"""Slides left to OpenSlide: Hamamatsu, MIRAX, Leica, Philips, Ventana, Trestle, Sakura, Zeiss."""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from openslide import (
    PROPERTY_NAME_MPP_X,
    PROPERTY_NAME_MPP_Y,
    OpenSlide,
    OpenSlideError,
)

from histoscribe.errors import DataError
from histoscribe.slides.pixels import StatedMpp
from histoscribe.slides.tiles import TileCache, paste_tiles

BLOCK_PX = 512


def open_openslide(path: Path) -> "OpenSlideSource":
    """Open through OpenSlide.

    Raises:
        DataError: OpenSlide knows the vendor and cannot open the file.
    """
    try:
        return OpenSlideSource(path, OpenSlide(str(path)))
    except (OpenSlideError, OSError) as fault:
        msg = f"{path}: OpenSlide cannot open it ({fault}). Copy it again from its source."
        raise DataError(msg) from fault


class OpenSlideSource:
    """Pixels through OpenSlide; safe to read from several threads."""

    notes = ()

    def __init__(self, path: Path, handle: OpenSlide) -> None:
        self.path = path
        self.level_size_px = tuple(handle.level_dimensions)
        self.level_piece_px = ((BLOCK_PX, BLOCK_PX),) * len(self.level_size_px)
        self.stated_mpp = _stated_mpp(handle)
        self._handle = handle
        self._blocks = TileCache()

    def read_pixels(
        self, level: int, xy_px: tuple[int, int], size_px: tuple[int, int]
    ) -> UInt8[np.ndarray, "y x 3"]:
        """A rectangle of a level, transparent parts white.

        OpenSlide takes the corner in whole pixels of level 0. Where a level is no whole fraction
        of that one, it interpolates by up to half of such a pixel; reading in fixed blocks makes
        the same of a place whichever rectangle it is asked in.
        """
        if self._handle.level_downsamples[level].is_integer():
            return self._read(level, xy_px, size_px)

        def block_at(row: int, column: int) -> np.ndarray:
            width, height = self.level_size_px[level]
            corner = (column * BLOCK_PX, row * BLOCK_PX)
            size = (min(BLOCK_PX, width - corner[0]), min(BLOCK_PX, height - corner[1]))
            return self._read(level, corner, size)

        def cached(row: int, column: int) -> np.ndarray | None:
            return self._blocks.get((level, row, column), partial(block_at, row, column))

        return paste_tiles(xy_px, size_px, (BLOCK_PX, BLOCK_PX), cached)

    def _read(
        self, level: int, xy_px: tuple[int, int], size_px: tuple[int, int]
    ) -> UInt8[np.ndarray, "y x 3"]:
        # the corner is in level-0 pixels whatever the level (defect B1 of the paper's code came
        # from mixing the two)
        factor = self._handle.level_downsamples[level]
        corner = (round(xy_px[0] * factor), round(xy_px[1] * factor))
        try:
            image = np.asarray(self._handle.read_region(corner, level, size_px))
        except (OpenSlideError, OSError) as fault:
            msg = (
                f"{self.path}: broken near pixel {corner} ({fault}). Copy it again from its source."
            )
            raise DataError(msg) from fault
        return _on_white(image)

    def read_thumbnail(self) -> UInt8[np.ndarray, "y x 3"] | None:
        """The associated image "thumbnail", where there is one."""
        if "thumbnail" not in self._handle.associated_images:
            return None
        try:
            return _on_white(np.asarray(self._handle.associated_images["thumbnail"]))
        except (OpenSlideError, OSError) as fault:
            msg = f"{self.path}: broken thumbnail ({fault}). Copy it again from its source."
            raise DataError(msg) from fault


def _on_white(image: UInt8[np.ndarray, "y x 4"]) -> UInt8[np.ndarray, "y x 3"]:
    alpha = image[:, :, 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(image[:, :, :3])
    return np.where(alpha == 0, 255, image[:, :, :3]).astype(np.uint8)


def _stated_mpp(handle: OpenSlide) -> StatedMpp | None:
    try:
        x, y = (
            float(handle.properties[name]) for name in (PROPERTY_NAME_MPP_X, PROPERTY_NAME_MPP_Y)
        )
    except (KeyError, ValueError):
        return None
    return StatedMpp(x, y, "its header")
