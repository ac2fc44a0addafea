"""Which pages of a TIFF are the levels of one 8-bit RGB image, and which is its thumbnail.

Levels are the series' own, in SubIFDs or as pages, and pages flagged as reduced images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tifffile import (
    EXTRASAMPLE,
    PHOTOMETRIC,
    PLANARCONFIG,
    TiffFile,
    TiffFrame,
    TiffPage,
    TiffPageSeries,
)

from histoscribe.errors import DataError
from histoscribe.slides.channels import channels_of_ome, check_channels
from histoscribe.slides.pixels import LARGEST_PIECE_PX

SAME_ASPECT = 0.02
UPRIGHT = 1  # the value of the tag Orientation that all scanners write
ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)


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


def levels_of(path: Path, file: TiffFile) -> tuple[Level, ...]:
    """The levels of the first image, finest first.

    Raises:
        DataError: Not 8-bit RGB, in several files, damaged, or of pieces too large to decode.
    """
    series = file.series[0]
    levels = [_level(path, file, one) for one in series.levels]
    # pyramids of pages that no standard ties together; of Aperio's pages tifffile knows which
    # are levels, and a label or macro page, which may carry a name, is none
    if len(levels) == 1 and not file.is_svs:
        levels += [
            Level((page.imagewidth, page.imagelength), (_page(path, page),))
            for page in file.pages
            if isinstance(page, TiffPage) and _is_reduced(page, levels[0])
        ]
    levels.sort(key=lambda level: -level.size_px[0])
    return tuple(levels)


def thumbnail_of(path: Path, file: TiffFile) -> Level | None:
    """The thumbnail of an Aperio file; never its label or macro image."""
    if not file.is_svs:
        return None
    for series in file.series:
        # tifffile names by order: where a thumbnail was taken out, a label may stand in its place
        if series.name == "Thumbnail" and not series.keyframe.is_reduced:
            try:
                return _level(path, file, series)
            except (DataError, ValueError):
                return None
    return None


def piece_px_of(page: TiffPage) -> tuple[int, int]:
    """Width and height of a tile, or of a strip."""
    if page.is_tiled:
        return page.tilewidth, page.tilelength
    return page.imagewidth, min(page.rowsperstrip, page.imagelength)


def n_planes_of(page: TiffPage) -> int:
    """Number of planes that segments are counted through; samples of one plane lie together."""
    return page.samplesperpixel if page.planarconfig == PLANARCONFIG.SEPARATE else 1


def notes_of(level: Level) -> tuple[str, ...]:
    """What the file says of its pixels and reading leaves aside."""
    page, notes = level.pages[0].tags, []
    orientation = page.tags.valueof("Orientation", default=UPRIGHT)
    if orientation != UPRIGHT:
        notes.append(
            f"its Orientation tag says {orientation}, turned or mirrored; pixels are taken as "
            "they are stored"
        )
    if page.samplesperpixel > 3 and page.extrasamples[:1] not in [(one,) for one in ALPHA]:
        notes.append("its fourth sample is not said to be transparency; it is left out")
    return tuple(notes)


def _is_reduced(page: TiffPage, full: Level) -> bool:
    width, height = full.size_px
    ratio = (width / page.imagewidth) / (height / page.imagelength)
    return (
        page.is_reduced
        and page.imagewidth < width
        and abs(ratio - 1) < SAME_ASPECT
        and len(full.pages) == 1
        and page.samplesperpixel == full.pages[0].tags.samplesperpixel
        and page.dtype == full.pages[0].tags.dtype
    )


def _level(path: Path, file: TiffFile, series: TiffPageSeries) -> Level:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    n_pages = sizes.get("C", 1)
    pages = tuple(series.pages[one] for one in range(min(n_pages, len(series.pages))))
    _check_kind(path, series, len(pages))
    if file.is_imagej and n_pages > 1:  # ImageJ keeps a colour image in one page of three samples
        msg = (
            f"{path}: an ImageJ stack of {n_pages} grey channels; wanted one RGB image. Convert it "
            "by Image > Type > RGB Color if it is H&E."
        )
        raise DataError(msg)
    if file.is_ome and file.ome_metadata:
        names, colours = channels_of_ome(file.ome_metadata)
        if len(names) == 3:
            check_channels(path, names, colours)
    frames = [page for page in pages if page is not None]
    _check_files(path, file, frames, len(pages))
    # a frame shares its first page's tags; whole pages are what decodes
    whole = [page if isinstance(page, TiffPage) else page.aspage() for page in frames]
    return Level((sizes["X"], sizes["Y"]), tuple(_page(path, page) for page in whole))


def _check_kind(path: Path, series: TiffPageSeries, n_pages: int) -> None:
    keyframe = series.keyframe
    others = [
        axis
        for axis, n in zip(series.axes, series.shape, strict=True)
        if axis not in "YXSC" and n > 1
    ]
    n_samples = n_pages * keyframe.samplesperpixel
    is_colour = keyframe.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR)
    is_grey = keyframe.photometric == PHOTOMETRIC.MINISBLACK  # a fourth channel is no transparency
    is_rgb = (is_colour and n_samples in (3, 4)) or (is_grey and n_samples == 3)
    if others or not is_rgb or series.dtype != np.uint8:
        msg = (
            f"{path}: holds {series.dtype} of shape {series.shape} ({series.axes}, "
            f"{PHOTOMETRIC(keyframe.photometric).name}); wanted one 8-bit RGB image. "
            "Export it as that."
        )
        raise DataError(msg)


def _check_files(
    path: Path, file: TiffFile, pages: Sequence[TiffPage | TiffFrame], n_pages: int
) -> None:
    """Offsets of a page count from the start of the file that it lies in."""
    homes = {page.parent.filehandle.path for page in pages}
    if len(pages) < n_pages or homes != {file.filehandle.path}:
        msg = f"{path}: its pixels lie in several files; wanted one. Export one OME-TIFF."
        raise DataError(msg)


def _page(path: Path, page: TiffPage) -> Page:
    page.decode  # noqa: B018 - tifffile builds the decoder, and keeps it, while the file is open
    offsets, n_bytes = tuple(page.dataoffsets), tuple(page.databytecounts)
    width, height = piece_px_of(page)
    if width * height > LARGEST_PIECE_PX:
        msg = (
            f"{path}: its pixels are in pieces of {width} x {height} px, too many to hold decoded "
            f"(at most {LARGEST_PIECE_PX:,} px). Convert it to a pyramidal TIFF in tiles."
        )
        raise DataError(msg)
    n_pieces = -(-page.imagewidth // width) * -(-page.imagelength // height) * n_planes_of(page)
    if min(len(offsets), len(n_bytes)) < n_pieces:
        msg = f"{n_pieces} pieces of {width} x {height} px are announced, {len(offsets)} are there"
        raise ValueError(msg)
    return Page(page, offsets, n_bytes, page.jpegtables)
