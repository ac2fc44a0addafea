"""LabelledImage: an H&E image in which people or markers have said what every nucleus is."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from histoscribe.data.checks import check_array, check_named, freeze
from histoscribe.data.nuclei import GivenNuclei
from histoscribe.errors import ConfigError, DataError

FINEST_MPP, COARSEST_MPP = 0.05, 5.0  # as slides are held to


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image of a benchmark, decoded, with its labelled nuclei.

    Attributes:
        image_id: Name of the image, what scores are taken within.
        patient_id: Whose it is, what intervals are drawn over; None where nobody says.
        pixels: All of it.
        mpp: µm per pixel.
        nuclei: Its nuclei, each with its label in `cell_type`.
        pitch_um: Where the image is a mosaic: its tiles' centres lie at ((i + 1/2) pitch,
            (j + 1/2) pitch). None for tissue in one piece.
    """

    image_id: str
    patient_id: str | None
    pixels: UInt8[np.ndarray, "y x 3"]
    mpp: float
    nuclei: GivenNuclei
    pitch_um: float | None = None

    def __post_init__(self) -> None:
        check_named("image_id", self.image_id)
        check_array(f"image {self.image_id}", self.pixels, np.uint8, (None, None, 3))
        check_mpp(self.mpp)
        if self.nuclei.slide_id != self.image_id:
            raise DataError(f"nuclei of {self.nuclei.slide_id} came with image {self.image_id}")
        if self.nuclei.cell_type is None:
            raise DataError(f"the nuclei of image {self.image_id} have no labels")
        freeze(self, "pixels")

    @property
    def size_um(self) -> tuple[float, float]:
        """Width and height."""
        return self.pixels.shape[1] * self.mpp, self.pixels.shape[0] * self.mpp


def check_mpp(mpp: float | None) -> float:
    """The scale of images that do not state it.

    Raises:
        ConfigError: It was not given, or is none of H&E.
    """
    if mpp is None or not FINEST_MPP <= mpp <= COARSEST_MPP:
        raise ConfigError(
            f"mpp = {mpp}: these images do not say their scale; give µm per pixel, "
            f"{FINEST_MPP:g} to {COARSEST_MPP:g}"
        )
    return mpp
