"""The contract of an encoder: fields of a slide in, features of nuclei and squares out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int, Int64, UInt8
from torch import Tensor

from histoscribe.preprocess.fields import FieldPlan
from histoscribe.preprocess.nuclei import Found
from histoscribe.types import Box

SNAP_PX = 1e-6  # positions are equal below this: µm to px by two routes differs by 1e-12

Maps = Sequence[Float[Tensor, "_ _ _"]]
"""Feature maps "channel my mx" of one field, from fine to coarse."""


@dataclass(frozen=True)
class EncoderIdentity:
    """All that makes two feature vectors comparable; `str()` of it is the encoder id.

    Attributes:
        name: E.g. "instanseg-brightfield_nuclei-0.1.1"; of other networks with what they are
            shown at once, e.g. "vit:dinov3-vits16-224px" (a tile), "uni2-h-112+16um" (a field and
            its margin).
        weights_sha256: First 12 hex digits, for a Vision Transformer over its weights and the
            normalisation of its input.
        pooling: "patch-mean", "cls+patch-mean", "patch-mean-std" over a tile; "nucleus-mean",
            "nucleus-mean-std" over a nucleus of a field, "nucleus-mean+window24um-std" with the
            deviations over a square round it.
        tile_um: Side of a cell's tile, or 0 for dense encoders.
        mpp: Resolution the encoder sees, µm per pixel.
        n_features: Length of a cell's feature vector.
        stain: How the pixels it sees were normalised.
    """

    name: str
    weights_sha256: str
    pooling: str
    tile_um: float
    mpp: float
    n_features: int
    stain: str = "none"

    def __str__(self) -> str:
        stain = "" if self.stain == "none" else f"/stain-{self.stain}"
        return (
            f"{self.name}@{self.weights_sha256}/{self.pooling}"
            f"/tile{self.tile_um:g}um/mpp{self.mpp:g}/d{self.n_features}{stain}"
        )

    def has_network_of(self, segmenter_id: str) -> bool:
        """Whether a segmenter's network is this encoder's, so that one pass does for both."""
        return segmenter_id.startswith(f"{self.name}@{self.weights_sha256}")


@dataclass(frozen=True)
class Sight:
    """The squares that an encoder reads of the slide for itself, one for each field of a plan.

    They lie on the pixel grid that begins at the slide's corner, so that a place is shown the same
    way whichever field it is read for.

    Attributes:
        corner_px: Their top left corners (x, y), in pixels of `mpp`; may lie outside the slide.
        side_px: Their side.
        mpp: µm per pixel.
        n_passes: Into how many pieces along each axis they are cut for the network.
        margin_px: By how much pieces overlap on each side, and what of a square is margin alone.
    """

    corner_px: Int64[np.ndarray, "field 2"]
    side_px: int
    mpp: float
    n_passes: int = 1
    margin_px: int = 0

    def box(self, field: int) -> Box:
        """What to read for a field."""
        x, y = (self.corner_px[field] * self.mpp).tolist()
        return Box(x, y, self.side_px * self.mpp, self.side_px * self.mpp)


def owned_corner_px(plan: FieldPlan, mpp: float) -> Float[np.ndarray, "field 2"]:
    """Top left corners of what the fields own, in pixels of `mpp` of the slide."""
    return (plan.origin_px * plan.mpp + plan.halo_um) / mpp


@dataclass(frozen=True)
class FieldPixels:
    """What is read of a field.

    Attributes:
        field: Number of the field in its plan.
        image: At the segmenter's resolution.
        seen: What the encoder reads for itself, None if it reads nothing.
    """

    field: int
    image: UInt8[np.ndarray, "y x 3"]
    seen: UInt8[np.ndarray, "seen_y seen_x 3"] | None


class Squares(NamedTuple):
    """The squares of the tile grid that a field describes."""

    centre_um: Float32[np.ndarray, "square 2"]  # slide frame
    corner_px: Int[np.ndarray, "square 2"]  # in pixels of the field
    side_px: int


class Described(NamedTuple):
    """Features, and the images that each was made of where there is one for each."""

    features: Float32[np.ndarray, "row feature"]
    crops: UInt8[np.ndarray, "row y x 3"] | None = None


@runtime_checkable
class FieldLook(Protocol):
    """What an encoder saw of one field."""

    def of_nuclei(self, found: Found) -> Described:
        """Features of the nuclei that belong to the field."""
        ...

    def of_squares(self, squares: Squares) -> Float32[np.ndarray, "square feature"]:
        """Means of all channels over each square, then as many standard deviations."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Describes the nuclei and the squares of fields."""

    @property
    def identity(self) -> EncoderIdentity: ...  # noqa: D102 - the name says it

    @property
    def licence(self) -> str:
        """Of its weights."""
        ...

    @property
    def precision(self) -> str:
        """Of the network's products, by name of the type; they differ in the last bits."""
        ...

    def calibrated(self, pixels: UInt8[np.ndarray, "pixel 3"]) -> "Encoder":
        """The encoder for one slide, fitted to its tissue pixels where its network asks for it."""
        ...

    def sight(self, plan: FieldPlan, tile_side_um: float) -> Sight | None:
        """What it reads of the fields of a plan for itself; None if the segmenter's image does.

        Raises:
            ConfigError: Fields, or squares of the tile grid, that it cannot describe.
        """
        ...

    def look(
        self,
        fields: Sequence[FieldPixels],
        maps: Sequence[Maps],
        plan: FieldPlan,
        sight: Sight | None,
    ) -> Sequence[FieldLook]:
        """Look at fields, in as few passes as fit the device.

        Args:
            fields: What was read of them.
            maps: Of each field what the segmenter's network saw, if it is the encoder's too
                (`EncoderIdentity.has_network_of`); else nothing.
            plan: The fields' plan.
            sight: What `sight` answered for it.
        """
        ...
