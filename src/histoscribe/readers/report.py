"""What a reader found, and what it left out and why: of spots, samples, and given nuclei."""

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

    def describe(self) -> str:
        """The same in a few words."""
        return f"{self.n_kept} of {self.n_selected} spots, {self.n_genes} genes"


@dataclass(frozen=True)
class ProfileReport:
    """What was read of a whole sample, for the run log and the report.

    Attributes:
        profile: Which profile of the table.
        n_genes: Genes of the table.
        n_missing: Of these, those that were not measured in this sample; masked, never 0.
        unit: Of the expression.
        log: What had been done to the values, and was undone.
        reasons: How unit and log state are known.
        aliquots: What the profile is the mean of, as far as the table says.
        notes: What a user should know though nothing stops.
    """

    profile: str
    n_genes: int
    n_missing: int
    unit: str
    log: str
    reasons: tuple[str, ...]
    aliquots: tuple[str, ...]
    notes: tuple[str, ...]

    def describe(self) -> str:
        """The same in a few words."""
        masked = f", {self.n_missing} not measured" if self.n_missing else ""
        notes = "".join(f"; {note}" for note in self.notes)
        return f"profile {self.profile}, {self.n_genes} genes in {self.unit}{masked}{notes}"


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
