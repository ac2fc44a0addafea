"""A slide to its cells and tiles: read ahead, segment, describe, join, check."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from histoscribe.data.cells import Cells
from histoscribe.data.regions import Regions
from histoscribe.data.slide import Slide
from histoscribe.data.tiles import Tiles
from histoscribe.errors import DataError
from histoscribe.preprocess.describe import (
    FieldPixels,
    FieldSquares,
    describe_nuclei,
    describe_squares,
    read_field,
)
from histoscribe.preprocess.nuclei import FieldNuclei, describe_found, join, take_owned
from histoscribe.preprocess.preparation import Preparation, PrepareConfig, plan_preparation
from histoscribe.preprocess.quality import CropTally, check_features, check_nuclei

LOG = logging.getLogger(__name__)
MAX_UNREADABLE = 0.01  # share of fields

Progress = Callable[[int, int, int], object]
"""Told after each batch of fields: fields done, fields in all, nuclei so far."""


def prepare_slide(
    slide: Slide,
    regions: Regions | None,
    config: PrepareConfig,
    on_progress: Progress | None = None,
) -> tuple[Cells, Tiles]:
    """Find and describe the nuclei of a slide, and the squares of its field.

    Args:
        slide: The slide.
        regions: Where to look if `config.around_regions`; those of other slides are left out.
        config: How.
        on_progress: Told after each field.

    Raises:
        ConfigError: Settings that do not go together.
        DataError: Constant image, no nuclei, or nuclei that cannot be (wrong mpp, wrong stain).
        MissingExtra: Weights that are not there.
    """
    return carry_out(plan_preparation(slide, regions, config), on_progress)


def carry_out(preparation: Preparation, on_progress: Progress | None = None) -> tuple[Cells, Tiles]:
    """Do what was planned; memory holds the result and a few fields."""
    slide_id, n_fields = preparation.slide.slide_id, len(preparation.plan)
    nuclei: list[FieldNuclei] = []
    squares: list[FieldSquares] = []
    tally = CropTally()
    n_done = n_cells = 0
    for batch in read_ahead(preparation):
        readable = [pixels for pixels in batch if pixels is not None]
        for pixels, (labels, maps) in zip(readable, segment(preparation, readable), strict=True):
            nuclei.append(describe_field(preparation, pixels, labels, maps, tally))
            squares.append(squares_of(preparation, pixels, maps))
            n_cells += len(nuclei[-1])
        n_done += len(batch)
        if on_progress:
            on_progress(n_done, n_fields, n_cells)
    n_unreadable = n_fields - len(nuclei)
    if n_unreadable > MAX_UNREADABLE * n_fields:
        raise DataError(
            f"slide {slide_id}: {n_unreadable} of {n_fields} fields could not be read, at most "
            f"{100 * MAX_UNREADABLE:g} % may be left out; the file is broken, fetch it again"
        )
    tally.check(f"slide {slide_id}, crops of nuclei")
    return to_cells(preparation, join(nuclei)), to_tiles(preparation, squares)


def describe_field(
    preparation: Preparation,
    pixels: FieldPixels,
    labels: Int32[np.ndarray, "y x"],
    maps: Sequence[Tensor],
    tally: CropTally,
) -> FieldNuclei:
    """The nuclei that belong to a field, with outlines and features."""
    plan = preparation.plan
    found = take_owned(labels, plan, pixels.field)
    features = describe_nuclei(preparation.encoder, pixels, maps, found, plan, tally)
    return describe_found(found, plan, pixels.field, features)


def squares_of(
    preparation: Preparation, pixels: FieldPixels, maps: Sequence[Tensor]
) -> FieldSquares:
    """The squares of the tile grid that belong to a field, with features and colours."""
    slide = preparation.slide
    width_um, height_um = (n * one for n, one in zip(slide.size_px, slide.mpp, strict=True))
    side_px = round(preparation.config.tile_side_um / preparation.plan.mpp)
    return describe_squares(
        preparation.encoder, pixels, maps, preparation.plan, side_px, (width_um, height_um)
    )


def read_ahead(preparation: Preparation) -> Iterator[list[FieldPixels | None]]:
    """Fields of the plan, a batch at a time, the next one read while this one is worked on.

    A field that cannot be read is None: its nuclei are left out, never made up.
    """
    plan, size = preparation.plan, preparation.config.fields_at_once
    batches = [range(i, min(i + size, len(plan))) for i in range(0, len(plan), size)]

    def read(fields: range) -> list[FieldPixels | None]:
        return [read_or_none(preparation, one) for one in fields]

    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = reader.submit(read, batches[0])
        for batch in batches[1:]:
            ready = coming.result()
            coming = reader.submit(read, batch)
            yield ready
        yield coming.result()


def read_or_none(preparation: Preparation, number: int) -> FieldPixels | None:
    """A field, or None if the file does not give it."""
    slide = preparation.slide
    try:
        return read_field(slide, preparation.plan, number, preparation.encoder)
    except (DataError, OSError) as error:
        box = preparation.plan.box(number)
        LOG.warning(
            "slide %s: the field at (%.0f, %.0f) µm cannot be read and is left out: %s",
            slide.slide_id,
            box.x_um,
            box.y_um,
            error,
        )
        return None


def segment(
    preparation: Preparation, fields: list[FieldPixels]
) -> list[tuple[Int32[np.ndarray, "y x"], Sequence[Tensor]]]:
    """Labels of each field, and the maps that the encoder pools."""
    if not fields:
        return []
    images = np.stack([pixels.image for pixels in fields])
    seen = preparation.segmenter.segment(images, preparation.calibration)
    if preparation.map_source is None:
        return [(one.labels, one.maps) for one in seen]
    other_segmenter, calibration = preparation.map_source
    maps = other_segmenter.segment(images, calibration)
    return [(one.labels, other.maps) for one, other in zip(seen, maps, strict=True)]


def to_cells(preparation: Preparation, found: FieldNuclei) -> Cells:
    """The nuclei of a slide as cells, if they hold up."""
    slide_id = preparation.slide.slide_id
    check_nuclei(slide_id, found.area_um2, preparation.searched_mm2, max(preparation.slide.mpp))
    check_features(found.features, f"slide {slide_id}, features of nuclei")
    return Cells(
        slide_id=slide_id,
        xy_um=found.xy_um,
        area_um2=found.area_um2,
        features=found.features,
        encoder_id=str(preparation.encoder.identity),
        segmenter_id=preparation.segmenter.identity,
        provenance=preparation.provenance,
        outlines=found.outlines,
    )


def to_tiles(preparation: Preparation, squares: list[FieldSquares]) -> Tiles:
    """The squares of a slide as tiles, ordered by y, then x."""
    xy_um = np.concatenate([one.xy_um for one in squares])
    features = np.concatenate([one.features for one in squares])
    colour = np.concatenate([one.colour for one in squares])
    order = np.lexsort((xy_um[:, 0], xy_um[:, 1]))
    order = order[np.isfinite(features[order]).all(axis=1)]
    return Tiles(
        slide_id=preparation.slide.slide_id,
        side_um=preparation.config.tile_side_um,
        xy_um=xy_um[order],
        features=features[order],
        colour=colour[order],
        encoder_id=str(preparation.encoder.identity),
        provenance=preparation.provenance,
    )
