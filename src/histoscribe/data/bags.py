"""Bag and BagBatch: regions ready for a model, concatenated and never padded.

A bag is the cells of one region in blocks. A spot is one block; a whole sample is every square of
tissue of its slides. Graph and attention among cells stay within a block; genes are pooled over
the bag. So a region of any size goes the same way, and costs in proportion to its cells.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from histoscribe.errors import ConfigError, DataError

CHECKED_CELLS = 1 << 18
"""Cells checked at once; bounds memory on batches of many millions."""


@dataclass(frozen=True)
class BagConfig:
    """How bags are cut from a slide; part of every checkpoint.

    Attributes:
        neighbours: The k of the graph: nearest other cells of the block, beside the cell itself.
        ring_um: Width of the ring around a spot whose cells are looked at as context; 0 for none.
            A ring gains little (`benchmarks/RESULTS.md`) and costs time with its area.
        block_side_um: Side of the squares that a whole sample is cut into. By default they hold
            as many cells as a spot of 100 µm and a little more, so that what was learned on one
            serves the other.
        field_side_um: Side of the square around a block's centre that is its field of view;
            the tiles centred in it describe it.
        rings_um: Growing radii within which the other blocks are averaged as context.
    """

    neighbours: int = 8
    ring_um: float = 0.0
    block_side_um: float = 100.0
    field_side_um: float = 128.0
    rings_um: tuple[float, ...] = (250.0, 450.0, 1000.0)

    def __post_init__(self) -> None:
        if self.neighbours < 0:
            raise ConfigError(f"neighbours = {self.neighbours}; give 0 (no graph) or more")
        if not 0 <= self.ring_um < math.inf:
            raise ConfigError(f"ring_um = {self.ring_um}; give 0 (no context cells) or more µm")
        for name in ("block_side_um", "field_side_um"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}; give a length in µm")
        radii = (0.0, *self.rings_um, math.inf)
        if not all(a < b for a, b in pairwise(radii)):
            raise ConfigError(f"rings_um = {self.rings_um}; give growing radii in µm")

    @property
    def n_rings(self) -> int:
        """Tokens of a block's `field`: its own, and one for each ring."""
        return 1 + len(self.rings_um)


@dataclass(frozen=True)
class BagBatch:
    """Some regions, their cells one after another; a Bag is a batch of one.

    A bag's blocks are consecutive, and so are a block's cells; `neighbours` never leaves the
    block. Cells of the context ring (`is_inside` False) are attended to, but are no part of the
    region: they are not pooled and get no expression.

    Attributes:
        features: Cell features after the fitted transform (PCA, scaling).
        offset_um: Cell position relative to the centre of its block.
        is_inside: The cell belongs to the region itself.
        neighbours: The k nearest cells of each cell within its block as rows of this batch, the
            cell itself first; -1 where the block has fewer.
        phenotype: K-means cluster of each cell.
        block_of_cell: Which block each cell is in, ascending; every block has a cell inside its
            region.
        bag_of_block: Which bag each block is in, 0 to n_bags - 1, ascending; every bag has a
            block.
        field: Block tokens: row 0 of each block describes its own whole field, the others the
            mean over neighbouring blocks in rings of growing radius, after the fitted transform.
        n_bags: Number of bags.
        target: Expression in training space, or None.
        is_observed: Which targets were measured, or None where all were.
    """

    features: Float[Tensor, "cell feature"]
    offset_um: Float[Tensor, "cell 2"]
    is_inside: Bool[Tensor, " cell"]
    neighbours: Int[Tensor, "cell k"]
    phenotype: Int[Tensor, " cell"]
    block_of_cell: Int[Tensor, " cell"]
    bag_of_block: Int[Tensor, " block"]
    field: Float[Tensor, "block ring descriptor"]
    n_bags: int
    target: Float[Tensor, "bag gene"] | None = None
    is_observed: Bool[Tensor, "bag gene"] | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        # On an accelerator each of these checks would wait for the device; batches are made on
        # the CPU and moved whole.
        if self.features.device.type == "cpu":
            self._check_rows()

    @property
    def n_cells(self) -> int:
        """Cells of all bags, context cells included."""
        return len(self.block_of_cell)

    @property
    def n_blocks(self) -> int:
        """Blocks of all bags."""
        return len(self.bag_of_block)

    @cached_property
    def bag_of_cell(self) -> Int[Tensor, " cell"]:
        """Which bag each cell is in, ascending."""
        return self.bag_of_block[self.block_of_cell]

    @cached_property
    def n_cells_of_block(self) -> Int[Tensor, " block"]:
        """Cells of each block, context cells included."""
        return torch.bincount(self.block_of_cell, minlength=self.n_blocks)

    @cached_property
    def first_cell_of_block(self) -> Int[Tensor, " block"]:
        """Row of the first cell of each block."""
        return self.n_cells_of_block.cumsum(0) - self.n_cells_of_block

    @cached_property
    def n_blocks_of_bag(self) -> Int[Tensor, " bag"]:
        """Blocks of each bag."""
        return torch.bincount(self.bag_of_block, minlength=self.n_bags)

    @cached_property
    def first_block_of_bag(self) -> Int[Tensor, " bag"]:
        """Row of the first block of each bag."""
        return self.n_blocks_of_bag.cumsum(0) - self.n_blocks_of_bag

    def cells_per_bag(self) -> Int[Tensor, " bag"]:
        """Number of cells of each bag, context cells included."""
        return torch.bincount(self.bag_of_cell, minlength=self.n_bags)

    def to(self, device: torch.device | str) -> "BagBatch":
        """The same batch on another device."""
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def take(self, indices: Int[Tensor, " bag"]) -> "BagBatch":
        """These bags in this order; equal to collating them one by one.

        Raises:
            DataError: If there are none, or one is not in the batch.
        """
        if len(indices) == 0:
            raise DataError("no bags were asked for; give at least one index")
        # A batch on an accelerator is not asked for its extremes: that would wait for the device.
        if indices.device.type == "cpu" and (
            int(indices.min()) < 0 or int(indices.max()) >= self.n_bags
        ):
            raise DataError(
                f"bags {int(indices.min())} to {int(indices.max())} were asked for, "
                f"the batch has 0 to {self.n_bags - 1}"
            )
        blocks, bag_of_block = expand_runs(
            self.first_block_of_bag[indices], self.n_blocks_of_bag[indices]
        )
        return replace(
            self.take_blocks(blocks, bag_of_block, len(indices)),
            target=None if self.target is None else self.target[indices],
            is_observed=None if self.is_observed is None else self.is_observed[indices],
        )

    def take_blocks(
        self, blocks: Int[Tensor, " block"], bag_of_block: Int[Tensor, " block"], n_bags: int
    ) -> "BagBatch":
        """These blocks in this order, in these bags, without a target.

        What it costs depends on the blocks that are taken, not on how many there are.

        Args:
            blocks: Rows of blocks.
            bag_of_block: Which of the new bags each is in, ascending.
            n_bags: Number of the new bags, each with a block.
        """
        rows, block_of_cell = expand_runs(
            self.first_cell_of_block[blocks], self.n_cells_of_block[blocks]
        )
        shift = torch.arange(len(rows)).to(rows) - rows
        neighbours = self.neighbours[rows]
        return BagBatch(
            features=self.features[rows],
            offset_um=self.offset_um[rows],
            is_inside=self.is_inside[rows],
            neighbours=torch.where(neighbours < 0, neighbours, neighbours + shift[:, None]),
            phenotype=self.phenotype[rows],
            block_of_cell=block_of_cell,
            bag_of_block=bag_of_block,
            field=self.field[blocks],
            n_bags=n_bags,
        )

    def merge(self, bag_of_part: Int[Tensor, " bag"], n_bags: int) -> "BagBatch":
        """The same blocks in fewer bags: a region of several slides, put together again.

        Args:
            bag_of_part: For each bag of this batch, the new bag it is a part of, ascending.
            n_bags: Number of the new bags. Parts of one bag have one target, the first's is kept.
        """
        first = torch.searchsorted(bag_of_part, torch.arange(n_bags).to(bag_of_part))
        return replace(
            self,
            bag_of_block=bag_of_part[self.bag_of_block],
            n_bags=n_bags,
            target=None if self.target is None else self.target[first],
            is_observed=None if self.is_observed is None else self.is_observed[first],
        )

    def _check_shapes(self) -> None:
        n_cells, n_blocks, n_bags = self.n_cells, self.n_blocks, self.n_bags
        wanted = {
            "features": (n_cells, None),
            "offset_um": (n_cells, 2),
            "is_inside": (n_cells,),
            "neighbours": (n_cells, None),
            "phenotype": (n_cells,),
            "field": (n_blocks, None, None),
            "target": (n_bags, None),
            "is_observed": (n_bags, None),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is not None and not _fits(value, shape):
                raise DataError(
                    f"a batch of {n_bags} bags, {n_blocks} blocks and {n_cells} cells has {name} "
                    f"of shape {tuple(value.shape)}; wanted {shape} (None = any)"
                )

    def _check_rows(self) -> None:
        if self.n_bags < 1:
            raise DataError("a batch has no bag; give at least one")
        _check_runs("block_of_cell", self.block_of_cell, self.n_blocks, "every block has a cell")
        _check_runs("bag_of_block", self.bag_of_block, self.n_bags, "every bag has a cell")
        n_inside = torch.zeros(self.n_blocks, dtype=torch.int64)
        for rows in _some_at_once(self.n_cells):
            n_inside.index_add_(0, self.block_of_cell[rows].long(), self.is_inside[rows].long())
        if bool((n_inside == 0).any()):
            empty = int(self.bag_of_block[(n_inside == 0).nonzero()[0]])
            raise DataError(f"bag {empty} has a block without a cell inside its region; drop it")
        self._check_neighbours()

    def _check_neighbours(self) -> None:
        for some in _some_at_once(self.n_cells):
            neighbours, rows = self.neighbours[some], torch.arange(some.start, some.stop)
            if not neighbours.shape[1] or not torch.equal(neighbours[:, 0].long(), rows):
                raise DataError(
                    "column 0 of neighbours is not the cell itself; use knn_within_bags"
                )
            if int(neighbours.max()) >= self.n_cells:
                raise DataError(f"neighbours name row {int(neighbours.max())} of {self.n_cells}")
            block, linked = self.block_of_cell[some], self.block_of_cell[neighbours.clamp(min=0)]
            if bool(((linked != block[:, None]) & (neighbours >= 0)).any()):
                raise DataError("a neighbour lies in another block; use knn_within_bags")


Bag = BagBatch
"""A batch of one region."""


def expand_runs(
    first: Int[Tensor, " run"], length: Int[Tensor, " run"]
) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
    """All rows of some runs of rows, run by run, and the run that each is of."""
    run = torch.repeat_interleave(torch.arange(len(first)).to(first), length)
    start = length.cumsum(0) - length
    return torch.arange(len(run)).to(first) - (start - first)[run], run


def _check_runs(name: str, rows: Int[Tensor, " row"], n_runs: int, why: str) -> None:
    for some in _some_at_once(len(rows)):
        step = rows[some.start : some.stop + 1].diff()
        if bool(((step < 0) | (step > 1)).any()):
            raise DataError(f"{name} is not ascending by steps of 0 or 1; sort the rows by it")
    if not len(rows) or int(rows[0]) != 0 or int(rows[-1]) != n_runs - 1:
        raise DataError(f"{name} does not run from 0 to {n_runs - 1}; {why}")


def _some_at_once(n_rows: int) -> Iterator[slice]:
    for start in range(0, n_rows, CHECKED_CELLS):
        yield slice(start, min(start + CHECKED_CELLS, n_rows))


def _fits(value: Tensor, shape: tuple[int | None, ...]) -> bool:
    return value.ndim == len(shape) and all(
        wanted in (None, got) for got, wanted in zip(value.shape, shape, strict=True)
    )
