"""Gene signatures: named lists of genes, from GMT, JSON or CSV."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from histoscribe.errors import DataError
from histoscribe.readers.packed import open_text

COLUMNS = ("signature", "gene")


@dataclass(frozen=True)
class Signature:
    """A named list of genes.

    Attributes:
        name: What it is called.
        genes: Symbols or Ensembl ids, each once.
    """

    name: str
    genes: tuple[str, ...]


def read_signatures(path: Path) -> tuple[Signature, ...]:
    """Read a file of gene lists, told by its ending.

    - .gmt, as of MSigDB: a line a signature, by tabs: name, description, genes
    - .json: an object of name -> list of genes
    - .csv or .tsv with the columns signature and gene: a line for each gene

    Raises:
        DataError: Missing, of another format, empty, or a name that stands twice.
    """
    readers = {".gmt": _read_gmt, ".json": _read_json, ".csv": _read_table, ".tsv": _read_table}
    if path.suffix not in readers:
        raise DataError(f"{path}: signatures are read from {', '.join(readers)}; give one of these")
    with open_text(path) as text:
        content = text.read()
    if not content.strip():
        raise DataError(f"{path}: an empty file; wanted at least one signature")
    found = list(readers[path.suffix](path, content))
    names = [name for name, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: signature {twice} stands twice; rename one")
    return tuple(Signature(name, _distinct(path, name, genes)) for name, genes in found)


def _read_gmt(path: Path, content: str) -> Iterable[tuple[str, Sequence[str]]]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) < 3:
            raise DataError(
                f"{path}: line {number} has {len(cells)} field(s); GMT wants name, description "
                "and genes, by tabs"
            )
        yield cells[0], cells[2:]


def _read_json(path: Path, content: str) -> Iterable[tuple[str, Sequence[str]]]:
    try:
        record = json.loads(content)
    except ValueError as fault:
        raise DataError(f"{path}: no JSON ({fault}); write it anew") from fault
    if not isinstance(record, dict):
        raise DataError(f"{path}: wanted an object of name -> list of genes")
    for name, genes in record.items():
        if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
            raise DataError(f"{path}: signature {name} is {genes!r}; wanted a list of gene names")
        yield name, genes


def _read_table(path: Path, content: str) -> Iterable[tuple[str, Sequence[str]]]:
    rows = csv.DictReader(content.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ",")
    lacking = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if lacking:
        raise DataError(
            f"{path}: no column {' and '.join(lacking)}; wanted {' and '.join(COLUMNS)}, found "
            f"{', '.join(rows.fieldnames or ())}"
        )
    genes_of: dict[str, list[str]] = {}
    for row in rows:
        genes_of.setdefault((row["signature"] or "").strip(), []).append(row["gene"] or "")
    return genes_of.items()


def _distinct(path: Path, name: str, genes: Sequence[str]) -> tuple[str, ...]:
    """The genes, each once; empty cells at the end of a line are no genes."""
    kept = tuple(dict.fromkeys(gene.strip() for gene in genes if gene.strip()))
    if not name.strip() or not kept:
        raise DataError(f"{path}: signature {name!r} has no name or no genes; mend or remove it")
    return kept
