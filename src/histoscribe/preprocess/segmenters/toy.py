"""A segmenter for tests and the toy world: dark is nucleus; its maps are the colours."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import UInt8
from skimage import measure
from torch import Tensor

from histoscribe.errors import DataError
from histoscribe.preprocess.segmenters.segmenter import (
    Calibration,
    Segmentation,
    make_calibration,
)

MIN_AREA_PX = 12  # 3 µm²: what the edge of another nucleus leaves


class ToySegmenter:
    """A nucleus is a connected piece of what is darker in red than the middle of the range.

    Its maps are the three colours at full size, and twice as coarse with their deviation.
    """

    identity = "toy@none"
    mpp = 0.5

    def calibrate(self, pixels: UInt8[np.ndarray, "pixel 3"]) -> Calibration:
        """The range of each channel."""
        if not len(pixels) or np.ptp(pixels, axis=0).max() < 10:
            raise DataError("the tissue is constant; a toy slide has dark nuclei")
        low, high = np.percentile(pixels.astype(np.float64), [0.1, 99.9], axis=0)
        return make_calibration(low, high)

    def segment(
        self, images: UInt8[np.ndarray, "field y x 3"], calibration: Calibration
    ) -> list[Segmentation]:
        """Threshold and label."""
        middle = 0.35 * calibration.low[0] + 0.65 * calibration.high[0]
        found = []
        for image in images:
            labels = np.asarray(measure.label(image[..., 0] < middle, connectivity=2))
            kept = np.bincount(labels.ravel()) >= MIN_AREA_PX
            kept[0] = False
            number = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
            found.append(Segmentation(number[labels], colour_maps(image)))
        return found

    def encode(
        self,
        images: UInt8[np.ndarray, "field y x 3"],
        calibration: Calibration,  # noqa: ARG002 - of the contract
    ) -> list[tuple[Tensor, ...]]:
        """The maps alone."""
        return [colour_maps(image) for image in images]


def colour_maps(image: UInt8[np.ndarray, "y x 3"]) -> tuple[Tensor, Tensor]:
    """The three colours in 0 to 1; twice as coarse, with their squares."""
    colour = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    coarse = F.avg_pool2d(colour[None], 2, ceil_mode=True)[0]
    return colour, torch.cat([coarse, coarse.square()])
