"""Profiles: expression without an image (single cells, pseudobulk), with labels or text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64
from scipy.sparse import csr_array

from histoscribe.data.checks import (
    check_distinct,
    check_length,
    check_observed,
    check_vectors,
    freeze,
    tidy_expression,
)
from histoscribe.data.genes import GenePanel, Namespace
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import ExpressionUnit, check_unit
from histoscribe.errors import MismatchError

PER_ROW = ("label", "text", "text_key", "platform", "donor_id")


@dataclass(frozen=True)
class Profiles:
    """Expression profiles and what is said of them.

    Attributes:
        profile_id: One distinct name a profile.
        expression: profile x gene.
        expression_unit: Unit of `expression`.
        genes: Columns of the expression.
        gene_observed: Genes the platform could have seen.
        provenance: What made them.
        label: Cell type or annotation of each profile, or None.
        text: Free text of each profile, "" for one without, or None.
        text_key: A key into a table of texts, equal where they mean the same, "" for a profile
            without, or None.
        platform: What measured each profile, "" where it is not known; genes are standardised by
            it. Left out, it is known of none.
        donor_id: Who each profile is of, "" where it is not known or they are several; what
            splits are made by. Left out, it is known of none.
        features: A vector a profile that another model made of it, NaN for one without; or None.
        features_by: What those vectors are called; equal names are vectors of one model.
    """

    profile_id: tuple[str, ...]
    expression: csr_array
    expression_unit: ExpressionUnit
    genes: GenePanel
    gene_observed: Bool[np.ndarray, " gene"]
    provenance: Provenance
    label: tuple[str, ...] | None = None
    text: tuple[str, ...] | None = None
    text_key: tuple[str, ...] | None = None
    platform: tuple[str, ...] = ()
    donor_id: tuple[str, ...] = ()
    features: Float32[np.ndarray, "profile feature"] | None = None
    features_by: str | None = None

    def __post_init__(self) -> None:
        check_distinct("profile_id", self.profile_id, "row", "rename or drop the duplicates")
        check_unit(self.expression_unit)
        expression = tidy_expression(
            self.expression, self.expression_unit, self.profile_id, self.genes.ids
        )
        object.__setattr__(self, "expression", expression)
        check_observed(expression, self.gene_observed, self.genes.ids)
        for name in ("platform", "donor_id"):
            object.__setattr__(self, name, getattr(self, name) or ("",) * len(self))
        for name in PER_ROW:
            if getattr(self, name) is not None:
                check_length(name, getattr(self, name), len(self))
        if self.features is not None or self.features_by is not None:
            check_vectors(self.features_by, self.features, len(self))
        freeze(self, "gene_observed", "features")

    def __len__(self) -> int:
        return len(self.profile_id)

    def take(self, rows: Int[np.ndarray, " row"]) -> "Profiles":
        """These profiles, in this order."""
        names = {
            name: tuple(getattr(self, name)[row] for row in rows)
            for name in ("profile_id", *PER_ROW)
            if getattr(self, name) is not None
        }
        features = None if self.features is None else self.features[rows]
        return replace(
            self, **names, expression=csr_array(self.expression[rows]), features=features
        )

    def align(self, genes: GenePanel) -> "Profiles":
        """The same profiles with the columns of this panel; genes it lacks are not observed.

        Raises:
            MismatchError: If the panels name genes differently, or share none.
        """
        if genes.namespace != self.genes.namespace:
            raise MismatchError(
                f"genes are named by {self.genes.namespace} here and by {genes.namespace} in the "
                "panel asked for; rename one of them first"
            )
        old = self.genes.rows_of(genes.ids)
        new = np.flatnonzero(old >= 0)
        if not len(new):
            raise MismatchError(
                f"none of the {len(genes)} genes asked for is among the {len(self.genes)} here "
                f"(e.g. {', '.join(self.genes.ids[:3])})"
            )
        observed = np.zeros(len(genes), dtype=bool)
        observed[new] = self.gene_observed[old[new]]
        moved = _moving(old[new], new, (len(self.genes), len(genes)))
        return replace(
            self, genes=genes, gene_observed=observed, expression=csr_array(self.expression @ moved)
        )

    def rename(self, ids: Sequence[str], namespace: Namespace) -> "Profiles":
        """The same profiles with other names of genes.

        Genes of one new name are put together: their expression is summed, in linear units, and
        the gene counts as observed where each of them was.

        Args:
            ids: The new name of each gene.
            namespace: What kind of names they are.
        """
        check_length("the new names of genes", ids, len(self.genes))
        row_of = {gene: row for row, gene in enumerate(dict.fromkeys(ids))}
        column = np.array([row_of[gene] for gene in ids], dtype=np.int64)
        symbol_of = dict(zip(reversed(ids), reversed(self.genes.symbols), strict=True))
        panel = GenePanel(tuple(row_of), tuple(symbol_of[gene] for gene in row_of), namespace)
        if len(panel) == len(self.genes):
            return replace(self, genes=panel)
        observed = np.ones(len(panel), dtype=bool)
        np.logical_and.at(observed, column, self.gene_observed)
        old = np.flatnonzero(observed[column])
        adding = _moving(old, column[old], (len(self.genes), len(panel)))
        expression = csr_array(to_linear(self) @ adding)
        if self.expression_unit.startswith("log1p"):
            expression.data = np.log1p(expression.data)
        return replace(self, genes=panel, gene_observed=observed, expression=expression)


def to_linear(profiles: Profiles) -> csr_array:
    """The expression without its log, as float64; a copy."""
    linear = csr_array(profiles.expression, dtype=np.float64, copy=True)
    if profiles.expression_unit.startswith("log1p"):
        linear.data = np.expm1(linear.data)
    return linear


def _moving(
    old: Int64[np.ndarray, " moved"], new: Int64[np.ndarray, " moved"], shape: tuple[int, int]
) -> csr_array:
    """What moves columns by multiplication: old column i becomes, or is added to, new column j."""
    return csr_array((np.ones(len(old)), (old, new)), shape=shape)
