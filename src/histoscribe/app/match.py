"""Match: expression of whole samples and slides become a table and a manifest of both."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from histoscribe.app.doctor_patients import slides_below
from histoscribe.app.study import check_name, write_text
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.bulk.expression import (
    PLATFORM,
    BulkExpression,
    BulkReport,
    is_ours,
    read_expression,
    write_expression,
)
from histoscribe.readers.bulk.gdc import read_gdc_star
from histoscribe.readers.bulk.matrix import read_bulk_matrix
from histoscribe.readers.bulk.slides import SlideMatch, match_slides
from histoscribe.readers.bulk.units import BulkUnit, LogState
from histoscribe.readers.manifest import write_manifest
from histoscribe.readers.tcga_barcode import check_sample_types, check_slide_types

EXPRESSION, MANIFEST, REPORT = "expression.parquet", "manifest.csv", "match.json"


@dataclass(frozen=True)
class MatchConfig:
    """How expression and slides are brought together.

    Attributes:
        unit: Of the expression once linear; None to find it (tpm of GDC's files).
        log: What was done to its values; None to find it.
        sample_types: Of TCGA, the preferred first.
        slide_types: Of TCGA.
        sample_sheet: Whose each file of a GDC folder is.
        gdc_manifest: What was downloaded from GDC.
        patients: CSV that says whose each slide is.
        mpp: µm per pixel of the slides, in place of what their files say.
    """

    unit: BulkUnit | None = None
    log: LogState | None = None
    sample_types: tuple[str, ...] = ("01",)
    slide_types: tuple[str, ...] = ("DX",)
    sample_sheet: Path | None = None
    gdc_manifest: Path | None = None
    patients: Path | None = None
    mpp: float | None = None

    def __post_init__(self) -> None:
        check_sample_types(self.sample_types)
        check_slide_types(self.slide_types)
        if self.mpp is not None and not 0 < self.mpp < math.inf:
            raise ConfigError(f"--mpp {self.mpp}: µm per pixel above 0 are wanted")


@dataclass(frozen=True)
class Matched:
    """What `match_cohort` did.

    Attributes:
        report: What was read of the expression.
        slides: What became of the slides.
        manifest: The manifest that was written.
    """

    report: BulkReport
    slides: SlideMatch
    manifest: Path

    def lines(self) -> list[str]:
        """The same for people, a line each."""
        return [*self.report.lines(), *self.slides.lines()]


def match_cohort(
    expression: Path, slides: Sequence[Path], out: Path, config: MatchConfig
) -> Matched:
    """Write expression.parquet, manifest.csv and match.json of a cohort.

    The Parquet holds every profile, linear; the manifest the slides that go with one, by paths
    relative to it; match.json what was left out, averaged and found. Nothing of the user's is
    changed.

    Args:
        expression: A matrix, a folder of GDC's gene counts, or an expression.parquet.
        slides: Slides, or folders of them at any depth.
        out: The folder to write.
        config: How.

    Raises:
        ConfigError: Options that do not go together, or a manifest is there.
        DataError: As the readers have it; or no slide goes with a profile.
    """
    if (out / MANIFEST).exists():
        raise ConfigError(
            f"{out / MANIFEST} exists, and may be edited by hand; name another folder with --out"
        )
    found = _find_slides(slides)
    table, report = _read(expression, config)
    matched = match_slides(
        found,
        table,
        slide_types=config.slide_types,
        sample_types=config.sample_types,
        patients=config.patients,
    )
    for one in matched.matched:
        check_name(one.sample, "sample")
    out.mkdir(parents=True, exist_ok=True)
    write_expression(table, out / EXPRESSION)
    record = {
        "expression": asdict(report),
        "slides": {**asdict(matched), "matched": [one._asdict() for one in matched.matched]},
    }
    text = json.dumps(record, indent=1, sort_keys=True, default=_relative_to(out)) + "\n"
    write_text(out / REPORT, text)
    rows = [
        {
            "sample": one.sample,
            "patient": one.patient,
            "slide": _relative_to(out)(one.path),
            "mpp": "" if config.mpp is None else repr(config.mpp),
            "expression": EXPRESSION,
            "platform": PLATFORM,
            "profile": one.profile,
        }
        for one in matched.matched
    ]
    write_manifest(rows, out / MANIFEST)
    return Matched(report, matched, out / MANIFEST)


def _find_slides(paths: Sequence[Path]) -> list[Path]:
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise DataError(f"{missing[0]}: no such slide or folder of slides")
    found = [slide for path in paths for slide in slides_below(path)]
    if not found:
        raise DataError(
            f"{', '.join(map(str, paths))}: no slide in it; name slides or their folder"
        )
    return found


def _read(path: Path, config: MatchConfig) -> tuple[BulkExpression, BulkReport]:
    """The expression by what it is: a folder of GDC's, what was written here, or a matrix."""
    if path.is_dir():
        if config.sample_sheet is None:
            raise ConfigError(
                f"{path} is a folder, of GDC's gene counts: their names do not say whose they are. "
                "Give --sample-sheet, which the GDC portal writes for the files in the cart"
            )
        if config.log not in (None, "none"):
            raise ConfigError(f"--log {config.log}: GDC's gene counts are linear; leave it out")
        return read_gdc_star(
            path,
            config.sample_sheet,
            manifest=config.gdc_manifest,
            unit=config.unit or "tpm",
            sample_types=config.sample_types,
        )
    if config.sample_sheet or config.gdc_manifest:
        raise ConfigError(
            f"{path} is a matrix; --sample-sheet and --gdc-manifest go with a folder of GDC's files"
        )
    if path.is_file() and is_ours(path):
        return _read_again(path, config)
    return read_bulk_matrix(
        path, unit=config.unit, log=config.log, sample_types=config.sample_types
    )


def _read_again(path: Path, config: MatchConfig) -> tuple[BulkExpression, BulkReport]:
    """An expression.parquet, to which other slides are matched."""
    table = read_expression(path)
    if config.unit not in (None, table.unit) or config.log not in (None, "none"):
        raise ConfigError(f"{path} is in {table.unit}, linear; leave out --unit and --log")
    wrong = {one for one in table.sample_type if one} - set(config.sample_types)
    if wrong:
        raise ConfigError(
            f"{path} holds profiles of sample type {', '.join(sorted(wrong))}; name them with "
            "--sample-type, or make the table anew"
        )
    written = "'histoscribe match' wrote it so"
    return table, BulkReport(
        layout="an expression.parquet",
        n_listed=len(table),
        n_profiles=len(table),
        n_genes=len(table.genes),
        unit=table.unit,
        unit_reason=written,
        log="none",
        log_reason=written,
        n_missing=int(np.isnan(table.values).sum()),
        summed=(),
        averaged={},
        dropped={},
        notes=(),
    )


def _relative_to(folder: Path):  # noqa: ANN202 - a writer of paths, for json and rows
    """What writes a path relative to a folder, so that both can move together."""

    def write(path: Path) -> str:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()

    return write
