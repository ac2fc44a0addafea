"""What is settled before the first field is segmented: parts, range, plan, provenance."""

import hashlib
import math
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import Float

from histoscribe.data.nuclei import GivenNuclei
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions
from histoscribe.data.slide import Slide
from histoscribe.errors import ConfigError, DataError
from histoscribe.preprocess.encoders.encoder import Encoder, Sight
from histoscribe.preprocess.encoders.names import check_encoder, load_encoder
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.fields import FieldPlan, owned_side, plan_around, plan_grid
from histoscribe.preprocess.given_check import check_given
from histoscribe.preprocess.segmenters.given import PlacedNuclei, place_nuclei
from histoscribe.preprocess.segmenters.segmenter import SEGMENTERS, Calibration, Segmenter
from histoscribe.preprocess.stain import StainConfig
from histoscribe.preprocess.survey import Survey, SurveyConfig, survey
from histoscribe.preprocess.tissue import TissueMask
from histoscribe.slides.open import hash_slide_file
from histoscribe.types import Box

CENTRES = "region_centres"
"""Name of the hash of the regions' centres among the inputs of a prepared slide."""

MAX_ENLARGED = 2.0  # what `Slide.read` gives
ROWS_AT_ONCE = 64  # of the tissue mask, so that a large slide's centres are not all held
GIVEN_MPP = 0.5  # resolution at which given nuclei are drawn, as at which they would be found


@dataclass(frozen=True)
class PrepareConfig:
    """How a slide becomes cells and tiles.

    Attributes:
        segmenter: A name of `SEGMENTERS`.
        encoder: "instanseg", "efficientnet-lite0", "vit:" and a folder or hub id, or a published
            checkpoint and its file ("uni2-h:FILE").
        view: How cells are shown to the encoder.
        stain: How the stain is normalised before anything else sees a pixel.
        skip_artefacts: Leave out tissue under ink or out of focus.
        around_regions: Only nuclei within `around_um` of a region's centre; around a bulk region,
            which is the whole slide, all of them.
        around_um: Radius that is searched round each region: the tiles of its field (a square of
            128 µm, corners at 91 µm), the region, and a ring of context cells where one is asked
            for (up to 42 µm wide around spots of 100 µm).
        tile_side_um: Side of the squares that describe the whole field.
        field_px: Side of the fields, in pixels of the segmenter's resolution.
        overlap_px: What neighbouring fields share; nuclei up to this size are whole in one.
        calibration_pixels: How many tissue pixels the segmenter's value range is fitted on.
        seed: Draws those pixels.
    """

    segmenter: str = "instanseg"
    encoder: str = "instanseg"
    view: ViewConfig = field(default_factory=ViewConfig)
    stain: StainConfig = field(default_factory=StainConfig)
    skip_artefacts: bool = False
    around_regions: bool = False
    around_um: float = 92.0
    tile_side_um: float = 32.0
    field_px: int = 512
    overlap_px: int = 64
    calibration_pixels: int = 100_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_name(SEGMENTERS, self.segmenter, "segmenter")
        check_encoder(self.encoder)
        for name in ("around_um", "tile_side_um"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"prepare.{name} = {getattr(self, name)}; give a finite length above 0 µm"
                )
        for name, least in {"calibration_pixels": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"prepare.{name} = {getattr(self, name)}; give {least} or more")
        owned_side(self.field_px, self.overlap_px)


@dataclass(frozen=True)
class Given:
    """What is known of a slide beforehand, in place of what would be found.

    Attributes:
        tissue: Where its tissue is.
        tissue_sha256: Of the file that says so.
        nuclei: Its nuclei, as another program found them.
    """

    tissue: TissueMask | None = None
    tissue_sha256: str = ""
    nuclei: GivenNuclei | None = None


@dataclass(frozen=True)
class Preparation:
    """All that is settled before the first field is segmented.

    Attributes:
        slide: What is prepared, its stain normalised if that was asked for.
        config: As asked for.
        survey: Tissue, artefacts and stain.
        segmenter: Loaded, or None where nuclei are given.
        segmenter_id: Its identity, or that of the program that gave the nuclei.
        given: The nuclei that are given, or None.
        placed: The same, in the plan.
        encoder: Loaded, and calibrated on this slide's tissue.
        encoder_id: Its identity with the stain that it sees.
        calibration: The segmenter's, fitted on this slide's tissue, or None without one.
        plan: Which fields are read.
        sight: What the encoder reads of them for itself, None where the segmenter's image does.
        searched_mm2: Tissue that they own.
        provenance: What the cells and tiles will carry; settled beforehand, so that a stored
            result can be recognised before the work is done again.
    """

    slide: Slide
    config: PrepareConfig
    survey: Survey
    segmenter: Segmenter | None
    segmenter_id: str
    given: GivenNuclei | None
    placed: PlacedNuclei | None
    encoder: Encoder
    encoder_id: str
    calibration: Calibration | None
    plan: FieldPlan
    sight: Sight | None
    searched_mm2: float
    provenance: Provenance


def plan_preparation(
    slide: Slide, regions: Regions | None, config: PrepareConfig, given: Given | None = None
) -> Preparation:
    """Load the parts, fit the value range on tissue, plan the fields, write the provenance.

    Args:
        slide: The slide.
        regions: Where to look if `config.around_regions`; those of other slides are left out.
        config: How.
        given: What need not be found.

    Raises:
        ConfigError: Settings that do not go together.
        DataError: No tissue, a constant image, or nuclei that are not this slide's.
        MissingExtra: Weights that are not there.
    """
    given = given or Given()
    nuclei = given.nuclei
    segmenter: Segmenter | None = None
    mpp, segmenter_id = GIVEN_MPP, nuclei.identity if nuclei is not None else ""
    if nuclei is None:
        segmenter = load_segmenter(config.segmenter)
        mpp, segmenter_id = segmenter.mpp, segmenter.identity
    encoder = load_encoder(config.encoder, config.view)
    check_together(config, mpp)
    check_scale(slide, mpp)
    check_encoder_scale(slide, encoder.identity.mpp)
    if nuclei is not None:
        check_given(slide, nuclei, config.seed)
    seen = survey(
        slide,
        given.tissue,
        mpp,
        SurveyConfig(config.stain, config.skip_artefacts, config.calibration_pixels, config.seed),
    )
    calibration = segmenter.calibrate(seen.pixels) if segmenter else None
    encoder = encoder.calibrated(seen.pixels)
    encoder_id = str(replace(encoder.identity, stain=config.stain.method))
    plan = plan_fields(slide, seen.mask, regions, config, mpp)
    placed = place_nuclei(nuclei, plan) if nuclei is not None else None
    sight = encoder.sight(plan, config.tile_side_um)
    settings = {
        "segmenter": segmenter_id,
        "encoder": encoder_id,
        "encoder_licence": encoder.licence,
        "encoder_precision": encoder.precision,
        "slide_mpp": list(slide.mpp),
        "mpp_read": mpp,
        "enlarged": max(1.0, max(slide.mpp) / mpp),
        "calibration": calibration and {name: list(v) for name, v in calibration._asdict().items()},
        "stain": seen.stain.to_record(),
        "skip_artefacts": config.skip_artefacts,
        "calibration_pixels": config.calibration_pixels,
        "seed": config.seed,
        "around_um": config.around_um if plan.disc_um is not None else None,
        "tile_side_um": config.tile_side_um,
        "field_px": config.field_px,
        "overlap_px": config.overlap_px,
    }
    inputs = {"slide": hash_slide(slide)}
    if plan.disc_um is not None:
        inputs[CENTRES] = hash_centres(plan.disc_um)
    if given.tissue is not None:
        inputs["tissue"] = given.tissue_sha256
    if nuclei is not None:
        settings["nuclei"] = dict(nuclei.provenance.settings)
        inputs |= nuclei.provenance.inputs
    return Preparation(
        slide=seen.slide,
        config=config,
        survey=seen,
        segmenter=segmenter,
        segmenter_id=segmenter_id,
        given=nuclei,
        placed=placed,
        encoder=encoder,
        encoder_id=encoder_id,
        calibration=calibration,
        plan=plan,
        sight=sight,
        searched_mm2=searched_mm2(seen.mask, plan),
        provenance=Provenance(f"histoscribe {version('histoscribe')} prepare", settings, inputs),
    )


def check_name(table: dict[str, str], name: str, what: str) -> None:
    """ConfigError, with the known names, if a table lacks one."""
    if name not in table:
        raise ConfigError(f"no {what} is called {name!r}; there are {', '.join(sorted(table))}")


def load(table: dict[str, str], name: str, *arguments: Any) -> Any:  # noqa: ANN401
    """Import what a name of a table stands for, and make it."""
    module, factory = table[name].split(":")
    return getattr(import_module(module), factory)(*arguments)


def load_segmenter(name: str) -> Segmenter:
    """The segmenter of that name, with its weights."""
    return load(SEGMENTERS, name)


def check_scale(slide: Slide, mpp: float) -> None:
    """DataError if the slide is too coarse to be read at the segmenter's resolution."""
    if max(slide.mpp) > MAX_ENLARGED * mpp:
        raise DataError(
            f"slide {slide.slide_id} has {max(slide.mpp):.4g} µm/px, nuclei are looked for at "
            f"{mpp:g} and at most {MAX_ENLARGED:g}x is enlarged; if the mpp is wrong, give the "
            "right one with --mpp"
        )


def check_encoder_scale(slide: Slide, mpp: float) -> None:
    """ConfigError if the encoder sees finer than the slide can be enlarged to."""
    if max(slide.mpp) > MAX_ENLARGED * mpp:
        raise ConfigError(
            f"the encoder sees {mpp:g} µm/px, slide {slide.slide_id} has {max(slide.mpp):.4g} and "
            f"at most {MAX_ENLARGED:g}x is enlarged; set prepare.view.mpp to "
            f"{max(slide.mpp) / MAX_ENLARGED:.4g} or more"
        )


def check_together(config: PrepareConfig, mpp: float) -> None:
    """ConfigError if the segmenter's resolution, tiles and fields do not fit each other."""
    side_um = config.tile_side_um
    if round(side_um / mpp) * mpp != side_um:
        raise ConfigError(
            f"tile_side_um {side_um:g} is no whole number of pixels of {mpp:g} µm; 32 is usual"
        )
    if side_um > config.overlap_px * mpp:
        raise ConfigError(
            f"tiles of {side_um:g} µm want an overlap of at least {side_um / mpp:g} px, not "
            f"{config.overlap_px}, so that each lies in one field whole; raise overlap_px"
        )


def plan_fields(
    slide: Slide,
    mask: TissueMask,
    regions: Regions | None,
    config: PrepareConfig,
    mpp: float,
) -> FieldPlan:
    """Fields over the tissue, or around the slide's regions."""
    if not config.around_regions:
        return plan_grid(slide, mask, mpp, config.field_px, config.overlap_px)
    if regions is None:
        raise ConfigError("--around-regions needs regions, and this slide has none; leave it out")
    if regions.kind == "bulk":
        return plan_grid(slide, mask, mpp, config.field_px, config.overlap_px)
    if not config.around_um >= regions.radius_um:
        raise ConfigError(
            f"around_um {config.around_um:g} is less than the regions' radius of "
            f"{regions.radius_um:g} µm: nuclei inside them would be left out; raise it"
        )
    chosen = np.array([name == slide.slide_id for name in regions.slide_id], bool)
    return plan_around(
        slide, regions.xy_um[chosen], config.around_um, mpp, config.field_px, config.overlap_px
    )


def searched_mm2(mask: TissueMask, plan: FieldPlan) -> float:
    """Area of the tissue that the fields own."""
    n_owned = 0
    for first in range(0, len(mask.mask), ROWS_AT_ONCE):
        place = np.argwhere(mask.mask[first : first + ROWS_AT_ONCE]) + np.array([first, 0])
        centre = ((place[:, ::-1] + 0.5) * mask.mpp).astype(np.float32)
        n_owned += int((plan.owner(centre) >= 0).sum())
    return n_owned * mask.mpp**2 / 1e6


def hash_centres(centre_um: Float[np.ndarray, "region 2"]) -> str:
    """SHA-256 of where regions are, whatever their order."""
    distinct = np.unique(centre_um.astype(np.float64), axis=0)
    return hashlib.sha256(distinct.tobytes()).hexdigest()


def hash_slide(slide: Slide) -> str:
    """SHA-256 of what it is read from; of the pixels if it is in memory only."""
    if slide.path.exists():
        return hash_slide_file(slide.path)
    width_um, height_um = (n * one for n, one in zip(slide.size_px, slide.mpp, strict=True))
    pixels = slide.read(Box(0.0, 0.0, width_um, height_um), slide.mpp[0])
    return hashlib.sha256(pixels.tobytes()).hexdigest()
