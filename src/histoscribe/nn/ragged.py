"""Bags of unequal size: reductions over `bag_of_cell`, and the one place where bags are padded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def segment_sum(
    values: Float[Tensor, "cell d"], bag_of_cell: Int[Tensor, " cell"], n_bags: int
) -> Float[Tensor, "bag d"]:
    """Sum of each bag's rows; 0 for a bag without a row."""
    return values.new_zeros(n_bags, values.shape[1]).index_add(0, bag_of_cell, values)


def segment_mean(
    values: Float[Tensor, "cell d"], bag_of_cell: Int[Tensor, " cell"], n_bags: int
) -> Float[Tensor, "bag d"]:
    """Mean of each bag's rows; 0 for a bag without a row."""
    n_rows = torch.bincount(bag_of_cell, minlength=n_bags).clamp(min=1)
    return segment_sum(values, bag_of_cell, n_bags) / n_rows[:, None]


def segment_max(
    values: Float[Tensor, "cell d"], bag_of_cell: Int[Tensor, " cell"], n_bags: int
) -> Float[Tensor, "bag d"]:
    """Largest of each bag's rows, column by column; -inf for a bag without a row."""
    lowest = values.new_full((n_bags, values.shape[1]), -torch.inf)
    index = bag_of_cell[:, None].expand_as(values)
    return lowest.scatter_reduce(0, index, values, reduce="amax")


def segment_softmax(
    logits: Float[Tensor, "cell d"], bag_of_cell: Int[Tensor, " cell"], n_bags: int
) -> Float[Tensor, "cell d"]:
    """Softmax over the rows of each bag, column by column.

    The largest logit of the bag is subtracted first, without a gradient: it cancels.
    """
    largest = segment_max(logits.detach(), bag_of_cell, n_bags)
    weight = (logits - largest[bag_of_cell]).exp()
    return weight / segment_sum(weight, bag_of_cell, n_bags)[bag_of_cell]


def draw_cells(
    is_inside: Bool[Tensor, " cell"],
    bag_of_cell: Int[Tensor, " cell"],
    n_bags: int,
    n_drawn: int | Int[Tensor, " bag"],
) -> Int[Tensor, " kept"]:
    """Rows of some cells of each bag, by chance, at least one of them inside; in their old order.

    Args:
        is_inside: Of each bag, one cell at least.
        bag_of_cell: Which bag each cell is in, ascending; every bag has a cell.
        n_bags: Number of bags.
        n_drawn: Cells to keep of each bag that has more; one number, or one a bag.
    """
    lot = torch.rand(len(bag_of_cell), dtype=torch.float64, device=bag_of_cell.device)
    of_inside = torch.where(is_inside, lot, -1.0)[:, None]
    luckiest = segment_max(of_inside, bag_of_cell, n_bags)[bag_of_cell, 0]
    lot = torch.where(is_inside & (lot == luckiest), 2.0, lot)
    order = (3.0 * bag_of_cell - lot).argsort()
    n_cells = torch.bincount(bag_of_cell, minlength=n_bags)
    rank = (
        torch.arange(len(order), device=order.device) - (n_cells.cumsum(0) - n_cells)[bag_of_cell]
    )
    most = n_drawn if isinstance(n_drawn, int) else n_drawn[bag_of_cell]
    return order[rank < most].sort().values


def draw_few_cells(
    bag_of_cell: Int[Tensor, " cell"], n_bags: int, most: int
) -> Int[Tensor, " kept"]:
    """Rows of 1 to `most` cells of each bag, by chance: as often 1 as 2 to 3 as 4 to 7.

    Args:
        bag_of_cell: As of `draw_cells`.
        n_bags: Number of bags.
        most: Cells at most.
    """
    lot = torch.rand(n_bags, dtype=torch.float64, device=bag_of_cell.device)
    n = ((most + 1) ** lot).long().clamp(1, most)
    return draw_cells(torch.ones_like(bag_of_cell, dtype=torch.bool), bag_of_cell, n_bags, n)


@dataclass(frozen=True, eq=False)
class Bucket:
    """Bags of like length, as a rectangle of slots.

    Attributes:
        bags: Which bags.
        rows: The cell in each slot; free slots repeat a cell of the same bag.
        is_cell: The slot holds a cell of its own.
        is_full: No slot is free.
    """

    bags: Int[Tensor, " bag"]
    rows: Int[Tensor, "bag slot"]
    is_cell: Bool[Tensor, "bag slot"]
    is_full: bool


@dataclass(frozen=True, eq=False)
class Padding:
    """How cells are put into rectangles, and found again.

    Attributes:
        buckets: Every bag is in one of them.
        slot_of_cell: Slot of each cell when all rectangles are laid end to end.
    """

    buckets: tuple[Bucket, ...]
    slot_of_cell: Int[Tensor, " cell"]


def plan_padding(
    bag_of_cell: Int[Tensor, " cell"], n_bags: int, *, most_padding: float = 0.15
) -> Padding:
    """Sort bags by length and cut them into rectangles with few free slots.

    Args:
        bag_of_cell: Which bag each cell is in, ascending; every bag has a cell.
        n_bags: Number of bags.
        most_padding: A rectangle is closed before its free slots exceed this share.
    """
    n_cells = torch.bincount(bag_of_cell, minlength=n_bags)
    first = n_cells.cumsum(0) - n_cells
    sorted_bags = n_cells.argsort(stable=True)
    lengths = n_cells[sorted_bags].tolist()
    slot_of_cell = torch.empty_like(bag_of_cell)
    buckets, n_slots = [], 0
    for start, stop in _cut(lengths, most_padding):
        bags = sorted_bags[start:stop]
        slot = torch.arange(lengths[stop - 1], device=bag_of_cell.device)
        is_cell = slot < n_cells[bags, None]
        rows = first[bags, None] + torch.where(is_cell, slot, 0)
        flat = torch.arange(n_slots, n_slots + rows.numel(), device=rows.device).view_as(rows)
        slot_of_cell[rows[is_cell]] = flat[is_cell]
        n_slots += rows.numel()
        buckets.append(Bucket(bags, rows, is_cell, lengths[start] == lengths[stop - 1]))
    return Padding(tuple(buckets), slot_of_cell)


def pad(values: Float[Tensor, "cell d"], bucket: Bucket) -> Float[Tensor, "bag slot d"]:
    """The rows of a bucket's bags side by side; what stands in free slots must be masked."""
    return values.index_select(0, bucket.rows.flatten()).view(*bucket.rows.shape, -1)


def unpad(padded: Sequence[Float[Tensor, "_ _ d"]], padding: Padding) -> Float[Tensor, "cell d"]:
    """Back from all rectangles to one row a cell; what stands in free slots is dropped."""
    flat = torch.cat([part.flatten(0, 1) for part in padded])
    return flat.index_select(0, padding.slot_of_cell)


def gather_bags(
    parts: Sequence[Float[Tensor, "_ *rest"]], padding: Padding
) -> Float[Tensor, "bag *rest"]:
    """One row a bag from one row a bag of each bucket, in the order of the bags."""
    order = torch.cat([bucket.bags for bucket in padding.buckets])
    return torch.cat(list(parts)).index_select(0, order.argsort())


def _cut(lengths: list[int], most_padding: float) -> list[tuple[int, int]]:
    """Runs of sorted lengths whose rectangle has at most this share of free slots."""
    runs, start, total = [], 0, 0
    for stop, length in enumerate(lengths):
        total += length
        if total < (1 - most_padding) * length * (stop - start + 1):
            runs.append((start, stop))
            start, total = stop, length
    return [*runs, (start, len(lengths))]
