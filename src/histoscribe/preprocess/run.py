"""A slide to its cells and tiles: fields go through a line of stages; parts of them are kept."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from histoscribe.data.cells import Cells
from histoscribe.data.mapped import release
from histoscribe.data.regions import Regions
from histoscribe.data.slide import Slide
from histoscribe.data.tiles import Tiles
from histoscribe.errors import DataError
from histoscribe.preprocess.line.budget import Budget, Load, Shares, resident_bytes
from histoscribe.preprocess.line.field_stages import stages_of
from histoscribe.preprocess.line.gather import (
    SlideNuclei,
    SlideSquares,
    gather_nuclei,
    gather_squares,
)
from histoscribe.preprocess.line.parts import (
    FieldResult,
    Part,
    PartFolder,
    PartList,
    Parts,
    make_part,
)
from histoscribe.preprocess.line.pipeline import Clock, Stage, StageTimes, run_stages
from histoscribe.preprocess.line.status import status_in
from histoscribe.preprocess.preparation import Preparation, PrepareConfig, plan_preparation
from histoscribe.preprocess.quality import CropTally, check_features, check_nuclei
from histoscribe.preprocess.segmenters.given import types_at
from histoscribe.preprocess.segmenters.segmenter import NetworkSegmenter

MAX_UNREADABLE = 0.01  # share of fields


@dataclass(frozen=True)
class Outcome:
    """What the work on a slide was.

    Attributes:
        times: How long each stage was at work.
        n_fields: Fields of the plan.
        n_taken_up: Those whose parts an earlier run had finished.
        n_unreadable: Those that the file did not give, left out.
    """

    times: StageTimes
    n_fields: int
    n_taken_up: int
    n_unreadable: int


Progress = Callable[[int, int, int], object]
"""Told after each field: fields done, fields in all, nuclei so far (those at seams may
count twice)."""


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
    return carry_out(plan_preparation(slide, regions, config), on_progress=on_progress)


def carry_out(
    preparation: Preparation,
    *,
    workspace: Path | None = None,
    budget: Budget | None = None,
    on_progress: Progress | None = None,
    on_end: Callable[[Outcome], object] | None = None,
) -> tuple[Cells, Tiles]:
    """Do what was planned.

    Reading, the segmenter's network, finding nuclei, describing them and writing parts go on at
    the same time. With a workspace, what is finished is on disk (`parts`), and the next call with
    that workspace goes on from there, after a kill, too; it gives the same bytes as an
    uninterrupted one. Parts of another request are removed. Features and outlines of the answer
    then live in files of the workspace: write the stores before it is discarded.

    Args:
        preparation: What was planned.
        workspace: A folder of which nobody else makes use; without one all is held in memory.
        budget: Memory and threads; does not change the result.
        on_progress: Told after each field, in this thread.
        on_end: Told at the end what the work was; for a log.

    Raises:
        DataError: More than 1 % of the fields cannot be read, or the nuclei cannot be.
        MissingExtra: The disk is full.
        OSError: A disk or a network share does not answer; what is finished stays.
    """
    budget = budget or Budget()
    shares = shares_of(preparation, budget)
    key, n_fields = preparation.provenance.key, len(preparation.plan)
    stages = stages_of(preparation, shares)
    with status_in(workspace, {"key": key, "n_fields": n_fields}) as status:
        clock = Clock(status.tell if status else None)
        with clock.at("resuming", 0):
            parts = PartList() if workspace is None else PartFolder(workspace, key, n_fields)
        n_taken_up = sum(stop - first for first, stop in parts.spans())
        work_off(preparation, parts, stages, shares, clock, on_progress)
        with clock.at("joining", 0):
            check_crops(preparation, parts)
            cells = to_cells(preparation, gather_nuclei(parts, shares.mapped_bytes))
            tiles = to_tiles(preparation, gather_squares(parts, shares.mapped_bytes))
    if on_end:
        n_unreadable = sum(n for (n,) in parts.shapes("unreadable"))
        on_end(Outcome(clock.times(stages), n_fields, n_taken_up, n_unreadable))
    return cells, tiles


def discard(workspace: Path) -> None:
    """Remove a workspace, if it is there: once the stores are sealed, or its parts are no use."""
    shutil.rmtree(workspace, ignore_errors=True)


def shares_of(preparation: Preparation, budget: Budget) -> Shares:
    """How a budget is spent on the fields of a plan."""
    plan = preparation.plan
    owned_um = plan.side_px * plan.mpp - 2 * plan.halo_um
    return budget.share_out(
        Load(
            field_px=plan.side_px,
            owned_mm2=owned_um**2 / 1e6,
            n_features=preparation.encoder.identity.n_features,
            has_network=isinstance(preparation.segmenter, NetworkSegmenter),
            on_gpu=torch.cuda.is_available(),
            resident_bytes=resident_bytes(),
        )
    )


def work_off(
    preparation: Preparation,
    parts: Parts,
    stages: list[Stage],
    shares: Shares,
    clock: Clock,
    on_progress: Progress | None,
) -> None:
    """Put the fields that no part has through the stages, and keep what comes as parts."""
    slide_id, n_fields = preparation.slide.slide_id, len(preparation.plan)
    missing = list(missing_runs(parts.spans(), n_fields, shares.fields_of_part))
    n_done = sum(stop - first for first, stop in parts.spans())
    n_nuclei = sum(n for (n,) in parts.shapes("field"))
    n_unreadable = sum(n for (n,) in parts.shapes("unreadable"))
    if on_progress and n_done:
        on_progress(n_done, n_fields, n_nuclei)
    items = [
        (i, range(i, min(i + shares.fields_at_once, run.stop)))
        for run in missing
        for i in range(run.start, run.stop, shares.fields_at_once)
    ]
    run_of_field = {i: run for run in missing for i in run}
    unfinished: dict[range, dict[int, FieldResult | None]] = {run: {} for run in missing}
    with closing(run_stages(items, stages, shares.depth, clock)) as line:
        for field, result in line:
            run = run_of_field[field]
            unfinished[run][field] = result
            if len(unfinished[run]) == len(run):
                with clock.at("writing", run.start):
                    parts.add(part_of(run, unfinished.pop(run)))
            n_done += 1
            n_nuclei += len(result.nuclei) if result else 0
            n_unreadable += result is None
            check_readable(slide_id, n_unreadable, n_fields)
            if on_progress:
                on_progress(n_done, n_fields, n_nuclei)


def missing_runs(spans: list[tuple[int, int]], n_fields: int, length: int) -> Iterator[range]:
    """The fields that no part has, in runs that end at every multiple of `length`.

    So the same runs are cut wherever the last call was killed.
    """
    ends = [*spans, (n_fields, n_fields)]
    first = 0
    for gap_end, next_first in ends:
        while first < gap_end:
            stop = min(gap_end, (first // length + 1) * length)
            yield range(first, stop)
            first = stop
        first = next_first


def part_of(run: range, results: dict[int, FieldResult | None]) -> Part:
    """All that a run of fields gave; those that could not be read gave None."""
    found = [one for one in results.values() if one is not None]
    unreadable = [field for field, one in results.items() if one is None]
    return make_part(run.start, run.stop, found, unreadable)


def check_readable(slide_id: str, n_unreadable: int, n_fields: int) -> None:
    """DataError if more than 1 % of the fields cannot be read."""
    if n_unreadable > MAX_UNREADABLE * n_fields:
        raise DataError(
            f"slide {slide_id}: {n_unreadable} of {n_fields} fields could not be read, at most "
            f"{100 * MAX_UNREADABLE:g} % may be left out; the file is broken, fetch it again"
        )


def check_crops(preparation: Preparation, parts: Parts) -> None:
    """DataError if the images that nuclei were described by are constant, or repeat each other."""
    tally = CropTally()
    columns = zip(parts.column("n_constant_crops"), parts.column("crop_hashes"), strict=True)
    for n_constant, hashes in columns:
        tally.merge(int(n_constant[0]), hashes)
    tally.check(f"slide {preparation.slide.slide_id}, crops of nuclei")


def to_cells(preparation: Preparation, found: SlideNuclei) -> Cells:
    """The nuclei of a slide as cells, if they hold up."""
    slide_id = preparation.slide.slide_id
    check_nuclei(slide_id, found.area_um2, preparation.searched_mm2, max(preparation.slide.mpp))
    check_features(found.features, f"slide {slide_id}, features of nuclei")
    cell_type = type_probability = None
    if preparation.given is not None:
        cell_type, type_probability = types_at(preparation.given, found.xy_um)
    cells = Cells(
        slide_id=slide_id,
        xy_um=found.xy_um,
        area_um2=found.area_um2,
        features=found.features,
        encoder_id=preparation.encoder_id,
        segmenter_id=preparation.segmenter_id,
        provenance=preparation.provenance,
        outlines=found.outlines,
        cell_type=cell_type,
        type_probability=type_probability,
    )
    release(cells.features)
    return cells


def to_tiles(preparation: Preparation, found: SlideSquares) -> Tiles:
    """The squares of a slide as tiles."""
    tiles = Tiles(
        slide_id=preparation.slide.slide_id,
        side_um=preparation.config.tile_side_um,
        xy_um=found.xy_um,
        features=found.features,
        colour=found.colour,
        encoder_id=preparation.encoder_id,
        provenance=preparation.provenance,
    )
    release(tiles.features)
    return tiles
