"""Batches of bags put one after another, in little more memory than one of them."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from histoscribe.data.bags import BagBatch
from histoscribe.data.in_file import new_tensor
from histoscribe.data.mapped import release
from histoscribe.errors import DataError, MismatchError

OF_CELLS = ("features", "offset_um", "is_inside", "neighbours", "phenotype", "block_of_cell")
OF_BLOCKS = ("bag_of_block", "field")
OF_BAGS = ("target", "is_observed")
"""Tensors of a batch, by what their rows are."""


class BatchSize(NamedTuple):
    """What a batch counts."""

    n_cells: int
    n_blocks: int
    n_bags: int


def collate(batches: Iterable[BagBatch], size: BatchSize | None = None) -> BagBatch:
    """Put batches one after another: the one way that bags become a bigger batch.

    Each batch is put in its place before the next is asked for. So where they are made one by one,
    what is held is the outcome and one of them; and of the outcome what is large lies in a file.

    Args:
        batches: The batches, one at least.
        size: What they count together, told ahead of batches that are made one by one.

    Raises:
        MismatchError: If features, rings or genes differ in number or type, or some have no
            target.
        DataError: If there is none, or they count something else.
    """
    if size is None:
        batches = list(batches)
        size = BatchSize(
            sum(batch.n_cells for batch in batches),
            sum(batch.n_blocks for batch in batches),
            sum(batch.n_bags for batch in batches),
        )
    whole: dict[str, Tensor] = {}
    end = BatchSize(0, 0, 0)
    for batch in batches:
        whole = whole or _make_room(batch, size)
        _check_alike(batch, whole)
        start, end = end, _end_of(batch, end)
        if any(n > told for n, told in zip(end, size, strict=True)):
            raise _untold(end, size)
        _put(batch, whole, start, end)
        for values in whole.values():
            if values.device.type == "cpu":
                release(values.numpy())
        del batch  # before the next one is made
    if not whole:
        raise DataError("no bags to collate; give at least one")
    if end != size:
        raise _untold(end, size)
    return BagBatch(**whole, n_bags=size.n_bags)


def _lengths(size: BatchSize) -> dict[str, int]:
    """Rows of each tensor of a batch of this size."""
    rows: dict[str, int] = dict.fromkeys(OF_CELLS, size.n_cells)
    rows |= dict.fromkeys(OF_BLOCKS, size.n_blocks)
    return rows | dict.fromkeys(OF_BAGS, size.n_bags)


def _make_room(first: BagBatch, size: BatchSize) -> dict[str, Tensor]:
    """Tensors to be filled, of the kind that the first batch has."""
    whole = {}
    for name, n_rows in _lengths(size).items():
        like = getattr(first, name)
        if like is not None:
            shape, is_here = (n_rows, *like.shape[1:]), like.device.type == "cpu"
            whole[name] = new_tensor(shape, like.dtype) if is_here else like.new_empty(shape)
    return whole


def _check_alike(batch: BagBatch, whole: Mapping[str, Tensor]) -> None:
    for name in (*OF_CELLS, *OF_BLOCKS, *OF_BAGS):
        one, all_of_it = getattr(batch, name), whole.get(name)
        if (one is None) != (all_of_it is None):
            raise MismatchError(f"some bags have {name}, others have none; give it to all or none")
        if one is None or all_of_it is None:
            continue
        got, wanted = (one.dtype, *one.shape[1:]), (all_of_it.dtype, *all_of_it.shape[1:])
        if got != wanted:
            raise MismatchError(f"bags differ in the shape of {name}: {got} and {wanted}")


def _untold(end: BatchSize, size: BatchSize) -> DataError:
    return DataError(f"{size} was told ahead of batches of {end}; give what they count")


def _end_of(batch: BagBatch, start: BatchSize) -> BatchSize:
    """Where a batch ends that starts there."""
    counts = (batch.n_cells, batch.n_blocks, batch.n_bags)
    return BatchSize(*(a + n for a, n in zip(start, counts, strict=True)))


def _put(batch: BagBatch, whole: Mapping[str, Tensor], start: BatchSize, end: BatchSize) -> None:
    """Put a batch in its place, its rows counted from there."""
    firsts, ends = _lengths(start), _lengths(end)
    for name, values in whole.items():
        values[firsts[name] : ends[name]] = getattr(batch, name)
    neighbours = whole["neighbours"][start.n_cells : end.n_cells]
    neighbours += start.n_cells * (neighbours >= 0)
    whole["block_of_cell"][start.n_cells : end.n_cells] += start.n_blocks
    whole["bag_of_block"][start.n_blocks : end.n_blocks] += start.n_bags
