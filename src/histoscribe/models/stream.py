"""Bags too large to be seen at once: block by block, to the answer that the whole would get."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from histoscribe.data.bags import BagBatch
from histoscribe.errors import DataError
from histoscribe.nn.ragged import segment_sum
from histoscribe.nn.streaming import GenePool

See = Callable[[BagBatch], tuple[Tensor | None, Tensor | None]]
Conclude = Callable[[Tensor | None, Tensor | None], Tensor]


class BagStream:
    """What has been seen of some bags, and the answer once all was seen.

    Blocks are independent of each other up to two sums over a bag: the mean context, and the cells
    pooled by gene, whose softmax is kept as a running one. So any cut into portions gives the
    answer of one pass, to rounding, and memory is that of the largest portion.

    Args:
        n_bags: Number of bags.
        n_genes: Number of genes.
        see: Context of the blocks of a batch, and features of its cells.
        queries: Of the genes; None averages cells instead.
        conclude: From context and pooled cells of whole bags to the answer.
    """

    def __init__(
        self,
        n_bags: int,
        n_genes: int,
        *,
        see: See,
        queries: Float[Tensor, "gene d"] | None,
        conclude: Conclude,
    ) -> None:
        self.n_bags, self.n_genes = n_bags, n_genes
        self.see, self.queries, self.conclude = see, queries, conclude
        self.n_inside: Tensor | None = None
        self.context: Tensor | None = None
        self.cells: Tensor | None = None
        self.pool: GenePool | None = None

    @torch.no_grad()
    def add(self, batch: BagBatch) -> None:
        """Look at some more blocks; the bags of the batch are those of the stream."""
        context, h = self.see(batch)
        inside = batch.is_inside.double()[:, None]
        n_of_block = segment_sum(inside, batch.block_of_cell, batch.n_blocks)
        n_seen = segment_sum(n_of_block, batch.bag_of_block, self.n_bags)
        self.n_inside = n_seen if self.n_inside is None else self.n_inside + n_seen
        if context is not None:
            seen = segment_sum(context.double() * n_of_block, batch.bag_of_block, self.n_bags)
            self.context = seen if self.context is None else self.context + seen
        if h is not None:
            seen = segment_sum(h.double() * inside, batch.bag_of_cell, self.n_bags)
            self.cells = seen if self.cells is None else self.cells + seen
            if self.queries is not None:
                if self.pool is None:
                    self.pool = GenePool.start(
                        self.n_bags, self.n_genes, h.shape[1], dtype=h.dtype, device=h.device
                    )
                self.pool = self.pool.add(h, self.queries, batch.is_inside, batch.bag_of_cell)

    @torch.no_grad()
    def answer(self) -> Float[Tensor, "bag gene"]:
        """Expression of each bag; NaN for a bag of which no cell was seen."""
        context = None if self.context is None else self._mean(self.context)
        if self.pool is not None:
            return self.conclude(context, self.pool.pooled())
        if self.cells is None:
            return self.conclude(context, None)
        mean = self._mean(self.cells)
        return self.conclude(context, mean[:, None].expand(-1, self.n_genes, -1))

    @torch.no_grad()
    def share(self, batch: BagBatch) -> Float[Tensor, "cell gene"]:
        """Share of each cell in its bag, once all blocks were seen; 0 for context cells."""
        inside = batch.is_inside.float()[:, None]
        if self.pool is None or self.queries is None:
            even = inside / self._count().float()[batch.bag_of_cell]
            return even.expand(-1, self.n_genes)
        _, h = self.see(batch)
        assert h is not None
        return self.pool.share(h, self.queries, batch.bag_of_cell) * inside

    def represent(self) -> Float[Tensor, "bag d"]:
        """Each bag as one vector: its mean context and the mean of its cells' features."""
        parts = [part for part in (self.context, self.cells) if part is not None]
        return torch.cat([self._mean(part) for part in parts], dim=1)

    def _mean(self, total: Float[Tensor, "bag d"]) -> Float[Tensor, "bag d"]:
        return (total / self._count()).float()

    def _count(self) -> Float[Tensor, "bag 1"]:
        if self.n_inside is None:
            raise DataError("nothing was seen yet; add blocks first")
        return self.n_inside


def average_blocks(values: Float[Tensor, "block d"], batch: BagBatch) -> Float[Tensor, "bag d"]:
    """Mean over the blocks of each bag, each as heavy as it has cells inside.

    So the mean over a region is that over its parts, whichever way it is cut.
    """
    if batch.n_blocks == batch.n_bags:
        return values
    inside = batch.is_inside.to(values)
    weight = inside.new_zeros(batch.n_blocks).index_add(0, batch.block_of_cell, inside)
    total = segment_sum(values * weight[:, None], batch.bag_of_block, batch.n_bags)
    return total / segment_sum(weight[:, None], batch.bag_of_block, batch.n_bags)
