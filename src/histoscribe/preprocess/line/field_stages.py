"""The stages that fields go through: read, network, find, describe."""

import logging
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from histoscribe.data.cells import Outlines
from histoscribe.errors import ConfigError, DataError, can_pass
from histoscribe.preprocess.describe import (
    describe_nuclei,
    describe_squares,
    look_at_fields,
    read_field,
)
from histoscribe.preprocess.encoders.encoder import FieldLook, FieldPixels
from histoscribe.preprocess.line.budget import Shares
from histoscribe.preprocess.line.parts import FieldResult
from histoscribe.preprocess.line.pipeline import Stage
from histoscribe.preprocess.nuclei import Found, describe_found, outline_found, take_owned
from histoscribe.preprocess.preparation import Preparation
from histoscribe.preprocess.quality import CropTally
from histoscribe.preprocess.segmenters.given import take_given
from histoscribe.preprocess.segmenters.segmenter import (
    NetworkOutput,
    NetworkSegmenter,
    Segmentation,
)

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FieldWork:
    """A field on its way through the stages; each stage adds its answer.

    Attributes:
        pixels: What was read.
        output: What the segmenter's network saw in it, if it has one.
        segmented: Its labels and maps.
        found: The nuclei that belong to it.
        outlines: Of those nuclei.
    """

    pixels: FieldPixels
    output: NetworkOutput | None = None
    segmented: Segmentation | None = None
    found: Found | None = None
    outlines: Outlines | None = None


def stages_of(preparation: Preparation, shares: Shares) -> list[Stage]:
    """From numbers of fields (a range) to a `FieldResult` of each, None if it cannot be read.

    Networks run in "segmenting" (the segmenter's, one thread) and "describing" (the encoder's).
    """
    return [
        Stage("reading", partial(read, preparation), shares.n_readers),
        Stage("segmenting", partial(run_network, preparation), splits=True),
        Stage("finding", partial(find, preparation), shares.n_finders),
        Stage("describing", partial(describe, preparation), shares.n_describers),
    ]


def read(preparation: Preparation, fields: range) -> list[tuple[int, FieldPixels | None]]:
    """Read fields, numbered."""
    return [(field, read_or_none(preparation, field)) for field in fields]


def read_or_none(preparation: Preparation, number: int) -> FieldPixels | None:
    """A field, or None if the file does not give it: its nuclei are left out, never made up.

    A fault of the machine that may pass is raised: it says nothing of the file.
    """
    slide = preparation.slide
    try:
        return read_field(slide, preparation.plan, number, preparation.sight)
    except (DataError, OSError) as error:
        if can_pass(error):
            raise
        box = preparation.plan.box(number)
        LOG.warning(
            "slide %s: the field at (%.0f, %.0f) µm cannot be read and is left out: %s",
            slide.slide_id,
            box.x_um,
            box.y_um,
            error,
        )
        return None


def run_network(
    preparation: Preparation, fields: list[tuple[int, FieldPixels | None]]
) -> list[tuple[int, FieldWork | None]]:
    """Show fields to the segmenter's network together, if it has one; then each is by itself."""
    segmenter, calibration = preparation.segmenter, preparation.calibration
    work = {field: FieldWork(pixels) for field, pixels in fields if pixels is not None}
    if work and isinstance(segmenter, NetworkSegmenter) and calibration is not None:
        images = np.stack([one.pixels.image for one in work.values()])
        outputs = segmenter.run_network(images, calibration)
        work = {
            field: replace(one, output=output)
            for (field, one), output in zip(work.items(), outputs, strict=True)
        }
    return [(field, work.get(field)) for field, _ in fields]


def find(preparation: Preparation, work: FieldWork | None) -> FieldWork | None:
    """Find the nuclei of a field, take those that belong to it, and outline them."""
    if work is None:
        return None
    plan, field = preparation.plan, work.pixels.field
    if preparation.placed is not None:
        found, outlines = take_given(preparation.placed, field)
        segmented = Segmentation(found.labels)
    else:
        segmented = segment(preparation, work)
        found = take_owned(segmented.labels, plan, field)
        outlines = outline_found(found, plan, field)
    return FieldWork(work.pixels, None, segmented, found, outlines)


def segment(preparation: Preparation, work: FieldWork) -> Segmentation:
    """Labels and maps of a field."""
    segmenter, calibration = preparation.segmenter, preparation.calibration
    if segmenter is None or calibration is None:
        raise ConfigError("nuclei are neither given nor looked for")
    if work.output is not None and isinstance(segmenter, NetworkSegmenter):
        return segmenter.find_nuclei(work.output)
    return segmenter.segment(work.pixels.image[None], calibration)[0]


def describe(preparation: Preparation, work: FieldWork | None) -> FieldResult | None:
    """Show a field to the encoder, and describe its nuclei and squares."""
    if work is None or work.segmented is None or work.found is None or work.outlines is None:
        return None
    (look,) = look_at_fields(
        preparation.encoder,
        [work.pixels],
        [work.segmented],
        preparation.segmenter_id,
        preparation.plan,
        preparation.sight,
    )
    return describe_field(preparation, work.pixels, work.found, work.outlines, look)


def describe_field(
    preparation: Preparation,
    pixels: FieldPixels,
    found: Found,
    outlines: Outlines,
    look: FieldLook,
) -> FieldResult:
    """The nuclei and the squares that belong to a field, with features and colours."""
    slide, plan, crops = preparation.slide, preparation.plan, CropTally()
    width_um, height_um = (n * one for n, one in zip(slide.size_px, slide.mpp, strict=True))
    side_px = round(preparation.config.tile_side_um / plan.mpp)
    features = describe_nuclei(preparation.encoder, look, found, crops)
    return FieldResult(
        describe_found(found, outlines, pixels.field, features),
        describe_squares(look, pixels, plan, side_px, (width_um, height_um)),
        crops,
    )
