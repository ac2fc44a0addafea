"""What a slide is looked over for before its nuclei are sought: tissue, artefacts, stain."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from histoscribe.data.slide import Slide
from histoscribe.preprocess.artefacts import Artefacts, find_artefacts, usable
from histoscribe.preprocess.stain import (
    NormalisedSlide,
    StainConfig,
    StainFit,
    StainNormaliser,
    fit_stain,
)
from histoscribe.preprocess.tissue import (
    TissueMask,
    mask_of,
    sample_tissue_pixels,
    tissue_mask,
)


@dataclass(frozen=True)
class SurveyConfig:
    """How a slide is looked over.

    Attributes:
        stain: How its stain is normalised.
        skip_artefacts: Leave out tissue under ink or out of focus; otherwise it is only reported.
        calibration_pixels: How many tissue pixels a segmenter's value range is fitted on.
        seed: Draws those pixels.
    """

    stain: StainConfig
    skip_artefacts: bool
    calibration_pixels: int
    seed: int


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        slide: The slide, its stain normalised if that was asked for.
        mask: Tissue that is worked on.
        artefacts: Pen, blur and folds of all the tissue.
        stain: The slide's stain as fitted; of method "none" if it stays as it is.
        pixels: Tissue pixels without ink, as segmenter and encoder will see them.
    """

    slide: Slide
    mask: TissueMask
    artefacts: Artefacts
    stain: StainFit
    pixels: UInt8[np.ndarray, "pixel 3"]


def survey(slide: Slide, given: TissueMask | None, mpp: float, config: SurveyConfig) -> Survey:
    """Find tissue and artefacts, fit the stain once, draw the pixels for calibration.

    Ink is left out of every draw of pixels: it is no stain, and shifts value ranges and fits.

    Args:
        slide: The slide as scanned.
        given: Its tissue as a person or another program sees it, or None to find it.
        mpp: Resolution of the drawn pixels, µm per pixel.
        config: How.

    Raises:
        DataError: No tissue; or a stain that cannot be fitted.
    """
    tissue = tissue_mask(slide) if given is None else given
    artefacts = find_artefacts(slide, tissue)
    inkless = mask_of(tissue.mask & ~artefacts.pen, tissue.mpp)
    fit, seen = StainFit("none"), slide
    if config.stain.method != "none":
        generator = np.random.default_rng(config.stain.seed)
        drawn = sample_tissue_pixels(slide, inkless, config.stain.n_pixels, mpp, generator)
        fit = fit_stain(drawn, config.stain)
        seen = NormalisedSlide(slide, StainNormaliser(fit))
    pixels = sample_tissue_pixels(
        seen, inkless, config.calibration_pixels, mpp, np.random.default_rng(config.seed)
    )
    return Survey(
        slide=seen,
        mask=usable(tissue, artefacts) if config.skip_artefacts else tissue,
        artefacts=artefacts,
        stain=fit,
        pixels=pixels,
    )
