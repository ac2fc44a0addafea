"""What the GDC portal gives along with files: the sample sheet and the manifest."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from histoscribe.errors import DataError
from histoscribe.readers.tables import UNREADABLE, must_exist, unreadable
from histoscribe.readers.tcga_barcode import NORMAL, find_barcode

SHEET_COLUMNS = ("File Name", "Case ID", "Sample ID")
MANIFEST_COLUMNS = ("id", "filename", "md5", "size")

CODE_OF_WORDS = {
    "primary tumor": "01",
    "recurrent tumor": "02",
    "primary blood derived cancer - peripheral blood": "03",
    "recurrent blood derived cancer - bone marrow": "04",
    "additional - new primary": "05",
    "metastatic": "06",
    "additional metastatic": "07",
    "human tumor original cells": "08",
    "primary blood derived cancer - bone marrow": "09",
    "blood derived normal": "10",
    "solid tissue normal": "11",
    "buccal cell normal": "12",
    "ebv immortalized normal": "13",
    "bone marrow normal": "14",
    "control analyte": "20",
    "recurrent blood derived cancer - peripheral blood": "40",
    "cell lines": "50",
    "xenograft tissue": "60",
    "primary xenograft tissue": "60",
    "cell line derived xenograft tissue": "61",
}
"""Column Sample Type, in sheets up to 2024, and the code that it stands for."""

CODE_OF_DESCRIPTOR = {
    "primary": "01",
    "recurrence": "02",
    "new primary": "05",
    "metastatic": "06",
}
"""Column Tumor Descriptor of later sheets, where Tissue Type is Tumor."""


class SheetRow(NamedTuple):
    """Whose a file is.

    Attributes:
        file: Its name.
        case: The patient.
        sample: The sample.
        sample_type: Two digits, "" where nothing says it.
    """

    file: str
    case: str
    sample: str
    sample_type: str


class ManifestRow(NamedTuple):
    """What a file must be."""

    md5: str
    size: int


def read_sample_sheet(path: Path, ending: str) -> dict[str, SheetRow]:
    """Rows of the files with that ending, by file name.

    The sample type is what the TCGA barcode of the sample says; without one, what the columns
    Sample Type, or Tissue Type and Tumor Descriptor, say.

    Raises:
        DataError: No such rows, a file of several patients or samples, or twice, or a sample
            whose barcode and words disagree about normal tissue.
    """
    rows: dict[str, SheetRow] = {}
    for record in _records(path, SHEET_COLUMNS):
        name = record["File Name"]
        if not name.endswith(ending):
            continue
        case, sample = (
            _only_one(record[column], column, name, path) for column in SHEET_COLUMNS[1:]
        )
        row = SheetRow(name, case, sample, _sample_type(sample, record, path))
        if rows.setdefault(name, row) != row:
            raise DataError(
                f"{path}: {name} stands there twice, as {rows[name].sample} and {sample}"
            )
    if not rows:
        raise DataError(
            f"{path}: lists no file that ends in {ending}; give the sample sheet of the files of "
            "gene counts"
        )
    return rows


def read_gdc_manifest(path: Path, ending: str) -> dict[str, ManifestRow]:
    """MD5 and size of the files with that ending, by file name.

    Raises:
        DataError: No such rows, or a size that is no number.
    """
    rows = {}
    for record in _records(path, MANIFEST_COLUMNS):
        if not record["filename"].endswith(ending):
            continue
        if not record["size"].isdigit() or len(record["md5"]) != 32:
            raise DataError(
                f"{path}: {record['filename']} has md5 {record['md5']!r} and size "
                f"{record['size']!r}; give the manifest as the portal wrote it"
            )
        rows[record["filename"]] = ManifestRow(record["md5"].lower(), int(record["size"]))
    if not rows:
        raise DataError(f"{path}: lists no file that ends in {ending}")
    return rows


def _records(path: Path, wanted: Sequence[str]) -> list[dict[str, str]]:
    must_exist(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file, delimiter="\t") if any(line)]
    except (*UNREADABLE, csv.Error) as fault:
        raise unreadable(path, fault) from fault
    header = [name.strip() for name in lines[0]] if lines else []
    lacking = [name for name in wanted if name not in header]
    if lacking:
        raise DataError(
            f"{path}: no column {', '.join(lacking)}; wanted {', '.join(wanted)}, apart by tabs, "
            "as the GDC portal writes them"
        )
    short = [line for line in lines[1:] if len(line) < len(header)]
    if short:
        raise DataError(f"{path}: a line of {len(short[0])} of {len(header)} columns; is it whole?")
    return [
        {name: cell.strip() for name, cell in zip(header, line, strict=False)} for line in lines[1:]
    ]


def _only_one(text: str, column: str, name: str, path: Path) -> str:
    """The one name in a cell, where the portal may list one several times."""
    named = sorted({one.strip() for one in text.split(",")})
    if len(named) > 1 or not named[0]:
        raise DataError(
            f"{path}: {column} of {name} is {text!r}; wanted one. Remove the file from the sheet"
        )
    return named[0]


def _sample_type(sample: str, record: dict[str, str], path: Path) -> str:
    barcode = find_barcode(sample)
    told = _type_of_words(record, path)
    if barcode is None or not barcode.sample_type:
        return told
    if told and (told in NORMAL) != barcode.is_normal:
        raise DataError(
            f"{path}: sample {sample} is {barcode.sample_type} by its name and {told} by its "
            "words; correct the sheet"
        )
    return barcode.sample_type


def _type_of_words(record: dict[str, str], path: Path) -> str:
    """The code of what the sheet says of a sample; "" where it says nothing."""
    words = record.get("Sample Type", "").split(",")[0].strip()
    tissue, descriptor = (record.get(name, "") for name in ("Tissue Type", "Tumor Descriptor"))
    if words:
        code = CODE_OF_WORDS.get(words.lower())
    elif tissue.lower() == "normal":
        code = "11"
    else:
        words = f"{tissue}, {descriptor}".strip(", ")
        code = CODE_OF_DESCRIPTOR.get(descriptor.lower()) if tissue.lower() == "tumor" else None
    if words and code is None and find_barcode(record["Sample ID"]) is None:
        raise DataError(
            f"{path}: sample {record['Sample ID']} is of type {words!r}, which is not known; "
            "remove it from the sheet"
        )
    return code or ""
