"""Tiles: the whole field of view between and around the nuclei, on a regular grid."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32

from histoscribe.data.provenance import Provenance


@dataclass(frozen=True)
class Tiles:
    """Squares of `side_um` on a grid anchored at the slide's corner, where it was described.

    Attributes:
        slide_id: The slide they are on.
        side_um: Side of a square.
        xy_um: Centres of the squares, slide frame.
        features: Encoder features over the whole square: mean, then standard deviation, of each
            channel for dense encoders; mean patch token, then its deviation, for tile encoders.
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

    def __len__(self) -> int:
        return len(self.xy_um)
