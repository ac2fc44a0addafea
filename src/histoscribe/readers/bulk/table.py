"""Tables of numbers as published: text of any kind or Parquet, with genes along either side."""

import csv
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Float64

from histoscribe.errors import DataError
from histoscribe.readers.counts import ENSEMBL_ID, MOSTLY, distinct
from histoscribe.readers.tables import UNREADABLE, must_exist, unreadable
from histoscribe.readers.tcga_barcode import BARCODE

ENSEMBL_HEADERS = ("ensemblid", "ensemblgeneid", "ensembl", "geneid", "id")
SYMBOL_HEADERS = ("hugosymbol", "genesymbol", "symbol", "genename", "gene", "name")
OTHER_HEADERS = (
    "entrezgeneid", "entrezid", "entrez", "description", "genetype", "genebiotype", "biotype",
    "transcriptids", "length", "genelength", "chromosome", "chr", "start", "end", "strand",
    "cytoband",
)  # fmt: skip
"""Headers of columns that say something of a gene and hold no expression, letters only."""

COMMON_GENES = {
    "ACTB", "GAPDH", "TP53", "MYC", "B2M", "EGFR", "ERBB2", "CD4", "CD8A", "CD3D", "PTPRC", "VIM",
    "KRT8", "KRT18", "COL1A1", "COL3A1", "FN1", "EEF1A1", "RPLP0", "TUBB", "HSP90AB1", "PTEN",
    "BRCA1", "KRAS", "MKI67", "EPCAM", "PECAM1", "STAT1", "ESR1", "A1BG", "A2M", "TSPAN6",
}  # fmt: skip
"""Genes that most tables have, in capitals: they tell a table of symbols from its transpose."""

GENE_HEADERS = {*ENSEMBL_HEADERS, *SYMBOL_HEADERS} - {"id", "name"}
"""Headers that no column of profiles has."""

MISSING = ["", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "None", "[Not Available]"]
BLOCK_BYTES = 1 << 26  # a line of 20,000 genes is to lie in one block
SHEETS = (".xlsx", ".xls", ".ods")


class RawTable(NamedTuple):
    """A table as it stands.

    Attributes:
        rows: What stands in each leading column, by its header in letters and digits only; the
            first names the rows.
        columns: Headers of the columns of numbers.
        values: The numbers, NaN where a cell is empty.
    """

    rows: Mapping[str, tuple[str, ...]]
    columns: tuple[str, ...]
    values: Float64[np.ndarray, "row column"]


@dataclass(frozen=True)
class GeneTable:
    """A table whose sides are known.

    Attributes:
        path: The file.
        gene: Name of each gene as it stands.
        symbol: Symbol of each gene where the table names both, or None.
        profile: Name of each profile, all different.
        values: As they stand, NaN where a cell is empty.
        is_gene_in_row: Whether genes were its rows.
    """

    path: Path
    gene: tuple[str, ...]
    symbol: tuple[str, ...] | None
    profile: tuple[str, ...]
    values: Float64[np.ndarray, "profile gene"]
    is_gene_in_row: bool


def read_gene_table(path: Path) -> GeneTable:
    """A matrix of genes and profiles, whichever are its rows.

    Genes are told by Ensembl ids, by a header that says so (Hugo_Symbol, gene_id, ...), by TCGA
    barcodes along the other side, or by symbols that most tables have.

    Args:
        path: .csv (commas), other text (tabs), either with .gz, or .parquet.

    Raises:
        DataError: It cannot be read, holds no numbers, or does not show which side the genes are.
    """
    raw = _read_parquet(path) if path.suffix == ".parquet" else _read_text(path)
    headers = list(raw.rows)
    if _are_genes_in_rows(path, raw):
        gene, symbol = _name_genes(raw.rows)
        distinct(raw.columns, "profiles", path)
        return GeneTable(path, gene, symbol, raw.columns, raw.values.T, True)
    if len(headers) > 1:
        raise DataError(
            f"{path}: genes are its columns, and column {headers[1]} names something else; remove "
            "it, so that one column names the profiles and the others are genes"
        )
    profiles = raw.rows[headers[0]]
    distinct(profiles, "profiles", path)
    return GeneTable(path, raw.columns, None, profiles, raw.values, False)


def _are_genes_in_rows(path: Path, raw: RawTable) -> bool:
    """Which side the genes are on."""
    names = next(iter(raw.rows.values()))
    in_row = any(_is_ensembl(column) for column in raw.rows.values()), _is_barcode(raw.columns)
    in_column = _is_ensembl(raw.columns), _is_barcode(names)
    for by_row, by_column in zip(in_row, in_column, strict=True):
        if by_row != by_column:
            return by_row
    if set(raw.rows) & GENE_HEADERS:
        return True
    n_row, n_column = (
        sum(one.upper() in COMMON_GENES for one in side) for side in (names, raw.columns)
    )
    if (n_row > 0) != (n_column > 0):
        return n_row > 0
    raise DataError(
        f"{path}: neither its rows ({', '.join(names[:3])}, ...) nor its columns "
        f"({', '.join(raw.columns[:3])}, ...) can be told to be genes; name the column of genes "
        "gene_id (Ensembl) or gene_symbol"
    )


def _name_genes(
    rows: Mapping[str, tuple[str, ...]],
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """What genes are matched by: Ensembl ids if there are any, else symbols; and the symbols."""
    ensembl = next((header for header, names in rows.items() if _is_ensembl(names)), None)
    symbol = next((header for header in SYMBOL_HEADERS if header in rows), None)
    if ensembl is None:
        return rows[symbol or next(iter(rows))], None
    return rows[ensembl], rows[symbol] if symbol and symbol != ensembl else None


def _is_ensembl(names: Sequence[str]) -> bool:
    return sum(ENSEMBL_ID.match(name) is not None for name in names) > MOSTLY * len(names)


def _is_barcode(names: Sequence[str]) -> bool:
    return sum(BARCODE.match(name) is not None for name in names) > MOSTLY * len(names)


def _letters(header: str) -> str:
    return re.sub(r"[^a-z0-9]", "", header.lower())


def _n_leading(headers: Sequence[str]) -> int:
    """How many columns come before the numbers: the first, and those that describe genes."""
    known = {*ENSEMBL_HEADERS, *SYMBOL_HEADERS, *OTHER_HEADERS}
    n = 1
    while n < len(headers) and _letters(headers[n]) in known:
        n += 1
    return n


def _read_text(path: Path) -> RawTable:
    must_exist(path)
    if path.suffix.lower() in SHEETS:
        raise DataError(f"{path}: a spreadsheet; save it as CSV")
    try:
        headers, separator, n_skipped = _read_header(path)
    except UNREADABLE as fault:
        raise unreadable(path, fault) from fault
    if "tpm_unstranded" in headers:
        raise DataError(
            f"{path}: GDC's gene counts of one sample; give the folder of such files, with "
            "--sample-sheet"
        )
    n_leading = _n_leading(headers)
    if n_leading >= len(headers):
        raise DataError(
            f"{path}: one column ({', '.join(headers)}); wanted a name and numbers in each line, "
            "set apart by commas (.csv) or tabs"
        )
    places = [str(n) for n in range(len(headers))]
    kinds = {one: pa.string() if int(one) < n_leading else pa.float64() for one in places}
    try:
        table = pyarrow.csv.read_csv(
            path,
            pyarrow.csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, skip_rows=n_skipped, column_names=places
            ),
            pyarrow.csv.ParseOptions(delimiter=separator),
            pyarrow.csv.ConvertOptions(column_types=kinds, null_values=MISSING),
        )
    except (pa.ArrowException, *UNREADABLE) as fault:
        raise _explain(path, headers, fault) from fault
    return _from_arrow(path, table, headers, n_leading)


def _read_header(path: Path) -> tuple[list[str], str, int]:
    """Headers, what sets them apart, and how many lines to skip to the first line of numbers.

    Lines that begin with # are passed over; a header that R wrote lacks the first name.
    """
    opener = gzip.open if path.suffix == ".gz" else Path.open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        n_skipped, line = 1, file.readline()
        while line.startswith("#") or (line and not line.strip()):
            n_skipped, line = n_skipped + 1, file.readline()
        following = file.readline()
    separator = "\t" if "\t" in line else ","
    headers, first = (next(csv.reader([one], delimiter=separator), []) for one in (line, following))
    if not first:
        raise DataError(f"{path}: empty, no line of numbers; wanted genes and profiles")
    if len(headers) == len(first) - 1:
        headers = ["", *headers]
    return [name.strip() for name in headers], separator, n_skipped


def _explain(path: Path, headers: Sequence[str], fault: Exception) -> DataError:
    """Arrow's fault in our words."""
    text = str(fault)
    cell = re.search(r"column #(\d+):.*invalid value '(.*)'", text)
    if cell is not None:
        place, value = int(cell.group(1)), cell.group(2)
        return DataError(
            f"{path}: {value[:40]!r} in column {headers[place]!r} is no number (decimal point, not "
            "comma); wanted expression, and empty cells where none was measured"
        )
    ragged = re.search(r"Expected (\d+) columns, got (\d+): (.{0,40})", text)
    if ragged is not None:
        wanted, came, line = ragged.groups()
        return DataError(
            f"{path}: {wanted} columns in the first line, {came} in the line {line!r}...; wanted "
            "one value for each. Is the file whole?"
        )
    return unreadable(path, fault)


def _read_parquet(path: Path) -> RawTable:
    must_exist(path)
    try:
        table = pyarrow.parquet.read_table(path)
    except (pa.ArrowException, *UNREADABLE) as fault:
        raise unreadable(path, fault) from fault
    index = [name for name in _pandas_index(table) if name in table.column_names]
    table = table.select([*index, *(name for name in table.column_names if name not in index)])
    headers = ["" if name.startswith("__index_level") else name for name in table.column_names]
    if not headers or pa.types.is_primitive(table.schema.types[0]):
        raise DataError(
            f"{path}: no first column of text that names its rows; write the table with its index"
        )
    return _from_arrow(path, table, headers, _n_leading(headers))


def _pandas_index(table: pa.Table) -> list[str]:
    """The columns that pandas wrote its index to, at the end of the table."""
    metadata = (table.schema.metadata or {}).get(b"pandas")
    entries: list[Any] = json.loads(metadata)["index_columns"] if metadata else []
    return [one for one in entries if isinstance(one, str)]


def _from_arrow(path: Path, table: pa.Table, headers: Sequence[str], n_leading: int) -> RawTable:
    values = np.empty((table.num_rows, len(headers) - n_leading))
    if values.size == 0:
        raise DataError(
            f"{path}: {table.num_rows} rows and {values.shape[1]} columns of numbers; wanted genes "
            "and profiles"
        )
    for place in range(values.shape[1]):
        column = table.column(n_leading + place)
        try:
            values[:, place] = column.cast(pa.float64()).to_numpy()
        except pa.ArrowException as fault:
            raise DataError(
                f"{path}: column {headers[n_leading + place]!r} holds no numbers ({column.type}); "
                "remove it"
            ) from fault
    rows = {
        _letters(headers[place]): tuple(
            "" if name is None else str(name).strip() for name in table.column(place).to_pylist()
        )
        for place in range(n_leading)
    }
    return RawTable(rows, tuple(headers[n_leading:]), values)
