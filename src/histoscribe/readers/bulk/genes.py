"""Which genes a table of whole samples has: ids tidied, repeats summed, the rest left out."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from histoscribe.data.genes import GenePanel, Namespace
from histoscribe.errors import DataError
from histoscribe.readers.counts import MOSTLY

ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(\.\d+)?(_PAR_Y)?")
"""A stable id with its version, and GENCODE's mark of the copy on the Y chromosome."""

OLD_PAR_Y = re.compile(r"ENSGR(\d{10})(\.\d+)?")  # the same up to GENCODE 24
TALLY = re.compile(r"N_(unmapped|multimapping|noFeature|ambiguous)|__\w+")  # of STAR and HTSeq
ENTREZ_TAIL = re.compile(r"\|\d+$")  # TP53|7157, of TCGA's first pipelines
DATE = re.compile(
    r"\d{1,2}-(Mar|Sep|Dec|Apr|Oct|Nov|Feb)|(Mar|Sep|Dec|Apr|Oct|Nov|Feb)-\d{1,2}", re.I
)
NAMELESS = ("", "?", "NA", "nan")

TALLIES = "tallies of reads, no genes"
UNNAMED = "genes without a name"
DATES = "symbols that a spreadsheet made dates of"
NO_ENSEMBL = "names that are no Ensembl ids, in a table of them"
UNMEASURED = "genes without a value in any profile"


@dataclass(frozen=True)
class TidyGenes:
    """What became of the genes of a table.

    Attributes:
        panel: The genes, each once, in the order of their first row.
        values: Their expression, linear; NaN where it was not measured.
        summed: Genes that stood in several rows.
        dropped: What was left out, by reason.
    """

    panel: GenePanel
    values: Float64[np.ndarray, "profile gene"]
    summed: tuple[str, ...]
    dropped: dict[str, tuple[str, ...]]


def tidy_genes(
    names: Sequence[str],
    symbols: Sequence[str] | None,
    values: Float64[np.ndarray, "profile row"],
    path: Path,
) -> TidyGenes:
    """Genes by Ensembl id without version, or by symbol; each once.

    Where a gene stands in several rows (the copies of the pseudo-autosomal regions, a symbol of
    several loci) their expression is summed. Rows without any value take no part in it; a sum
    with a part that is not measured in a profile is not measured there.

    Args:
        names: Of the rows, as they stand.
        symbols: For people, where the names are Ensembl ids; None if there are none.
        values: Linear, NaN where nothing was measured.
        path: The file, for messages.

    Raises:
        DataError: No row names a gene, or the names are Entrez ids.
    """
    namespace = _namespace(names, path)
    tidied = [_tidy_name(name, namespace) for name in names]
    ids = [gene for gene, _ in tidied]
    is_measured = np.asarray((~np.isnan(values)).any(axis=0))
    reason = [why or UNMEASURED * (not is_measured[row]) for row, (_, why) in enumerate(tidied)]
    kept = np.array([row for row, why in enumerate(reason) if not why], dtype=np.int64)
    if len(kept) == 0:
        raise DataError(f"{path}: no gene is left of {len(names)} rows ({_tell(names, reason)})")
    gene_of_row = _number([ids[row] for row in kept])
    first: list[int] = kept[np.unique(gene_of_row, return_index=True)[1]].tolist()
    panel = GenePanel(
        tuple(ids[row] for row in first),
        tuple((symbols[row] if symbols else "") or ids[row] for row in first),
        namespace,
    )
    return TidyGenes(
        panel=panel,
        values=_sum(values, kept, gene_of_row),
        summed=tuple(panel.ids[gene] for gene in np.flatnonzero(np.bincount(gene_of_row) > 1)),
        dropped=_dropped(names, ids, reason),
    )


def _dropped(
    names: Sequence[str], ids: Sequence[str], reason: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Names left out, by reason; not those that another row measured."""
    has_row = {gene for gene, why in zip(ids, reason, strict=True) if not why}
    dropped: dict[str, list[str]] = {}
    for name, gene, why in zip(names, ids, reason, strict=True):
        if why and not (why == UNMEASURED and gene in has_row):
            dropped.setdefault(why, []).append(name)
    return {why: tuple(left_out) for why, left_out in dropped.items()}


def _namespace(names: Sequence[str], path: Path) -> Namespace:
    told = [name for name in names if name not in NAMELESS and not TALLY.fullmatch(name)]
    if not told:
        raise DataError(f"{path}: no row names a gene; wanted Ensembl ids or symbols")
    if sum(name.isdigit() for name in told) > MOSTLY * len(told):
        raise DataError(
            f"{path}: genes are named by numbers ({', '.join(told[:3])}), Entrez ids perhaps; "
            "wanted Ensembl ids or symbols"
        )
    n_ensembl = sum(_ensembl_id(name) is not None for name in told)
    return "ensembl" if n_ensembl > MOSTLY * len(told) else "symbol"


def _ensembl_id(name: str) -> str | None:
    if match := ENSEMBL.fullmatch(name):
        return match.group(1)
    old = OLD_PAR_Y.fullmatch(name)
    return f"ENSG0{old.group(1)}" if old else None


def _tidy_name(name: str, namespace: Namespace) -> tuple[str, str]:
    """The id of a gene, and "" or why it is none."""
    if TALLY.fullmatch(name):
        return name, TALLIES
    if namespace == "ensembl":
        found = _ensembl_id(name)
        return (found, "") if found else (name, NO_ENSEMBL if name not in NAMELESS else UNNAMED)
    symbol = ENTREZ_TAIL.sub("", name)
    if symbol in NAMELESS:
        return name, UNNAMED
    return symbol, DATES if DATE.fullmatch(symbol) else ""


def _number(ids: Sequence[str]) -> Int64[np.ndarray, " row"]:
    """A number for each row, the same for the same gene, in the order of their first rows."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(gene, len(number)) for gene in ids], dtype=np.int64)


def _sum(
    values: Float64[np.ndarray, "profile row"],
    kept: Int64[np.ndarray, " kept"],
    gene_of_row: Int64[np.ndarray, " kept"],
) -> Float64[np.ndarray, "profile gene"]:
    first = np.unique(gene_of_row, return_index=True)[1]
    summed = values[:, kept[first]]
    is_further = np.ones(len(kept), dtype=bool)
    is_further[first] = False
    for row in np.flatnonzero(is_further):
        summed[:, gene_of_row[row]] += values[:, kept[row]]
    return summed


def _tell(names: Sequence[str], reason: Sequence[str]) -> str:
    counted = Counter(reason)
    return "; ".join(f"{n} {why}, e.g. {names[reason.index(why)]!r}" for why, n in counted.items())
