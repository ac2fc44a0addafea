"""One field, read and segmented, to the features of its nuclei and of its squares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float16, Float32, UInt8
from torch import Tensor

from histoscribe.data.slide import Slide
from histoscribe.errors import MismatchError
from histoscribe.preprocess.encoders.encoder import DenseEncoder, TileEncoder
from histoscribe.preprocess.features import colour_of_squares, crop_squares, pool_squares
from histoscribe.preprocess.fields import FieldPlan, squares_of_field
from histoscribe.preprocess.nuclei import Found, to_float16
from histoscribe.preprocess.quality import CropTally

Encoder = DenseEncoder | TileEncoder


@dataclass(frozen=True)
class FieldPixels:
    """What is read of a field.

    Attributes:
        field: Number of the field in its plan.
        image: At the segmenter's resolution.
        wide: At a tile encoder's resolution, half a tile wider on each side; None for others.
    """

    field: int
    image: UInt8[np.ndarray, "y x 3"]
    wide: UInt8[np.ndarray, "wide_y wide_x 3"] | None


@dataclass(frozen=True)
class FieldSquares:
    """The squares of the tile grid that a field describes: centres, features and colours."""

    xy_um: Float32[np.ndarray, "square 2"]
    features: Float16[np.ndarray, "square feature"]
    colour: Float32[np.ndarray, "square 6"]


def read_field(slide: Slide, plan: FieldPlan, field: int, encoder: Encoder) -> FieldPixels:
    """Read a field, and for tile encoders its wider view."""
    image = slide.read(plan.box(field), plan.mpp)
    if encoder.kind == "dense":
        return FieldPixels(field, image, None)
    wide = slide.read(plan.box(field, margin_um(encoder)), encoder.identity.mpp)
    return FieldPixels(field, image, wide)


def margin_um(encoder: TileEncoder) -> float:
    """Half a tile, and two pixels for rounding."""
    return encoder.identity.tile_um / 2 + 2 * encoder.identity.mpp


def describe_nuclei(
    encoder: Encoder,
    pixels: FieldPixels,
    maps: Sequence[Float[Tensor, "_ _ _"]],
    found: Found,
    plan: FieldPlan,
    tally: CropTally,
) -> Float32[np.ndarray, "nucleus feature"]:
    """Features of the nuclei of a field.

    Raises:
        MismatchError: The encoder answers with another number of features than it says.
    """
    n_features = encoder.identity.n_features
    if not len(found.xy_um):
        return np.zeros((0, n_features), np.float32)
    if encoder.kind == "dense":
        features = encoder.pool(maps, found.labels)
    else:
        crops = cut_wide(encoder, pixels, found.xy_um, encoder.tile_px, plan)
        tally.add(crops[found.excess_um <= 0])  # what the next field takes too is no repetition
        features = encoder.encode(crops)
    if features.shape[1] != n_features:
        raise MismatchError(
            f"{encoder.identity} answers with {features.shape[1]} features a nucleus, its identity "
            f"says {n_features}; segmenter and encoder do not belong together"
        )
    return features


def describe_squares(
    encoder: Encoder,
    pixels: FieldPixels,
    maps: Sequence[Float[Tensor, "_ _ _"]],
    plan: FieldPlan,
    side_px: int,
    size_um: tuple[float, float],
) -> FieldSquares:
    """Features and colours of the squares that a field describes."""
    centre_um, corner_px = squares_of_field(plan, pixels.field, side_px, size_um)
    colour = colour_of_squares(pixels.image, corner_px, side_px)
    if encoder.kind == "dense":
        features = pool_squares(maps, plan.side_px, corner_px, side_px)
    else:
        wide_px = round(side_px * plan.mpp / encoder.identity.mpp)
        features = encoder.encode_squares(cut_wide(encoder, pixels, centre_um, wide_px, plan))
    return FieldSquares(centre_um, to_float16(features), colour)


def cut_wide(
    encoder: TileEncoder,
    pixels: FieldPixels,
    centre_um: Float32[np.ndarray, "tile 2"],
    side_px: int,
    plan: FieldPlan,
) -> UInt8[np.ndarray, "tile side side 3"]:
    """Squares of the wider view, `side_px` of its pixels wide, round centres in µm."""
    if pixels.wide is None:
        raise MismatchError(f"{encoder.identity}: the field was read for a dense encoder")
    box = plan.box(pixels.field, margin_um(encoder))
    centre_px = (centre_um - np.array([box.x_um, box.y_um])) / encoder.identity.mpp
    return crop_squares(pixels.wide, centre_px, side_px)
