"""Profiles: expression without an image (single cells, pseudobulk), with labels or text."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy.sparse import csr_array

from histoscribe.data.checks import (
    check_distinct,
    check_length,
    check_observed,
    freeze,
    tidy_expression,
)
from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import ExpressionUnit, check_unit


@dataclass(frozen=True)
class Profiles:
    """Expression profiles and what is said of them.

    Attributes:
        profile_id: One distinct name a profile.
        expression: profile x gene.
        expression_unit: Unit of `expression`.
        genes: Columns of the expression.
        gene_observed: Genes the platform could have seen.
        label: Cell type or annotation of each profile, or None.
        text: Free text of each profile, or None.
        provenance: What made them.
    """

    profile_id: tuple[str, ...]
    expression: csr_array
    expression_unit: ExpressionUnit
    genes: GenePanel
    gene_observed: Bool[np.ndarray, " gene"]
    provenance: Provenance
    label: tuple[str, ...] | None = None
    text: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_distinct("profile_id", self.profile_id, "row", "rename or drop the duplicates")
        check_unit(self.expression_unit)
        expression = tidy_expression(
            self.expression, self.expression_unit, self.profile_id, self.genes.ids
        )
        object.__setattr__(self, "expression", expression)
        check_observed(expression, self.gene_observed, self.genes.ids)
        for name in ("label", "text"):
            if getattr(self, name) is not None:
                check_length(name, getattr(self, name), len(self))
        freeze(self, "gene_observed")

    def __len__(self) -> int:
        return len(self.profile_id)
