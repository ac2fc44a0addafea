"""Prepare: the nuclei and tiles of every sample of a study, each made once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from histoscribe.app.cohort import (
    CohortConfig,
    SampleRecord,
    SampleTask,
    name_run,
    raise_failures,
    run_cohort,
)
from histoscribe.app.cohort_report import write_summary
from histoscribe.app.console import Voice
from histoscribe.app.prepare_sample import check_parts, prepare_sample, read_measured
from histoscribe.app.study import Sample, Study
from histoscribe.app.watch import watch
from histoscribe.app.workers import open_workers
from histoscribe.data.cells import Cells
from histoscribe.data.regions import Regions
from histoscribe.data.store import read_cells, read_tiles
from histoscribe.errors import DataError, MismatchError
from histoscribe.preprocess.line.budget import Budget
from histoscribe.preprocess.preparation import CENTRES, PrepareConfig, hash_centres
from histoscribe.train.assemble import SlideData


def prepare_study(
    study: Study,
    config: PrepareConfig,
    names: Sequence[str],
    voice: Voice,
    cohort: CohortConfig = CohortConfig(),  # noqa: B008 - frozen
) -> list[SampleRecord]:
    """Segment and describe samples; those that are stored from the same input are kept.

    A sample that fails stops no other. Whatever happens, prepare-summary.* in the study says what
    became of each.

    Args:
        study: The study, locked by the caller.
        config: How.
        names: Samples; all if empty.
        voice: Told what happens.
        cohort: On what.

    Returns:
        What became of each sample, in the order of the study.

    Raises:
        ConfigError, MissingExtra: Settings, weights or workers without which no sample can be
            prepared; none was begun.
        CohortError: Some of several samples failed.
        HistoscribeError: The only sample failed.
    """
    samples = [study.find(name) for name in names] or list(study.samples)
    wanted = {sample.sample for sample in samples}  # one asked for twice is done once
    tasks = _tasks(study, [one for one in study.samples if one.sample in wanted], config, cohort)
    records = {t.sample.sample: SampleRecord(t.sample.sample, "not tried", {}) for t in tasks}
    with ExitStack() as stack:
        workers = stack.enter_context(open_workers(cohort, study.folder.resolve(), voice.say))
        workers.call(check_parts, config, [task.sample for task in tasks])
        stack.enter_context(withdrawing(tasks))
        stack.enter_context(watch(tasks, voice))
        write_summary(study, records, is_finished=False)
        for record in run_cohort(workers, prepare_sample, tasks):
            records[record.sample] = record
            _tell(study, record, voice)
            write_summary(study, records, is_finished=False)
    write_summary(study, records, is_finished=True)
    raise_failures(list(records.values()))
    return list(records.values())


@contextmanager
def withdrawing(tasks: Sequence[SampleTask]) -> Iterator[None]:
    """Tell workers that go on after an interrupt, those of a cluster, that nobody waits."""
    try:
        yield
    except BaseException:
        for task in tasks:
            task.workspace.withdraw(task.run)
        raise


def load_slide(
    study: Study, sample: Sample, make_regions: Callable[[Cells], Regions] | None = None
) -> SlideData:
    """All that is stored of a sample, if it is of what was last ingested.

    Args:
        study: The study.
        sample: One of its samples.
        make_regions: Makes regions on the cells, in place of those that were measured.

    Raises:
        DataError: A step was not run; its command is named.
        MismatchError: The sample was ingested anew, from another slide, scale or table of spots,
            since its nuclei were found; or regions are to be made on a part of a slide.
    """
    if study.prepared_record(sample) is None:
        raise DataError(
            f"Sample '{sample.sample}' is not prepared. Run 'histoscribe prepare {study.folder}'."
        )
    regions = read_measured(study, sample)
    if regions is None and make_regions is None:
        raise DataError(
            f"Sample '{sample.sample}' has no regions: its manifest row names no expression. It "
            "can be predicted with --regions grid or --regions sample, and not be trained or "
            "tested on."
        )
    home = study.folder_of(sample)
    cells, tiles = read_cells(home), read_tiles(home)
    if regions is not None and not set(regions.provenance.inputs.values()) <= set(
        sample.inputs.values()
    ):
        raise MismatchError(
            f"The regions of sample '{sample.sample}' were not read from the files that the study "
            "names: an ingest was interrupted. Run 'histoscribe ingest' again, then 'prepare'."
        )
    other = _what_changed(sample, cells, regions)
    if tiles.provenance.key != cells.provenance.key:
        other = "settings (its tiles and its cells are of two runs of prepare)"
    if other:
        raise MismatchError(
            f"The nuclei of sample '{sample.sample}' are of another {other} than was ingested "
            f"last. Run 'histoscribe prepare {study.folder}' again."
        )
    if make_regions is not None:
        if CENTRES in cells.provenance.inputs:
            raise MismatchError(
                f"Sample '{sample.sample}' was prepared around its spots only; regions elsewhere "
                f"want the whole slide. Run 'histoscribe prepare {study.folder}' without "
                "--around-regions, or take the regions as measured."
            )
        regions = make_regions(cells)
    assert regions is not None
    return SlideData(cells, tiles, regions)


def _what_changed(sample: Sample, cells: Cells, regions: Regions | None) -> str:
    """What the cells were made from that is no longer so, in words; "" if nothing."""
    made = cells.provenance
    if made.inputs.get("slide") != sample.inputs["slide"]:
        return "slide file"
    mpp = _ingested_mpp(sample, regions)
    if mpp is not None and made.settings.get("slide_mpp") != mpp:
        return f"scale ({made.settings.get('slide_mpp')} µm/px against {mpp})"
    if made.inputs.get("tissue") != sample.inputs.get("tissue"):
        return "tissue mask"
    roles = {"nuclei", *(role for role in made.inputs if role.startswith("nuclei_"))}
    if any(made.inputs.get(role) != sample.inputs.get(role) for role in roles):
        return "file of nuclei"
    centres = made.inputs.get(CENTRES)
    if regions is None:
        return "" if centres is None else "table of spots"
    if centres is not None and centres != hash_centres(regions.xy_um):
        return "table of spots"
    return ""


def _ingested_mpp(sample: Sample, regions: Regions | None) -> list[float] | None:
    """µm per pixel (x, y) by which the sample was ingested; None where its file says it."""
    if regions is not None:
        return regions.provenance.settings.get("mpp")
    return None if sample.mpp is None else [sample.mpp, sample.mpp]


def _tasks(
    study: Study, samples: Sequence[Sample], config: PrepareConfig, cohort: CohortConfig
) -> list[SampleTask]:
    run, folder = name_run(), study.folder.resolve()
    name, _, source = config.encoder.partition(":")
    if source and Path(source).exists():  # workers stand in other folders
        config = replace(config, encoder=f"{name}:{Path(source).absolute()}")
    return [
        SampleTask(
            folder=folder,
            sample=sample,
            config=config,
            run=run,
            attempts=1 + cohort.retries,
            budget=Budget(cohort.memory_gb, cohort.threads_each),
        )
        for sample in samples
    ]


def _tell(study: Study, record: SampleRecord, voice: Voice) -> None:
    """One line for people, and one in the log unless nothing was done."""
    stored, fault = record.stored, record.fault
    if fault is not None:
        facts = {"kind": fault.kind, "message": fault.message}
        study.log("prepare", sample=record.sample, state="failed", attempt=record.attempts, **facts)
        voice.warn(f"{record.sample} failed: {fault.kind}: {fault.message}")
        return
    if record.state == "kept":
        voice.say(f"{record.sample}: {stored.get('n_nuclei', '?')} nuclei, as stored")
        return
    seconds = record.seconds or 0.0
    study.log(
        "prepare",
        sample=record.sample,
        seconds=round(seconds, 1),
        n_nuclei=stored["n_nuclei"],
        attempt=record.attempts,
        stages=record.stages,
    )
    voice.say(
        f"{record.sample}: {stored['n_nuclei']:,} nuclei in {stored['tissue_mm2']:.2f} mm² of "
        f"tissue by {stored['segmenter_id']}, {seconds:.0f} s"
    )
    for note in record.notes:
        voice.say(f"{record.sample}: {note}")
