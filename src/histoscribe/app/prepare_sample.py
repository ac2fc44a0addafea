"""One sample prepared: the one way in which it is done, whichever process or machine does it."""

import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from histoscribe import __version__
from histoscribe.app.cohort import SampleRecord, SampleTask, failed
from histoscribe.app.faults import explain, worker_died
from histoscribe.app.study import Sample, Study, write_json
from histoscribe.app.workspace import Attempt, process_name
from histoscribe.data.cells import Cells
from histoscribe.data.regions import Regions
from histoscribe.data.store import is_current, read_regions, write_cells, write_tiles
from histoscribe.data.tiles import Tiles
from histoscribe.errors import ConfigError, HistoscribeError
from histoscribe.preprocess.artefacts import describe_artefacts
from histoscribe.preprocess.encoders.names import load_encoder
from histoscribe.preprocess.mask_geojson import read_mask
from histoscribe.preprocess.preparation import (
    GIVEN_MPP,
    Given,
    Preparation,
    PrepareConfig,
    check_together,
    load_segmenter,
    plan_preparation,
)
from histoscribe.preprocess.run import Outcome, carry_out
from histoscribe.readers.nuclei import read_nuclei
from histoscribe.slides.open import open_slide
from histoscribe.slides.pyramid import PyramidSlide

NOTE_EVERY_S = 0.5
MAX_NOTES = 20
AND_MORE = "further warnings are left out"


def prepare_sample(task: SampleTask) -> SampleRecord:
    """Prepare one sample, wherever this process runs.

    Returns:
        What became of it. Every failure is a record, too; only an interrupt is raised.
    """
    try:
        with task.workspace.lock():
            return _attempt(task)
    except Exception as error:  # noqa: BLE001 - one sample must not stop the others
        return failed(task, explain(error), 0)


def check_parts(config: PrepareConfig, samples: Sequence[Sample]) -> None:
    """Load segmenter and encoder once, so that what is wrong for all is said before any slide.

    The segmenter is wanted only if a sample comes without nuclei.

    Raises:
        ConfigError: They do not go together.
        MissingExtra: Weights that are not there.
    """
    has_nuclei = [sample.nuclei is not None for sample in samples]
    mpps = {GIVEN_MPP} if any(has_nuclei) else set()
    if not all(has_nuclei):
        mpps.add(load_segmenter(config.segmenter).mpp)
    load_encoder(config.encoder, config.view)
    for mpp in sorted(mpps):
        check_together(config, mpp)


def read_measured(study: Study, sample: Sample) -> Regions | None:
    """The regions of a sample, or None where nothing was measured."""
    return read_regions(study.folder_of(sample)) if sample.expression else None


def read_given(
    study: Study, sample: Sample, slide: PyramidSlide, scratch: Path, notes: list[str]
) -> Given:
    """Tissue mask and nuclei of a sample where its manifest row names them."""
    tissue = tissue_sha256 = nuclei = None
    if sample.tissue:
        tissue = read_mask(study.path_of(sample.tissue), slide)
        tissue_sha256 = sample.inputs["tissue"]
    if sample.nuclei:
        nuclei, report = read_nuclei(
            study.path_of(sample.nuclei), slide, study.nuclei_config_of(sample), scratch
        )
        notes.append(f"{report.n_kept:,} of {report.n_listed:,} given nuclei, {report.format}")
        notes += report.notes
    return Given(tissue, tissue_sha256 or "", nuclei)


def survey_notes(preparation: Preparation) -> list[str]:
    """What a person should know of the slide: its artefacts, and given nuclei that lie outside."""
    notes = [describe_artefacts(preparation.survey.artefacts)]
    if preparation.placed is not None and preparation.placed.n_outside:
        notes.append(f"{preparation.placed.n_outside:,} given nuclei lie outside the fields")
    return notes


def _attempt(task: SampleTask) -> SampleRecord:
    """One attempt at a sample, under its lock."""
    space, name = task.workspace, task.sample.sample
    last = space.last_attempt(task.run)
    if last and last.number >= task.attempts:  # Dask gave it out again after its worker died
        return failed(task, worker_died(last.number), last.number)
    attempt = space.begin(task.run)
    notes: list[str] = []
    outcomes: list[Outcome] = []
    if last and last.ended is None:
        notes.append(f"attempt {last.number}, {last.process}, ended without a word")
    started = time.monotonic()
    try:
        if task.version != __version__:
            raise ConfigError(
                f"{process_name()} runs histoscribe {__version__}, the command {task.version}. "
                "Give all machines the same environment."
            )
        with use_threads(task.budget.n_threads), gather_warnings(notes):
            stored, is_new = _prepare(task, notes, outcomes)
    except Exception as error:  # noqa: BLE001 - one sample must not stop the others
        return _give_up(task, attempt, error, notes)
    space.clear()
    n_unreadable = stored.get("n_unreadable", 0)
    if n_unreadable and not is_new:  # what is made now was warned of already
        notes.append(f"{n_unreadable} fields could not be read when it was prepared")
    return SampleRecord(
        sample=name,
        state="done" if is_new else "kept",
        stored=stored,
        seconds=time.monotonic() - started if is_new else None,
        attempts=attempt.number,
        notes=tuple(notes),
        worker=attempt.process,
        stages=outcomes[0].times.to_record() if outcomes else {},
        taken_up=outcomes[0].n_taken_up / outcomes[0].n_fields if outcomes else 1.0,
    )


def _prepare(
    task: SampleTask, notes: list[str], outcomes: list[Outcome]
) -> tuple[dict[str, Any], bool]:
    """What is stored of the sample then, and whether it was made now.

    The record is written before the stores and put in its place after them, so that a run killed
    between the two leaves what the next one needs.
    """
    study, sample, space = Study(task.folder, ()), task.sample, task.workspace
    space.note_progress(task.run, "planning")
    space.sweep()
    study.check_inputs(sample)
    slide = open_slide(study.path_of(sample.slide), mpp=sample.mpp, slide_id=sample.sample)
    notes += slide.notes
    given = read_given(study, sample, slide, space.folder, notes)
    preparation = plan_preparation(slide, read_measured(study, sample), task.config, given)
    notes += survey_notes(preparation)
    wanted = preparation.provenance
    if all(is_current(space.home, noun, wanted) for noun in ("cells", "tiles")):
        stored = study.prepared_record(sample)
        if stored and stored.get("key") == wanted.key:
            return stored, False
        if space.waiting_record().get("key") == wanted.key:
            return space.accept_record(), True
    cells, tiles = _carry_out(preparation, task, outcomes)
    space.note_progress(task.run, "writing")
    record = {
        "sample": sample.sample,
        "key": wanted.key,
        "n_nuclei": len(cells),
        "n_tiles": len(tiles),
        "tissue_mm2": round(preparation.searched_mm2, 4),
        "encoder_id": cells.encoder_id,
        "segmenter_id": cells.segmenter_id,
        "n_unreadable": outcomes[0].n_unreadable,
    }
    write_json(space.record, record)
    write_cells(cells, space.home)
    write_tiles(tiles, space.home)
    return space.accept_record(), True


def _carry_out(
    preparation: Preparation, task: SampleTask, outcomes: list[Outcome]
) -> tuple[Cells, Tiles]:
    """Do what was planned, and let whoever watches know how far it is."""
    space, last = task.workspace, -NOTE_EVERY_S

    def note(n_done: int, n_fields: int, n_nuclei: int) -> None:
        nonlocal last
        if time.monotonic() - last >= NOTE_EVERY_S:
            last = time.monotonic()
            if space.is_withdrawn(task.run):
                raise HistoscribeError("The command that asked for it was interrupted.")
            facts = {"done": n_done, "total": n_fields, "n_nuclei": n_nuclei}
            space.note_progress(task.run, "working", **facts)

    space.note_progress(task.run, "working")  # its own status.json says more
    return carry_out(
        preparation,
        workspace=space.parts,
        budget=replace(task.budget, n_threads=task.budget.n_threads or torch.get_num_threads()),
        on_progress=note,
        on_end=outcomes.append,
    )


def _give_up(
    task: SampleTask, attempt: Attempt, error: Exception, notes: Sequence[str]
) -> SampleRecord:
    """Make a failure a record; keep the traceback of a bug, and the parts that may still serve."""
    space, fault = task.workspace, explain(error)
    if fault.kind == "Bug":
        text = "".join(traceback.format_exception(error))
        space.fault_log.write_text(f"histoscribe {__version__}, {attempt.process}\n{text}")
        fault = replace(fault, mend=f"Send {space.fault_log} with your report.")
    space.end(attempt, fault.kind)
    record = failed(task, fault, attempt.number)
    return replace(record, notes=tuple(notes), worker=attempt.process)


@contextmanager
def use_threads(n_threads: int | None) -> Iterator[None]:
    """Let PyTorch use so many threads; None leaves what the process has."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def gather_warnings(notes: list[str]) -> Iterator[None]:
    """Add what the package warns of to the notes of the sample, instead of printing it."""

    class Gatherer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if len(notes) < MAX_NOTES:
                notes.append(record.getMessage())
            elif notes[-1] != AND_MORE:
                notes.append(AND_MORE)

    logger, handler = logging.getLogger("histoscribe"), Gatherer(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
