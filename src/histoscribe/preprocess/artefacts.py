"""Where tissue should not be trusted: pen, blur and folds, found by classical means."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage
from skimage.measure import label, regionprops

from histoscribe.data.slide import Slide
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.preprocess.tissue import TissueMask, mask_of, whole_of
from histoscribe.types import Box

SMOOTHING_UM = 16.0  # two nuclei: colour of a place, not of a nucleus
COARSEST_UM = 16.0  # a mask that is coarser does not show a fold of 40 µm

# Colour. Natural optical densities; "H&E reaches" is the 99.9 % point over the tissue of 6 slides
# and 6 tiles (her2st, CMU-1, TCGA), haematoxylin alone being (.65, .70, .29) in Ruifrok &
# Johnston 2001. Felt pens leave lines of 0.4 mm and more.
GREEN_RED_ABOVE_GREEN = 0.25  # H&E reaches 0.11: both dyes take green first
BLUE_SHARE_OF_RED = 0.40  # H&E goes down to 0.48 (haematoxylin: 0.45)
BLUE_LEAST_RED = 0.7  # paler: bluish glass
NAVY_SHARE_OF_RED = 0.55  # as haematoxylin, but
NAVY_LEAST_RED = 1.8  # H&E reaches 1.47
RED_BLUE_TO_GREEN = 0.75  # H&E reaches 0.72 (blood); red ink 0.8 to 1, over tissue less, so
RED_LEAST_GREEN = 1.5  # as deep as the deepest eosin
DEEP_BLUE_TO_GREEN, DEEP_LEAST_GREEN = 0.66, 2.2  # deeper than any H&E (1.94) in one layer
RED_MOST_RED = 0.45  # share of green: red ink lets red through
BLACK_LEAST = 1.0  # in each channel; H&E reaches 1.09, but never grey
BLACK_SPREAD = 0.30  # (most - least) / most of the channels; keratin, the greyest H&E: 0.40
INK_MM2 = 0.02  # a dot of 0.16 mm
INK_RIM_UM = 24.0  # ink thins out at its rim

# Blur.
SHARP_MPP = 1.0  # resolution at which sharpness is looked at
FINE_UM, COARSE_UM = 1.0, 2.0  # the two scales compared
BLURRED_UM = 1.25  # FWHM 2.9 µm: the gap between neighbouring nuclei is gone
LEAST_ENERGY = 0.02  # (grey levels / µm)^2: flat, neither sharp nor blurred
WINDOW_UM = 128.0
WINDOW_TISSUE = 0.1  # least share of tissue in a window
MOST_WINDOWS = 4000  # 65 mm² of tissue window by window; beyond, evenly spread samples
MARGIN_UM = 8.0  # four of the coarser scale

# Folds.
FOLD_TIMES = 1.6  # two layers are twice as dense as one; half way up, smoothing taken off
FOLD_RIM_TIMES = 1.35  # half as far above the tissue around: the rims of a band that narrow
FOLD_CORE = 0.3  # least share of a band that is 1.6 times as dense
AROUND_UM = 240.0  # what a place is compared with
FOLD_MM2 = 0.01
FOLD_ELONGATION = 3.0  # length to width; a nest of tumour, a follicle: 1 to 2


@dataclass(frozen=True)
class Artefacts:
    """What disturbs, on the grid of the tissue mask.

    Attributes:
        pen: Ink, on tissue or on glass.
        blur: Tissue out of focus.
        fold: Tissue that lies double. A hint: dense bands, keratin above all, look the same.
        mpp: µm per pixel of the grids.
        pen_share: Of the tissue's area.
        blur_share: Of the tissue's area, or None where the slide is too coarse to tell.
        fold_share: Of the tissue's area.
        pen_outside_mm2: Ink outside the tissue mask: on glass, or hiding tissue.
    """

    pen: Bool[np.ndarray, "y x"]
    blur: Bool[np.ndarray, "y x"]
    fold: Bool[np.ndarray, "y x"]
    mpp: float
    pen_share: float
    blur_share: float | None
    fold_share: float
    pen_outside_mm2: float


def find_artefacts(slide: Slide, mask: TissueMask) -> Artefacts:
    """Find pen, blur and folds on a slide.

    Pen and folds are looked for at the mask's resolution, blur at 1 µm/px in windows of 128 µm,
    one by one, so that memory does not grow with the slide. On more than 65 mm² of tissue, every
    second (third, ...) window along both axes is looked at, and stands for its neighbours.

    Args:
        slide: The slide.
        mask: Its tissue.

    Raises:
        ConfigError: A mask of more than 16 µm a pixel.
    """
    if mask.mpp > COARSEST_UM:
        msg = (
            f"a tissue mask of {mask.mpp:g} µm/px is too coarse to find pen and folds on; give "
            f"one of {COARSEST_UM:g} or less, 8 is usual"
        )
        raise ConfigError(msg)
    density = smooth_density(slide.read(whole_of(slide, mask.mpp), mask.mpp), mask.mpp)
    pen = find_pen(density, mask.mpp)
    fold = find_folds(density.mean(axis=2), mask.mask & ~pen, mask.mpp)
    can_tell = max(slide.mpp) <= SHARP_MPP * (1 + 1e-6)
    blur = find_blur(slide, mask) if can_tell else np.zeros_like(mask.mask)
    n_tissue = max(int(mask.mask.sum()), 1)
    return Artefacts(
        pen=pen,
        blur=blur,
        fold=fold,
        mpp=mask.mpp,
        pen_share=float((pen & mask.mask).sum() / n_tissue),
        blur_share=float(blur.sum() / n_tissue) if can_tell else None,
        fold_share=float(fold.sum() / n_tissue),
        pen_outside_mm2=float((pen & ~mask.mask).sum() * mask.mpp**2 / 1e6),
    )


def smooth_density(image: UInt8[np.ndarray, "y x 3"], mpp: float) -> Float32[np.ndarray, "y x 3"]:
    """Natural optical densities against the brightest grey of the slide, smoothed.

    One white for all channels: a lamp that is dim shifts nothing, and a slide that is all tissue
    keeps its colour.
    """
    white = float(np.percentile(image, 99, axis=(0, 1)).max())
    density = np.empty(image.shape, dtype=np.float32)
    for channel in range(3):  # one by one: a third of the memory
        grey = image[:, :, channel].astype(np.float32)
        sharp = -np.log((grey + 1) / (white + 1))
        density[:, :, channel] = ndimage.gaussian_filter(sharp, SMOOTHING_UM / mpp)
    return density


def find_pen(density: Float32[np.ndarray, "y x 3"], mpp: float) -> Bool[np.ndarray, "y x"]:
    """Ink of felt pens: colours that no mixture of haematoxylin and eosin has."""
    red, green, blue = density[:, :, 0], density[:, :, 1], density[:, :, 2]
    least, most = density.min(axis=2), density.max(axis=2)
    is_green = red - green > GREEN_RED_ABOVE_GREEN
    is_blue = (red > BLUE_LEAST_RED) & (blue < BLUE_SHARE_OF_RED * red)
    is_navy = (red > NAVY_LEAST_RED) & (blue < NAVY_SHARE_OF_RED * red)
    is_red = (red < RED_MOST_RED * green) & (
        ((green > RED_LEAST_GREEN) & (blue > RED_BLUE_TO_GREEN * green))
        | ((green > DEEP_LEAST_GREEN) & (blue > DEEP_BLUE_TO_GREEN * green))
    )
    is_black = (least > BLACK_LEAST) & (most - least < BLACK_SPREAD * most)
    ink = keep_pieces(is_green | is_blue | is_navy | is_red | is_black, INK_MM2, mpp)
    if not ink.any():
        return ink
    return np.asarray(ndimage.distance_transform_edt(~ink)) * mpp <= INK_RIM_UM


def keep_pieces(
    mask: Bool[np.ndarray, "y x"], least_mm2: float, mpp: float
) -> Bool[np.ndarray, "y x"]:
    """The pieces of at least such an area; pixels that meet at a corner are one piece."""
    pieces = np.asarray(label(mask, connectivity=2))
    n_pixels = np.bincount(pieces.ravel())
    n_pixels[0] = 0
    return (n_pixels * mpp**2 / 1e6 >= least_mm2)[pieces]


def find_folds(
    density: Float32[np.ndarray, "y x"], tissue: Bool[np.ndarray, "y x"], mpp: float
) -> Bool[np.ndarray, "y x"]:
    """Long dense bands, three times as long as wide.

    At their core they are 1.6 times as dense as the slide's tissue and as the tissue around.
    """
    if not tissue.any():
        return np.zeros_like(tissue)
    sigma = AROUND_UM / mpp
    weight = ndimage.gaussian_filter(tissue.astype(np.float32), sigma)
    around = ndimage.gaussian_filter(np.where(tissue, density, 0), sigma)
    usual = np.maximum(around / np.maximum(weight, 1e-6), np.median(density[tissue]))
    times = np.where(tissue, density / usual, 0)
    dense = keep_pieces(times > FOLD_RIM_TIMES, FOLD_MM2, mpp)
    pieces = np.asarray(label(dense, connectivity=2))
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(dense, 1)))[1:-1, 1:-1]
    is_fold = np.zeros(pieces.max() + 1, dtype=bool)
    for piece in regionprops(pieces):
        width = 2 * depth[piece.slice][piece.image].max()
        core = (times[piece.slice][piece.image] > FOLD_TIMES).mean()
        is_fold[piece.label] = piece.area >= FOLD_ELONGATION * width**2 and core >= FOLD_CORE
    return is_fold[pieces]


def find_blur(slide: Slide, mask: TissueMask) -> Bool[np.ndarray, "y x"]:
    """Tissue in windows whose blur exceeds 1.25 µm."""
    side = max(1, round(WINDOW_UM / mask.mpp))
    share = block_view(mask.mask, side).mean(axis=(2, 3))
    n_windows = int((share >= WINDOW_TISSUE).sum())
    step = max(1, math.ceil(math.sqrt(n_windows / MOST_WINDOWS)))
    blocks = block_view(share, step)  # of windows; the one with most tissue stands for all
    is_blurred = np.zeros(blocks.shape[:2], dtype=bool)
    for row, column in np.argwhere(blocks.max(axis=(2, 3)) >= WINDOW_TISSUE):
        below, beside = divmod(int(blocks[row, column].argmax()), step)
        corner_px = ((column * step + beside) * side, (row * step + below) * side)
        window = Box(*(float(n * mask.mpp) for n in (*corner_px, side, side)))
        is_blurred[row, column] = measure_blur(slide, window) > BLURRED_UM
    whole = is_blurred.repeat(step * side, axis=0).repeat(step * side, axis=1)
    height, width = mask.mask.shape
    return whole[:height, :width] & mask.mask


def block_view(grid: np.ndarray, side: int) -> np.ndarray:
    """A grid as (block row, block column, row, column), filled up with zeros."""
    n_rows, n_columns = (-(-n // side) for n in grid.shape)
    filled = np.zeros((n_rows * side, n_columns * side), dtype=grid.dtype)
    filled[: grid.shape[0], : grid.shape[1]] = grid
    return filled.reshape(n_rows, side, n_columns, side).swapaxes(1, 2)


def measure_blur(slide: Slide, window: Box) -> float:
    r"""Standard deviation, in µm, of the Gaussian that a window looks blurred with; 0 if sharp.

    Images have power spectra near 1/k^2 (Field 1987). With E(s) the mean squared gradient after
    a Gaussian of s µm, a blur of b µm then leaves E(s) proportional to 1 / (s^2 + b^2), so that

        q = E(1 µm) / E(2 µm)        b^2 = (2^2 - q 1^2) / (q - 1)

    The stain, its strength, and how much there is to see cancel in q; in-focus H&E has q > 4,
    b = 0. The idea of comparing an edge with itself blurred further is Zhuo & Sim's (2011); they
    take single edges and not the energy of a window.

    Args:
        slide: The slide, of at most 1 µm/px.
        window: Where; cut to the slide.
    """
    left, top = max(window.x_um - MARGIN_UM, 0.0), max(window.y_um - MARGIN_UM, 0.0)
    right, bottom = (
        min(start + size + MARGIN_UM, n_px * mpp)
        for start, size, n_px, mpp in zip(
            window[:2], window[2:], slide.size_px, slide.mpp, strict=True
        )
    )
    if min(right - left, bottom - top) < 2 * MARGIN_UM:
        return 0.0
    box = Box(left, top, right - left, bottom - top)
    grey = slide.read(box, SHARP_MPP).astype(np.float32).mean(axis=2)
    inner = np.s_[
        round(window.y_um - top) : round(window.y_um - top + window.height_um),
        round(window.x_um - left) : round(window.x_um - left + window.width_um),
    ]
    fine, coarse = (gradient_energy(grey, scale)[inner].mean() for scale in (FINE_UM, COARSE_UM))
    if coarse < LEAST_ENERGY:
        return 0.0
    ratio = fine / coarse
    most = (COARSE_UM / FINE_UM) ** 2
    if ratio >= most:
        return 0.0
    return math.sqrt((COARSE_UM**2 - ratio * FINE_UM**2) / max(ratio - 1, 1e-3))


def gradient_energy(
    grey: Float32[np.ndarray, "y x"], scale_um: float
) -> Float32[np.ndarray, "y x"]:
    """Squared gradient after a Gaussian, in (grey levels / µm)^2."""
    sigma = scale_um / SHARP_MPP
    smooth_x = ndimage.gaussian_filter1d(grey, sigma, axis=1)
    smooth_y = ndimage.gaussian_filter1d(grey, sigma, axis=0)
    along_y = ndimage.gaussian_filter1d(smooth_x, sigma, axis=0, order=1)
    along_x = ndimage.gaussian_filter1d(smooth_y, sigma, axis=1, order=1)
    return (along_y**2 + along_x**2) / SHARP_MPP**2


def describe_artefacts(artefacts: Artefacts) -> str:
    """One line: "pen 0.3 %, blur 12 %, fold 0.1 % of tissue"."""
    blur = artefacts.blur_share
    parts = [
        f"pen {percent(artefacts.pen_share)}",
        "blur not judged (coarser than 1 µm/px)" if blur is None else f"blur {percent(blur)}",
        f"fold {percent(artefacts.fold_share)} of tissue",
    ]
    outside = artefacts.pen_outside_mm2
    beyond = f"; {outside:.2g} mm² of ink outside the mask" if outside > 0 else ""
    return ", ".join(parts) + beyond


def percent(share: float) -> str:
    """A share for people: 12 %, 0.3 %, 0 %; never 0 % for what is there, nor 100 % for less."""
    if share <= 0 or share >= 1:
        return f"{share * 100:.0f} %"
    if share < 0.001:
        return "< 0.1 %"
    return f"{share * 100:.1f} %" if share < 0.1 else f"{min(share * 100, 99):.0f} %"


def usable(mask: TissueMask, artefacts: Artefacts) -> TissueMask:
    """The tissue without pen and blur.

    Folds stay: what looks like one is as often keratin or a dense band of tumour, and leaving
    that out would bias a sample, while two layers of nuclei spoil a few cells only.

    Raises:
        MismatchError: Artefacts of another grid.
    """
    check_grid(mask, artefacts)
    return mask_of(mask.mask & ~artefacts.pen & ~artefacts.blur, mask.mpp)


def check_grid(mask: TissueMask, artefacts: Artefacts) -> None:
    """MismatchError if artefacts were found on another mask."""
    if mask.mask.shape != artefacts.pen.shape or mask.mpp != artefacts.mpp:
        msg = (
            f"a mask of {mask.mask.shape} pixels of {mask.mpp:g} µm, artefacts of "
            f"{artefacts.pen.shape} of {artefacts.mpp:g}; find the artefacts on that mask"
        )
        raise MismatchError(msg)
