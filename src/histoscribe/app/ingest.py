"""Ingest: a manifest and its files, checked against each other, become a study."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from histoscribe.app.study import Sample, Study, create_study
from histoscribe.data.store import hash_file, is_current, write_regions
from histoscribe.readers.manifest import SampleRow, read_manifest
from histoscribe.readers.sample import read_sample
from histoscribe.slides.open import open_slide

FILES = ("slide", "expression", "spots", "genes")


def ingest_manifest(
    manifest: Path, folder: Path, mpp: float | None, say: Callable[[str], None]
) -> Study:
    """Read every row of a manifest into a study folder.

    Nothing of the user's is moved or changed. A sample whose stored regions were made from the
    same files by the same settings is not written again.

    Args:
        manifest: The CSV; paths in it are relative to its folder.
        folder: The study; made if it is not there.
        mpp: µm per pixel for rows that do not give it; None leaves it to the slide files.
        say: Told one line for each sample.

    Raises:
        DataError: The first thing that does not hold up; the study is then as it was.
    """
    rows = read_manifest(manifest)
    samples = tuple(_ingest_row(row, folder, mpp, say) for row in rows)
    study = create_study(folder, samples)
    study.log("ingest", manifest=manifest.name, n_samples=len(samples))
    return study


def _ingest_row(
    row: SampleRow, folder: Path, mpp: float | None, say: Callable[[str], None]
) -> Sample:
    given_mpp = mpp if row.mpp is None else row.mpp  # 0 is no value to pass over, but to refuse
    slide = open_slide(row.slide, mpp=given_mpp, slide_id=row.sample)
    found = read_sample(row, slide)
    report: dict[str, Any] = {}
    home = folder / "samples" / row.sample
    if found is not None:
        regions, read_report = found
        report = asdict(read_report)
        home.mkdir(parents=True, exist_ok=True)
        if not is_current(home, "regions", regions.provenance):
            write_regions(regions, home)
    text = (
        f"{report['n_kept']} of {report['n_selected']} spots, {report['n_genes']} genes"
        if report
        else "a slide without expression"
    )
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
        inputs={name: hash_file(file) for name in FILES if (file := getattr(row, name))},
        report=report,
    )


def _relative(path: Path, folder: Path) -> str:
    """Relative, so that a study and its data can move together."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
