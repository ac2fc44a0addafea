"""What a checkpoint must answer to be annotated with, and how it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from histoscribe.data.annotation import Route, Source
from histoscribe.data.profiles import Profiles
from histoscribe.data.regions import RegionSize
from histoscribe.errors import ConfigError
from histoscribe.train.assemble import SlideData

Level = Literal["region", "cell"]
Composite = Literal["logsumexp", "max", "mean"]
Abstention = Literal["margin", "probability", "none"]

TEMPLATES = ("{x}", "a tissue sample containing {x}", "a sample of {x}")
"""Prompt templates of SpatialWhisperer's evaluation; each name of a term goes into each."""


@runtime_checkable
class WordModel(Protocol):
    """What a checkpoint must answer to be annotated with.

    Embeddings are of unit length; rows of regions or cells of which nothing can be said are NaN.
    Regions come in the order of the slides and of their regions, cells in that of the slides'
    cells.
    """

    @property
    def model_id(self) -> str:
        """Identity of the checkpoint."""
        ...

    @property
    def region_size(self) -> RegionSize:
        """Size and spacing of the regions it was trained on."""
        ...

    @property
    def scale(self) -> float:
        """Inverse temperature, exp(log scale): what cosines were multiplied by in training."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text d"]:
        """One row a text."""
        ...

    def embed_regions(self, slides: Sequence[SlideData]) -> Float32[np.ndarray, "region d"]:
        """One row a region."""
        ...

    def embed_cells(self, slides: Sequence[SlideData]) -> Float32[np.ndarray, "cell d"]:
        """One row a cell."""
        ...

    def embed_profiles(self, profiles: Profiles) -> Float32[np.ndarray, "profile d"]:
        """One row a profile."""
        ...

    def embed_by_expression(
        self, slides: Sequence[SlideData], level: str
    ) -> Float32[np.ndarray, "unit d"] | None:
        """The gene tower's embedding of predicted expression; None if none is predicted."""
        ...

    def reference(self, level: str, route: str) -> Float32[np.ndarray, "row d"] | None:
        """Embeddings of units of the training side, kept to calibrate on; None if none are."""
        ...

    def phenotypes_of(self, slides: Sequence[SlideData]) -> Int64[np.ndarray, " cell"]:
        """The phenotype (cluster of features) of each cell, counted from 0."""
        ...


@dataclass(frozen=True)
class AnnotateConfig:
    """How words are put to units.

    Attributes:
        level: Regions, or each cell.
        templates: Sentences that a name is put into, at "{x}"; the texts' embeddings are averaged.
        calibration: What brings the terms to one scale; "reference" is the training side's units
            in the checkpoint, "transductive" the units that are annotated (then a label depends on
            what else is in the study), "none" nothing.
        route: "image", "expression" or "both"; None takes both where the model predicts
            expression, and of cells lets the image alone choose the label.
        composite: How a class of several terms is scored from its members.
        abstention: "margin": unsure where the best class is less than `below` more probable than
            the next; "probability": where it is less probable than `below`; "none": never.
        below: The threshold of that rule.
    """

    level: str = "region"
    templates: tuple[str, ...] = TEMPLATES
    calibration: str = "reference"
    route: str | None = None
    composite: str = "logsumexp"
    abstention: str = "margin"
    below: float = 0.1

    def __post_init__(self) -> None:
        for name, kind in (
            ("level", Level),
            ("calibration", Source),
            ("composite", Composite),
            ("abstention", Abstention),
        ):
            if getattr(self, name) not in get_args(kind):
                wanted = ", ".join(get_args(kind))
                raise ConfigError(f"{name} = {getattr(self, name)!r}; wanted one of {wanted}")
        if self.route not in (None, "both", *get_args(Route)):
            raise ConfigError(f"route = {self.route!r}; wanted image, expression or both")
        if not 0 <= self.below <= 1:
            raise ConfigError(f"below = {self.below:g}; wanted a probability, 0 to 1")
        if not self.templates or not all("{x}" in template for template in self.templates):
            raise ConfigError('every template must hold "{x}", where the name of a term goes')
