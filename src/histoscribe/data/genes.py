"""GenePanel: which genes a matrix has, in which order, under which names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

Namespace = Literal["ensembl", "symbol"]


@dataclass(frozen=True)
class GenePanel:
    """An ordered list of distinct genes.

    `ids` is what genes are matched by: Ensembl ids without version where the source has them
    (`namespace="ensembl"`), else symbols (`namespace="symbol"`); `symbols` is for people.
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    namespace: Namespace

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, wanted: Sequence[str]) -> Int[np.ndarray, " wanted"]:
        """Position of each wanted id in this panel, -1 where absent."""
        row_of = {gene: row for row, gene in enumerate(self.ids)}
        return np.array([row_of.get(gene, -1) for gene in wanted], dtype=np.int64)

    def take(self, rows: Int[np.ndarray, " gene"]) -> "GenePanel":
        """The panel of these rows, in this order."""
        return GenePanel(
            tuple(self.ids[row] for row in rows),
            tuple(self.symbols[row] for row in rows),
            self.namespace,
        )
