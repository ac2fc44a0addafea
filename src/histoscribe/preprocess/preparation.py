"""What is settled before the first field is segmented: parts, range, plan, provenance."""

import hashlib
import math
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
from jaxtyping import Float

from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions
from histoscribe.data.slide import Slide
from histoscribe.data.store import hash_file
from histoscribe.errors import ConfigError, DataError
from histoscribe.preprocess.describe import Encoder
from histoscribe.preprocess.encoders.encoder import ENCODERS
from histoscribe.preprocess.encoders.transformers import VitConfig
from histoscribe.preprocess.fields import FieldPlan, owned_side, plan_around, plan_grid
from histoscribe.preprocess.segmenters.segmenter import SEGMENTERS, Calibration, Segmenter
from histoscribe.preprocess.tissue import TissueMask, sample_tissue_pixels, tissue_mask
from histoscribe.types import Box

CENTRES = "region_centres"
"""Name of the hash of the regions' centres among the inputs of a prepared slide."""

MAX_ENLARGED = 2.0  # what `Slide.read` gives


@dataclass(frozen=True)
class PrepareConfig:
    """How a slide becomes cells and tiles.

    Attributes:
        segmenter: A name of `SEGMENTERS`.
        encoder: A name of `ENCODERS`; a Vision Transformer is "vit:" and its folder or hub id.
        vit: How tiles are shown to a Vision Transformer.
        around_regions: Only nuclei within `around_um` of a region's centre.
        around_um: Radius that is searched round each region: the tiles of its field (a square of
            128 µm, corners at 91 µm), the region, and a ring of context cells where one is asked
            for (up to 42 µm wide around spots of 100 µm).
        tile_side_um: Side of the squares that describe the whole field.
        field_px: Side of the fields, in pixels of the segmenter's resolution.
        overlap_px: What neighbouring fields share; nuclei up to this size are whole in one.
        fields_at_once: Fields the segmenter is given together; does not change the result.
        calibration_pixels: How many tissue pixels the segmenter's value range is fitted on.
        seed: Draws those pixels.
    """

    segmenter: str = "instanseg"
    encoder: str = "instanseg"
    vit: VitConfig = field(default_factory=VitConfig)
    around_regions: bool = False
    around_um: float = 92.0
    tile_side_um: float = 32.0
    field_px: int = 512
    overlap_px: int = 64
    fields_at_once: int = 1
    calibration_pixels: int = 100_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_name(SEGMENTERS, self.segmenter, "segmenter")
        name, _, source = self.encoder.partition(":")
        if name == "vit" and not source:
            raise ConfigError("encoder 'vit' wants a model: 'vit:FOLDER' or 'vit:HUB-ID'")
        check_name(ENCODERS, name if name == "vit" else self.encoder, "encoder")
        for name in ("around_um", "tile_side_um"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"prepare.{name} = {getattr(self, name)}; give a finite length above 0 µm"
                )
        for name, least in {"fields_at_once": 1, "calibration_pixels": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"prepare.{name} = {getattr(self, name)}; give {least} or more")
        owned_side(self.field_px, self.overlap_px)


@dataclass(frozen=True)
class Preparation:
    """All that is settled before the first field is segmented.

    Attributes:
        slide: What is prepared.
        config: As asked for.
        segmenter: Loaded.
        encoder: Loaded; dense, or for tiles.
        calibration: The segmenter's, fitted on this slide's tissue.
        map_source: The segmenter whose maps a dense encoder pools, with its own calibration,
            where it is another one than finds the nuclei.
        plan: Which fields are read.
        searched_mm2: Tissue that they own.
        provenance: What the cells and tiles will carry; settled beforehand, so that a stored
            result can be recognised before the work is done again.
    """

    slide: Slide
    config: PrepareConfig
    segmenter: Segmenter
    encoder: Encoder
    calibration: Calibration
    map_source: tuple[Segmenter, Calibration] | None
    plan: FieldPlan
    searched_mm2: float
    provenance: Provenance


def plan_preparation(slide: Slide, regions: Regions | None, config: PrepareConfig) -> Preparation:
    """Load the parts, fit the value range on tissue, plan the fields, write the provenance.

    Args:
        slide: The slide.
        regions: Where to look if `config.around_regions`; those of other slides are left out.
        config: How.

    Raises:
        ConfigError: Settings that do not go together.
        DataError: No tissue, or a constant image.
        MissingExtra: Weights that are not there.
    """
    segmenter: Segmenter = load(SEGMENTERS, config.segmenter)
    encoder = load_encoder(config)
    check_together(config, segmenter, encoder)
    check_scale(slide, segmenter.mpp)
    check_tile_scale(slide, encoder.identity.mpp)
    mask = tissue_mask(slide)
    pixels = sample_tissue_pixels(
        slide,
        mask,
        config.calibration_pixels,
        segmenter.mpp,
        np.random.default_rng(config.seed),
    )
    calibration = segmenter.calibrate(pixels)
    map_source = None
    if encoder.kind == "dense" and encoder.segmenter != config.segmenter:
        other: Segmenter = load(SEGMENTERS, encoder.segmenter)
        map_source = (other, other.calibrate(pixels))
    plan = plan_fields(slide, mask, regions, config, segmenter.mpp)
    settings = {
        "segmenter": segmenter.identity,
        "encoder": str(encoder.identity),
        "slide_mpp": list(slide.mpp),
        "mpp_read": segmenter.mpp,
        "enlarged": max(1.0, max(slide.mpp) / segmenter.mpp),
        "calibration": {"low": list(calibration.low), "high": list(calibration.high)},
        "calibration_pixels": config.calibration_pixels,
        "seed": config.seed,
        "around_um": config.around_um if config.around_regions else None,
        "tile_side_um": config.tile_side_um,
        "field_px": config.field_px,
        "overlap_px": config.overlap_px,
    }
    inputs = {"slide": hash_slide(slide)}
    if plan.disc_um is not None:
        inputs[CENTRES] = hash_centres(plan.disc_um)
    return Preparation(
        slide=slide,
        config=config,
        segmenter=segmenter,
        encoder=encoder,
        calibration=calibration,
        map_source=map_source,
        plan=plan,
        searched_mm2=searched_mm2(mask, plan),
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


def load_encoder(config: PrepareConfig) -> Encoder:
    """The encoder; "vit:SOURCE" is a Vision Transformer from a folder or the hub."""
    name, _, source = config.encoder.partition(":")
    return load(ENCODERS, name, source, config.vit) if name == "vit" else load(ENCODERS, name)


def check_scale(slide: Slide, mpp: float) -> None:
    """DataError if the slide is too coarse to be read at the segmenter's resolution."""
    if max(slide.mpp) > MAX_ENLARGED * mpp:
        raise DataError(
            f"slide {slide.slide_id} has {max(slide.mpp):.4g} µm/px, nuclei are looked for at "
            f"{mpp:g} and at most {MAX_ENLARGED:g}x is enlarged; if the mpp is wrong, give the "
            "right one with --mpp"
        )


def check_tile_scale(slide: Slide, mpp: float) -> None:
    """ConfigError if the encoder's tiles are finer than the slide can be enlarged to."""
    if max(slide.mpp) > MAX_ENLARGED * mpp:
        raise ConfigError(
            f"tiles are read at {mpp:g} µm/px, slide {slide.slide_id} has {max(slide.mpp):.4g} and "
            f"at most {MAX_ENLARGED:g}x is enlarged; set prepare.vit.mpp to "
            f"{max(slide.mpp) / MAX_ENLARGED:.4g} or more"
        )


def check_together(config: PrepareConfig, segmenter: Segmenter, encoder: Encoder) -> None:
    """ConfigError if resolutions, tiles and fields do not fit each other."""
    mpp, side_um = segmenter.mpp, config.tile_side_um
    if encoder.kind == "dense" and encoder.identity.mpp != mpp:
        raise ConfigError(
            f"encoder {config.encoder} sees {encoder.identity.mpp:g} µm/px, segmenter "
            f"{config.segmenter} {mpp:g}; choose a segmenter of the same resolution"
        )
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
    row, column = np.nonzero(mask.mask)
    centre = ((np.stack([column, row], axis=1) + 0.5) * mask.mpp).astype(np.float32)
    return float((plan.owner(centre) >= 0).sum() * mask.mpp**2 / 1e6)


def hash_centres(centre_um: Float[np.ndarray, "region 2"]) -> str:
    """SHA-256 of where regions are, whatever their order."""
    distinct = np.unique(centre_um.astype(np.float64), axis=0)
    return hashlib.sha256(distinct.tobytes()).hexdigest()


def hash_slide(slide: Slide) -> str:
    """SHA-256 of the file; of the pixels if it is in memory only."""
    if slide.path.is_file():
        return hash_file(slide.path)
    width_um, height_um = (n * one for n, one in zip(slide.size_px, slide.mpp, strict=True))
    pixels = slide.read(Box(0.0, 0.0, width_um, height_um), slide.mpp[0])
    return hashlib.sha256(pixels.tobytes()).hexdigest()
