"""The manifest: one CSV row per section, paths relative to the manifest's own folder.

Columns: sample, patient, slide, mpp, expression; optional: platform (legacy-st, h5ad or bulk; one
of the first two by the ending where empty); spots, genes, diameter_um, pitch_um, min_counts, of
spots; profile, unit, log, of bulk; tissue (a mask as GeoJSON); nuclei (what another program
found), and nuclei_ before each option of `NucleiConfig`.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.bulk.units import BulkUnit, LogState
from histoscribe.readers.nuclei_config import (
    NUCLEI_COLUMNS,
    NUCLEI_FILES,
    OPTION_KINDS,
    NucleiConfig,
)
from histoscribe.readers.section import LEGACY_ST, VISIUM, SpotSizes

REQUIRED = ("sample", "patient", "slide", "mpp", "expression")
SIZES = ("diameter_um", "pitch_um", "min_counts")
MASKS = ("tissue", "nuclei", *NUCLEI_COLUMNS)
BULK = ("profile", "unit", "log")
OPTIONAL = ("platform", "spots", "genes", *SIZES, *BULK, *MASKS)
FILES = ("slide", "expression", "spots", "genes", "tissue", "nuclei")
FORBIDDEN_IN_NAME = ("/", "\\", ":", "..")  # a sample names a folder of the study
YES_NO = {"yes": True, "true": True, "no": False, "false": False}  # spreadsheets write TRUE

Platform = Literal["legacy-st", "h5ad", "bulk"]
DEFAULT_SIZES: dict[str, SpotSizes] = {"legacy-st": LEGACY_ST, "h5ad": VISIUM}


@dataclass(frozen=True)
class SampleRow:
    """One section of a study, paths absolute.

    Attributes:
        sample: Name of the section; its slide goes by it too.
        patient: What splits are made by.
        slide: The image.
        mpp: µm per pixel of the slide, or None to take what the file says.
        expression: The counts, or None for a slide to predict on.
        platform: How the counts are laid out, or None without counts.
        spots: The table of spots, for legacy-st.
        genes: A table of gene symbols, for legacy-st.
        sizes: Spot diameter, pitch and least counts, or None without spots.
        tissue: A tissue mask as GeoJSON, in place of the one that would be found.
        nuclei: Nuclei of another program, in place of those that would be found.
        nuclei_config: How they are to be read.
        profile: Which profile of the expression it goes with, for bulk, else None.
        unit: Unit of the expression once linear, for bulk; None to find it.
        log: What was done to its values, for bulk; None to find it.
    """

    sample: str
    patient: str
    slide: Path
    mpp: float | None
    expression: Path | None
    platform: Platform | None
    spots: Path | None
    genes: Path | None
    sizes: SpotSizes | None
    tissue: Path | None = None
    nuclei: Path | None = None
    nuclei_config: NucleiConfig = field(default_factory=NucleiConfig)
    profile: str | None = None
    unit: BulkUnit | None = None
    log: LogState | None = None

    def files(self) -> dict[str, Path]:
        """Every file of the row by its column."""
        found = {column: getattr(self, column) for column in FILES}
        found |= {
            column: getattr(self.nuclei_config, NUCLEI_COLUMNS[column]) for column in NUCLEI_FILES
        }
        return {column: file for column, file in found.items() if file is not None}


class Record(NamedTuple):
    """One row as text.

    Attributes:
        number: As a spreadsheet counts, the header being row 1.
        cells: Text of each column of the header.
        home: The manifest's folder.
    """

    number: int
    cells: dict[str, str]
    home: Path

    def at(self, column: str) -> str:
        """Where a fault lies, and what stands there."""
        return f"row {self.number}, column {column} ({self.cells.get(column, '')!r}):"


def read_manifest(path: str | Path) -> list[SampleRow]:
    """Read and check a manifest, all of it before anything is opened.

    Raises:
        DataError: One message that lists every fault with its row and column.
    """
    path = Path(path)
    records = _records(path)
    faults: list[str] = []
    rows = [_row(record, faults) for record in records]
    faults += _repeats(records, "sample", [record.cells["sample"] for record in records])
    faults += _repeats(records, "slide", [_place(record) for record in records])
    faults += _shared_profiles(records)
    if faults:
        listed = "\n  ".join(faults)
        msg = f"{path}: {len(faults)} fault(s) in the manifest; mend these rows:\n  {listed}"
        raise DataError(msg)
    return [row for row in rows if row is not None]


def write_manifest(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Write rows (as `her2st_manifest` makes them) as a manifest."""
    used = [name for name in (*REQUIRED, *OPTIONAL) if any(name in row for row in rows)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, used, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _records(path: Path) -> list[Record]:
    if not path.is_file():
        msg = f"{path}: no such manifest; wanted a CSV with the columns {', '.join(REQUIRED)}."
        raise DataError(msg)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write the mark
            lines = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as fault:
        msg = f"{path}: cannot be read as CSV ({fault}); save it as CSV in UTF-8."
        raise DataError(msg) from fault
    header = [name.strip() for name in lines[0]] if lines else []
    lacking = [name for name in REQUIRED if name not in header]
    unknown = [name for name in header if name not in (*REQUIRED, *OPTIONAL)]
    if lacking or unknown or len(set(header)) < len(header):
        msg = (
            f"{path}: the header is {', '.join(header) or 'empty'}; lacking: "
            f"{', '.join(lacking) or 'none'}; unknown: {', '.join(unknown) or 'none'}. Wanted "
            f"{', '.join(REQUIRED)}, and if needed {', '.join(OPTIONAL)}, each once."
        )
        raise DataError(msg)
    body = [
        Record(number, _cells(header, line), path.resolve().parent)
        for number, line in enumerate(lines[1:], start=2)
        if any(cell.strip() for cell in line)
    ]
    too_long = [
        str(number)
        for number, line in enumerate(lines[1:], start=2)
        if any(cell.strip() for cell in line[len(header) :])
    ]
    if too_long:
        msg = (
            f"{path}: more values than the {len(header)} columns in row {', '.join(too_long[:5])}; "
            "wanted one for each. Write numbers with a decimal point, and quote names with commas."
        )
        raise DataError(msg)
    if not body:
        msg = f"{path}: a header and no rows; wanted a row per section."
        raise DataError(msg)
    return body


def _cells(header: Sequence[str], line: Sequence[str]) -> dict[str, str]:
    padded = [*line, *[""] * len(header)]
    return {name: padded[at].strip() for at, name in enumerate(header)}


def _row(record: Record, faults: list[str]) -> SampleRow | None:
    n_before = len(faults)
    for column in ("sample", "patient", "slide"):
        if not record.cells[column]:
            faults.append(f"{record.at(column)} empty; wanted a value")
    if any(sign in record.cells["sample"] for sign in FORBIDDEN_IN_NAME):
        faults.append(f"{record.at('sample')} names a folder of the study; wanted no / \\ : or ..")
    files = {column: _file(record, column, faults) for column in FILES}
    platform = _platform(record, faults)
    if platform == "legacy-st" and not record.cells.get("spots"):
        faults.append(f"{record.at('spots')} empty; legacy-st needs the table of spots")
    mpp = _number(record, "mpp", faults, is_above_0=True)
    sizes = _sizes(record, platform, faults)
    bulk = _bulk(record, platform, faults)
    nuclei_config = _nuclei_config(record, faults)
    if len(faults) > n_before or files["slide"] is None:
        return None
    return SampleRow(
        sample=record.cells["sample"],
        patient=record.cells["patient"],
        slide=files["slide"],
        mpp=mpp,
        expression=files["expression"],
        platform=platform,
        spots=files["spots"],
        genes=files["genes"],
        sizes=sizes,
        tissue=files["tissue"],
        nuclei=files["nuclei"],
        nuclei_config=nuclei_config,
        **bulk,
    )


def _file(record: Record, column: str, faults: list[str]) -> Path | None:
    if not record.cells.get(column):
        return None
    file = record.home / record.cells[column]
    is_there = file.exists() if column == "slide" else file.is_file()  # OME-Zarr is a folder
    if not is_there:
        faults.append(f"{record.at(column)} no such file; wanted one, from {record.home}")
    return file


def _platform(record: Record, faults: list[str]) -> Platform | None:
    if not record.cells["expression"]:
        return None
    given = record.cells.get("platform")
    by_ending: Platform = "h5ad" if record.cells["expression"].endswith(".h5ad") else "legacy-st"
    for platform in get_args(Platform):
        if platform == (given or by_ending):
            return platform
    faults.append(f"{record.at('platform')} unknown; wanted {' or '.join(get_args(Platform))}")
    return None


def _nuclei_config(record: Record, faults: list[str]) -> NucleiConfig:
    n_before, given = len(faults), {}
    for column, name in NUCLEI_COLUMNS.items():
        if not record.cells.get(column):
            continue
        if not record.cells.get("nuclei"):
            faults.append(f"{record.at(column)} without a file of nuclei; fill the column nuclei")
        given[name] = _option(record, column, OPTION_KINDS[name], faults)
    if len(faults) == n_before:
        try:
            return NucleiConfig(**given)
        except ConfigError as fault:  # options that do not go together
            columns = ", ".join(column for column, name in NUCLEI_COLUMNS.items() if name in given)
            faults.append(f"row {record.number}, columns {columns}: {fault}")
    return NucleiConfig()


def _option(record: Record, column: str, kind: Any, faults: list[str]) -> Any:  # noqa: ANN401
    """The value of an option, as its kind wants it."""
    if kind is float:
        return _number(record, column, faults, is_above_0=True)
    if kind is Path:
        return _file(record, column, faults)
    text = record.cells[column]
    if kind is bool and text.lower() in YES_NO:
        return YES_NO[text.lower()]
    if kind is not bool and text in get_args(kind):
        return text
    wanted = "yes or no" if kind is bool else ", ".join(get_args(kind))
    faults.append(f"{record.at(column)} unknown; wanted {wanted}")
    return None


def _number(
    record: Record, column: str, faults: list[str], *, is_above_0: bool = False
) -> float | None:
    text = record.cells.get(column)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0 or (is_above_0 and number == 0):
        least = "above 0" if is_above_0 else "of 0 or more"
        faults.append(f"{record.at(column)} no number {least} (decimal point, not comma)")
        return None
    return number


def _sizes(record: Record, platform: Platform | None, faults: list[str]) -> SpotSizes | None:
    given = {column: _number(record, column, faults) for column in SIZES}
    if platform is None or platform not in DEFAULT_SIZES:
        return None
    wanted = {column: value for column, value in given.items() if value is not None}
    if not wanted.get("min_counts", 0.0).is_integer():
        faults.append(f"{record.at('min_counts')} no whole number")
    elif "min_counts" in wanted:
        wanted["min_counts"] = int(wanted["min_counts"])
    return replace(DEFAULT_SIZES[platform], **wanted)


def _bulk(record: Record, platform: Platform | None, faults: list[str]) -> dict[str, Any]:
    """What is said of a whole sample: its profile (the patient if empty), unit and log state."""
    is_bulk = platform == "bulk"
    if platform is not None:
        for column in ("spots", "genes", *SIZES) if is_bulk else BULK:
            if record.cells.get(column):
                whose = "spots" if is_bulk else "whole samples (platform bulk)"
                faults.append(f"{record.at(column)} is of {whose}; leave it empty")
    if not is_bulk:
        return {}
    return {
        "profile": record.cells.get("profile") or record.cells["patient"],
        "unit": _word(record, "unit", BulkUnit, faults),
        "log": _word(record, "log", LogState, faults),
    }


def _word(record: Record, column: str, kind: Any, faults: list[str]) -> str | None:  # noqa: ANN401
    text = record.cells.get(column)
    if text and text not in get_args(kind):
        faults.append(f"{record.at(column)} unknown; wanted {', '.join(get_args(kind))}")
    return text or None


def _shared_profiles(records: Sequence[Record]) -> list[str]:
    """A profile of two patients could be on both sides of a split."""
    first: dict[tuple[str, str], Record] = {}
    faults = []
    for record in records:
        if record.cells.get("platform") != "bulk" or not record.cells["expression"]:
            continue
        profile = record.cells.get("profile") or record.cells["patient"]
        other = first.setdefault((record.cells["expression"], profile), record)
        if other.cells["patient"] != record.cells["patient"]:
            faults.append(
                f"{record.at('profile')} is of patient {other.cells['patient']} in row "
                f"{other.number}; wanted one patient a profile"
            )
    return faults


def _place(record: Record) -> str:
    """Where a slide truly lies, whichever way it is written and whatever links lead there."""
    if not record.cells["slide"]:
        return ""
    file = record.home / record.cells["slide"]
    try:
        return str(file.resolve())
    except (OSError, RuntimeError, ValueError):  # no such place, links in a circle
        return str(file)


def _repeats(records: Sequence[Record], column: str, values: Sequence[str]) -> list[str]:
    """A sample twice would be one folder, a slide twice could be on both sides of a split."""
    first: dict[str, int] = {}
    return [
        f"{record.at(column)} already in row {first[value]}; wanted each once"
        for record, value in zip(records, values, strict=True)
        if value and first.setdefault(value, record.number) != record.number
    ]
