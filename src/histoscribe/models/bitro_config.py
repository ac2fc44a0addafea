"""Settings of BiTro: ours by default, and the paper's own."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from histoscribe.errors import ConfigError

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
        cells_in_training: Cells of a block, drawn anew each time, that enter the Transformer in
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
