"""Prediction: what a model says of each region."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from histoscribe.data.checks import check_array, check_finite, check_length, check_named, freeze
from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import RegionKind, check_region_names
from histoscribe.errors import DataError

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

    def __post_init__(self) -> None:
        n_regions = len(self.region_id)
        check_named("model_id", self.model_id)
        check_named("unit", self.unit)
        check_length("slide_id", self.slide_id, n_regions)
        check_region_names(self.slide_id, self.region_id)
        check_array("xy_um of the prediction", self.xy_um, np.float32, (n_regions, 2))
        check_array("mean", self.mean, np.float32, (n_regions, len(self.genes)))
        if self.kind != "bulk":
            check_finite("xy_um of the prediction", self.xy_um)
        is_missing = np.isnan(self.mean)
        broken = (is_missing.any(axis=1) & ~is_missing.all(axis=1)) | np.isinf(self.mean).any(
            axis=1
        )
        if broken.any():
            raise DataError(
                f"the prediction of region {self.region_id[int(broken.argmax())]} is NaN for some "
                "genes only, or infinite; the model has diverged: lower the learning rate"
            )
        freeze(self, "xy_um", "mean")

    def __len__(self) -> int:
        return len(self.region_id)

    def of_slide(self, slide_id: str) -> "Prediction":
        """The regions of one slide."""
        rows = [row for row, name in enumerate(self.slide_id) if name == slide_id]
        if len(rows) == len(self):
            return self
        return replace(
            self,
            region_id=tuple(self.region_id[row] for row in rows),
            slide_id=(slide_id,) * len(rows),
            xy_um=self.xy_um[rows],
            mean=self.mean[rows],
        )
