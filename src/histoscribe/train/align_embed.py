"""Embeddings of regions and cells by one net, whatever their size."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from histoscribe.data.bags import BagBatch
from histoscribe.models.trimodal import Trimodal

BLOCKS_AT_ONCE = 128
"""Pieces of regions looked at at once: bounds memory on regions of any size."""
CELLS_AT_ONCE = 512
"""Cells whose expression is predicted at once: cell x gene x width is held."""


@torch.inference_mode()
def embed_bags(space: Trimodal, batch: BagBatch) -> Float[Tensor, "bag e"]:
    """e_I of every bag; bags of many blocks are streamed."""
    if batch.n_blocks == batch.n_bags:
        return torch.cat([space.embed_regions(some) for some in _portions(batch)])
    rows = []
    for bag in range(batch.n_bags):
        stream = space.stream(1)
        for some in _blocks_of(batch, bag):
            stream.add(some)
        rows.append(stream.embeddings())
    return torch.cat(rows)


@torch.inference_mode()
def predict_bags(space: Trimodal, batch: BagBatch) -> Float[Tensor, "bag gene"]:
    """Expression of every bag in training space; bags of many blocks are streamed."""
    if batch.n_blocks == batch.n_bags:
        return torch.cat([space.bitro(some) for some in _portions(batch)])
    rows = []
    for bag in range(batch.n_bags):
        stream = space.bitro.stream(1)
        for some in _blocks_of(batch, bag):
            stream.add(some)
        rows.append(stream.answer())
    return torch.cat(rows)


@torch.inference_mode()
def embed_expression_of_bags(space: Trimodal, batch: BagBatch) -> Float[Tensor, "bag e"]:
    """e_G of the expression that is predicted of every bag."""
    return space.embed_expression(predict_bags(space, batch))


@torch.inference_mode()
def embed_cells(space: Trimodal, batch: BagBatch) -> Float[Tensor, "cell e"]:
    """e_I of every cell of a batch, in its order."""
    return torch.cat([space.embed_cells(some) for some in _portions(batch)])


@torch.inference_mode()
def embed_expression_of_cells(space: Trimodal, batch: BagBatch) -> Float[Tensor, "cell e"]:
    r"""e_G of the expression that is predicted of every cell, as of a region of that cell alone.

        y = (1 - m) y'(c) + m (w_g . h_i + b_g)

    with c the context of the cell's block: attention over one cell is that cell.
    """
    rows, net = [], space.bitro
    share = net.config.cell_share
    for some in _portions(batch):
        context, cells = net.encode(some)
        around = None if context is None else net.context_readout(context)
        if cells is None:
            assert around is not None
            rows.append(space.embed_expression(around)[some.block_of_cell])
            continue
        for own in torch.arange(some.n_cells).split(CELLS_AT_ONCE):
            h = cells.h[own][:, None].expand(-1, net.config.n_genes, -1)
            said = net.readout(h)
            if around is not None:
                said = torch.lerp(around[some.block_of_cell[own]], said, share)
            rows.append(space.embed_expression(said))
    return torch.cat(rows)


def take_some_blocks(batch: BagBatch, blocks: Int[Tensor, " block"]) -> BagBatch:
    """Some blocks, each as a bag of its own: what is said of a cell does not hang on its bag."""
    return batch.take_blocks(blocks, torch.arange(len(blocks)), len(blocks))


def _portions(batch: BagBatch) -> Iterator[BagBatch]:
    """All blocks in order, some at once, each as a bag of its own."""
    for rows in torch.arange(batch.n_blocks).split(BLOCKS_AT_ONCE):
        yield take_some_blocks(batch, rows)


def _blocks_of(batch: BagBatch, bag: int) -> Iterator[BagBatch]:
    """The blocks of a bag, some at once, as one bag."""
    first, n = int(batch.first_block_of_bag[bag]), int(batch.n_blocks_of_bag[bag])
    for rows in torch.arange(first, first + n).split(BLOCKS_AT_ONCE):
        yield batch.take_blocks(rows, torch.zeros_like(rows), 1)
