"""What surrounds a block: its whole field of view, and the mean of the blocks around it."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32
from scipy.sparse import csr_array
from scipy.spatial import KDTree

from histoscribe.data.bags import BagConfig
from histoscribe.data.blocks import Blocks, assign_to_blocks
from histoscribe.data.cells import Cells
from histoscribe.data.tiles import Tiles
from histoscribe.errors import MismatchError

CHUNK = 1024
"""Blocks asked of a tree, or averaged over, at once; bounds memory on slides of many blocks."""

SQUARE_RADII = 3
"""Side of the squares that rings are averaged by, in radii of the largest ring."""


def describe_blocks(
    cells: Cells, tiles: Tiles, blocks: Blocks, config: BagConfig
) -> Float32[np.ndarray, "block ring descriptor"]:
    """Describe the field of each block of one slide, and of the blocks around it.

    Ring 0 of block b is

        d[b] = [features of the square field of side field_side_um around b |
                mean features of the nuclei inside b | log(1 + number of nuclei inside b)]

    where the field is pooled from the tiles centred in it, to what one pooling of the whole field
    would give: mean of the means m, and deviation sqrt(avg(s^2 + m^2) - avg(m)^2) of all its
    pixels from the tiles' m and s.

    and ring j is the mean of d over the *other* blocks whose centres lie within rings_um[j - 1]
    of b (discs, each holding the smaller ones); where there are none, the ring before it. Ring 0
    holds nothing of the expression, and nothing is fitted.

    A block without a nucleus or without a tile has NaN in every ring, and is left out of the
    means of the others.

    Departs from the paper, which knows no context between regions.

    Args:
        cells: Cells of the slide.
        tiles: Tiles of the slide.
        blocks: Blocks of the slide.
        config: Radii.

    Raises:
        MismatchError: If slides or encoders differ.
    """
    if tiles.slide_id != cells.slide_id or tiles.encoder_id != cells.encoder_id:
        raise MismatchError(
            f"tiles of {tiles.slide_id} by {tiles.encoder_id} do not belong to cells of "
            f"{cells.slide_id} by {cells.encoder_id}; prepare the slide again"
        )
    inside = assign_to_blocks(cells.xy_um, blocks, ring_um=0.0)
    n_nuclei = np.bincount(inside.region, minlength=len(blocks))
    of_cells = _averaging(inside.region, inside.cell, (len(blocks), len(cells)))
    of_tiles = _in_field(tiles, blocks, config.field_side_um)
    own = np.concatenate(
        [
            _pool_deviations(of_tiles, tiles.features),
            _mean_rows(of_cells, cells.features),
            np.log1p(n_nuclei, dtype=np.float32)[:, None],
        ],
        axis=1,
    )
    return _average_rings(own, blocks.xy_um, config.rings_um)


def colour_of_blocks(
    tiles: Tiles, blocks: Blocks, field_side_um: float
) -> Float32[np.ndarray, "block 6"]:
    """Mean red, green, blue of each block's field, then their standard deviations, 0 to 255.

    The deviation is that of all pixels of the field: it pools those within the tiles and that
    between them. NaN where a block has no tile.
    """
    return _pool_deviations(_in_field(tiles, blocks, field_side_um), tiles.colour)


def _in_field(tiles: Tiles, blocks: Blocks, field_side_um: float) -> csr_array:
    """Weights that average the tiles centred in the square field of each block."""
    return _within(blocks.xy_um, tiles.xy_um, field_side_um / 2, norm=np.inf)


def _pool_deviations(
    weights: csr_array, values: Float[np.ndarray, "tile feature"]
) -> Float32[np.ndarray, "block feature"]:
    """Pool rows of means, then as many deviations, to those of all pixels together."""
    half = values.shape[1] // 2
    moments = _mean_rows(weights, values, _to_moments)
    means = moments[:, :half]
    moments[:, half:] -= means**2
    np.sqrt(moments[:, half:].clip(min=0), out=moments[:, half:])
    return moments


def _to_moments(rows: Float32[np.ndarray, "tile feature"]) -> Float32[np.ndarray, "tile feature"]:
    """Means and mean squares, of means and deviations."""
    half = rows.shape[1] // 2
    rows[:, half:] = rows[:, half:] ** 2 + rows[:, :half] ** 2
    return rows


def _average_rings(
    own: Float32[np.ndarray, "block descriptor"],
    xy_um: Float32[np.ndarray, "block 2"],
    rings_um: tuple[float, ...],
) -> Float32[np.ndarray, "block ring descriptor"]:
    described = np.flatnonzero(np.isfinite(own).all(axis=1))
    if rings_um:
        # Square by square, those averaged at once share most of their rings, on any size of slide.
        x, y = (xy_um[described] // (SQUARE_RADII * rings_um[-1])).T
        described = described[np.lexsort((y, x))]
    rings = np.full((len(own), 1 + len(rings_um), own.shape[1]), np.nan, dtype=np.float32)
    known = own[described]
    rings[described, 0] = known
    for ring, reach_um in enumerate(rings_um, start=1):
        others = _within(xy_um[described], xy_um[described], reach_um, without_self=True)
        mean = _mean_rows(others, known)
        is_alone = np.isnan(mean[:, 0])
        mean[is_alone] = rings[described[is_alone], ring - 1]
        rings[described, ring] = mean
    return rings


def _within(
    centres: Float[np.ndarray, "block 2"],
    points: Float[np.ndarray, "point 2"],
    reach_um: float,
    *,
    norm: float = 2.0,
    without_self: bool = False,
) -> csr_array:
    """Weights that average the points within reach of each centre; empty rows where there are none.

    `norm` 2 reaches a disc, infinity a square; `without_self` leaves out the point of a centre's
    own row.
    """
    shape = (len(centres), len(points))
    if not len(points) or not len(centres):
        return csr_array(shape, dtype=np.float32)
    tree = KDTree(points)
    rows, columns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(centres), CHUNK):
        found = tree.query_ball_point(
            centres[start : start + CHUNK], reach_um, p=norm, return_sorted=True
        )
        rows.append(np.repeat(np.arange(len(found)) + start, [len(f) for f in found]))
        columns += [np.asarray(f, dtype=np.int64) for f in found]
    row, column = np.concatenate(rows), np.concatenate(columns)
    if without_self:
        is_other = row != column
        row, column = row[is_other], column[is_other]
    return _averaging(row, column, shape)


def _averaging(row: np.ndarray, column: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """A sparse matrix whose filled rows sum to 1."""
    n_in_row = np.bincount(row, minlength=shape[0])
    weight = (1.0 / n_in_row[row]).astype(np.float32)
    return csr_array((weight, (row, column)), shape=shape)


def _mean_rows(
    weights: csr_array,
    values: Float[np.ndarray, "point feature"],
    change: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> Float32[np.ndarray, "block feature"]:
    """Weighted mean of the rows, changed first; NaN where a row of weights is empty."""
    mean = np.empty((len(weights.indptr) - 1, values.shape[1]), dtype=np.float32)
    for start in range(0, len(mean), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(mean)))
        some = csr_array(weights[rows])
        used = np.unique(some.indices)  # of a million cells, widen only those that are averaged
        mean[start : start + CHUNK] = some[:, used] @ change(values[used].astype(np.float32))
    mean[np.diff(weights.indptr) == 0] = np.nan
    return mean
