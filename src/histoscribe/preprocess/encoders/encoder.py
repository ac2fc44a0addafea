"""The contract of an encoder, and the names under which encoders are found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from torch import Tensor


@dataclass(frozen=True)
class EncoderIdentity:
    """All that makes two feature vectors comparable; `str()` of it is the encoder id.

    Attributes:
        name: E.g. "instanseg", "vit:dinov2-small".
        weights_sha256: First 12 hex digits, for a Vision Transformer over its weights and the
            normalisation of its input.
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


@runtime_checkable
class DenseEncoder(Protocol):
    """Describes nuclei and tiles by pooling feature maps of the whole field."""

    @property
    def kind(self) -> Literal["dense"]: ...  # noqa: D102 - what `run` asks to know which it has

    @property
    def segmenter(self) -> str:
        """Name of the segmenter whose maps it pools."""
        ...

    @property
    def identity(self) -> EncoderIdentity: ...  # noqa: D102 - the name says it

    def pool(
        self,
        maps: Sequence[Tensor],
        labels: np.ndarray,
    ) -> Float32[np.ndarray, "nucleus feature"]:
        """Features of nucleus 1 to n of `labels`."""
        ...


@runtime_checkable
class TileEncoder(Protocol):
    """Describes one cell, or one tile, at a time from an image of fixed physical size."""

    @property
    def kind(self) -> Literal["tile"]: ...  # noqa: D102 - what `run` asks to know which it has

    @property
    def tile_px(self) -> int:
        """Side of a cell's tile, in pixels of `identity.mpp`."""
        ...

    @property
    def identity(self) -> EncoderIdentity: ...  # noqa: D102 - the name says it

    def encode(self, tiles: UInt8[np.ndarray, "tile y x 3"]) -> Float32[np.ndarray, "tile feature"]:
        """Features of tiles that were read at `identity.mpp`."""
        ...

    def encode_squares(
        self, squares: UInt8[np.ndarray, "tile y x 3"]
    ) -> Float32[np.ndarray, "tile feature"]:
        """Means over squares of the tile grid, of any size, then as many standard deviations."""
        ...


ENCODERS = {
    "instanseg": "histoscribe.preprocess.encoders.instanseg:InstansegEncoder",
    "vit": "histoscribe.preprocess.encoders.transformers:load_vit",
    "toy": "histoscribe.preprocess.encoders.toy:ToyEncoder",
}
"""name -> "module:factory", imported when asked for; "vit" takes the model's folder or hub id."""
