"""Vectors of regions' expression that another model made, as profiles have theirs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32

from histoscribe.data.checks import check_vectors, freeze
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions, check_region_names


@dataclass(frozen=True)
class RegionFeatures:
    """What another model made of the expression of regions: a vector each.

    Attributes:
        by: What the vectors are called; equal names are vectors of one model.
        slide_id: Slide of each.
        region_id: Region of each.
        features: The vectors, NaN for a region without.
        provenance: What they were read from.
    """

    by: str
    slide_id: tuple[str, ...]
    region_id: tuple[str, ...]
    features: Float32[np.ndarray, "row feature"]
    provenance: Provenance

    def __post_init__(self) -> None:
        check_region_names(self.slide_id, self.region_id)
        check_vectors(self.by, self.features, len(self))
        freeze(self, "features")

    def __len__(self) -> int:
        return len(self.region_id)

    def __str__(self) -> str:
        """What they are, for people."""
        return f"vectors {self.by} of {self.width} numbers"

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.features.shape[1]

    @cached_property
    def row_of(self) -> Mapping[tuple[str, str], int]:
        """Row of each slide and region."""
        places = zip(self.slide_id, self.region_id, strict=True)
        return {place: row for row, place in enumerate(places)}

    def of(self, regions: Regions) -> Float32[np.ndarray, "region feature"]:
        """The vectors of these regions, in their order; NaN for those that have none here."""
        places = zip(regions.slide_id, regions.region_id, strict=True)
        rows = np.array([self.row_of.get(place, -1) for place in places], dtype=np.int64)
        found = self.features[rows]
        found[rows < 0] = np.nan
        return found
