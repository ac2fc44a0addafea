"""What a reader found, and what it left out and why: of spots, and of given nuclei."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ReadReport:
    """What was read of one section, for the run log and the report.

    Attributes:
        n_listed: Spots in the spot table.
        n_selected: Of these, spots marked as under tissue.
        without_counts: Selected spots that the counts do not know; dropped, never invented.
        below_min_counts: Selected spots with fewer counts than the least asked; dropped.
        n_unused_counts: Rows of counts whose spot is not selected.
        n_kept: Spots returned.
        n_genes: Genes returned.
        measured_pitch_um: Distance of neighbouring spots as the pixel coordinates have it.
        median_counts: Median counts of a spot that was kept.
    """

    n_listed: int
    n_selected: int
    without_counts: tuple[str, ...]
    below_min_counts: tuple[str, ...]
    n_unused_counts: int
    n_kept: int
    n_genes: int
    measured_pitch_um: float
    median_counts: float


@dataclass(frozen=True)
class NucleiReport:
    """What was read of a file of nuclei, for the run log and the report.

    Attributes:
        format: Which format it was.
        n_listed: Objects in the file.
        n_kept: Nuclei returned; with those that were dropped they make `n_listed`.
        dropped: Reason, and how many were left out for it.
        n_mended: Outlines that crossed themselves; the largest sound part was kept.
        classes: Each cell type, and how many nuclei have it; "" for none.
        median_area_um2: Median area of those kept.
        notes: What a user should know though nothing stops.
    """

    format: str
    n_listed: int
    n_kept: int
    dropped: Mapping[str, int]
    n_mended: int
    classes: Mapping[str, int]
    median_area_um2: float
    notes: tuple[str, ...]
