"""One field, read and segmented, to the features of its nuclei and of its squares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32

from histoscribe.data.slide import Slide
from histoscribe.errors import MismatchError
from histoscribe.preprocess.encoders.encoder import Encoder, FieldLook, FieldPixels, Sight, Squares
from histoscribe.preprocess.features import colour_of_squares
from histoscribe.preprocess.fields import FieldPlan, squares_of_field
from histoscribe.preprocess.nuclei import Found, to_float16
from histoscribe.preprocess.quality import CropTally
from histoscribe.preprocess.segmenters.segmenter import Segmentation


@dataclass(frozen=True)
class FieldSquares:
    """The squares of the tile grid that a field describes: centres, features and colours."""

    xy_um: Float32[np.ndarray, "square 2"]
    features: Float16[np.ndarray, "square feature"]
    colour: Float32[np.ndarray, "square 6"]


def read_field(slide: Slide, plan: FieldPlan, field: int, sight: Sight | None) -> FieldPixels:
    """Read a field, and what the encoder wants to see of it; once if that is the same."""
    box = plan.box(field)
    image = slide.read(box, plan.mpp)
    if sight is None:
        return FieldPixels(field, image, None)
    wanted = sight.box(field)
    is_same = np.allclose(wanted, box, rtol=0, atol=1e-6) and sight.mpp == plan.mpp
    return FieldPixels(field, image, image if is_same else slide.read(wanted, sight.mpp))


def look_at_fields(
    encoder: Encoder,
    fields: Sequence[FieldPixels],
    segmented: Sequence[Segmentation],
    segmenter_id: str,
    plan: FieldPlan,
    sight: Sight | None,
) -> Sequence[FieldLook]:
    """Let the encoder see fields, with the segmenter's maps if its network is the encoder's."""
    is_shared = encoder.identity.has_network_of(segmenter_id)
    maps = [one.maps if is_shared else () for one in segmented]
    return encoder.look(fields, maps, plan, sight)


def describe_nuclei(
    encoder: Encoder, look: FieldLook, found: Found, tally: CropTally
) -> Float32[np.ndarray, "nucleus feature"]:
    """Features of the nuclei of a field.

    Raises:
        MismatchError: The encoder answers with another number of features than it says.
    """
    n_features = encoder.identity.n_features
    if not len(found.xy_um):
        return np.zeros((0, n_features), np.float32)
    features, crops = look.of_nuclei(found)
    if crops is not None:
        tally.add(crops[found.excess_um <= 0])  # what the next field takes too is no repetition
    if features.shape[1] != n_features:
        raise MismatchError(
            f"{encoder.identity} answers with {features.shape[1]} features a nucleus, its identity "
            f"says {n_features}; segmenter and encoder do not belong together"
        )
    return features


def describe_squares(
    look: FieldLook,
    pixels: FieldPixels,
    plan: FieldPlan,
    side_px: int,
    size_um: tuple[float, float],
) -> FieldSquares:
    """Features and colours of the squares that a field describes."""
    centre_um, corner_px = squares_of_field(plan, pixels.field, side_px, size_um)
    colour = colour_of_squares(pixels.image, corner_px, side_px)
    features = look.of_squares(Squares(centre_um, corner_px, side_px))
    return FieldSquares(centre_um, to_float16(features), colour)
