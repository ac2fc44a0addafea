"""Checks that every table of counts owes, and the gene panel of its columns."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.errors import DataError

ENSEMBL_ID = re.compile(r"(ENS[A-Z]*G\d{11})(\.\d+)?")
MOSTLY = 0.5  # a table is in Ensembl ids when most of its names are


def distinct(names: Sequence[str], what: str, path: Path) -> None:
    """Refuse names that occur twice.

    Raises:
        DataError: Naming the first few.
    """
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        msg = (
            f"{path}: {len(twice)} {what} occur more than once (first: {', '.join(twice[:3])}); "
            f"wanted each once. Sum or remove the duplicates."
        )
        raise DataError(msg)


def checked_counts(
    counts: csr_array | Float64[np.ndarray, "spot gene"], names: Sequence[str], path: Path
) -> csr_array:
    """Counts as float32 CSR, having refused what is no count.

    Args:
        counts: As read.
        names: Name of each row, for the message.
        path: The file, for the message.

    Raises:
        DataError: Empty, missing, negative or fractional values, or nothing but zeros.
    """
    n_spots, n_genes = counts.shape or (0, 0)
    matrix = csr_array(counts)  # zeros are sound; only what is not zero is looked at
    values = matrix.data
    if n_spots * n_genes == 0:
        msg = f"{path}: empty counts, {n_spots} spots x {n_genes} genes."
        raise DataError(msg + " Give the table of raw counts.")
    faults = (
        (~np.isfinite(values), "missing or infinite", "raw counts without gaps"),
        (values < 0, "negative", "counts of 0 or more"),
        (values != np.rint(values), "not whole numbers", "raw counts, not normalised values"),
    )
    for is_wrong, came, wanted in faults:
        if is_wrong.any():
            first = int(np.argmax(is_wrong))
            row = int(np.searchsorted(matrix.indptr, first, side="right")) - 1
            msg = (
                f"{path}: {is_wrong.sum()} values are {came} (first: {values[first]:.6g} "
                f"in spot {names[row]}); wanted {wanted}. Give the table as the platform wrote it."
            )
            raise DataError(msg)
    if not values.any():
        msg = f"{path}: empty counts, all {n_spots * n_genes} are zero. Give the table of raw"
        raise DataError(msg + " counts.")
    return csr_array(matrix.astype(np.float32))


def gene_panel(names: Sequence[str], path: Path, symbol_of: Mapping[str, str]) -> GenePanel:
    """The panel of a table's columns.

    Ensembl ids lose their version; where most names are Ensembl ids they are the namespace,
    else the names are taken as symbols.

    Args:
        names: Names of the columns.
        path: The file, for the message.
        symbol_of: Symbol of each Ensembl id without version, as far as known.

    Raises:
        DataError: A gene occurs twice, also where only the versions differ.
    """
    matches = [ENSEMBL_ID.fullmatch(name) for name in names]
    if sum(match is not None for match in matches) <= MOSTLY * len(names):
        distinct(names, "genes", path)
        return GenePanel(tuple(names), tuple(names), "symbol")
    ids = tuple(
        match.group(1) if match else name for match, name in zip(matches, names, strict=True)
    )
    distinct(ids, "genes", path)
    return GenePanel(ids, tuple(symbol_of.get(gene, gene) for gene in ids), "ensembl")
