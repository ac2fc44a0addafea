"""Annotation: which words fit each region or cell, and how sure that is."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float32, Int

from histoscribe.data.checks import (
    check_array,
    check_distinct,
    check_finite,
    check_length,
    check_named,
    freeze,
)
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import RegionKind, check_region_names
from histoscribe.errors import DataError

UNSURE = "unsure"
"""The label of a unit that no term fits clearly better than the next."""

NO_CELL = ""
"""The label of a region without a nucleus: nothing was said of it."""

Route = Literal["image", "expression"]
"""Image to text; or image to predicted expression to text."""

Source = Literal["reference", "transductive", "none"]
"""What a calibration was fitted on: units of the training side that the checkpoint holds; the
very units that are annotated, which makes each label depend on the others; or nothing."""


@dataclass(frozen=True)
class Calibration:
    """Mean and standard deviation of each term's similarity, by which scores become comparable.

    Attributes:
        mean: Of each term.
        deviation: Of each term, above 0.
        source: What it was fitted on.
        n_units: How many units that were.
    """

    mean: Float32[np.ndarray, " term"]
    deviation: Float32[np.ndarray, " term"]
    source: Source
    n_units: int

    def __post_init__(self) -> None:
        check_array("mean of the calibration", self.mean, np.float32, (None,))
        check_array("deviation of the calibration", self.deviation, np.float32, (len(self.mean),))
        for name in ("mean", "deviation"):
            check_finite(f"{name} of the calibration", getattr(self, name))
        if len(self.deviation) and not self.deviation.min() > 0:
            raise DataError(
                f"term {int(self.deviation.argmin())} fits all units of the calibration alike; "
                "give more units, or annotate without calibration"
            )
        if self.source not in get_args(Source):
            raise DataError(f"calibration of {self.source!r}; wanted one of {get_args(Source)}")
        freeze(self, "mean", "deviation")

    def __len__(self) -> int:
        return len(self.mean)

    def apply(self, score: Float32[np.ndarray, "unit term"]) -> Float32[np.ndarray, "unit term"]:
        """Scores in standard deviations above the mean of their term."""
        return (score - self.mean) / self.deviation


@dataclass(frozen=True, eq=False)
class Annotation:
    """Terms scored on units (regions or cells), and the label that follows.

    Rows of regions without a nucleus are NaN throughout and have the label "".

    Attributes:
        kind: Size of the units.
        unit_id: Name of each unit, unique in its slide; of a cell, its row in the slide's cells.
        slide_id: Slide of each unit.
        xy_um: Centres, slide frame.
        radius_um: Of the regions; NaN for cells, infinite for whole samples.
        terms: Names of the classes.
        prompts: For each class all texts that were averaged to stand for it.
        score: Cosine of unit and class by the route image to text, -1 to 1; what units are ranked
            by.
        expression_score: The same by the route image to predicted expression to text, or None.
        probability: Of each class, given that one of the terms is right.
        label: The most probable class, "unsure", or "" for a region without a nucleus.
        uncertainty: Disagreement of the two routes, 0 (same probabilities) to 1 (each is sure of
            another class); NaN where there is one route.
        calibration: By route, what brought the scores of the terms to one scale.
        model_id: Identity of the checkpoint.
        provenance: What made it; its settings hold the rule of abstention.
    """

    kind: RegionKind
    unit_id: tuple[str, ...]
    slide_id: tuple[str, ...]
    xy_um: Float32[np.ndarray, "unit 2"]
    radius_um: float
    terms: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    score: Float32[np.ndarray, "unit term"]
    probability: Float32[np.ndarray, "unit term"]
    label: tuple[str, ...]
    uncertainty: Float32[np.ndarray, " unit"]
    calibration: dict[Route, Calibration]
    model_id: str
    provenance: Provenance
    expression_score: Float32[np.ndarray, "unit term"] | None = None

    def __post_init__(self) -> None:
        check_named("model_id", self.model_id)
        check_terms(self.terms)
        self._check_lengths()
        shape = (len(self), len(self.terms))
        for name in ("score", "probability", "expression_score"):
            if getattr(self, name) is not None:
                check_array(name, getattr(self, name), np.float32, shape)
        check_array("uncertainty", self.uncertainty, np.float32, (len(self),))
        check_array("xy_um of the annotation", self.xy_um, np.float32, (len(self), 2))
        if self.kind != "bulk":
            check_finite("xy_um of the annotation", self.xy_um)
        self._check_labels()
        freeze(self, "xy_um", "score", "probability", "uncertainty", "expression_score")

    def __len__(self) -> int:
        return len(self.unit_id)

    @property
    def label_probability(self) -> Float32[np.ndarray, " unit"]:
        """Of the most probable class; NaN where there was no nucleus."""
        return self.probability.max(axis=1)

    @property
    def is_said(self) -> Bool[np.ndarray, " unit"]:
        """Units of which anything could be said: they have a nucleus."""
        return np.asarray(np.isfinite(self.score).all(axis=1))

    def of_slide(self, slide_id: str) -> "Annotation":
        """The units of one slide."""
        return self.take(np.array([r for r, n in enumerate(self.slide_id) if n == slide_id], int))

    def take(self, rows: Int[np.ndarray, " row"]) -> "Annotation":
        """These units, in this order."""
        names = {
            name: tuple(getattr(self, name)[row] for row in rows)
            for name in ("unit_id", "slide_id", "label")
        }
        arrays = {
            name: getattr(self, name)[rows]
            for name in ("xy_um", "score", "probability", "uncertainty")
        }
        second = None if self.expression_score is None else self.expression_score[rows]
        return replace(self, **names, **arrays, expression_score=second)

    def count(self) -> dict[str, int]:
        """How many units have each label, terms first, then "unsure", then ""."""
        return {name: self.label.count(name) for name in (*self.terms, UNSURE, NO_CELL)}

    def _check_lengths(self) -> None:
        for name in ("slide_id", "label"):
            check_length(name, getattr(self, name), len(self))
        check_length("prompts", self.prompts, len(self.terms))
        for route, calibration in self.calibration.items():
            if route not in get_args(Route):
                raise DataError(f"route {route!r}; wanted one of {get_args(Route)}")
            check_length(f"calibration of the {route} route", calibration, len(self.terms))
        check_region_names(self.slide_id, self.unit_id)

    def _check_labels(self) -> None:
        known = {*self.terms, UNSURE, NO_CELL}
        for row, label in enumerate(self.label):
            if label not in known:
                raise DataError(f"label {label!r} of unit {self.unit_id[row]} is none of the terms")
            if (label == NO_CELL) != np.isnan(self.probability[row]).any():
                raise DataError(
                    f"unit {self.unit_id[row]} has label {label!r} and probabilities "
                    f'{self.probability[row].tolist()}; wanted NaN with "" and nowhere else'
                )


def check_terms(terms: tuple[str, ...]) -> None:
    """Refuse names of classes that are empty, stand twice or mean something else."""
    if not terms:
        raise DataError("no terms were given; name at least one")
    check_distinct("list of terms", terms, "term", "name each class once")
    if UNSURE in terms:
        raise DataError(f"a term is named {UNSURE!r}, which is what no clear label is called")
