"""ReadReport: what a reader found, and what it left out and why."""

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
