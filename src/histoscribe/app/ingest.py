"""Ingest: a manifest and its files, checked against each other, become a study."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from histoscribe.app.study import (
    Sample,
    Study,
    check_name,
    create_study,
    hash_input,
    open_study,
)
from histoscribe.data.atomic import put_in_place
from histoscribe.data.store import is_current, write_regions
from histoscribe.errors import DataError
from histoscribe.readers.manifest import SampleRow, read_manifest
from histoscribe.readers.nuclei_config import NucleiConfig
from histoscribe.readers.sample import read_sample
from histoscribe.slides.open import open_slide

STAGING = ".ingesting"


def ingest_manifest(
    manifest: Path, folder: Path, mpp: float | None, say: Callable[[str], None]
) -> Study:
    """Read every row of a manifest into a study folder.

    Nothing of the user's is moved or changed. A sample whose stored regions were made from the
    same files by the same settings is not written again. Nothing is put in place before every row
    has been read and checked.

    Args:
        manifest: The CSV; paths in it are relative to its folder.
        folder: The study; made if it is not there.
        mpp: µm per pixel for rows that do not give it; None leaves it to the slide files.
        say: Told one line for each sample.

    Raises:
        ConfigError: A sample's name cannot be a folder's, or the study is being written.
        DataError: The first thing that does not hold up; the study is then as it was.
    """
    rows = read_manifest(manifest)
    for row in rows:
        check_name(row.sample, "sample")
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / STAGING
    with Study(folder, ()).lock():
        shutil.rmtree(staging, ignore_errors=True)  # of an ingest that was killed
        try:
            samples = tuple(_ingest_row(row, folder, staging, mpp, say) for row in rows)
            _check_slides_differ(samples)
            _say_who_leaves(folder, samples, say)
            for sample in samples:
                put_in_place(staging / sample.sample, folder / "samples" / sample.sample)
            study = create_study(folder, samples)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        study.log("ingest", manifest=manifest.name, n_samples=len(samples))
    return study


def _ingest_row(
    row: SampleRow, folder: Path, staging: Path, mpp: float | None, say: Callable[[str], None]
) -> Sample:
    given_mpp = mpp if row.mpp is None else row.mpp  # 0 is no value to pass over, but to refuse
    slide = open_slide(row.slide, mpp=given_mpp, slide_id=row.sample)
    found = read_sample(row, slide)
    report: dict[str, Any] = {}
    text = "a slide without expression"
    if found is not None:
        regions, read_report = found
        report, text = asdict(read_report), read_report.describe()
        if not is_current(folder / "samples" / row.sample, "regions", regions.provenance):
            write_regions(regions, staging / row.sample)
    notes = "".join(f"; {note}" for note in slide.notes)
    say(f"{row.sample}: {text}, {slide.mpp[0]:.4g} µm/px{notes}")
    return Sample(
        sample=row.sample,
        patient=row.patient,
        slide=_relative(row.slide, folder),
        mpp=given_mpp,
        expression=_relative(row.expression, folder) if row.expression else None,
        spots=_relative(row.spots, folder) if row.spots else None,
        genes=_relative(row.genes, folder) if row.genes else None,
        platform=row.platform,
        inputs={column: hash_input(column, file) for column, file in row.files().items()},
        report=report,
        tissue=_relative(row.tissue, folder) if row.tissue else None,
        nuclei=_relative(row.nuclei, folder) if row.nuclei else None,
        nuclei_options=_given_options(row.nuclei_config, folder),
        profile=row.profile,
    )


def _given_options(config: NucleiConfig, folder: Path) -> dict[str, Any]:
    """What is not as it is by default, files relative to the study."""
    usual = NucleiConfig()
    given = {one.name: getattr(config, one.name) for one in fields(config)}
    return {
        name: _relative(value, folder) if isinstance(value, Path) else value
        for name, value in given.items()
        if value != getattr(usual, name)
    }


def _check_slides_differ(samples: tuple[Sample, ...]) -> None:
    """DataError if two slides are one by their content: it could be on both sides of a split."""
    first: dict[str, Sample] = {}
    for sample in samples:
        other = first.setdefault(sample.inputs["slide"], sample)
        if other is not sample:
            raise DataError(
                f"Samples '{other.sample}' and '{sample.sample}' have one slide: {other.slide} and "
                f"{sample.slide} hold the same bytes. Give each its own image, or remove a row."
            )


def _say_who_leaves(folder: Path, samples: tuple[Sample, ...], say: Callable[[str], None]) -> None:
    if not (folder / "study.json").exists():
        return
    stay = {sample.sample for sample in samples}
    leave = [old.sample for old in open_study(folder).samples if old.sample not in stay]
    if leave:
        say(f"no longer in the study, their stores are kept: {', '.join(leave)}")


def _relative(path: Path, folder: Path) -> str:
    """Relative, so that a study and its data can move together."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
