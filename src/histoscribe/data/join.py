"""Which cells belong to which region, and which cells are neighbours: distances are in µm."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from scipy.spatial import KDTree

from histoscribe.errors import DataError

CHUNK = 65536
"""Rows asked of a tree at once; bounds memory on slides of millions of cells."""

SLACK = 8
"""Neighbours asked beyond k, so that ties at the k-th distance can be settled by index."""

LATTICE_TIES = 4
"""A point has at most four nearest centres on a square lattice, three on a hexagonal one."""


@dataclass(frozen=True)
class Membership:
    """Pairs of a region and a cell, sorted by region, then cell.

    A cell is inside at most one region; it may be context of several. Regions without a cell
    inside have no rows at all.

    Attributes:
        region: Row of the region.
        cell: Row of the cell.
        is_inside: The cell belongs to the region; else it lies in the ring around it.
    """

    region: Int64[np.ndarray, " m"]
    cell: Int64[np.ndarray, " m"]
    is_inside: Bool[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.region)


def assign_cells(
    cells_xy: Float[np.ndarray, "cell 2"],
    regions_xy: Float[np.ndarray, "region 2"],
    radius_um: float,
    ring_um: float,
) -> Membership:
    """Give each cell to the nearest region of its slide, and each region a ring of context cells.

    Cell c is inside region r if r is its nearest region and |c - r| <= radius_um (equal distances:
    the first region). It is in the ring of r if it is not inside r and
    |c - r| <= radius_um + ring_um.

    Args:
        cells_xy: Centroids of the cells of one slide, µm.
        regions_xy: Centres of the regions of the same slide, µm; ignored where `radius_um` is
            infinite.
        radius_um: Half the spot diameter; infinite for one bulk region, which holds every cell.
        ring_um: Width of the context ring; 0 gives none.

    Raises:
        DataError: If a position is not finite, or a radius is no length.
    """
    if not radius_um > 0 or not (np.isfinite(ring_um) and ring_um >= 0):
        raise DataError(f"radius_um = {radius_um}, ring_um = {ring_um}; give lengths in µm")
    if np.isinf(radius_um):
        return _everything(len(cells_xy), len(regions_xy))
    cells = _checked(cells_xy, "cell")
    regions = _checked(regions_xy, "region")
    if not len(cells) or not len(regions):
        return _membership(np.empty((0, 2), np.int64), np.empty(0, bool))
    home = _nearest_region(cells, regions, radius_um)
    inside = np.flatnonzero(home >= 0)
    pairs = [np.stack([home[inside], inside], axis=1)]
    if ring_um > 0:
        pairs += list(_ring_pairs(cells, regions, radius_um + ring_um, home))
    is_inside = np.repeat([True, False], [len(inside), sum(len(p) for p in pairs[1:])])
    return _membership(np.concatenate(pairs), is_inside)


def knn_within_bags(
    xy_um: Float[np.ndarray, "cell 2"], bag_of_cell: Int[np.ndarray, " cell"], k: int
) -> Int64[np.ndarray, "cell k_plus_1"]:
    """The k nearest other cells of each cell within its bag, as rows; the cell itself first.

    Column 0 is the cell itself, exactly once. Equal distances are ordered by row. Bags of fewer
    than k + 1 cells are filled up with -1.

    All bags are searched in one tree: each bag is moved to its own corner and lifted to its own
    height, further from the others than any two of its cells are from each other.

    Args:
        xy_um: Positions; coincident points are allowed.
        bag_of_cell: Which bag each cell is in.
        k: Number of others.
    """
    if k < 0:
        raise DataError(f"k = {k} neighbours; give 0 or more")
    n_cells = len(xy_um)
    neighbours = np.full((n_cells, k + 1), -1, dtype=np.int64)
    neighbours[:, 0] = np.arange(n_cells)
    if not n_cells or not k:
        return neighbours
    xy = _checked(xy_um, "cell")
    _, bag = np.unique(bag_of_cell, return_inverse=True)
    tree, lifted = _lift(xy, bag)
    asked = min(k + 1 + SLACK, n_cells)
    for start in range(0, n_cells, CHUNK):
        rows = np.arange(start, min(start + CHUNK, n_cells))
        found = tree.query(lifted[rows], k=asked)[1].reshape(len(rows), -1)
        neighbours[rows, 1:] = _settle(xy, bag, rows, found, k)
    return neighbours


def _lift(
    xy: Float[np.ndarray, "cell 2"], bag: Int[np.ndarray, " cell"]
) -> tuple[KDTree, Float[np.ndarray, "cell 3"]]:
    n_bags = int(bag.max()) + 1
    corner = np.full((n_bags, 2), np.inf)
    np.minimum.at(corner, bag, xy)
    local = xy - corner[bag]
    far = 4.0 * (1.0 + local.max())  # beyond any two cells of a bag: their distance is < 1.5 max
    lifted = np.column_stack([local, bag * far])
    return KDTree(lifted), lifted


def _settle(
    xy: Float[np.ndarray, "cell 2"],
    bag: Int[np.ndarray, " cell"],
    rows: Int[np.ndarray, " row"],
    found: Int[np.ndarray, "row asked"],
    k: int,
) -> Int64[np.ndarray, "row k"]:
    """Order candidates by distance, then row; search again where ties reach past them."""
    is_other = (bag[found] == bag[rows][:, None]) & (found != rows[:, None])
    square = np.where(is_other, _square(xy[found] - xy[rows][:, None]), np.inf)
    order = np.lexsort((found, square), axis=1)
    square_sorted = np.take_along_axis(square, order, axis=1)
    others = np.take_along_axis(found, order, axis=1)
    others = np.where(np.isinf(square_sorted), -1, others)
    missing = max(0, k - others.shape[1])
    nearest = np.pad(others[:, :k], ((0, 0), (0, missing)), constant_values=-1)
    # The last candidate may share its distance with cells that were not returned.
    furthest = _square(xy[found[:, -1]] - xy[rows])
    column = min(k, square_sorted.shape[1]) - 1
    may_tie = (bag[found[:, -1]] == bag[rows]) & (furthest <= square_sorted[:, column])
    for i in np.flatnonzero(may_tie & (found.shape[1] < len(xy))):
        mates = np.flatnonzero(bag == bag[rows[i]])
        mates = mates[mates != rows[i]]
        by_distance = np.argsort(_square(xy[mates] - xy[rows[i]]), kind="stable")[:k]
        nearest[i] = -1
        nearest[i, : len(by_distance)] = mates[by_distance]
    return nearest


def _square(vectors: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n"]:
    return vectors[..., 0] ** 2 + vectors[..., 1] ** 2


def _nearest_region(
    cells: Float[np.ndarray, "cell 2"], regions: Float[np.ndarray, "region 2"], radius_um: float
) -> Int64[np.ndarray, " cell"]:
    """Row of the nearest region within the radius, -1 where there is none."""
    tree = KDTree(regions)
    home = np.full(len(cells), -1, dtype=np.int64)
    for start in range(0, len(cells), CHUNK):
        some = cells[start : start + CHUNK]
        # the tree's own bound excludes equality
        bound = np.nextafter(radius_um, np.inf) * (1 + 1e-12)
        distance, region = tree.query(some, k=LATTICE_TIES, distance_upper_bound=bound)
        is_nearest = (distance <= radius_um) & (distance == distance[:, :1])
        first = np.where(is_nearest, region, len(regions)).min(axis=1)
        home[start : start + CHUNK] = np.where(first < len(regions), first, -1)
    return home


def _ring_pairs(
    cells: Float[np.ndarray, "cell 2"],
    regions: Float[np.ndarray, "region 2"],
    reach_um: float,
    home: Int64[np.ndarray, " cell"],
) -> Iterator[Int64[np.ndarray, "m 2"]]:
    """Pairs of (region, cell) within reach, where the region has a cell and is not its home."""
    tree = KDTree(cells)
    filled = np.unique(home[home >= 0])
    step = CHUNK // 16  # a spot and its ring hold tens to hundreds of cells
    for start in range(0, len(filled), step):
        rows = filled[start : start + step]
        found = tree.query_ball_point(regions[rows], reach_um, return_sorted=True)
        n_found = [len(f) for f in found]
        cell = np.concatenate([np.asarray(f, dtype=np.int64) for f in found])
        region = np.repeat(rows, n_found)
        is_ring = home[cell] != region
        yield np.stack([region[is_ring], cell[is_ring]], axis=1)


def _membership(pairs: Int64[np.ndarray, "m 2"], is_inside: Bool[np.ndarray, " m"]) -> Membership:
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Membership(pairs[order, 0], pairs[order, 1], is_inside[order])


def _everything(n_cells: int, n_regions: int) -> Membership:
    if n_regions != 1:
        raise DataError(
            f"{n_regions} bulk regions claim the same slide; give one bulk region a slide"
        )
    cell = np.arange(n_cells)
    return Membership(np.zeros_like(cell), cell, np.ones(n_cells, dtype=bool))


def _checked(xy: Float[np.ndarray, "n 2"], what: str) -> Float[np.ndarray, "n 2"]:
    wide = np.asarray(xy, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(wide).all(axis=1))
    if len(bad):
        raise DataError(f"{len(bad)} {what} positions are not finite (first: row {bad[0]})")
    return wide
