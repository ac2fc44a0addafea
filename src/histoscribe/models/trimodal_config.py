"""Settings of the space that images, genes and words share."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from histoscribe.errors import ConfigError
from histoscribe.models.bitro_config import BitroConfig

LIMITS = {
    **dict.fromkeys(("n_text", "embedding_width", "gene_width", "gene_heads"), (1, math.inf)),
    "pool_width": (1, math.inf),
    **dict.fromkeys(("n_more_genes", "n_profile_features"), (0, math.inf)),
    **dict.fromkeys(("gene_dropout", "head_dropout"), (0, 1)),
}
"""Lowest value of a setting, and the value it must stay below."""

CHOICES = {
    "loss": ("softmax", "siglip"),
    "head_norm": ("layer", "batch"),
    "gene_space": ("learned", "fixed"),
}


@dataclass(frozen=True)
class TrimodalConfig:
    """Sizes of texts and genes are told by the data, the rest has defaults.

    Attributes:
        bitro: Of the image's encoder, the table of genes and the regression of expression.
        n_text: Width of the text tower's features.
        n_more_genes: Genes that profiles have beyond the panel of `bitro`; their rows follow those
            of its queries in the table.
        n_profile_features: Width of profile features that were computed elsewhere (Geneformer and
            the like) and take the place of our gene tower; 0 for our own.
        gene_space: "learned": our gene tower; "fixed": a linear map of the expression that is set
            before training and that nothing turns (`Trimodal.gene_map`).
        embedding_width: Of the shared space.
        cell_share: m, the weight of the cells in a region's embedding where there is a context.
        has_lone_cells: Whether single cells are embedded as the encoder sees them alone, by a head
            of their own, else as their region has them.
        pool_width: Hidden width of the attention that pools a region's cells.
        gene_width: Width of the gene tower's answer.
        gene_heads: Its heads.
        gene_dropout: Share of measured genes that it does not see in training.
        head_norm: Within the projection heads; "batch" is the authors' own.
        head_dropout: Of their hidden values.
        loss: Decides where temperature and bias start; see `train/contrastive.py`.
    """

    bitro: BitroConfig
    n_text: int
    n_more_genes: int = 0
    n_profile_features: int = 0
    gene_space: Literal["learned", "fixed"] = "learned"
    embedding_width: int = 512
    cell_share: float = 0.5
    has_lone_cells: bool = False
    pool_width: int = 64
    gene_width: int = 256
    gene_heads: int = 4
    gene_dropout: float = 0.0
    head_norm: Literal["layer", "batch"] = "layer"
    head_dropout: float = 0.0
    loss: Literal["softmax", "siglip"] = "softmax"

    def __post_init__(self) -> None:
        for name, (lowest, below) in LIMITS.items():
            if not lowest <= getattr(self, name) < below:
                what = f"{lowest} or more" + ("" if below == math.inf else f", below {below}")
                raise ConfigError(f"{name} = {getattr(self, name)}; give {what}")
        if not 0 < self.cell_share < 1:
            raise ConfigError(f"cell_share = {self.cell_share}; give a share between 0 and 1")
        if self.gene_width % self.gene_heads:
            raise ConfigError(
                f"gene_width = {self.gene_width} is not divisible by gene_heads = {self.gene_heads}"
            )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} = {getattr(self, name)!r}; give one of {known}")
        if self.n_profile_features and self.gene_space == "fixed":
            raise ConfigError("a fixed gene space is of expression; set n_profile_features to 0")

    @property
    def n_table_genes(self) -> int:
        """Rows of the table of genes: the panel of `bitro`, then the others."""
        return self.bitro.n_genes + self.n_more_genes

    @property
    def has_gene_tower(self) -> bool:
        """Whether profiles are read by our own tower."""
        return self.n_profile_features == 0


def reference_settings() -> dict[str, Any]:
    """Heads as in the authors' code: 2048 wide, with BatchNorm."""
    return {"embedding_width": 2048, "head_norm": "batch", "head_dropout": 0.0}
