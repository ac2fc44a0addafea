"""How images, genes and words are brought into one space."""

import math
from dataclasses import dataclass
from typing import Literal

from histoscribe.errors import ConfigError
from histoscribe.train.fit_config import MAX_SEED
from histoscribe.train.text_state import TextState

AlignObjective = Literal["align", "joint"]
AlignLoss = Literal["softmax", "siglip", "anchor"]
GeneSpace = Literal["learned", "fixed"]

LEAST: dict[str, float] = {
    **dict.fromkeys(("n_nets", "n_steps", "validate_every", "patience", "embedding_width"), 1),
    **dict.fromkeys(("image_gene_rows", "gene_text_rows", "image_text_rows"), 1),
    **dict.fromkeys(("gene_width", "gene_heads", "marker_copies", "n_reference"), 1),
    **dict.fromkeys(("n_table_genes", "weight_decay", "seed", "few_cells"), 0),
    **dict.fromkeys(("image_gene_weight", "gene_text_weight", "image_text_weight"), 0),
    **dict.fromkeys(("expression_weight", "cycle_weight", "marker_noise"), 0),
}
ABOVE_0 = ("learning_rate", "text_learning_rate", "lora_learning_rate", "clip_norm", "marker_z")
SHARES = (
    *("warm_up", "held_out_donors", "gene_dropout", "head_dropout"),
    *("marker_dropout", "marker_spread"),
)


@dataclass(frozen=True)
class AlignConfig:
    """How the space is fitted.

    Groups of rates, phases and clipping are SpatialWhisperer's specification. Loss, gene space and
    numbers depart from it: they are those that did best on serial sections of her2st, scored
    without any label against measured markers. There, pushing neighbouring spots apart drowned the
    words in noise; turning images and texts towards principal components of expression did not.
    A tower that learns with other losses wants more steps, of a lower rate.

    Attributes:
        objective: "align": the pairs alone; "joint": with the regression of expression.
        loss: How pairs are pulled together. "softmax" and "siglip" also push the others apart;
            "anchor" only turns images and texts towards their expression, which stays where it is.
        gene_space: "learned": the gene tower; "fixed": leading principal components of the training
            regions' standardised expression, unwhitened, which nothing turns.
        profile_embedding: What vectors are called that another model made of profiles and regions,
            and that take the place of their genes; None for genes.
        n_nets: Nets with different seeds; cosines are averaged.
        n_steps: At most.
        stops_early: Whether each net leaves an inner fold of the slides, and of the donors, aside
            and ends with the weights that did best on it, else it learns from everything and makes
            all steps. None: only with a loss that also pushes apart, which overfits; towards
            anchors the steps alone are bound enough.
        image_gene_rows: Regions with their expression that a step draws.
        gene_text_rows: Profiles with their texts that a step draws; half of them labelled, half
            made from marker lists, where there are both.
        image_text_rows: Regions with their texts that a step draws, where there are any.
        few_cells: Each region of a step is also learned by 1 to so many of its cells, drawn by
            chance and seen alone, so that single cells can be named by what they look like; with 0
            a cell is named as its region sees it, by what lies around it as well.
        image_gene_weight: Of the loss of these pairs in the mean over pairs.
        gene_text_weight: Likewise.
        image_text_weight: Likewise.
        expression_weight: Of the regression, beside that mean; only of objective joint. One half
            is as much as each of two kinds of pairs.
        cycle_weight: Of the cycle term, beside both; only of objective joint.
        learning_rate: Of heads, gene tower, and an image encoder that is not adapted.
        text_learning_rate: Of a text tower that learns.
        lora_learning_rate: Of adapters, on the image's side or the text's.
        weight_decay: Of matrices; vectors and the scale have none.
        clip_norm: Gradients are scaled down to this norm.
        warm_up: Share of the steps in which rates rise; the text tower waits for as long before.
        text_state: Whether the text tower learns: frozen, unlocked, or by adapters.
        validate_every: Steps between two looks at what is held out.
        patience: Looks without a better score before a net stops early.
        held_out_donors: Share of the profiles' donors that is left aside to stop early by, where
            there are several.
        n_table_genes: Genes of the table at most, the regression's panel included: markers first,
            then those that vary most (see `choose_table`), of genes that regions and profiles have
            in common.
        marker_copies: Profiles made up from each marker list.
        marker_dropout: Share of markers that a copy loses.
        marker_noise: Normal noise of a copy, in z.
        marker_z: How far above the mean its markers are, in z, all in all.
        marker_spread: By what share of that a marker of a copy is higher or lower; drawn evenly.
        embedding_width: Of the space.
        gene_width: Of the gene tower's answer.
        gene_heads: Its heads.
        gene_dropout: Share of measured genes that it does not see in training.
        head_dropout: Of the heads' hidden values.
        n_reference: Regions, and cells, of the training side that are kept to calibrate on.
        seed: Of weights, draws and dropout.
        device: Where the nets are trained.
    """

    objective: AlignObjective = "joint"
    loss: AlignLoss = "anchor"
    gene_space: GeneSpace = "fixed"
    profile_embedding: str | None = None
    n_nets: int = 3
    n_steps: int = 150
    stops_early: bool | None = None
    image_gene_rows: int = 256
    gene_text_rows: int = 96
    image_text_rows: int = 64
    few_cells: int = 4
    image_gene_weight: float = 1.0
    gene_text_weight: float = 1.0
    image_text_weight: float = 1.0
    expression_weight: float = 0.5
    cycle_weight: float = 0.0
    learning_rate: float = 2e-3
    text_learning_rate: float = 2e-5
    lora_learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    warm_up: float = 0.1
    text_state: TextState = "frozen"
    validate_every: int = 25
    patience: int = 6
    held_out_donors: float = 0.2
    n_table_genes: int = 1000
    marker_copies: int = 16
    marker_dropout: float = 0.3
    marker_noise: float = 0.1
    marker_z: float = 2.0
    marker_spread: float = 0.5
    embedding_width: int = 64
    gene_width: int = 128
    gene_heads: int = 4
    gene_dropout: float = 0.1
    head_dropout: float = 0.0
    n_reference: int = 1000
    seed: int = 0
    device: Literal["cpu", "cuda", "mps"] = "cpu"

    def __post_init__(self) -> None:
        wrong = self._outside()
        if wrong is not None:
            raise ConfigError(f"align.{wrong[0]} = {getattr(self, wrong[0])!r}; give {wrong[1]}")
        if self.seed > MAX_SEED:
            raise ConfigError(f"align.seed = {self.seed}; give {MAX_SEED} or less")
        if self.profile_embedding is not None:
            self._check_embedding(self.profile_embedding)
        if self.cycle_weight and not self.has_expression:
            raise ConfigError(
                "align.cycle_weight wants predicted expression: set align.objective to joint and "
                "align.expression_weight above 0, or align.cycle_weight to 0"
            )
        if self.loss == "anchor" and self.gene_space != "fixed":
            raise ConfigError(
                "align.loss = anchor trains no gene tower: set align.gene_space to fixed with it, "
                "or take another loss"
            )

    def _check_embedding(self, name: str) -> None:
        """Refuse what vectors of another model cannot take part in."""
        if not name or name != name.strip():
            raise ConfigError(f"align.profile_embedding = {name!r}; give a name, or leave it out")
        if self.gene_space == "fixed" or self.loss == "anchor":
            raise ConfigError(
                f"vectors {name} span no fixed space of genes: set align.gene_space to learned "
                "and align.loss to softmax or siglip"
            )
        if self.cycle_weight:
            raise ConfigError(
                f"the cycle term embeds predicted expression, of which there is no vector {name}: "
                "set align.cycle_weight to 0"
            )

    def _outside(self) -> tuple[str, str] | None:
        """The first number that is out of its range, and what is wanted."""
        for name, lowest in LEAST.items():
            if not lowest <= getattr(self, name) < math.inf:
                return name, f"a finite number, {lowest:g} or more"
        for name in ABOVE_0:
            if not 0 < getattr(self, name) < math.inf:
                return name, "a finite number above 0"
        for name in SHARES:
            if not 0 <= getattr(self, name) < 1:
                return name, "a share from 0 to below 1"
        return None

    def pair_weights(self) -> dict[str, float]:
        """Weight of each kind of pair."""
        return {
            "image-gene": self.image_gene_weight,
            "gene-text": self.gene_text_weight,
            "image-text": self.image_text_weight,
        }

    def pair_rows(self) -> dict[str, int]:
        """Pairs of each kind that a step draws."""
        return {
            "image-gene": self.image_gene_rows,
            "gene-text": self.gene_text_rows,
            "image-text": self.image_text_rows,
        }

    @property
    def has_held_out(self) -> bool:
        """Whether something is left aside to stop by."""
        return self.loss != "anchor" if self.stops_early is None else self.stops_early

    @property
    def has_expression(self) -> bool:
        """Whether expression is learned beside the pairs."""
        return self.objective == "joint" and self.expression_weight > 0
