"""Blocks: the pieces of a region whose cells form one graph. A spot is one, a sample is many."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from histoscribe.data.bags import BagConfig
from histoscribe.data.checks import check_array, check_finite, freeze
from histoscribe.data.join import Membership, assign_cells
from histoscribe.data.regions import Regions
from histoscribe.errors import DataError

BlockShape = Literal["disc", "square"]


@dataclass(frozen=True)
class Blocks:
    """The blocks of the regions of one slide.

    Attributes:
        xy_um: Centres, slide frame.
        region: Row of the region that each block is a piece of, ascending; -1 for a block of no
            region, that is only looked at as the surroundings of others.
        reach_um: Radius of the discs, or half the side of the squares.
        shape: What they are. Discs may leave cells between them; squares are those of one grid
            and leave none.
    """

    xy_um: Float32[np.ndarray, "block 2"]
    region: Int64[np.ndarray, " block"]
    reach_um: float
    shape: BlockShape

    def __post_init__(self) -> None:
        check_array("xy_um of the blocks", self.xy_um, np.float32, (None, 2))
        check_finite("xy_um of the blocks", self.xy_um)
        check_array("region of the blocks", self.region, np.int64, (len(self.xy_um),))
        if len(self.region) and (self.region[0] < -1 or (np.diff(self.region) < 0).any()):
            raise DataError("blocks are not in the order of their regions; sort them by region")
        if not 0 < self.reach_um < np.inf:
            raise DataError(f"reach_um of the blocks is {self.reach_um}; give a length in µm")
        if self.shape not in get_args(BlockShape):
            raise DataError(f"blocks are {self.shape!r}; wanted one of {get_args(BlockShape)}")
        freeze(self, "xy_um", "region")

    def __len__(self) -> int:
        return len(self.region)

    def take(self, rows: Int[np.ndarray, " row"]) -> "Blocks":
        """These blocks, in this order."""
        return Blocks(self.xy_um[rows], self.region[rows], self.reach_um, self.shape)


def blocks_of(regions: Regions, cells_xy: Float[np.ndarray, "cell 2"], config: BagConfig) -> Blocks:
    """The blocks of the regions of a slide: spots themselves, or a grid over a whole sample.

    Args:
        regions: Of one slide.
        cells_xy: Centroids of its cells, µm; a square without one is no block.
        config: Side of the squares.

    Raises:
        DataError: If several bulk regions claim the slide: which cells are whose is not known.
    """
    if regions.kind != "bulk":
        return Blocks(
            regions.xy_um, np.arange(len(regions), dtype=np.int64), regions.radius_um, "disc"
        )
    if len(regions) != 1:
        raise DataError(
            f"{len(regions)} bulk regions claim the slide {regions.slide_id[0]}; give one bulk "
            "region a slide, or say by blocks which part is whose"
        )
    corner = _square_of(cells_xy, config.block_side_um)
    grid = _Grid.around(corner)
    found = grid.squares(np.unique(grid.number(corner)))
    xy_um = ((found + 0.5) * config.block_side_um).astype(np.float32)
    return Blocks(xy_um, np.zeros(len(found), np.int64), config.block_side_um / 2, "square")


def assign_to_blocks(
    cells_xy: Float[np.ndarray, "cell 2"], blocks: Blocks, ring_um: float
) -> Membership:
    """Which cells are in which block; `region` of the result is the row of the block.

    Discs take their nearest cells and a ring of context cells, as `assign_cells` says. Squares
    hold the cells from their left and upper edge to before the right and lower one, so that every
    cell is in one of them; they have no ring.
    """
    if blocks.shape == "disc":
        return assign_cells(cells_xy, blocks.xy_um, blocks.reach_um, ring_um)
    side_um = 2 * blocks.reach_um
    wanted, corner = _square_of(blocks.xy_um, side_um), _square_of(cells_xy, side_um)
    if not len(wanted) or not len(corner):
        nothing = np.empty(0, dtype=np.int64)
        return Membership(nothing, nothing, np.empty(0, dtype=bool))
    grid = _Grid.around(np.concatenate([wanted, corner]))
    number = grid.number(wanted)
    in_order = number.argsort()
    number_of_cell = grid.number(corner)
    place = np.searchsorted(number, number_of_cell, sorter=in_order)
    block = in_order[place.clip(max=len(wanted) - 1)]
    block[number[block] != number_of_cell] = -1
    cell = np.flatnonzero(block >= 0)
    order = block[cell].argsort(kind="stable")
    return Membership(block[cell][order], cell[order], np.ones(len(cell), dtype=bool))


class _Grid(NamedTuple):
    """Squares of a rectangle by one number each, column by column: numbers are found faster."""

    first: Int64[np.ndarray, "2"]
    n_rows: int

    @classmethod
    def around(cls, squares: Int64[np.ndarray, "n 2"]) -> "_Grid":
        first = squares.min(axis=0)
        return cls(first, int(squares[:, 1].max() - first[1]) + 1)

    def number(self, squares: Int64[np.ndarray, "n 2"]) -> Int64[np.ndarray, " n"]:
        column, row = (squares - self.first).T
        return column * self.n_rows + row

    def squares(self, number: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, "n 2"]:
        return np.stack(np.divmod(number, self.n_rows), axis=1) + self.first


def _square_of(xy_um: Float[np.ndarray, "n 2"], side_um: float) -> Int64[np.ndarray, "n 2"]:
    """Column and row of the square that a point is in, of a grid from the slide's origin."""
    return np.floor(xy_um.astype(np.float64) / side_um).astype(np.int64)
