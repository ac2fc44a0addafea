"""Outlines of labelled nuclei: all polygons of a field at once, without a loop over nuclei."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

# The four sides of a pixel, clockwise: top, right, bottom, left. Walking along a side, the pixel
# lies to the right; `OUT` points away from it, `ALONG` is the direction of the walk, as (y, x).
OUT = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
ALONG = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])


class PixelOutlines(NamedTuple):
    """Polygon i (of label i + 1) has the vertices `xy_px[start[i] : start[i + 1]]`."""

    xy_px: Float32[np.ndarray, "vertex 2"]
    start: Int64[np.ndarray, " label_plus_1"]


def trace_outlines(labels: Int32[np.ndarray, "y x"]) -> PixelOutlines:
    """Trace the outer outline of labels 1 to n, each of which must occur.

    The vertices are the middles of the pixel sides between a nucleus and what is not it, that is
    the marching-squares contour of its mask at one half (pixels that meet at a corner are
    connected), less the vertices on straight runs. Holes have no outline; of several pieces the
    one with the longest way round is outlined.

    All sides of all nuclei are one linked list: each knows the side that follows it on the way
    round, and pointer jumping orders every way round in log2(longest) vectorised steps.

    Args:
        labels: 0 for none, else the number of the nucleus.

    Returns:
        Polygons in pixels, where pixel (0, 0) covers [0, 1) x [0, 1).
    """
    padded = np.pad(labels, 1)
    n_labels = int(labels.max(initial=0))
    side, pixel_y, pixel_x = boundary_sides(padded)
    if not len(side):
        return PixelOutlines(np.zeros((0, 2), np.float32), np.zeros(n_labels + 1, np.int64))
    following = next_side(padded, side, pixel_y, pixel_x)
    ring, rank = order_rings(following)
    label = padded[pixel_y, pixel_x]
    middle_y = pixel_y - 1 + 0.5 + 0.5 * OUT[side, 0]
    middle_x = pixel_x - 1 + 0.5 + 0.5 * OUT[side, 1]
    length = np.bincount(ring, minlength=len(side))
    # The last write wins: the longest ring of a label last.
    firsts = np.flatnonzero(length)
    firsts = firsts[np.argsort(length[firsts], kind="stable")]
    ring_of_label = np.full(n_labels + 1, -1)
    ring_of_label[label[firsts]] = firsts
    kept = np.flatnonzero(ring == ring_of_label[label])
    kept = kept[np.lexsort((rank[kept], label[kept]))]
    xy = np.stack([middle_x[kept], middle_y[kept]], axis=1)
    return drop_straight(xy, label[kept], n_labels)


def boundary_sides(
    padded: Int32[np.ndarray, "y x"],
) -> tuple[Int[np.ndarray, " side"], Int[np.ndarray, " side"], Int[np.ndarray, " side"]]:
    """Every side between a nucleus and what is not it: which side, of which pixel (y, x)."""
    inner = padded[1:-1, 1:-1]
    height, width = inner.shape
    found = []
    for out_y, out_x in OUT:
        other = padded[1 + out_y : 1 + out_y + height, 1 + out_x : 1 + out_x + width]
        found.append((inner > 0) & (inner != other))
    side, y, x = np.nonzero(np.stack(found))
    return side, y + 1, x + 1


def next_side(
    padded: Int32[np.ndarray, "y x"],
    side: Int[np.ndarray, " side"],
    y: Int[np.ndarray, " side"],
    x: Int[np.ndarray, " side"],
) -> Int[np.ndarray, " side"]:
    """The side that follows each on the way round its nucleus.

    At the end of a side the way bends left round the pixel diagonally ahead if it is of the
    nucleus, else goes straight along the pixel ahead if that is, else turns right.
    """
    label = padded[y, x]
    ahead_y, ahead_x = y + ALONG[side, 0], x + ALONG[side, 1]
    diagonal_y, diagonal_x = ahead_y + OUT[side, 0], ahead_x + OUT[side, 1]
    bends_left = padded[diagonal_y, diagonal_x] == label
    goes_on = ~bends_left & (padded[ahead_y, ahead_x] == label)
    to_y = np.where(bends_left, diagonal_y, np.where(goes_on, ahead_y, y))
    to_x = np.where(bends_left, diagonal_x, np.where(goes_on, ahead_x, x))
    to_side = np.where(bends_left, side + 3, np.where(goes_on, side, side + 1)) % 4
    number = np.full((4, *padded.shape), -1, np.int64)
    number[side, y, x] = np.arange(len(side))
    return number[to_side, to_y, to_x]


def order_rings(
    following: Int[np.ndarray, " side"],
) -> tuple[Int[np.ndarray, " side"], Int[np.ndarray, " side"]]:
    """The ring of each side (named by its smallest member) and a running number within it."""
    smallest = np.arange(len(following))
    jump = following
    while True:
        update = np.minimum(smallest, smallest[jump])
        if np.array_equal(update, smallest):
            break
        smallest, jump = update, jump[jump]
    # Cut each ring before its first side, then count the steps that are left to the cut.
    is_last = following == smallest
    jump = np.where(is_last, np.arange(len(following)), following)
    steps = (~is_last).astype(np.int64)
    while np.any(steps[jump]):
        steps, jump = steps + steps[jump], jump[jump]
    return smallest, -steps


def drop_straight(
    xy: Float32[np.ndarray, "vertex 2"] | np.ndarray,
    label: Int[np.ndarray, " vertex"],
    n_labels: int,
) -> PixelOutlines:
    """Drop the vertices that lie on the line between the one before and the one after."""
    start = np.searchsorted(label, np.arange(1, n_labels + 2))
    size = np.diff(start)
    first = np.repeat(start[:-1], size)
    last = np.repeat(start[1:] - 1, size)
    index = np.arange(len(xy))
    before = xy - xy[np.where(index == first, last, index - 1)]
    after = xy[np.where(index == last, first, index + 1)] - xy
    bend: Bool[np.ndarray, " vertex"] = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept_start = np.concatenate([[0], np.cumsum(bend)])[start]
    return PixelOutlines(xy[bend].astype(np.float32), kept_start.astype(np.int64))
