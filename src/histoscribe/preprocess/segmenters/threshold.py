"""The classical segmenter: colour deconvolution, one threshold a slide, watershed. No weights."""

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from scipy import ndimage
from skimage import filters, measure, segmentation

from histoscribe.errors import DataError
from histoscribe.preprocess.segmenters.segmenter import (
    Calibration,
    Segmentation,
    make_calibration,
)
from histoscribe.preprocess.stain_fit import DENSITY

# Optical densities of haematoxylin, eosin and DAB in red, green and blue: Ruifrok & Johnston 2001.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
UNMIX = np.linalg.inv(STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)).astype(np.float32)

SMOOTH_UM = 0.75  # a third of the smallest nucleus' radius
SEED_SMOOTH_UM = 0.5  # so that one nucleus has one summit
SEED_DISTANCE_UM = 2.5  # half the distance of the closest nuclei (lymphocytes, 5 µm)
MAX_HOLE_UM2 = 12.0  # pale chromatin; a capillary is wider
MIN_AREA_UM2 = 8.0  # 3.2 µm across
MIN_RANGE = 0.05  # optical density; JPEG noise of an empty field is below


class ThresholdSegmenter:
    """Nuclei are where haematoxylin is above the slide's Otsu threshold, split at their waists.

    Every step looks at most a nucleus' width around it, so a field and the whole slide agree.

    Attributes:
        identity: Name and version of the recipe.
        mpp: 0.5 µm per pixel.
    """

    identity = "threshold-otsu-watershed-1@none"
    mpp = 0.5

    def calibrate(self, pixels: UInt8[np.ndarray, "pixel 3"]) -> Calibration:
        """Otsu's threshold (1979) of the root of haematoxylin over tissue pixels.

        Returns:
            Channels are haematoxylin, eosin and residual, in units of optical density. `low[0]` is
            the threshold, midway between the means of the two classes; all else is percentiles
            0.1 and 99.9, which nothing uses but the eye.

        Raises:
            DataError: There are no pixels, or they are constant.
        """
        if not len(pixels):
            raise DataError("no tissue pixels to calibrate on; look at the slide and at --mpp")
        stains = DENSITY[pixels] @ UNMIX
        low, high = np.percentile(stains, [0.1, 99.9], axis=0)
        if high[0] - low[0] < MIN_RANGE:
            raise DataError(
                f"haematoxylin is constant over the tissue ({low[0]:.3f} to {high[0]:.3f} optical "
                f"density, at least {MIN_RANGE} of range wanted): an empty, black or unstained "
                "slide cannot be segmented; look at it with 'histoscribe doctor SLIDE'"
            )
        # The root draws pale and dark nuclei together, so that Otsu does not part those two; and
        # between well-parted classes any threshold is as good to Otsu, so take the middle.
        root = np.sqrt(np.maximum(stains[:, 0], 0))
        is_nucleus = root > filters.threshold_otsu(root)
        low[0] = ((root[is_nucleus].mean() + root[~is_nucleus].mean()) / 2) ** 2
        return make_calibration(low, high)

    def segment(
        self, images: UInt8[np.ndarray, "field y x 3"], calibration: Calibration
    ) -> list[Segmentation]:
        """Segment fields, each by itself."""
        return [Segmentation(self.label(image, calibration.low[0])) for image in images]

    def label(
        self, image: UInt8[np.ndarray, "y x 3"], threshold: float
    ) -> Int32[np.ndarray, "y x"]:
        """Nuclei of one field."""
        haematoxylin = DENSITY[image] @ UNMIX[:, 0]
        smooth = ndimage.gaussian_filter(haematoxylin, SMOOTH_UM / self.mpp, mode="nearest")
        mask = fill_small(
            ndimage.binary_opening(smooth > threshold), round(MAX_HOLE_UM2 / self.mpp**2)
        )
        depth = np.asarray(ndimage.distance_transform_edt(mask), np.float32)
        depth = ndimage.gaussian_filter(depth, SEED_SMOOTH_UM / self.mpp)
        window = 2 * round(SEED_DISTANCE_UM / self.mpp) + 1
        summits = mask & (depth == ndimage.maximum_filter(depth, window))
        seeds = np.asarray(measure.label(summits, connectivity=2))
        labels = segmentation.watershed(-depth, seeds, mask=mask)
        return drop_small(labels.astype(np.int32), round(MIN_AREA_UM2 / self.mpp**2))


def fill_small(mask: Bool[np.ndarray, "y x"], max_area_px: int) -> Bool[np.ndarray, "y x"]:
    """Fill holes up to this area (pale nuclei), not the lumen in a ring of nuclei."""
    holes = np.asarray(measure.label(~mask, connectivity=1))
    return (np.bincount(holes.ravel()) <= max_area_px)[holes] | mask


def drop_small(labels: Int32[np.ndarray, "y x"], min_area_px: int) -> Int32[np.ndarray, "y x"]:
    """Labels of at least this area, renumbered from 1 without gaps."""
    area = np.bincount(labels.ravel())
    kept = area >= min_area_px
    kept[0] = False
    number = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return number[labels]
