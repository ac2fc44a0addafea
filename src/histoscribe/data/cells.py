"""Cells: where each cell of a slide is, what it looks like, and what described it."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float16, Float32, Int, Int64

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
class Outlines:
    """One closed polygon a cell, stored one after another.

    Cell i has the vertices `xy_um[start[i] : start[i + 1]]`, first vertex not repeated.
    """

    xy_um: Float32[np.ndarray, "vertex 2"]
    start: Int64[np.ndarray, " cell_plus_1"]

    def __post_init__(self) -> None:
        check_array("xy_um of the outlines", self.xy_um, np.float32, (None, 2))
        check_finite("xy_um of the outlines", self.xy_um)
        check_array("start of the outlines", self.start, np.int64, (None,))
        if not len(self.start) or self.start[0] != 0 or self.start[-1] != len(self.xy_um):
            raise DataError(f"start of the outlines does not run from 0 to {len(self.xy_um)}")
        short = np.flatnonzero(np.diff(self.start) < 3)
        if len(short):
            raise DataError(f"the outline of cell {short[0]} has fewer than 3 vertices")
        freeze(self, "xy_um", "start")

    def __len__(self) -> int:
        return len(self.start) - 1

    def take(self, rows: Int[np.ndarray, " row"]) -> "Outlines":
        """The outlines of these cells, in this order."""
        n_vertices = np.diff(self.start)[rows]
        start = np.concatenate([[0], np.cumsum(n_vertices)]).astype(np.int64)
        shift = np.repeat(self.start[:-1][rows] - start[:-1], n_vertices)
        return Outlines(self.xy_um[np.arange(start[-1]) + shift], start)


@dataclass(frozen=True)
class Cells:
    """The cells of one slide. Nothing fitted on a split is ever stored here.

    Attributes:
        slide_id: The slide they are on.
        xy_um: Centroids, slide frame.
        area_um2: Nucleus areas.
        features: Raw encoder features.
        encoder_id: Identity of the encoder: name, weights hash, way of pooling, tile, mpp.
        segmenter_id: Identity of the segmenter, with weights hash.
        provenance: What made them.
        outlines: Nucleus polygons, or None where only points are known.
        cell_type: Imported labels, "" for a cell that has none; or None without labels.
        type_probability: How sure the labels' source was, 0 to 1, NaN where it did not say; or
            None where it says of no cell.
    """

    slide_id: str
    xy_um: Float32[np.ndarray, "cell 2"]
    area_um2: Float32[np.ndarray, " cell"]
    features: Float16[np.ndarray, "cell feature"]
    encoder_id: str
    segmenter_id: str
    provenance: Provenance
    outlines: Outlines | None = None
    cell_type: tuple[str, ...] | None = None
    type_probability: Float32[np.ndarray, " cell"] | None = None

    def __post_init__(self) -> None:
        for name in ("slide_id", "encoder_id", "segmenter_id"):
            check_named(name, getattr(self, name))
        n_cells = len(self.xy_um)
        check_array("xy_um of the cells", self.xy_um, np.float32, (n_cells, 2))
        check_array("area_um2 of the cells", self.area_um2, np.float32, (n_cells,))
        check_array("features of the cells", self.features, np.float16, (n_cells, None))
        for name in ("xy_um", "area_um2", "features"):
            check_finite(f"{name} of the cells of {self.slide_id}", getattr(self, name))
        if n_cells and self.area_um2.min() <= 0:
            raise DataError(f"cell {int(self.area_um2.argmin())} of {self.slide_id} has no area")
        if self.outlines is not None:
            check_length("outlines", self.outlines, n_cells)
        check_types(self.slide_id, self.cell_type, self.type_probability, n_cells)
        freeze(self, "xy_um", "area_um2", "features", "type_probability")

    def __len__(self) -> int:
        return len(self.xy_um)

    def take(self, rows: Int[np.ndarray, " row"]) -> "Cells":
        """These cells, in this order."""
        return replace(
            self,
            xy_um=self.xy_um[rows],
            area_um2=self.area_um2[rows],
            features=self.features[rows],
            outlines=None if self.outlines is None else self.outlines.take(rows),
            cell_type=None if self.cell_type is None else _pick(self.cell_type, rows),
            type_probability=(
                None if self.type_probability is None else self.type_probability[rows]
            ),
        )


def _pick(values: tuple[str, ...], rows: Int[np.ndarray, " row"]) -> tuple[str, ...]:
    return tuple(values[row] for row in rows)
