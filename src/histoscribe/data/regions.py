"""Regions: sets of cells with (perhaps) an expression vector. Bulk, spot and cell are one thing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float32, Int
from scipy.sparse import csr_array

from histoscribe.data.checks import (
    check_array,
    check_distinct,
    check_finite,
    check_length,
    check_observed,
    freeze,
    tidy_expression,
)
from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.errors import DataError, MismatchError

RegionKind = Literal["bulk", "spot", "cell"]
ExpressionUnit = Literal["counts", "tpm", "fpkm", "rsem", "log1p_cp10k"]


@dataclass(frozen=True)
class RegionSize:
    """How large regions are, and how far apart.

    Attributes:
        kind: What they are.
        radius_um: Half the diameter; None for whole samples.
        pitch_um: Distance between neighbouring centres; None where there is no lattice.

    Raises:
        DataError: If a length is none, or spots have no radius.
    """

    kind: RegionKind
    radius_um: float | None
    pitch_um: float | None

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        if (self.radius_um is None) != (self.kind == "bulk"):
            raise DataError(
                f"regions of kind {self.kind} with radius_um = {self.radius_um}; give a radius to "
                "all but whole samples, and none to these"
            )
        for name in ("radius_um", "pitch_um"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise DataError(f"{name} of the regions is {value}; give a length in µm")

    def __str__(self) -> str:
        """In words, for people."""
        if self.radius_um is None:
            return "whole samples"
        apart = "" if self.pitch_um is None else f", {self.pitch_um:g} µm apart"
        return f"{self.kind}s of {2 * self.radius_um:g} µm{apart}"


@dataclass(frozen=True)
class Regions:
    """Regions of one or more slides, with what was measured in them.

    Attributes:
        kind: The size of the regions; data, not behaviour.
        region_id: One name a region, unique within its slide (a barcode, "10x21", ...).
        slide_id: The slide of each region.
        patient_id: The patient of each region, what splits are made by.
        xy_um: Centres, slide frame; NaN for bulk.
        radius_um: Half the diameter; infinite for bulk.
        pitch_um: Distance between neighbouring centres; NaN where there is no lattice.
        genes: Columns of the expression.
        expression: region x gene, CSR, or None where nothing was measured.
        expression_unit: Unit of `expression`.
        gene_observed: Genes the platform could have seen; False is "not measured", not zero.
        platform: E.g. "legacy-st", "visium".
        provenance: What made them.
        text_key: A key into a table of texts, for image-text pairs, or None.
    """

    kind: RegionKind
    region_id: tuple[str, ...]
    slide_id: tuple[str, ...]
    patient_id: tuple[str, ...]
    xy_um: Float32[np.ndarray, "region 2"]
    radius_um: float
    pitch_um: float
    genes: GenePanel
    expression: csr_array | None
    expression_unit: ExpressionUnit
    gene_observed: Bool[np.ndarray, " gene"]
    platform: str
    provenance: Provenance
    text_key: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_names()
        self._check_places()
        check_unit(self.expression_unit)
        if self.expression is not None:
            expression = tidy_expression(
                self.expression, self.expression_unit, self.region_id, self.genes.ids
            )
            object.__setattr__(self, "expression", expression)
        check_observed(self.expression, self.gene_observed, self.genes.ids)
        freeze(self, "xy_um", "gene_observed")

    def __len__(self) -> int:
        return len(self.region_id)

    @property
    def size(self) -> RegionSize:
        """How large they are, and how far apart."""
        is_lattice = self.kind != "bulk" and np.isfinite(self.pitch_um)
        return RegionSize(
            self.kind,
            None if self.kind == "bulk" else float(self.radius_um),
            float(self.pitch_um) if is_lattice else None,
        )

    def take(self, rows: Int[np.ndarray, " row"]) -> "Regions":
        """These regions, in this order."""
        names = {
            name: tuple(getattr(self, name)[row] for row in rows)
            for name in ("region_id", "slide_id", "patient_id", "text_key")
            if getattr(self, name) is not None
        }
        expression = None if self.expression is None else self.expression[rows]
        return replace(self, **names, xy_um=self.xy_um[rows], expression=expression)

    def align(self, genes: GenePanel) -> "Regions":
        """The same regions with the columns of this panel; genes it lacks are not observed.

        Raises:
            MismatchError: If the panels name genes differently, or share none.
        """
        if genes.namespace != self.genes.namespace:
            raise MismatchError(
                f"genes are named by {self.genes.namespace} here and by {genes.namespace} in the "
                "panel asked for; rename the regions' with data.gene_names.rename_genes first"
            )
        column = self.genes.rows_of(genes.ids)
        is_known = column >= 0
        if not is_known.any():
            raise MismatchError(
                f"none of the {len(genes)} genes asked for is among the {len(self.genes)} here "
                f"(e.g. {', '.join(self.genes.ids[:3])})"
            )
        observed = np.zeros(len(genes), dtype=bool)
        observed[is_known] = self.gene_observed[column[is_known]]
        expression = None
        if self.expression is not None:
            # a matrix that moves columns: 1 where old column i becomes new column j
            new = np.flatnonzero(is_known)
            moved = csr_array(
                (np.ones(len(new), self.expression.dtype), (column[is_known], new)),
                shape=(len(self.genes), len(genes)),
            )
            expression = csr_array(self.expression @ moved)
        return replace(self, genes=genes, gene_observed=observed, expression=expression)

    def _check_names(self) -> None:
        for name in ("slide_id", "patient_id", "text_key"):
            if getattr(self, name) is not None:
                check_length(name, getattr(self, name), len(self))
        check_region_names(self.slide_id, self.region_id)
        patient_of: dict[str, str] = {}
        for slide, patient in zip(self.slide_id, self.patient_id, strict=True):
            if not patient or patient_of.setdefault(slide, patient) != patient:
                raise DataError(
                    f"slide {slide} belongs to patients {patient_of.get(slide)!r} and {patient!r}; "
                    "give each slide one patient"
                )

    def _check_places(self) -> None:
        _check_kind(self.kind)
        check_array("xy_um of the regions", self.xy_um, np.float32, (len(self), 2))
        if self.kind == "bulk":
            return
        check_finite("xy_um of the regions", self.xy_um)
        if not 0 < self.radius_um < np.inf:
            raise DataError(f"radius_um is {self.radius_um}; give half the diameter in µm")
        # Touching spots are the densest there are; a diameter in another unit is caught here.
        if 2 * self.radius_um > self.pitch_um * (1 + 1e-6) or self.pitch_um <= 0:
            raise DataError(
                f"regions of diameter {2 * self.radius_um:g} µm cannot lie {self.pitch_um:g} µm "
                "apart; check the unit of both (µm) and that they are not swapped"
            )


def check_region_names(slide_id: Sequence[str], region_id: Sequence[str]) -> None:
    """Refuse empty names, and a region that stands twice on a slide."""
    check_length("slide_id", slide_id, len(region_id))
    for name, values in (("slide_id", slide_id), ("region_id", region_id)):
        if not all(values):
            raise DataError(f"{name} is empty in row {[bool(v) for v in values].index(False)}")
    check_distinct(
        "regions",
        [f"{slide}/{region}" for slide, region in zip(slide_id, region_id, strict=True)],
        "row",
        "each region of a slide needs its own name",
    )


def _check_kind(kind: str) -> None:
    if kind not in get_args(RegionKind):
        raise DataError(f"kind of regions is {kind!r}; wanted one of {get_args(RegionKind)}")


def check_unit(unit: str) -> None:
    """Refuse a unit of expression that is not known."""
    if unit not in get_args(ExpressionUnit):
        raise DataError(f"expression unit {unit!r}; wanted one of {get_args(ExpressionUnit)}")
