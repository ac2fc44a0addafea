"""Masks to polygons along pixel edges, and polygons to masks by pixel centres: exact both ways."""

from collections.abc import Sequence

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Int
from skimage.measure import label

from histoscribe.data.outlines import ALONG, OUT, order_rings


def trace_pieces(mask: Bool[np.ndarray, "y x"]) -> list[shapely.Polygon]:
    """The pieces of a mask, with their holes, in pixels; pixel (0, 0) covers [0, 1) x [0, 1).

    Edges run along pixel sides. Pixels that meet at a corner only are two pieces, and what lies
    in a hole is a piece of its own, so that every polygon is valid and `fill_rings` gives the
    very mask back. From top to bottom, then from left to right, by the corner of their box.
    """
    if not mask.any():
        return []
    pieces = np.asarray(label(mask, connectivity=1))
    xy, piece, ring = trace_sides(mask, pieces)
    loops, piece_of_loop = [], []
    starts = np.flatnonzero(np.diff(ring, prepend=-1))
    for first, last in zip(starts, [*starts[1:], len(ring)], strict=True):
        whole = xy[first:last]
        for loop in split_at_repeats(whole):
            loops.append(loop)
            piece_of_loop.append(int(piece[first]))
    size = [len(loop) for loop in loops]
    number = np.repeat(np.arange(len(loops)), size)
    corners = np.concatenate(loops)
    following = np.concatenate([np.roll(loop, -1, axis=0) for loop in loops])
    cross = corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]
    is_shell = np.bincount(number, cross) > 0  # clockwise where y points down
    closed = np.asarray(shapely.linearrings(corners.astype(np.float64), indices=number))
    holes: dict[int, list[shapely.LinearRing]] = {}
    for one, loop in zip(np.array(piece_of_loop)[~is_shell], closed[~is_shell], strict=True):
        holes.setdefault(int(one), []).append(loop)
    shells = zip(np.array(piece_of_loop)[is_shell], closed[is_shell], strict=True)
    polygons = [shapely.Polygon(loop, holes.get(int(one))) for one, loop in shells]
    bounds = shapely.bounds(polygons)
    return [polygons[n] for n in np.lexsort((bounds[:, 0], bounds[:, 1]))]


def trace_sides(
    mask: Bool[np.ndarray, "y x"], pieces: Int[np.ndarray, "y x"]
) -> tuple[Int[np.ndarray, "corner 2"], Int[np.ndarray, " corner"], Int[np.ndarray, " corner"]]:
    """The corners (x, y) on every way round, with the piece and the number of the way.

    A way keeps its piece on the right and parts pixels that meet at a corner only; it comes
    through such a corner twice if both are of one piece.
    """
    height, width = mask.shape
    padded = np.pad(mask, 1)
    outside = [padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in OUT]
    side, y, x = np.nonzero(np.stack([mask & ~one for one in outside]))
    key = (side * height + y) * width + x  # rises: `nonzero` goes through in this order
    ahead_y, ahead_x = y + ALONG[side, 0], x + ALONG[side, 1]
    over_y, over_x = ahead_y + OUT[side, 0], ahead_x + OUT[side, 1]
    turns_right = ~padded[ahead_y + 1, ahead_x + 1]
    bends_left = ~turns_right & padded[over_y + 1, over_x + 1]
    to_side = (side + turns_right - bends_left) % 4
    to_y = np.where(turns_right, y, np.where(bends_left, over_y, ahead_y))
    to_x = np.where(turns_right, x, np.where(bends_left, over_x, ahead_x))
    following = np.searchsorted(key, (to_side * height + to_y) * width + to_x)
    ring, rank = order_rings(following)
    order = np.lexsort((rank, ring))
    order = order[(side != side[following])[order]]  # a corner ends each straight run
    # Where side 0, 1, 2, 3 of a pixel ends: its corner top right, bottom right, bottom left, ...
    corner = np.stack([x + (side < 2), y + ((side == 1) | (side == 2))], axis=1)
    return corner[order], pieces[y, x][order], ring[order]


def split_at_repeats(ring: Int[np.ndarray, "corner 2"]) -> list[Int[np.ndarray, "_ 2"]]:
    """Loops that come through no corner twice, out of one that may."""
    name = ring[:, 1] * (ring[:, 0].max() + 1) + ring[:, 0]
    if len(np.unique(name)) == len(name):
        return [ring]
    loops, way, place = [], [], {}
    for row, one in enumerate(name.tolist()):
        if one in place:
            first = place[one]
            loops.append(ring[way[first:]])
            for left in way[first:]:
                del place[int(name[left])]
            del way[first:]
        place[one] = len(way)
        way.append(row)
    return [*loops, ring[way]]


def fill_rings(
    rings: Sequence[Float64[np.ndarray, "vertex 2"]], shape: tuple[int, int]
) -> Bool[np.ndarray, "y x"]:
    """The pixels whose centres are inside an odd number of rings: a polygon and its holes.

    Each side of a ring flips all pixels to its right, in the rows whose centres it crosses; the
    work grows with the pixels that are crossed, not with vertices times pixels.

    Args:
        rings: In pixels, (x, y), open or closed; they may cross and leave the grid.
        shape: Rows and columns of the grid.
    """
    height, width = shape
    flips = np.zeros(height * (width + 1), dtype=np.int64)
    for ring in rings:
        start, end = ring, np.roll(ring, -1, axis=0)
        upper = np.where((start[:, 1] <= end[:, 1])[:, None], start, end)
        lower = np.where((start[:, 1] <= end[:, 1])[:, None], end, start)
        first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
        n_rows = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64) - first
        side = np.repeat(np.arange(len(ring)), n_rows)
        row = np.arange(len(side)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows) + first[side]
        way = (row + 0.5 - upper[side, 1]) / (lower[side, 1] - upper[side, 1])
        x = upper[side, 0] + way * (lower[side, 0] - upper[side, 0])
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        flips += np.bincount(row * (width + 1) + column, minlength=len(flips))
    return np.cumsum(flips.reshape(height, width + 1), axis=1)[:, :width] % 2 == 1
