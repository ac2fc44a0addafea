"""GenePanel: which genes a matrix has, in which order, under which names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int

from histoscribe.data.checks import check_distinct, check_length
from histoscribe.errors import ConfigError, DataError

Namespace = Literal["ensembl", "symbol"]

VERSIONED = re.compile(r"ENS[A-Z]*\d{11}\.\d+")
"""A stable id with its version, e.g. ENSG00000075624.17."""


@dataclass(frozen=True)
class GenePanel:
    """An ordered list of distinct genes.

    `ids` is what genes are matched by: Ensembl ids without version where the source has them
    (`namespace="ensembl"`), else symbols (`namespace="symbol"`); `symbols` is for people.
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    namespace: Namespace

    def __post_init__(self) -> None:
        check_length("the symbols of a gene panel", self.symbols, len(self.ids))
        check_distinct("gene panel", self.ids, "column", "sum or drop the duplicates first")
        if self.namespace not in get_args(Namespace):
            raise DataError(
                f"gene namespace {self.namespace!r}; wanted one of {get_args(Namespace)}"
            )
        if self.namespace == "ensembl":
            versioned = next((gene for gene in self.ids if VERSIONED.fullmatch(gene)), None)
            if versioned:
                raise DataError(f"Ensembl id {versioned} carries a version; strip it first")

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, wanted: Sequence[str]) -> Int[np.ndarray, " wanted"]:
        """Position of each wanted id in this panel, -1 where absent."""
        row_of = {gene: row for row, gene in enumerate(self.ids)}
        return np.array([row_of.get(gene, -1) for gene in wanted], dtype=np.int64)

    def find(self, names: Sequence[str]) -> Int[np.ndarray, " found"]:
        """Positions of the genes of these ids or symbols, name by name, each once.

        Raises:
            ConfigError: If there is none of that name; the nearest are told.
        """
        rows: dict[int, None] = {}
        for name in names:
            found = [
                row
                for row, known in enumerate(zip(self.ids, self.symbols, strict=True))
                if name in known
            ]
            if not found:
                near = get_close_matches(name, (*self.symbols, *self.ids), n=3)
                known = ", ".join(near or self.symbols[:3])
                raise ConfigError(
                    f"gene {name!r} is not among the {len(self)} of the panel; "
                    f"{'the nearest are' if near else 'it has'} {known}"
                )
            rows.update(dict.fromkeys(found))
        return np.array(list(rows), dtype=np.int64)

    def take(self, rows: Int[np.ndarray, " gene"]) -> "GenePanel":
        """The panel of these rows, in this order."""
        return GenePanel(
            tuple(self.ids[row] for row in rows),
            tuple(self.symbols[row] for row in rows),
            self.namespace,
        )
