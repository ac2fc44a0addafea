"""Slides that OpenSlide reads: Aperio, Hamamatsu, MIRAX, Leica, Philips, Ventana, DICOM, ..."""

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

    def __init__(self, path: Path, handle: OpenSlide) -> None:
        self.path = path
        self.level_size_px = tuple(handle.level_dimensions)
        self.stated_mpp = _stated_mpp(handle)
        self._handle = handle

    def read_pixels(
        self, level: int, xy_px: tuple[int, int], size_px: tuple[int, int]
    ) -> UInt8[np.ndarray, "y x 3"]:
        """A rectangle of a level, transparent parts white."""
        # OpenSlide takes the corner in level-0 pixels whatever the level (defect B1 of the
        # paper's code came from mixing the two)
        factor = self._handle.level_downsamples[level]
        corner = (round(xy_px[0] * factor), round(xy_px[1] * factor))
        try:
            image = np.asarray(self._handle.read_region(corner, level, size_px))
        except (OpenSlideError, OSError) as fault:
            msg = (
                f"{self.path}: broken near pixel {corner} ({fault}). Copy it again from its source."
            )
            raise DataError(msg) from fault
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
