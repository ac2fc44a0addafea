"""DICOM whole slides (VL Whole Slide Microscopy): each level a file, its frames the tiles.

Headers through pydicom, frames through imagecodecs. Not through OpenSlide, which reads DICOM too:
where the widths of two levels are no whole multiple, it interpolates the lower one, by a shift
that depends on the place asked for.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
from jaxtyping import Int64, UInt8
from pydicom import Dataset, dcmread
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from histoscribe.errors import DataError
from histoscribe.slides.dicom_frames import frame_bytes, frame_starts
from histoscribe.slides.dicom_series import series_files
from histoscribe.slides.pixels import StatedMpp, is_shaped_as
from histoscribe.slides.tiles import TileCache, paste_tiles

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
COLOURS = {  # photometric interpretations that the decoder of each transfer syntax turns to RGB
    ExplicitVRLittleEndian: ("RGB",),
    ImplicitVRLittleEndian: ("RGB",),
    JPEGBaseline8Bit: ("RGB", "YBR_FULL_422", "YBR_FULL"),
    JPEG2000Lossless: ("RGB", "YBR_RCT", "YBR_ICT"),
    JPEG2000: ("RGB", "YBR_RCT", "YBR_ICT"),
}
LEVEL, THUMBNAIL = "VOLUME", "THUMBNAIL"  # image types; labels and overviews are never opened

Decode = Callable[[bytes], np.ndarray]


class Picture(NamedTuple):
    """One file of the series, all its header that reading needs.

    Attributes:
        path: The file.
        size_px: Width and height of the whole picture.
        tile_px: Width and height of a frame.
        frame_at: Which frame lies at a row and a column of tiles; -1 where there is none.
        starts: Byte at which each frame starts, and one past the last.
        is_native: Whether frames are bare pixels; else items of an encapsulated stream.
        decode: From the bytes of a frame to its pixels.
    """

    path: Path
    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    frame_at: Int64[np.ndarray, "row column"]
    starts: Int64[np.ndarray, " edge"]
    is_native: bool
    decode: Decode


def open_dicom(path: Path) -> "DicomSource":
    """Open the series that a file belongs to, or the one series that a folder holds.

    Raises:
        DataError: No series or several, broken, or not tiled 8-bit RGB of one focal plane.
    """
    levels, thumbnail, stated = [], None, {}
    for file in series_files(path):
        header, at = _header(file)
        if header.ImageType[2] == LEVEL:
            levels.append(_picture(file, header, at))
            stated[file] = _stated_mpp(header)
        elif header.ImageType[2] == THUMBNAIL:
            with contextlib.suppress(DataError):  # the slide is readable without
                thumbnail = _picture(file, header, at)
    levels.sort(key=lambda level: -level.size_px[0])
    _check_levels(path, levels)
    return DicomSource(path, tuple(levels), stated[levels[0].path], thumbnail)


class DicomSource:
    """Pixels of a DICOM series; safe to read from several threads."""

    notes = ()

    def __init__(
        self,
        path: Path,
        levels: tuple[Picture, ...],
        stated_mpp: StatedMpp | None,
        thumbnail: Picture | None,
    ) -> None:
        self.path = path
        self.level_size_px = tuple(level.size_px for level in levels)
        self.level_piece_px = tuple(level.tile_px for level in levels)
        self.stated_mpp = stated_mpp
        self._levels = levels
        self._thumbnail = thumbnail
        self._tiles = TileCache()

    def read_pixels(
        self, level: int, xy_px: tuple[int, int], size_px: tuple[int, int]
    ) -> UInt8[np.ndarray, "y x 3"]:
        """A rectangle of a level; tiles that the file leaves out are white."""
        return self._read(self._levels[level], xy_px, size_px)

    def read_thumbnail(self) -> UInt8[np.ndarray, "y x 3"] | None:
        """The picture of type THUMBNAIL, where the series has one."""
        if self._thumbnail is None:
            return None
        return self._read(self._thumbnail, (0, 0), self._thumbnail.size_px)

    def _read(
        self, picture: Picture, xy_px: tuple[int, int], size_px: tuple[int, int]
    ) -> UInt8[np.ndarray, "y x 3"]:
        def tile_at(row: int, column: int) -> np.ndarray | None:
            frame = int(picture.frame_at[row, column])
            if frame < 0:
                return None
            return self._tiles.get((picture.path, frame), partial(_decode, picture, frame))

        return paste_tiles(xy_px, size_px, picture.tile_px, tile_at)


def _decode(picture: Picture, frame: int) -> UInt8[np.ndarray, "y x 3"]:
    start, stop = (int(edge) for edge in picture.starts[frame : frame + 2])
    try:
        with picture.path.open("rb") as file:
            encoded = frame_bytes(file, start, stop, is_native=picture.is_native)
        pixels = picture.decode(encoded)
    except Exception as fault:  # every codec has errors of its own
        raise _broken(picture.path, fault) from fault
    width, height = picture.tile_px
    if pixels.shape != (height, width, 3) or pixels.dtype != np.uint8:
        what = f"a frame of shape {pixels.shape} and {pixels.dtype}"
        raise _broken(picture.path, what)
    return pixels


def _header(path: Path) -> tuple[Dataset, int]:
    try:
        with path.open("rb") as file:
            header = dcmread(file, stop_before_pixels=True)
            _ = header.ImageType[2]
            return header, file.tell()
    except Exception as fault:  # pydicom's are of many classes
        raise _broken(path, fault) from fault


def _picture(path: Path, header: Dataset, at: int) -> Picture:
    try:
        _check_pixels(path, header)
        tile_px = (int(header.Columns), int(header.Rows))
        size_px = (int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows))
        is_native = header.file_meta.TransferSyntaxUID in NATIVE
        n_bytes = tile_px[0] * tile_px[1] * 3 if is_native else None
        n_frames = int(header.get("NumberOfFrames", 1))
        starts = frame_starts(path, header, at, n_frames, n_bytes)
        frame_at = _frame_at(path, header, n_frames, size_px, tile_px)
        return Picture(path, size_px, tile_px, frame_at, starts, is_native, _decoder(header))
    except DataError:
        raise
    except Exception as fault:  # an attribute that is missing, or holds what it should not
        raise _broken(path, fault) from fault


def _check_pixels(path: Path, header: Dataset) -> None:
    syntax, colours = header.file_meta.TransferSyntaxUID, header.PhotometricInterpretation
    depth = (header.SamplesPerPixel, header.BitsAllocated, header.BitsStored)
    if syntax not in COLOURS:
        wanted = ", ".join(known.name for known in COLOURS)
        msg = f"{path}: transfer syntax {syntax.name}; wanted {wanted}. Convert it to one of them."
        raise DataError(msg)
    if depth != (3, 8, 8) or colours not in COLOURS[syntax]:
        msg = (
            f"{path}: {depth[0]} samples of {depth[2]} bits, {colours}; wanted 8-bit colour "
            f"({', '.join(COLOURS[syntax])} in {syntax.name}). Export the H&E image as that."
        )
        raise DataError(msg)
    n_planes = int(header.get("TotalPixelMatrixFocalPlanes", 1))
    n_paths = int(header.get("NumberOfOpticalPaths", 1))
    if (n_planes, n_paths) != (1, 1):
        msg = (
            f"{path}: {n_planes} focal planes and {n_paths} optical paths; wanted one of each. "
            "Export one plane."
        )
        raise DataError(msg)


def _frame_at(
    path: Path,
    header: Dataset,
    n_frames: int,
    size_px: tuple[int, int],
    tile_px: tuple[int, int],
) -> Int64[np.ndarray, "row column"]:
    n_across, n_down = (-(-n // one) for n, one in zip(size_px, tile_px, strict=True))
    if _organization(header) == "TILED_FULL":
        if n_frames != n_across * n_down:
            msg = (
                f"{path}: {n_frames} frames; {size_px[0]} x {size_px[1]} px in tiles of "
                f"{tile_px[0]} x {tile_px[1]} are {n_across * n_down}. Export it as TILED_FULL."
            )
            raise DataError(msg)
        return np.arange(n_frames).reshape(n_down, n_across)
    frame_at = np.full((n_down, n_across), -1, dtype=np.int64)
    for frame, group in enumerate(header.PerFrameFunctionalGroupsSequence[:n_frames]):
        place = group.PlanePositionSlideSequence[0]
        x = int(place.ColumnPositionInTotalImagePixelMatrix) - 1
        y = int(place.RowPositionInTotalImagePixelMatrix) - 1
        if x % tile_px[0] or y % tile_px[1]:
            msg = (
                f"{path}: a frame at pixel ({x}, {y}) that is no multiple of its size, "
                f"{tile_px[0]} x {tile_px[1]}; wanted tiles side by side. Export it as TILED_FULL."
            )
            raise DataError(msg)
        if not (0 <= x < size_px[0] and 0 <= y < size_px[1]):
            msg = (
                f"{path}: a frame at pixel ({x}, {y}), off its {size_px[0]} x {size_px[1]} px. "
                "Export it again."
            )
            raise DataError(msg)
        where = y // tile_px[1], x // tile_px[0]
        if frame_at[where] >= 0:
            msg = (
                f"{path}: two frames at pixel ({x}, {y}), as of several focal planes; wanted one "
                "at each place. Export one plane."
            )
            raise DataError(msg)
        frame_at[where] = frame
    return frame_at


def _organization(header: Dataset) -> str:
    """How frames are laid out; where it is not said, they are where their positions are."""
    groups = header.get("PerFrameFunctionalGroupsSequence")
    has_places = bool(groups) and "PlanePositionSlideSequence" in groups[0]
    stated = header.get("DimensionOrganizationType")
    return stated or ("TILED_SPARSE" if has_places else "TILED_FULL")


def _decoder(header: Dataset) -> Decode:
    syntax = header.file_meta.TransferSyntaxUID
    if syntax in NATIVE:
        shape, is_planar = (int(header.Rows), int(header.Columns)), header.PlanarConfiguration == 1
        return partial(_decode_native, shape=shape, is_planar=is_planar)
    if syntax == JPEGBaseline8Bit:
        return partial(_decode_jpeg, is_rgb=header.PhotometricInterpretation == "RGB")
    return imagecodecs.jpeg2k_decode


def _decode_native(encoded: bytes, shape: tuple[int, int], *, is_planar: bool) -> np.ndarray:
    pixels = np.frombuffer(encoded, dtype=np.uint8)
    if is_planar:
        return np.ascontiguousarray(pixels.reshape(3, *shape).transpose(1, 2, 0))
    return pixels.reshape(*shape, 3)


def _decode_jpeg(encoded: bytes, *, is_rgb: bool) -> np.ndarray:
    # the header's word counts, as OpenSlide has it: nothing in a scanner's JPEG says it is RGB
    return imagecodecs.jpeg_decode(encoded, colorspace="RGB" if is_rgb else None)


def _check_levels(path: Path, levels: list[Picture]) -> None:
    if not levels:
        msg = (
            f"{path}: no image of type VOLUME in its series (a label or an overview alone); "
            "wanted the scan. Put all files of the series in one folder."
        )
        raise DataError(msg)
    sizes = [level.size_px for level in levels]
    if not all(is_shaped_as(one, sizes[0]) for one in sizes) or len(set(sizes)) < len(sizes):
        came = ", ".join(f"{one[0]} x {one[1]}" for one in sizes)
        msg = (
            f"{path}: images of {came} px in one series; wanted the levels of one picture, each "
            "smaller than the last and of the same shape. Keep one slide in a series."
        )
        raise DataError(msg)


def _stated_mpp(header: Dataset) -> StatedMpp | None:
    try:
        measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        down_mm, across_mm = (float(one) for one in measures.PixelSpacing)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    return StatedMpp(across_mm * 1000, down_mm * 1000, "its DICOM pixel spacing")


def _broken(path: Path, fault: object) -> DataError:
    return DataError(
        f"{path}: truncated or damaged DICOM ({fault}); wanted a whole one. "
        "Copy it again from its source."
    )
