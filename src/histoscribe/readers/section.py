"""What every reader of spots does once places and counts are read: match, drop, report."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import ExpressionUnit, Regions
from histoscribe.data.slide import Slide
from histoscribe.errors import DataError
from histoscribe.readers.report import ReadReport


@dataclass(frozen=True)
class SpotSizes:
    """A platform's sizes, and what is asked of a spot.

    Attributes:
        diameter_um: Spot diameter.
        pitch_um: Distance of neighbouring centres.
        min_counts: Spots with fewer counts are dropped. 200 is about 2 % of the median spot of
            her2st, whose sections hold spots of 1, 2, 3 and 97 counts, then none below 600.
    """

    diameter_um: float
    pitch_um: float
    min_counts: int = 200


LEGACY_ST = SpotSizes(diameter_um=100.0, pitch_um=200.0)
VISIUM = SpotSizes(diameter_um=55.0, pitch_um=100.0)


@dataclass(frozen=True)
class SpotPlaces:
    """The selected spots of a section: their names and pixels, and how many were listed."""

    path: Path
    name: tuple[str, ...]
    xy_px: Float64[np.ndarray, "spot 2"]
    n_listed: int
    measured_pitch_um: float


@dataclass(frozen=True)
class SpotCounts:
    """The measured expression, rows by name, in any order."""

    path: Path
    name: tuple[str, ...]
    expression: csr_array
    unit: ExpressionUnit
    genes: GenePanel


@dataclass(frozen=True)
class Origin:
    """Whose section it is and what made it."""

    patient_id: str
    platform: str
    provenance: Provenance


def make_regions(
    places: SpotPlaces, counts: SpotCounts, slide: Slide, sizes: SpotSizes, origin: Origin
) -> tuple[Regions, ReadReport]:
    """Spots that have a place and enough counts, in the order of the places.

    Raises:
        DataError: No spot is left.
    """
    row_of = {name: row for row, name in enumerate(counts.name)}
    has_counts = np.array([name in row_of for name in places.name], dtype=bool)
    rows = np.array([row_of.get(name, 0) for name in places.name], dtype=np.int64)
    totals = np.where(has_counts, np.asarray(counts.expression.sum(axis=1))[rows], 0)
    is_kept = has_counts & (totals >= sizes.min_counts)
    if not is_kept.any():
        msg = (
            f"{counts.path}: of {len(places.name)} selected spots {has_counts.sum()} have counts "
            f"and none has {sizes.min_counts} or more. Wanted the counts of the spots of "
            f"{places.path.name} (first spot there: {places.name[0]}, here: {counts.name[0]})."
        )
        raise DataError(msg)
    kept = np.flatnonzero(is_kept)
    regions = Regions(
        kind="spot",
        region_id=_pick(places.name, is_kept),
        slide_id=(slide.slide_id,) * len(kept),
        patient_id=(origin.patient_id,) * len(kept),
        xy_um=(places.xy_px[kept] * np.array(slide.mpp)).astype(np.float32),
        radius_um=sizes.diameter_um / 2,
        pitch_um=sizes.pitch_um,
        genes=counts.genes,
        expression=csr_array(counts.expression[rows[kept]]),
        expression_unit=counts.unit,
        gene_observed=np.ones(len(counts.genes), dtype=bool),
        platform=origin.platform,
        provenance=origin.provenance,
    )
    report = ReadReport(
        n_listed=places.n_listed,
        n_selected=len(places.name),
        without_counts=_pick(places.name, ~has_counts),
        below_min_counts=_pick(places.name, has_counts & ~is_kept),
        n_unused_counts=len(set(counts.name) - set(places.name)),
        n_kept=len(kept),
        n_genes=len(counts.genes),
        measured_pitch_um=places.measured_pitch_um,
        median_counts=float(np.median(totals[kept])),
    )
    return regions, report


def _pick(names: tuple[str, ...], chosen: Bool[np.ndarray, " name"]) -> tuple[str, ...]:
    return tuple(name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen)
