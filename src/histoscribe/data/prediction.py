"""Prediction: what a model says of each region."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import RegionKind

PredictionUnit = str
"""E.g. "log1p_cp10k", "log1p_counts", "counts", "cp10k"."""


@dataclass(frozen=True)
class Prediction:
    """Predicted expression, region x gene; NaN in the rows of regions without cells.

    Attributes:
        kind: Size of the regions.
        region_id: Name of each region.
        slide_id: Slide of each region.
        xy_um: Centres, slide frame.
        genes: Columns of `mean`.
        mean: Predicted mean.
        unit: Unit of `mean`.
        model_id: Identity of the checkpoint.
        provenance: What made it.
    """

    kind: RegionKind
    region_id: tuple[str, ...]
    slide_id: tuple[str, ...]
    xy_um: Float32[np.ndarray, "region 2"]
    genes: GenePanel
    mean: Float32[np.ndarray, "region gene"]
    unit: PredictionUnit
    model_id: str
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.region_id)
