"""Tiles: the whole field of view between and around the nuclei, on a regular grid."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32

from histoscribe.data.checks import check_array, check_finite, check_named, freeze
from histoscribe.data.provenance import Provenance
from histoscribe.errors import DataError


@dataclass(frozen=True)
class Tiles:
    """Squares of `side_um` on a grid anchored at the slide's corner, where it was described.

    Attributes:
        slide_id: The slide they are on.
        side_um: Side of a square.
        xy_um: Centres of the squares, slide frame.
        features: Encoder features over the whole square: the means of all channels, then their
            standard deviations (channels of the maps for dense encoders, of the patch tokens for
            tile encoders).
        colour: Mean red, green, blue, then their standard deviations, 0 to 255.
        encoder_id: Identity of the encoder, equal to that of the slide's cells.
        provenance: What made them.
    """

    slide_id: str
    side_um: float
    xy_um: Float32[np.ndarray, "tile 2"]
    features: Float16[np.ndarray, "tile feature"]
    colour: Float32[np.ndarray, "tile 6"]
    encoder_id: str
    provenance: Provenance

    def __post_init__(self) -> None:
        for name in ("slide_id", "encoder_id"):
            check_named(name, getattr(self, name))
        if not 0 < self.side_um < np.inf:
            raise DataError(f"side_um of the tiles is {self.side_um}; give a length in µm")
        n_tiles = len(self.xy_um)
        check_array("xy_um of the tiles", self.xy_um, np.float32, (n_tiles, 2))
        check_array("features of the tiles", self.features, np.float16, (n_tiles, None))
        if self.features.shape[1] % 2:
            raise DataError(
                f"{self.features.shape[1]} features of the tiles of {self.slide_id}; wanted means "
                "and as many standard deviations"
            )
        check_array("colour of the tiles", self.colour, np.float32, (n_tiles, 6))
        for name in ("xy_um", "features", "colour"):
            check_finite(f"{name} of the tiles of {self.slide_id}", getattr(self, name))
        if n_tiles and not (self.colour.min() >= 0 and self.colour.max() <= 255):
            raise DataError(
                f"colour of the tiles of {self.slide_id} runs from {self.colour.min():g} to "
                f"{self.colour.max():g}; wanted 0 to 255"
            )
        freeze(self, "xy_um", "features", "colour")

    def __len__(self) -> int:
        return len(self.xy_um)
