"""Label images: each pixel says the number of its nucleus, 0 for none."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Integer
from skimage import measure

from histoscribe.data.mapped import release
from histoscribe.data.outlines import trace_outlines
from histoscribe.data.slide import Slide
from histoscribe.errors import DataError
from histoscribe.readers.label_image import LabelFile, open_label_file
from histoscribe.readers.nuclei_config import NucleiConfig, pixels_to_um
from histoscribe.readers.rings import RawNuclei, Rings, starts

PIXELS_AT_ONCE = 2**22  # whole rows of so many pixels are searched together: at most 0.2 GB
TILE_PX = 1024  # nuclei that begin in such a square are traced together
LARGEST_PX = 512  # across; a label that spreads wider is in pieces far apart, or no nucleus
SIZE_TOLERANCE = 0.01
MAX_UINT16 = 65535

Labels = Integer[np.ndarray, "y x"]


class Found(NamedTuple):
    """The labels of an image, by rising number: where each lies (y, x of first and past last)."""

    number: Int64[np.ndarray, " label"]
    low: Int64[np.ndarray, "label 2"]
    high: Int64[np.ndarray, "label 2"]


class Traced(NamedTuple):
    """The largest piece of each label, in pixels; of some the ring is empty."""

    rings: Rings
    centroid: Float64[np.ndarray, "label 2"]
    area: Float64[np.ndarray, " label"]
    n_pieces: Int64[np.ndarray, " label"]


def read_labels(
    path: Path, slide: Slide, config: NucleiConfig, scratch: Path | None = None
) -> RawNuclei:
    """Read a label image of the whole slide: on its own grid, or at `config.mpp`.

    A nucleus is the largest connected piece of its number. Its area is that of its pixels, its
    outline goes through the middles of the pixels' sides. Order is by rising number. Memory holds
    windows of the image and the outlines; only a PNG is held whole.

    Args:
        path: The file.
        slide: The slide.
        config: Its `mpp` if the image is not on the slide's own grid.
        scratch: Folder to unpack it in.

    Raises:
        DataError: No label image, one of another size than the slide, or numbers that were cut
            off at 65,535.
        MissingExtra: No room on the disk to unpack it.
    """
    file = open_label_file(path)
    _check_kind(path, file)
    _check_size(path, file.shape, slide, config)
    labels = file.load(scratch)
    found = find_labels(path, labels)
    traced = trace_labels(labels, found)
    in_pieces = int((traced.n_pieces > 1).sum())
    if in_pieces and len(found.number) == 1:
        raise DataError(
            f"{path}: one number, and that in pieces: a mask of all nuclei; wanted a number for "
            "each: label its connected pieces first"
        )
    if in_pieces and labels.dtype == np.uint16 and found.number[-1] == MAX_UINT16:
        raise DataError(
            f"{path}: 16-bit numbers up to {MAX_UINT16}, {in_pieces} of them in several pieces; "
            "larger ones were cut off: save the labels with 32 bits"
        )
    is_small = np.diff(traced.rings.start) > 0
    kept = np.flatnonzero(is_small)
    note = f"{in_pieces} labels are in several pieces; the largest of each is kept"
    return RawNuclei(
        format="labels",
        rings=traced.rings.take(kept),
        to_um=pixels_to_um(slide, config),
        centroid=traced.centroid[kept],
        area=traced.area[kept],
        dropped={f"wider than {LARGEST_PX} px": len(is_small) - len(kept)},
        notes=(note,) if in_pieces else (),
    )


def find_labels(path: Path, labels: Labels) -> Found:
    """The numbers that occur, and the box of each; some rows at a time.

    Raises:
        DataError: Some are no numbers of nuclei; `path` names the file then.
    """
    parts: list[np.ndarray] = [np.zeros((0, 5), np.int64)]
    n_rows = max(1, PIXELS_AT_ONCE // max(1, labels.shape[1]))
    for top in range(0, len(labels), n_rows):
        strip = labels[top : top + n_rows]
        y, x = np.nonzero(strip)
        numbers = strip[y, x]
        _check_numbers(path, numbers)
        number, place = np.unique(np.asarray(numbers, dtype=np.int64), return_inverse=True)
        low = np.full((len(number), 2), np.iinfo(np.int64).max)
        high = np.zeros((len(number), 2), np.int64)
        for axis, at in enumerate((y + top, x)):
            np.minimum.at(low[:, axis], place, at)
            np.maximum.at(high[:, axis], place, at + 1)
        parts.append(np.column_stack([number, low, high]))
        release(labels)
    rows = np.concatenate(parts)
    number, place = np.unique(rows[:, 0], return_inverse=True)
    low = np.full((len(number), 2), np.iinfo(np.int64).max)
    high = np.zeros((len(number), 2), np.int64)
    np.minimum.at(low, place, rows[:, 1:3])
    np.maximum.at(high, place, rows[:, 3:5])
    return Found(number, low, high)


def trace_labels(labels: Labels, found: Found) -> Traced:
    """Outline, centroid and area of each label; those that begin in one square together."""
    n_labels = len(found.number)
    centroid, area = np.zeros((n_labels, 2)), np.zeros(n_labels)
    n_pieces = np.ones(n_labels, np.int64)
    size = np.zeros(n_labels, np.int64)
    xy, order = [np.zeros((0, 2))], [np.zeros(0, np.int64)]
    is_small = np.max(found.high - found.low, axis=1, initial=0) <= LARGEST_PX
    n_pieces[~is_small] = 2
    square = found.low // TILE_PX
    key = square[:, 0] * (labels.shape[1] // TILE_PX + 1) + square[:, 1]
    small = np.flatnonzero(is_small)
    small = small[np.argsort(key[small], kind="stable")]
    for rows in np.split(small, np.flatnonzero(np.diff(key[small])) + 1) if len(small) else []:
        corner = found.low[rows].min(axis=0)
        end = found.high[rows].max(axis=0)
        own, n_pieces[rows] = _own_pieces(labels[_window(corner, end)], found.number[rows])
        y, x = np.nonzero(own)
        label = own[y, x] - 1
        area[rows] = np.bincount(label, minlength=len(rows))
        for axis, at in enumerate((x, y)):
            total = np.bincount(label, at + 0.5, minlength=len(rows))
            centroid[rows, axis] = total / area[rows] + corner[1 - axis]
        outlines = trace_outlines(own)
        xy.append(outlines.xy_px.astype(np.float64) + corner[::-1])
        size[rows] = np.diff(outlines.start)
        order.append(rows)
        release(labels)
    by_square = np.concatenate(order)
    rings = Rings(np.concatenate(xy), starts(size[by_square]))
    place = np.full(n_labels, -1)
    place[by_square] = np.arange(len(by_square))
    # Labels too wide have no ring: one of no vertices at the end stands for them.
    rings = Rings(rings.xy, np.append(rings.start, rings.start[-1]))
    return Traced(rings.take(place), centroid, area, n_pieces)


def _own_pieces(
    window: Labels, numbers: Int64[np.ndarray, " label"]
) -> tuple[np.ndarray, Int64[np.ndarray, " label"]]:
    """Of these numbers the largest connected piece each, as 1 to n; and how many pieces it had."""
    place = np.minimum(np.searchsorted(numbers, window), len(numbers) - 1)
    own = np.where(numbers[place] == window, place + 1, 0).astype(np.int32)
    pieces = np.asarray(measure.label(own, connectivity=2))
    n_pixels = np.bincount(pieces.ravel())
    label_of = np.zeros(len(n_pixels), np.int32)
    label_of[pieces.ravel()] = own.ravel()
    piece = np.arange(1, len(n_pixels))
    ranked = piece[np.lexsort((piece, -n_pixels[1:], label_of[1:]))]
    is_first = np.concatenate([[True], np.diff(label_of[ranked]) > 0])
    kept = np.zeros(len(n_pixels), np.int32)
    kept[ranked[is_first]] = label_of[ranked[is_first]]
    counts = np.bincount(label_of[1:], minlength=len(numbers) + 1)[1:]
    return kept[pieces], counts.astype(np.int64)


def _window(corner: Int64[np.ndarray, "2"], end: Int64[np.ndarray, "2"]) -> tuple[slice, slice]:
    return slice(int(corner[0]), int(end[0])), slice(int(corner[1]), int(end[1]))


def _check_kind(path: Path, file: LabelFile) -> None:
    """DataError if this is no image of one whole number a pixel."""
    if len(file.shape) != 2:
        shape = " x ".join(map(str, file.shape))
        raise DataError(f"{path}: an image of {shape}; wanted labels y x x, one number a pixel")
    if file.dtype.kind not in "iu":
        raise DataError(
            f"{path}: labels of type {file.dtype}; wanted whole numbers: save them as int32"
        )


def _check_numbers(path: Path, numbers: Integer[np.ndarray, " pixel"]) -> None:
    """DataError if one is below 0, or too large to be told from such."""
    if len(numbers) and numbers.min() < 0:
        raise DataError(f"{path}: labels below 0; wanted 0 for none and positive numbers")
    if len(numbers) and numbers.max() > np.iinfo(np.int64).max:
        raise DataError(f"{path}: labels above {np.iinfo(np.int64).max}; number them from 1")


def _check_size(path: Path, shape: tuple[int, ...], slide: Slide, config: NucleiConfig) -> None:
    """DataError if the image is not as large as the slide."""
    got = np.array(shape[::-1], dtype=np.float64)
    wanted = np.array(slide.size_px, dtype=np.float64)
    if config.mpp is not None:
        wanted = wanted * np.array(slide.mpp) / config.mpp
    spare = 1e-9 if config.mpp is None else np.maximum(2.0, SIZE_TOLERANCE * wanted)
    if np.all(np.abs(got - wanted) <= spare):
        return
    mend = (
        "give its mpp, or the slide it is of"
        if config.mpp is None
        else "give its right mpp, or the slide it is of"
    )
    if np.all(np.abs(got[::-1] - wanted) <= spare):
        mend = "x and y look swapped: transpose it"
    at = "on its own grid" if config.mpp is None else f"at {config.mpp:g} µm/px"
    raise DataError(
        f"{path}: labels of {got[0]:.0f} x {got[1]:.0f} px, slide {slide.slide_id} has "
        f"{wanted[0]:.0f} x {wanted[1]:.0f} px {at}; {mend}"
    )
