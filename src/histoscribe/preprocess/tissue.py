"""Where the tissue is, at low resolution."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label

from histoscribe.data.slide import Slide
from histoscribe.errors import DataError
from histoscribe.types import Box

LEAST_STAIN, MOST_STAIN = 0.05, 0.20  # the threshold stays within: glass below, H&E above
BLUR_UM = 8.0  # about a nucleus: lace of nuclei and cracks count as tissue
SMALLEST_MM2 = 0.01  # a speck of dust, not a fragment; 100 µm square
SMALLEST_SHARE = 0.25  # of the image: one below 200 µm square may be all within a fragment
PIXELS_OF_A_PLACE = 64  # at most so many per mask pixel, so that the sample is spread out


@dataclass(frozen=True)
class TissueMask:
    """Tissue or not, on a grid from the slide's top left corner.

    Attributes:
        mask: True on tissue.
        mpp: µm per mask pixel.
        area_mm2: Area of the tissue.
    """

    mask: Bool[np.ndarray, "y x"]
    mpp: float
    area_mm2: float


def tissue_mask(slide: Slide, mpp: float = 8.0) -> TissueMask:
    """Find the tissue by its stain; holes stay holes, specks go.

    The stain is the optical density of green above the lesser of red and blue: both dyes take
    most of the green, while grey glass, shadow and black ink take all three alike, whatever the
    brightness of the lamp. Otsu's threshold of it is held within bounds, so that a slide that
    is all tissue is not cut in two, nor glass alone made into tissue.

    Args:
        slide: The slide.
        mpp: Resolution of the mask.
    """
    image = slide.read(whole_of(slide, mpp), mpp)
    stain = ndimage.gaussian_filter(stain_of(image), BLUR_UM / mpp)
    threshold = float(threshold_otsu(stain)) if np.ptp(stain) > 0 else MOST_STAIN
    mask = stain > np.clip(threshold, LEAST_STAIN, MOST_STAIN)
    pieces: Int[np.ndarray, "y x"] = np.asarray(label(mask, connectivity=1))
    n_pixels = np.bincount(pieces.ravel())
    n_pixels[0] = 0  # the glass
    least_mm2 = min(SMALLEST_MM2, SMALLEST_SHARE * mask.size * mpp**2 / 1e6)
    return mask_of((n_pixels * mpp**2 / 1e6 >= least_mm2)[pieces], mpp)


def mask_of(is_tissue: Bool[np.ndarray, "y x"], mpp: float) -> TissueMask:
    """A mask with its area."""
    return TissueMask(is_tissue, mpp, float(is_tissue.sum() * mpp**2 / 1e6))


def whole_of(slide: Slide, mpp: float) -> Box:
    """The whole slide, at least one pixel of `mpp` wide and high."""
    width_um, height_um = (n * one for n, one in zip(slide.size_px, slide.mpp, strict=True))
    return Box(0.0, 0.0, max(width_um, mpp), max(height_um, mpp))


def stain_of(image: UInt8[np.ndarray, "y x 3"]) -> Float32[np.ndarray, "y x"]:
    """Optical density of green above the lesser of red and blue; about 0 on anything grey."""
    density = -np.log((image.astype(np.float32) + 1) / 256)
    return density[:, :, 1] - np.minimum(density[:, :, 0], density[:, :, 2])


def sample_tissue_pixels(
    slide: Slide,
    mask: TissueMask,
    n_pixels: int,
    mpp: float,
    generator: np.random.Generator,
) -> UInt8[np.ndarray, "pixel 3"]:
    """Pixels drawn from the tissue, spread over it, each at most once.

    Args:
        slide: The slide.
        mask: Its tissue.
        n_pixels: How many; fewer come where the tissue has no more.
        mpp: Resolution of the pixels, at most the mask's.
        generator: Source of the draw.

    Raises:
        DataError: No tissue, or pixels coarser than the mask.
    """
    if mpp > mask.mpp:
        msg = f"{slide.path}: pixels of {mpp:.4g} µm in a mask of {mask.mpp:.4g}; wanted finer."
        raise DataError(msg)
    places = np.argwhere(mask.mask)
    if len(places) == 0:
        msg = f"{slide.path}: no tissue found. Is it an H&E slide, and is its mpp right?"
        raise DataError(msg)
    side = round(mask.mpp / mpp)
    n_each = min(PIXELS_OF_A_PLACE, side * side)
    n_each = max(n_each, min(side * side, -(-n_pixels // len(places))))
    n_places = min(len(places), -(-n_pixels // n_each))
    chosen = generator.choice(len(places), size=n_places, replace=False)
    drawn = []
    for row, column in places[np.sort(chosen)]:
        corner = (float(column * mask.mpp), float(row * mask.mpp))
        pixels = slide.read(Box(*corner, side * mpp, side * mpp), mpp).reshape(-1, 3)
        drawn.append(pixels[generator.choice(len(pixels), size=n_each, replace=False)])
    return np.concatenate(drawn)[:n_pixels]
