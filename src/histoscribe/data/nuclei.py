"""GivenNuclei: the nuclei of a slide as another program found them, before they are described."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from histoscribe.data.cells import Outlines
from histoscribe.data.checks import (
    check_array,
    check_finite,
    check_length,
    check_named,
    check_types,
    freeze,
)
from histoscribe.data.provenance import Provenance
from histoscribe.errors import DataError


@dataclass(frozen=True)
class GivenNuclei:
    """Nuclei that are given, in the order of their file.

    No two have the same centroid, so that a centroid names its nucleus (`rows_at`).

    Attributes:
        slide_id: The slide they are on.
        outlines: Their polygons, slide frame.
        xy_um: Centroids, slide frame.
        area_um2: Areas, as the file has them: of the polygon, or of the pixels of a label image.
        source: The format they came in.
        provenance: What read them from which file.
        cell_type: Their labels, "" for one that has none; or None without labels.
        type_probability: As `Cells` has it.
    """

    slide_id: str
    outlines: Outlines
    xy_um: Float32[np.ndarray, "nucleus 2"]
    area_um2: Float32[np.ndarray, " nucleus"]
    source: str
    provenance: Provenance
    cell_type: tuple[str, ...] | None = None
    type_probability: Float32[np.ndarray, " nucleus"] | None = None

    def __post_init__(self) -> None:
        for name in ("slide_id", "source"):
            check_named(name, getattr(self, name))
        n_nuclei = len(self.outlines)
        check_array("xy_um of the nuclei", self.xy_um, np.float32, (n_nuclei, 2))
        check_array("area_um2 of the nuclei", self.area_um2, np.float32, (n_nuclei,))
        check_length("xy_um of the nuclei", self.xy_um, n_nuclei)
        for name in ("xy_um", "area_um2"):
            check_finite(f"{name} of the nuclei of {self.slide_id}", getattr(self, name))
        if n_nuclei and self.area_um2.min() <= 0:
            raise DataError(f"nucleus {int(self.area_um2.argmin())} of {self.slide_id} has no area")
        check_types(self.slide_id, self.cell_type, self.type_probability, n_nuclei)
        if len(np.unique(centroid_key(self.xy_um))) < n_nuclei:
            raise DataError(f"two nuclei of {self.slide_id} have one centroid; give each once")
        freeze(self, "xy_um", "area_um2", "type_probability")

    def __len__(self) -> int:
        return len(self.xy_um)

    @property
    def identity(self) -> str:
        """What stands in `segmenter_id`: the format, and a hash of the file and how it was read."""
        return f"given-{self.source}@{self.provenance.key[:12]}"

    def rows_at(self, xy_um: Float32[np.ndarray, "cell 2"]) -> Int64[np.ndarray, " cell"]:
        """Which nucleus has each of these centroids, bit by bit.

        Raises:
            DataError: A centroid that none has.
        """
        keys = centroid_key(self.xy_um)
        order = np.argsort(keys)
        wanted = centroid_key(xy_um)
        place = np.minimum(np.searchsorted(keys, wanted, sorter=order), max(len(keys) - 1, 0))
        rows = order[place] if len(keys) else np.full(len(wanted), -1)
        lost = np.flatnonzero(keys[rows] != wanted) if len(keys) else np.arange(len(wanted))
        if len(lost):
            raise DataError(
                f"no given nucleus of {self.slide_id} is at {xy_um[lost[0]].tolist()} µm; the "
                "cells were made from other nuclei"
            )
        return rows.astype(np.int64)


def centroid_key(xy_um: Float32[np.ndarray, "nucleus 2"]) -> Int64[np.ndarray, " nucleus"]:
    """One number for each centroid; equal for equal centroids alone."""
    return np.ascontiguousarray(xy_um + np.float32(0)).view(np.int64)[:, 0]  # -0.0 becomes 0.0
