"""Tab- and comma-separated tables, with every way they fail told in our words."""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64

from histoscribe.errors import DataError

UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, pd.errors.ParserError)


class CountTable(NamedTuple):
    """A table of numbers with named rows and columns."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Float64[np.ndarray, "row column"]


def read_table(path: Path, wanted: tuple[str, ...]) -> pd.DataFrame:
    """A small table with a header; .csv by commas, anything else by tabs.

    Raises:
        DataError: Missing, unreadable, empty, or without one of the wanted columns.
    """
    must_exist(path)
    try:
        table = pd.read_csv(path, sep=_separator(path), low_memory=False)
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    except UNREADABLE as fault:
        raise unreadable(path, fault) from fault
    lacking = [name for name in wanted if name not in table.columns]
    if lacking:
        msg = (
            f"{path}: no column {', '.join(lacking)}; wanted {', '.join(wanted)}, found "
            f"{', '.join(map(str, table.columns[:8])) or 'none'}. Rename the columns."
        )
        raise DataError(msg)
    if table.empty:
        msg = f"{path}: a header and no rows; wanted at least one."
        raise DataError(msg)
    return table


def read_count_table(path: Path) -> CountTable:
    """A table of numbers: first line the column names, first cell of a line the row's name.

    The first cell of all may be empty or, as R writes it, missing. Names are taken as they stand
    (pandas would rename duplicates, and be slower on such wide tables).

    Raises:
        DataError: Missing, unreadable, empty, ragged, or with a cell that is no number.
    """
    must_exist(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            lines = [line for line in file.read().splitlines() if line.strip()]
    except UNREADABLE as fault:
        raise unreadable(path, fault) from fault
    if len(lines) < 2:
        msg = f"{path}: empty counts, no row of values. Give the table of raw counts."
        raise DataError(msg)
    separator = _separator(path)
    header = [name.strip('"') for name in lines[0].split(separator)]
    names, values = [], []
    for number, line in enumerate(lines[1:], start=2):
        name, *cells = line.split(separator)
        if len(header) not in (len(cells), len(cells) + 1):
            msg = (
                f"{path}: {len(header)} names in the first line, {len(cells)} values in line "
                f"{number}; wanted a value for each name. Is the file whole?"
            )
            raise DataError(msg)
        names.append(name.strip('"'))
        values.append(_numbers(path, number, cells))
    if len({len(row) for row in values}) > 1:
        msg = f"{path}: lines of different length; wanted a value for each name. Is it whole?"
        raise DataError(msg)
    return CountTable(tuple(names), tuple(header[-len(values[0]) :]), np.stack(values))


def _numbers(path: Path, number: int, cells: list[str]) -> Float64[np.ndarray, " column"]:
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        pass
    try:
        return np.array([cell.strip() or "nan" for cell in cells], dtype=np.float64)
    except ValueError as fault:
        msg = f"{path}: a cell of line {number} is no number ({fault}); wanted raw counts."
        raise DataError(msg) from fault


def _separator(path: Path) -> str:
    return "," if ".csv" in path.suffixes[-2:] else "\t"


def must_exist(path: Path) -> None:
    """DataError if there is no such file."""
    if not path.is_file():
        msg = f"{path}: no such file. Check the path (in a manifest, relative to its folder)."
        raise DataError(msg)


def unreadable(path: Path, fault: Exception) -> DataError:
    """What a file that cannot be read as a table is refused with."""
    text = " ".join(str(fault).split())
    return DataError(f"{path}: cannot be read as a table ({text}). Copy it again from its source.")
