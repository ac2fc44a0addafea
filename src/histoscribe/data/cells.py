"""Cells: where each cell of a slide is, what it looks like, and what described it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32, Int64

from histoscribe.data.provenance import Provenance


@dataclass(frozen=True)
class Outlines:
    """One closed polygon a cell, stored one after another.

    Cell i has the vertices `xy_um[start[i] : start[i + 1]]`, first vertex not repeated.
    """

    xy_um: Float32[np.ndarray, "vertex 2"]
    start: Int64[np.ndarray, " cell_plus_1"]


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
        cell_type: Imported labels, or None.
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

    def __len__(self) -> int:
        return len(self.xy_um)
