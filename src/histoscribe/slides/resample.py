"""Exact resampling of one rectangle: area average when shrinking, bilinear when enlarging.

Both filters are separable and linear, so each axis is one sparse matrix. An output pixel
depends on its own interval alone, never on the rest of the rectangle: reading in pieces is
reading whole.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from scipy.sparse import csr_array

SNAP_PX = 2.0**-20  # positions are equal below this: µm to px by two routes differs by 1e-12
WHITE = 255.0


class AxisFilter(NamedTuple):
    """How the output pixels of one axis are made from source pixels.

    Attributes:
        first: First source pixel that is needed.
        stop: One past the last; equal to `first` where the output lies off the slide.
        weights: output x needed source pixels; a row sums to 1, or to 0 off the slide.
        coverage: The share of each output pixel that lies on the slide.
    """

    first: int
    stop: int
    weights: csr_array
    coverage: Float64[np.ndarray, " output"]


def axis_filter(start: float, step: float, n_output: int, n_source: int) -> AxisFilter:
    """The filter of one axis.

    Output pixel i covers source positions [start + i * step, start + (i + 1) * step), where
    source pixel j covers [j, j + 1).

    Args:
        start: Where the first output pixel begins, in source pixels; may be negative.
        step: Source pixels per output pixel; below 1 enlarges.
        n_output: Number of output pixels.
        n_source: Length of the whole source axis.

    Returns:
        Area weights for a step of at least 1, else the two bilinear ones with the edge pixel
        repeated, so that only what lies off the slide is mixed with white.
    """
    edges = np.round((start + step * np.arange(n_output + 1)) / SNAP_PX) * SNAP_PX
    low, high = np.clip(edges[:-1], 0, n_source), np.clip(edges[1:], 0, n_source)
    is_on = high > low
    coverage = (high - low) / (edges[1:] - edges[:-1])
    if step >= 1:
        taps = np.floor(low)[:, None] + np.arange(int(np.ceil(step)) + 1)
        overlap = np.minimum(high[:, None], taps + 1) - np.maximum(low[:, None], taps)
        weights = np.maximum(overlap, 0) / np.where(is_on, high - low, 1)[:, None]
    else:
        centre = (edges[:-1] + edges[1:]) / 2 - 0.5
        below = np.floor(centre)
        taps = below[:, None] + np.arange(2)
        weights = np.stack([below + 1 - centre, centre - below], axis=1) * is_on[:, None]
    taps = np.clip(taps, 0, n_source - 1).astype(np.int64)
    rows, columns = np.nonzero(weights)
    if rows.size == 0:
        return AxisFilter(0, 0, csr_array((n_output, 0), dtype=np.float32), coverage)
    used = taps[rows, columns]
    first, stop = int(used.min()), int(used.max()) + 1
    values = weights[rows, columns].astype(np.float32)
    matrix = csr_array((values, (rows, used - first)), shape=(n_output, stop - first))
    return AxisFilter(first, stop, matrix, coverage)


def spans(
    axis: tuple[float, float, int, int], most_px: int, piece_px: int
) -> Iterator[tuple[int, int]]:
    """An axis in parts, as (first output pixel, how many), each of few source pixels.

    Args:
        axis: Start, step, and number of output and source pixels, as `axis_filter` takes them.
        most_px: Source pixels that a part may need; each has an output pixel at least.
        piece_px: Source pixels that are decoded together. A part that has room for one ends where
            one ends, so that it is decoded for one part only.
    """
    start, step, n_output, n_source = axis
    first = 0
    while first < n_output:
        begin = start + first * step
        end = begin + most_px
        if most_px >= piece_px and end < n_source:
            end = math.floor(end / piece_px) * piece_px
        n = n_output - first
        if end < n_source:
            n = min(max(1, int((end - begin) / step + SNAP_PX)), n)
        yield first, n
        first += n


def apply_filters(
    source: UInt8[np.ndarray, "source_y source_x 3"], down: AxisFilter, across: AxisFilter
) -> UInt8[np.ndarray, "y x 3"]:
    """Resample the needed source pixels, and lay what lies off the slide on white.

    Args:
        source: Pixels [down.first, down.stop) x [across.first, across.stop) of the level.
        down: Filter of the y axis.
        across: Filter of the x axis.
    """
    n_y, n_x = down.coverage.size, across.coverage.size
    if source.size == 0:
        return np.full((n_y, n_x, 3), 255, dtype=np.uint8)
    image: Float32[np.ndarray, "..."] = source.astype(np.float32)
    image = (down.weights @ image.reshape(len(source), -1)).reshape(n_y, -1, 3)
    image = np.ascontiguousarray(image.transpose(1, 0, 2))
    image = (across.weights @ image.reshape(len(image), -1)).reshape(n_x, n_y, 3)
    image = image.transpose(1, 0, 2)
    coverage = np.outer(down.coverage, across.coverage)[:, :, None]
    if coverage.min() < 1:
        image = coverage * image + (1 - coverage) * WHITE
    return np.ascontiguousarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
