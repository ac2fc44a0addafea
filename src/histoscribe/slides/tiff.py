"""TIFF, OME-TIFF and Aperio SVS, in tiles or strips, through tifffile: exact, piece by piece."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from tifffile import COMPRESSION, EXTRASAMPLE, PLANARCONFIG, TiffFile, TiffPage

from histoscribe.errors import DataError
from histoscribe.slides.pixels import StatedMpp
from histoscribe.slides.tiff_pages import (
    Level,
    levels_of,
    n_planes_of,
    notes_of,
    piece_px_of,
    thumbnail_of,
)
from histoscribe.slides.tiff_scale import stated_mpp_of
from histoscribe.slides.tiles import TileCache, paste

RGB_OF_YCBCR = np.array(  # ITU-T T.871 (JFIF), the YCbCr of TIFF's default coefficients
    [[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], dtype=np.float32
)


def open_tiff(path: Path) -> "TiffSource":
    """Open a TIFF.

    Raises:
        DataError: Broken, in several files, not 8-bit RGB, or of pieces too large to decode.
    """
    try:
        with TiffFile(path) as file:
            return TiffSource(
                path, levels_of(path, file), stated_mpp_of(file), thumbnail_of(path, file)
            )
    except DataError:
        raise
    except Exception as fault:  # tifffile's are of many classes
        raise _broken(path, fault) from fault


class TiffSource:
    """Pixels of a TIFF; safe to read from several threads."""

    def __init__(
        self,
        path: Path,
        levels: tuple[Level, ...],
        stated_mpp: StatedMpp | None,
        thumbnail: Level | None,
    ) -> None:
        self.path = path
        self.level_size_px = tuple(level.size_px for level in levels)
        self.level_piece_px = tuple(piece_px_of(level.pages[0].tags) for level in levels)
        self.stated_mpp = stated_mpp
        self.notes = notes_of(levels[0])
        self._pictures = levels if thumbnail is None else (*levels, thumbnail)
        self._segments = TileCache()

    def read_thumbnail(self) -> UInt8[np.ndarray, "y x 3"] | None:
        """The thumbnail that Aperio's files hold beside the levels."""
        n_levels = len(self.level_size_px)
        if len(self._pictures) == n_levels:
            return None
        return self.read_pixels(n_levels, (0, 0), self._pictures[n_levels].size_px)

    def read_pixels(
        self, level: int, xy_px: tuple[int, int], size_px: tuple[int, int]
    ) -> UInt8[np.ndarray, "y x 3"]:
        """A rectangle of a level; tiles that the file leaves out are white."""
        pages = self._pictures[level].pages
        try:
            with self.path.open("rb") as file:
                parts = [
                    self._read_page(file, (level, page), xy_px, size_px)
                    for page in range(len(pages))
                ]
        except DataError:
            raise
        except Exception as fault:  # every codec has errors of its own
            raise _broken(self.path, fault) from fault
        pixels = np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
        if pixels.shape[2] == 4:
            pixels = _on_white(pixels, pages[0].tags.extrasamples)
        return np.ascontiguousarray(pixels[:, :, :3])

    def _read_page(
        self,
        file: BinaryIO,
        which: tuple[int, int],
        xy_px: tuple[int, int],
        size_px: tuple[int, int],
    ) -> UInt8[np.ndarray, "y x sample"]:
        page = self._pictures[which[0]].pages[which[1]].tags
        (x, y), (width, height) = xy_px, size_px
        is_planar = page.planarconfig == PLANARCONFIG.SEPARATE
        n_samples = page.samplesperpixel
        pixels = np.full((height, width, n_samples), 255, dtype=np.uint8)
        for index, plane, left, top in _segments_within(page, xy_px, size_px):
            segment = self._segment(file, (*which, index))
            if segment is None:
                continue
            samples = slice(plane, plane + 1) if is_planar else slice(None)
            paste(segment, (left - x, top - y), pixels[:, :, samples])
        return pixels

    def _segment(self, file: BinaryIO, key: tuple[int, int, int]) -> np.ndarray | None:
        return self._segments.get(key, lambda: self._decode(file, key))

    def _decode(self, file: BinaryIO, key: tuple[int, int, int]) -> np.ndarray | None:
        level, which, index = key
        page = self._pictures[level].pages[which]
        if page.n_bytes[index] == 0:
            return None
        file.seek(page.offsets[index])
        encoded = file.read(page.n_bytes[index])
        if len(encoded) < page.n_bytes[index]:
            msg = f"{self.path}: the file ends early. Copy it again from its source."
            raise DataError(msg)
        decoded = page.tags.decode(encoded, index, jpegtables=page.jpeg_tables)[0]
        if decoded is None:
            return None
        segment = np.asarray(decoded[0], dtype=np.uint8)
        is_ycbcr = page.tags.compression == COMPRESSION.APERIO_JP2000_YCBC
        return _rgb_of_ycbcr(segment) if is_ycbcr else segment


def _segments_within(
    page: TiffPage, xy_px: tuple[int, int], size_px: tuple[int, int]
) -> Iterator[tuple[int, int, int, int]]:
    """Index, plane, left and top of each segment that touches the rectangle."""
    (x, y), (width, height) = xy_px, size_px
    n_wide, n_high = piece_px_of(page)
    n_across, n_down = -(-page.imagewidth // n_wide), -(-page.imagelength // n_high)
    for plane in range(n_planes_of(page)):
        for row in range(y // n_high, -(-(y + height) // n_high)):
            for column in range(x // n_wide, -(-(x + width) // n_wide)):
                index = (plane * n_down + row) * n_across + column
                yield index, plane, column * n_wide, row * n_high


def _on_white(
    pixels: UInt8[np.ndarray, "y x 4"], extra: tuple[int, ...]
) -> UInt8[np.ndarray, "y x 3"]:
    """Transparency laid on white; a fourth sample that is not said to be that is left out."""
    alpha, colour = pixels[:, :, 3:].astype(np.uint16), pixels[:, :, :3]
    if extra[:1] == (EXTRASAMPLE.UNASSALPHA,):
        return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if extra[:1] == (EXTRASAMPLE.ASSOCALPHA,):  # already multiplied by it
        return np.minimum(colour + (255 - alpha), 255).astype(np.uint8)
    return colour


def _rgb_of_ycbcr(
    ycbcr: UInt8[np.ndarray, "y x 3"],
) -> UInt8[np.ndarray, "y x 3"]:
    # Aperio's JPEG 2000 tiles hold plain YCbCr (compression 33003), which tifffile leaves so
    centred = ycbcr.astype(np.float32) - np.array([0, 128, 128], dtype=np.float32)
    return np.clip(np.rint(centred @ RGB_OF_YCBCR.T), 0, 255).astype(np.uint8)


def _broken(path: Path, fault: Exception) -> DataError:
    return DataError(
        f"{path}: truncated or damaged TIFF ({fault}); wanted a whole one. "
        "Copy it again from its source."
    )
