r"""BiTro: expression of a region from its nuclei, and ours: from what surrounds it as well.

    cells    x --GAT--> --W_in--> + s (position) + W_c c --Transformer--> h
    genes    a[i, g] = softmax_i(h_i . q_g / sqrt(E))     z_g = sum_i a[i, g] h_i
    readout  y_g = w_g . z_g + b_g          ("gene"; the paper's "shared" is below)
    context  c = MLP(own field, rings of neighbouring regions)       y'_g = W' c + b'
    answer   (1 - m) y' + m y               each of the two is trained by itself, since trained
                                            as a sum the cells spoil what the context knows

Source: the BiTro paper, eq. 4-13. Departs from it:

- The Transformer attends over the cells of a region and a ring of context cells around it, not
  over the whole slide; context cells are attended to, but not pooled.
- What lies further away comes in through region tokens (`nn/regions.py`), a second level that the
  paper lacks. It has an answer of its own and is added to every cell of the region.
- Readout by gene: with one shared scalar readout all that tells genes apart must pass through the
  attention weights. "shared" is the paper's eq. 9, with a gain and a bias for each gene.
- The output is the identity for z-scored targets: the paper's softplus cannot say what is below
  the mean.
- Pre-norm blocks, GELU (the authors' code: post-norm, ReLU).
- Positions are in µm from the centre of the region (the authors scale each bag to its extent).
- The graph is directed: k nearest in µm within the bag, and the cell itself.
- In training a random part of a bag's cells enters the Transformer, which costs less and keeps the
  cells from being learned by heart; otherwise all of them do.
- The loss is the mean of the mean squared errors of the two answers; neither their sum nor their
  mix is trained. The paper has one answer and sums over genes (`train/losses.py`).
- Bags are concatenated, or masked exactly where padded: no bag changes another's answer.

What it rests on: on her2st, the one data set it was tuned on, the region level is what gains over
ridge. Leaving out the graph, the Transformer or the attention by gene cost nothing that could be
measured there, and the cells as a whole add little at most; they are kept for what the paper
claims of them, and for cell level. Numbers are in `benchmarks/RESULTS.md`.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from histoscribe.data.bags import BagBatch
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.models.predictor import Answer
from histoscribe.nn.gat import GraphAttention
from histoscribe.nn.gene_query import pool_by_gene, share_evenly
from histoscribe.nn.position import BinnedPosition, FourierPosition
from histoscribe.nn.ragged import draw_cells, plan_padding, segment_sum
from histoscribe.nn.regions import RegionContext
from histoscribe.nn.transformer import Transformer

LIMITS = {
    **dict.fromkeys(("n_features", "n_descriptors", "n_rings", "n_genes"), (1, math.inf)),
    **dict.fromkeys(("width", "gat_width", "context_width", "context_layers"), (1, math.inf)),
    **dict.fromkeys(("gat_heads", "transformer_heads", "expansion"), (1, math.inf)),
    **dict.fromkeys(
        ("gat_layers", "transformer_layers", "query_std", "cells_in_training"), (0, math.inf)
    ),
    **dict.fromkeys(("dropout", "gat_dropout", "context_input_dropout", "context_dropout"), (0, 1)),
}
"""Lowest value of a setting, and the value it must stay below."""


@dataclass(frozen=True)
class BitroConfig:
    """Sizes are told by the data, the rest has defaults; `paper_config` is the paper's own.

    Attributes:
        n_features: Width of the cell features (principal components).
        n_descriptors: Width of a region token (principal components).
        n_rings: Tokens of a region, itself included.
        n_genes: Genes of the panel.
        has_cells: Whether the cells of a region answer.
        has_context: Whether the surroundings answer, and are told to the cells.
        cell_share: m, the weight of the cells' answer where there are both.
        cells_in_training: Cells of a bag, drawn anew each time, that enter the Transformer in
            training, at least one of them inside; 0 takes all, as prediction does.
        width: E, the width of a cell in the Transformer.
        gat_layers: Layers of graph attention; 0 leaves the graph out.
        gat_width: Width of a cell in the graph.
        gat_heads: Heads of the graph attention.
        transformer_layers: Blocks; 0 leaves the Transformer out.
        transformer_heads: Its heads.
        expansion: Width of its feed-forward part, in units of `width`.
        dropout: Of features in the graph, in the Transformer, and of pooled values.
        gat_dropout: Of attention weights in the graph.
        position: Tables of bins over a window, waves of the offset, or none.
        window_um: Side of the window of the bins, at least twice the radius with its ring; cells
            outside share the outermost bin.
        pooling: Attention by gene, or the plain mean over the cells inside.
        query_std: Deviation of the genes' queries at the start; 0 takes Xavier's.
        readout: A readout for each gene, or the paper's shared one.
        context_width: Width of the context vector.
        context_layers: Linear maps that make it.
        context_input_dropout: Of the region tokens.
        context_dropout: Of the context vector.
    """

    n_features: int
    n_descriptors: int
    n_rings: int
    n_genes: int
    has_cells: bool = True
    has_context: bool = True
    cell_share: float = 0.5
    cells_in_training: int = 32
    width: int = 64
    gat_layers: int = 2
    gat_width: int = 128
    gat_heads: int = 4
    transformer_layers: int = 2
    transformer_heads: int = 4
    expansion: int = 2
    dropout: float = 0.1
    gat_dropout: float = 0.0
    position: Literal["bins", "fourier", "none"] = "bins"
    window_um: float = 150.0
    pooling: Literal["gene_query", "mean"] = "gene_query"
    query_std: float = 0.5
    readout: Literal["gene", "shared"] = "gene"
    context_width: int = 256
    context_layers: int = 2
    context_input_dropout: float = 0.1
    context_dropout: float = 0.5

    def __post_init__(self) -> None:
        self._check_numbers()
        if not (self.has_cells or self.has_context):
            raise ConfigError("has_cells and has_context are both off; nothing is left to answer")
        for width, heads in (("gat_width", "gat_heads"), ("width", "transformer_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ConfigError(
                    f"{width} = {getattr(self, width)} is not divisible by "
                    f"{heads} = {getattr(self, heads)}"
                )
        if self.position == "bins" and self.width % 2:
            raise ConfigError(f"width = {self.width}; give an even width for binned positions")
        for name, known in (
            ("position", ("bins", "fourier", "none")),
            ("pooling", ("gene_query", "mean")),
            ("readout", ("gene", "shared")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} = {getattr(self, name)!r}; give one of {known}")

    def _check_numbers(self) -> None:
        for name, (lowest, below) in LIMITS.items():
            if not lowest <= getattr(self, name) < below:
                what = f"{lowest} or more" + ("" if below == math.inf else f", below {below}")
                raise ConfigError(f"{name} = {getattr(self, name)}; give {what}")
        if not 0 < self.cell_share < 1:
            raise ConfigError(f"cell_share = {self.cell_share}; give a share between 0 and 1")
        if not 0 < self.window_um < math.inf:
            raise ConfigError(f"window_um = {self.window_um}; give a finite length above 0 µm")


def paper_settings() -> dict[str, Any]:
    """The paper's literal network: cells only, shared readout, Xavier queries, width 256.

    Without the ring of context cells it needs `BagConfig(ring_um=0)` as well, and the paper's
    learning rate of 1e-4; both belong to the fit.
    """
    return {
        "has_context": False,
        "cells_in_training": 0,
        "width": 256,
        "gat_layers": 2,
        "gat_width": 128,
        "gat_heads": 4,
        "transformer_layers": 2,
        "transformer_heads": 8,
        "expansion": 4,
        "dropout": 0.1,
        "gat_dropout": 0.1,
        "pooling": "gene_query",
        "query_std": 0.0,
        "readout": "shared",
    }


def paper_config(n_features: int, n_descriptors: int, n_rings: int, n_genes: int) -> BitroConfig:
    """`paper_settings` with the sizes that the data tell."""
    return BitroConfig(n_features, n_descriptors, n_rings, n_genes, **paper_settings())


class Encoded(NamedTuple):
    """Cells that came through the encoder: all of them, or those drawn for this training step."""

    h: Float[Tensor, "kept d"]
    rows: Int[Tensor, " kept"]
    bag_of_cell: Int[Tensor, " kept"]
    is_inside: Bool[Tensor, " kept"]


class Bitro(nn.Module):
    """The model of this file's first lines, which also say which parts of it gain anything."""

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
        self._check(batch)
        config = self.config
        context = self.context(batch.field) if config.has_context else None
        by_context = None if context is None else self.context_readout(context)
        if not config.has_cells:
            assert by_context is not None
            share = share_evenly(batch.is_inside, batch.bag_of_cell, batch.n_bags)
            share = share[:, None].expand(-1, config.n_genes)
            return Answer(by_context, (by_context,), share, batch.is_inside)
        cells = self.cells(batch, context)
        values, share = self._pool(cells, batch.n_bags)
        by_cells = self.readout(F.dropout(values, config.dropout, self.training))
        if len(cells.rows) < batch.n_cells:
            everything = share.new_zeros(batch.n_cells, config.n_genes)
            share = everything.index_copy(0, cells.rows, share)
        is_pooled = torch.zeros_like(batch.is_inside).index_copy(0, cells.rows, cells.is_inside)
        if by_context is None:
            return Answer(by_cells, (by_cells,), share, is_pooled)
        mixed = torch.lerp(by_context, by_cells, config.cell_share)
        return Answer(mixed, (by_context, by_cells), share, is_pooled)

    def _pool(
        self, cells: Encoded, n_bags: int
    ) -> tuple[Float[Tensor, "bag gene d"], Float[Tensor, "kept gene"]]:
        if self.config.pooling == "gene_query":
            return pool_by_gene(cells.h, self.queries, cells.is_inside, cells.bag_of_cell, n_bags)
        share = share_evenly(cells.is_inside, cells.bag_of_cell, n_bags)[:, None]
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

    def forward(self, batch: BagBatch, context: Float[Tensor, "bag c"] | None) -> Encoded:
        """Features of every cell, context cells included; of some of them in training."""
        h = batch.features
        for layer in self.graph:
            h = layer(h, batch.neighbours)
        offset_um, bag_of_cell, is_inside = batch.offset_um, batch.bag_of_cell, batch.is_inside
        rows = torch.arange(len(h), device=h.device)
        if self.training and self.cells_in_training:
            rows = draw_cells(is_inside, bag_of_cell, batch.n_bags, self.cells_in_training)
            h, offset_um = h.index_select(0, rows), offset_um[rows]
            bag_of_cell, is_inside = bag_of_cell[rows], is_inside[rows]
        h = self.enter(h)
        if self.position is not None:
            h = h + self.position(offset_um)
        if self.tell is not None and context is not None:
            h = h + self.tell(context).index_select(0, bag_of_cell)
        h = self.transformer(h, plan_padding(bag_of_cell, batch.n_bags))
        return Encoded(h, rows, bag_of_cell, is_inside)


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
