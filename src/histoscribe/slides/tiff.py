"""TIFF, OME-TIFF and Aperio SVS, tiled or in strips, through tifffile: exact, segment by segment.

Levels are the series' own, in SubIFDs or as pages, and pages flagged as reduced images.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import UInt8
from tifffile import (
    COMPRESSION,
    PHOTOMETRIC,
    PLANARCONFIG,
    TiffFile,
    TiffFileError,
    TiffPage,
    TiffPageSeries,
)

from histoscribe.errors import DataError
from histoscribe.slides.pixels import StatedMpp
from histoscribe.slides.tiff_scale import stated_mpp_of
from histoscribe.slides.tiles import TileCache, paste

SAME_ASPECT = 0.02
RGB_OF_YCBCR = np.array(  # ITU-T T.871 (JFIF), the YCbCr of TIFF's default coefficients
    [[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]], dtype=np.float32
)


class Page(NamedTuple):
    """A page and where its segments lie, read once so that the file need not stay open."""

    tags: TiffPage
    offsets: tuple[int, ...]
    n_bytes: tuple[int, ...]
    jpeg_tables: bytes | None


class Level(NamedTuple):
    """The pages of one level: one colour page, or one grey page for each of R, G, B."""

    size_px: tuple[int, int]
    pages: tuple[Page, ...]


def open_tiff(path: Path) -> "TiffSource":
    """Open a TIFF.

    Raises:
        DataError: Broken, or not 8-bit RGB.
    """
    try:
        with TiffFile(path) as file:
            return TiffSource(
                path, _levels(path, file), stated_mpp_of(file), _thumbnail(path, file)
            )
    except DataError:
        raise
    except (TiffFileError, OSError, ValueError, IndexError, KeyError, AttributeError) as fault:
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
        self.stated_mpp = stated_mpp
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
            alpha = pixels[:, :, 3:].astype(np.uint16)
            colour = pixels[:, :, :3] * alpha + 255 * (255 - alpha)
            pixels = ((colour + 127) // 255).astype(np.uint8)
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
    if page.is_tiled:
        n_wide, n_high = page.tilewidth, page.tilelength
    else:
        n_wide, n_high = page.imagewidth, min(page.rowsperstrip, page.imagelength)
    n_across, n_down = -(-page.imagewidth // n_wide), -(-page.imagelength // n_high)
    n_planes = page.samplesperpixel if page.planarconfig == PLANARCONFIG.SEPARATE else 1
    for plane in range(n_planes):
        for row in range(y // n_high, -(-(y + height) // n_high)):
            for column in range(x // n_wide, -(-(x + width) // n_wide)):
                index = (plane * n_down + row) * n_across + column
                yield index, plane, column * n_wide, row * n_high


def _levels(path: Path, file: TiffFile) -> tuple[Level, ...]:
    series = file.series[0]
    levels = [_level(path, one) for one in series.levels]
    # pyramids of pages that no standard ties together; of Aperio's pages tifffile knows which
    # are levels, and a label or macro page, which may carry a name, is none
    if len(levels) == 1 and not file.is_svs:
        levels += [
            Level((page.imagewidth, page.imagelength), (_page(page),))
            for page in file.pages
            if isinstance(page, TiffPage) and _is_reduced(page, levels[0])
        ]
    levels.sort(key=lambda level: -level.size_px[0])
    return tuple(levels)


def _thumbnail(path: Path, file: TiffFile) -> Level | None:
    if not file.is_svs:
        return None
    for series in file.series:
        # tifffile names by order: where a thumbnail was taken out, a label may stand in its place
        if series.name == "Thumbnail" and not series.keyframe.is_reduced:
            try:
                return _level(path, series)
            except DataError:
                return None
    return None


def _rgb_of_ycbcr(
    ycbcr: UInt8[np.ndarray, "y x 3"],
) -> UInt8[np.ndarray, "y x 3"]:
    # Aperio's JPEG 2000 tiles hold plain YCbCr (compression 33003), which tifffile leaves so
    centred = ycbcr.astype(np.float32) - np.array([0, 128, 128], dtype=np.float32)
    return np.clip(np.rint(centred @ RGB_OF_YCBCR.T), 0, 255).astype(np.uint8)


def _is_reduced(page: TiffPage, full: Level) -> bool:
    width, height = full.size_px
    ratio = (width / page.imagewidth) / (height / page.imagelength)
    return (
        page.is_reduced
        and page.imagewidth < width
        and abs(ratio - 1) < SAME_ASPECT
        and page.samplesperpixel == full.pages[0].tags.samplesperpixel
        and page.dtype == full.pages[0].tags.dtype
    )


def _level(path: Path, series: TiffPageSeries) -> Level:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    n_pages = sizes.get("C", 1)
    pages = tuple(series.pages[one] for one in range(min(n_pages, len(series.pages))))
    keyframe = series.keyframe
    others = [axis for axis in sizes if axis not in "YXSC" and sizes[axis] > 1]
    is_colour = len(pages) * keyframe.samplesperpixel in (3, 4) and keyframe.photometric in (
        PHOTOMETRIC.RGB,
        PHOTOMETRIC.YCBCR,
        PHOTOMETRIC.MINISBLACK,
    )
    if others or not is_colour or series.dtype != np.uint8:
        msg = (
            f"{path}: holds {series.dtype} of shape {series.shape} ({series.axes}, "
            f"{PHOTOMETRIC(keyframe.photometric).name}); wanted one 8-bit RGB image. "
            "Export it as that."
        )
        raise DataError(msg)
    # a frame shares its first page's tags; whole pages are what decodes
    frames = [page if isinstance(page, TiffPage) else page.aspage() for page in pages if page]
    return Level((sizes["X"], sizes["Y"]), tuple(_page(frame) for frame in frames))


def _page(page: TiffPage) -> Page:
    page.decode  # noqa: B018 - tifffile builds the decoder, and keeps it, while the file is open
    return Page(page, tuple(page.dataoffsets), tuple(page.databytecounts), page.jpegtables)


def _broken(path: Path, fault: Exception) -> DataError:
    return DataError(
        f"{path}: truncated or damaged TIFF ({fault}); wanted a whole one. "
        "Copy it again from its source."
    )
