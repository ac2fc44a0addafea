"""The contract of an encoder, and the names under which encoders are found."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float32, UInt8
from torch import Tensor


@dataclass(frozen=True)
class EncoderIdentity:
    """All that makes two feature vectors comparable; `str()` of it is the encoder id.

    Attributes:
        name: E.g. "instanseg", "vit:dinov2-small".
        weights_sha256: First 12 hex digits.
        pooling: E.g. "nucleus-mean-std", "patch-mean", "cls+patch-mean".
        tile_um: Side of a cell's tile, or 0 for dense encoders.
        mpp: Resolution the encoder sees, µm per pixel.
        n_features: Length of a cell's feature vector.
    """

    name: str
    weights_sha256: str
    pooling: str
    tile_um: float
    mpp: float
    n_features: int

    def __str__(self) -> str:
        return (
            f"{self.name}@{self.weights_sha256}/{self.pooling}"
            f"/tile{self.tile_um:g}um/mpp{self.mpp:g}/d{self.n_features}"
        )


class DenseEncoder(Protocol):
    """Describes nuclei and tiles by pooling feature maps of the whole field."""

    kind: Literal["dense"]

    @property
    def identity(self) -> EncoderIdentity: ...  # noqa: D102 - the name says it

    def pool(
        self,
        maps: tuple[Tensor, ...],
        labels: np.ndarray,
    ) -> Float32[np.ndarray, "nucleus feature"]:
        """Features of nucleus 1 to n of `labels`."""
        ...


class TileEncoder(Protocol):
    """Describes one cell, or one tile, at a time from an image of fixed physical size."""

    kind: Literal["tile"]
    tile_px: int

    @property
    def identity(self) -> EncoderIdentity: ...  # noqa: D102 - the name says it

    def encode(self, tiles: UInt8[np.ndarray, "tile y x 3"]) -> Float32[np.ndarray, "tile feature"]:
        """Features of tiles that were read at `identity.mpp`."""
        ...


ENCODERS = {
    "instanseg": "histoscribe.preprocess.encoders.instanseg:InstansegEncoder",
    "vit": "histoscribe.preprocess.encoders.transformers:load_vit",
    "toy": "histoscribe.preprocess.encoders.toy:ToyEncoder",
}
"""name -> "module:factory", imported when asked for."""
