r"""BiTro: expression of a region from its nuclei, and ours: from what surrounds it as well.

    cells    x --GAT--> --W_in--> + s (position) + W_c c --Transformer--> h       (by block)
    genes    a[i, g] = softmax_i(h_i . q_g / sqrt(E))     z_g = sum_i a[i, g] h_i
    readout  y_g = w_g . z_g + b_g          ("gene"; the paper's "shared" is below)
    context  c = MLP(own field, rings of neighbouring blocks)  (by block)    y'_g = W' avg(c) + b'
    answer   (1 - m) y' + m y               each of the two is trained by itself, since trained
                                            as a sum the cells spoil what the context knows

Source: the BiTro paper, eq. 4-13. Departs from it:

- The Transformer attends over the cells of a block and a ring of context cells around it, not
  over the whole slide; context cells are attended to, but not pooled. A spot is one block, a whole
  sample is all squares of its tissue; genes are pooled over all cells of the region. So the cost
  is linear in cells, and there is no size at which anything changes.
- What lies further away comes in through block tokens (`nn/regions.py`), a second level that the
  paper lacks. It has an answer of its own and is added to every cell of the block.
- Readout by gene: with one shared scalar readout all that tells genes apart must pass through the
  attention weights. "shared" is the paper's eq. 9, with a gain and a bias for each gene.
- The output is the identity for z-scored targets: the paper's softplus cannot say what is below
  the mean.
- Pre-norm blocks, GELU (the authors' code: post-norm, ReLU).
- Positions are in µm from the centre of the region (the authors scale each bag to its extent).
- The graph is directed: k nearest in µm within the bag, and the cell itself.
- In training a random part of a block's cells enters the Transformer, which costs less and keeps
  the cells from being learned by heart; otherwise all of them do. Those that were drawn are pooled
  with the weight of all, so that dense blocks are as heavy in training as in prediction.
- The loss is the mean of the mean squared errors of the two answers; neither their sum nor their
  mix is trained. The paper has one answer and sums over genes (`train/losses.py`).
- Bags are concatenated, or masked exactly where padded: no bag changes another's answer.

What it rests on: on her2st, the one data set it was tuned on, the region level is what gains over
ridge. Leaving out the graph, the Transformer or the attention by gene cost nothing that could be
measured there, and the cells as a whole add little at most; they are kept for what the paper
claims of them, and for cell level. Numbers are in `benchmarks/RESULTS.md`.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float, Int
from torch import Tensor, nn

from histoscribe.data.bags import BagBatch
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.models.predictor import Answer
from histoscribe.models.stream import BagStream, average_blocks
from histoscribe.nn.gat import GraphAttention
from histoscribe.nn.gene_query import pool_by_gene, share_evenly
from histoscribe.nn.position import BinnedPosition, FourierPosition
from histoscribe.nn.ragged import draw_cells, plan_padding, segment_sum
from histoscribe.nn.regions import RegionContext
from histoscribe.nn.transformer import Transformer


class Encoded(NamedTuple):
    """Cells that came through the encoder: all of them, or those drawn for this training step."""

    h: Float[Tensor, "kept d"]
    rows: Int[Tensor, " kept"]
    bag_of_cell: Int[Tensor, " kept"]
    stands_for: Float[Tensor, " kept"]
    """How many cells of its block each stands for: 1 unless drawn; 0 for context cells."""


class Bitro(nn.Module):
    """The model of this file's first lines, which also say which parts of it gain anything."""

    GENE_TENSORS = (
        "queries",
        "readout.weight",
        "readout.gain",
        "readout.bias",
        "context_readout.weight",
        "context_readout.bias",
    )
    """Parameters whose rows are genes."""
    ADAPTED = ("cells.enter", "cells.tell", "cells.transformer.", "context.")
    """Where the linear maps begin that take adapters in a transfer."""

    def __init__(self, config: BitroConfig) -> None:
        super().__init__()
        self.config = config
        if config.has_context:
            self.context = RegionContext(
                config.n_rings * config.n_descriptors,
                config.context_width,
                config.context_layers,
                config.context_input_dropout,
                config.context_dropout,
            )
            self.context_readout = nn.Linear(config.context_width, config.n_genes)
        if config.has_cells:
            self.cells = CellEncoder(config)
            self.readout = READOUTS[config.readout](config)
            if config.pooling == "gene_query":
                self.queries = nn.Parameter(torch.empty(config.n_genes, config.width))
                if config.query_std:
                    nn.init.normal_(self.queries, std=config.query_std)
                else:
                    nn.init.xavier_uniform_(self.queries)

    def forward(self, batch: BagBatch) -> Float[Tensor, "bag gene"]:
        """Expression of each bag, in training space (z-scores)."""
        return self.answer(batch).expression

    def attention(self, batch: BagBatch) -> Float[Tensor, "cell gene"]:
        """Share of each cell in its bag, for each gene; 0 for context cells.

        Where the cells do not answer, or are averaged, cells of a bag have equal shares.
        """
        return self.answer(batch).attention

    def answer(self, batch: BagBatch) -> Answer:
        """Expression, the branches it is mixed from, and the attention, in one pass.

        Raises:
            MismatchError: If the batch has features or tokens of another size.
        """
        return self.answer_from(batch, *self.encode(batch))

    def encode(self, batch: BagBatch) -> tuple[Float[Tensor, "block c"] | None, Encoded | None]:
        """Context of each block and features of each cell, of the branches that there are.

        Raises:
            MismatchError: If the batch has features or tokens of another size.
        """
        self._check(batch)
        context = self.look_around(batch)
        return context, self.cells(batch, context) if self.config.has_cells else None

    def answer_from(
        self, batch: BagBatch, context: Float[Tensor, "block c"] | None, cells: Encoded | None
    ) -> Answer:
        """The answer, from what `encode` said of the same batch."""
        config = self.config
        by_context = None
        if context is not None:
            by_context = self.context_readout(average_blocks(context, batch))
        if cells is None:
            assert by_context is not None
            inside = batch.is_inside.float()
            share = share_evenly(inside, batch.bag_of_cell, batch.n_bags)
            share = share[:, None].expand(-1, config.n_genes)
            return Answer(by_context, (by_context,), share, inside)
        values, share = self._pool(cells, batch.n_bags)
        by_cells = self.readout(F.dropout(values, config.dropout, self.training))
        if len(cells.rows) < batch.n_cells:
            everything = share.new_zeros(batch.n_cells, config.n_genes)
            share = everything.index_copy(0, cells.rows, share)
        stands_for = share.new_zeros(batch.n_cells).index_copy(0, cells.rows, cells.stands_for)
        if by_context is None:
            return Answer(by_cells, (by_cells,), share, stands_for)
        mixed = torch.lerp(by_context, by_cells, config.cell_share)
        return Answer(mixed, (by_context, by_cells), share, stands_for)

    def look_around(self, batch: BagBatch) -> Float[Tensor, "block c"] | None:
        """What surrounds each block, as a vector; None where the model does not look at it."""
        return self.context(batch.field) if self.config.has_context else None

    def stream(self, n_bags: int) -> BagStream:
        """What answers some bags that come block by block, as `forward` would have them whole.

        Raises:
            ConfigError: In training, where cells are drawn.
        """
        if self.training:
            raise ConfigError("bags are streamed for prediction only; call eval() first")
        has = self.config
        return BagStream(
            n_bags,
            has.n_genes,
            see=self._see,
            queries=self.queries if has.has_cells and has.pooling == "gene_query" else None,
            conclude=self._conclude,
        )

    def _see(self, batch: BagBatch) -> tuple[Tensor | None, Tensor | None]:
        """Context of each block, and features of each cell, of the branches that there are."""
        context, cells = self.encode(batch)
        return context, None if cells is None else cells.h

    def _conclude(
        self, context: Float[Tensor, "bag c"] | None, values: Float[Tensor, "bag gene d"] | None
    ) -> Float[Tensor, "bag gene"]:
        """The answer, from what was averaged and pooled over whole bags."""
        if values is None:
            assert context is not None
            return self.context_readout(context)
        by_cells = self.readout(values)
        if context is None:
            return by_cells
        return torch.lerp(self.context_readout(context), by_cells, self.config.cell_share)

    def _pool(
        self, cells: Encoded, n_bags: int
    ) -> tuple[Float[Tensor, "bag gene d"], Float[Tensor, "kept gene"]]:
        if self.config.pooling == "gene_query":
            return pool_by_gene(
                cells.h,
                self.queries,
                cells.stands_for > 0,
                cells.bag_of_cell,
                n_bags,
                cells.stands_for if self.training else None,
            )
        share = share_evenly(cells.stands_for, cells.bag_of_cell, n_bags)[:, None]
        mean = segment_sum(cells.h * share, cells.bag_of_cell, n_bags)
        n_genes = self.config.n_genes
        return mean[:, None].expand(-1, n_genes, -1), share.expand(-1, n_genes)

    def _check(self, batch: BagBatch) -> None:
        config = self.config
        wanted = (config.n_features, config.n_rings, config.n_descriptors)
        got = (batch.features.shape[1], *batch.field.shape[1:])
        if got != wanted:
            raise MismatchError(
                f"the model takes {wanted[0]} cell features and {wanted[1]} region tokens of "
                f"{wanted[2]}, the bags have {got[0]} and {got[1]} of {got[2]}; assemble them "
                "with the scaling and the bag settings of the model's checkpoint"
            )


class CellEncoder(nn.Module):
    """Graph attention, position, context and Transformer: features of every cell of a bag."""

    def __init__(self, config: BitroConfig) -> None:
        super().__init__()
        widths = [config.n_features] + [config.gat_width] * config.gat_layers
        self.graph = nn.ModuleList(
            GraphAttention(n_in, n_out, config.gat_heads, config.dropout, config.gat_dropout)
            for n_in, n_out in pairwise(widths)
        )
        self.cells_in_training = config.cells_in_training
        self.enter = nn.Linear(widths[-1], config.width)
        self.position = _make_position(config)
        self.tell = nn.Linear(config.context_width, config.width) if config.has_context else None
        self.transformer = Transformer(
            config.width,
            config.transformer_layers,
            config.transformer_heads,
            config.expansion,
            config.dropout,
        )

    def forward(self, batch: BagBatch, context: Float[Tensor, "block c"] | None) -> Encoded:
        """Features of every cell, context cells included; of some of them in training."""
        h = batch.features
        for layer in self.graph:
            h = layer(h, batch.neighbours)
        offset_um, block = batch.offset_um, batch.block_of_cell
        rows, stands_for = torch.arange(len(h), device=h.device), batch.is_inside.to(h)
        if self.training and self.cells_in_training:
            n_inside = segment_sum(stands_for[:, None], block, batch.n_blocks)
            rows = draw_cells(batch.is_inside, block, batch.n_blocks, self.cells_in_training)
            h, offset_um = h.index_select(0, rows), offset_um[rows]
            block, stands_for = block[rows], stands_for[rows]
            # What was drawn of a block is as heavy as the whole block.
            n_drawn = segment_sum(stands_for[:, None], block, batch.n_blocks)
            stands_for = stands_for * (n_inside / n_drawn)[block, 0]
        h = self.enter(h)
        if self.position is not None:
            h = h + self.position(offset_um)
        if self.tell is not None and context is not None:
            h = h + self.tell(context).index_select(0, block)
        h = self.transformer(h, plan_padding(block, batch.n_blocks))
        return Encoded(h, rows, batch.bag_of_block[block], stands_for)


class GeneReadout(nn.Module):
    """A linear readout for each gene: y_g = w_g . z_g + b_g."""

    def __init__(self, config: BitroConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_genes, config.width))
        self.bias = nn.Parameter(torch.zeros(config.n_genes))
        # Close to zero, the mean of z-scores, yet not zero: gradients must reach the cells.
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, z: Float[Tensor, "bag gene d"]) -> Float[Tensor, "bag gene"]:
        """Expression of each bag."""
        return (z * self.weight).sum(-1) + self.bias


class SharedReadout(nn.Module):
    """Eq. 9, one readout for all genes: y_g = gain_g (w2 . ReLU(W1 LN(z_g) + b1) + b2) + bias_g."""

    def __init__(self, config: BitroConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.narrow = nn.Linear(config.width, max(1, config.width // 2))
        self.last = nn.Linear(max(1, config.width // 2), 1)
        self.gain = nn.Parameter(torch.ones(config.n_genes))
        self.bias = nn.Parameter(torch.zeros(config.n_genes))

    def forward(self, z: Float[Tensor, "bag gene d"]) -> Float[Tensor, "bag gene"]:
        """Expression of each bag."""
        r = self.last(F.relu(self.narrow(self.norm(z))))[..., 0]
        return self.gain * r + self.bias


READOUTS = {"gene": GeneReadout, "shared": SharedReadout}


def _make_position(config: BitroConfig) -> BinnedPosition | FourierPosition | None:
    if config.position == "bins":
        return BinnedPosition(config.width, config.window_um)
    return FourierPosition(config.width) if config.position == "fourier" else None
