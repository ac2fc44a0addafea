"""What a Cox head sees of patients: any features, or signatures of predicted expression."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from histoscribe.data.checks import check_distinct, check_length
from histoscribe.data.genes import GenePanel
from histoscribe.errors import DataError, MismatchError
from histoscribe.readers.signatures import Signature

FLAT = 1e-6
"""Deviation, relative to the largest value, below which a predicted gene counts as constant."""


@runtime_checkable
class Covariates(Protocol):
    """What gives each patient a row of features; fitted, if at all, on training patients."""

    @property
    def patient_id(self) -> tuple[str, ...]:
        """Each patient once."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features."""
        ...

    def take(self, rows: Int[np.ndarray, " row"]) -> "Covariates":
        """These patients, in this order."""
        ...

    def seen_from(
        self, is_training: Bool[np.ndarray, " patient"]
    ) -> Float64[np.ndarray, "patient feature"]:
        """The features of all patients; whatever is fitted sees the training ones only."""
        ...


@dataclass(frozen=True, eq=False)
class PatientFeatures:
    """A matrix of patients and features: a pooled representation, or age and stage.

    Attributes:
        patient_id: Each patient once.
        names: Of the features.
        values: Their values.
        is_filled: Fill NaN with the mean of the training patients; else NaN is refused.
    """

    patient_id: tuple[str, ...]
    names: tuple[str, ...]
    values: Float[np.ndarray, "patient feature"]
    is_filled: bool = False

    def __post_init__(self) -> None:
        check_distinct("features", self.patient_id, "row", "keep one row a patient")
        check_length("features of patients", self.values, len(self.patient_id))
        check_length("names of features", self.names, self.values.shape[1])
        bad = np.isinf(self.values) if self.is_filled else ~np.isfinite(self.values)
        _refuse(bad, self.patient_id, self.names)

    def take(self, rows: Int[np.ndarray, " row"]) -> "PatientFeatures":
        """These patients, in this order."""
        patients = tuple(self.patient_id[row] for row in rows)
        return replace(self, patient_id=patients, values=self.values[rows])

    def seen_from(
        self, is_training: Bool[np.ndarray, " patient"]
    ) -> Float64[np.ndarray, "patient feature"]:
        """The values; gaps filled from the training patients.

        Raises:
            DataError: If no training patient has a value.
        """
        values = self.values.astype(np.float64)
        known = np.isfinite(values[is_training])
        if not known.any(axis=0).all():
            name = self.names[int((~known.any(axis=0)).argmax())]
            raise DataError(f"{name} is known of no training patient; leave it out")
        mean = np.where(known, values[is_training], 0.0).sum(axis=0) / known.sum(axis=0)
        return np.where(np.isfinite(values), values, mean)


@dataclass(frozen=True, eq=False)
class SignatureScores:
    r"""Signatures of expression: the mean over a signature's genes of their z-scores.

        s_i = 1/m sum_g (y[i, g] - mu_g) / sigma_g

    with mu and sigma of each gene over the training patients; a gene that is constant there adds 0.

    Attributes:
        patient_id: Each patient once.
        genes: Columns of the expression.
        expression: In a log space, predicted or measured.
        names: Of the signatures, in order.
        columns: Of each signature: the columns of its genes.
    """

    patient_id: tuple[str, ...]
    genes: GenePanel
    expression: Float[np.ndarray, "patient gene"]
    names: tuple[str, ...]
    columns: tuple[Int64[np.ndarray, " _"], ...]

    def __post_init__(self) -> None:
        check_distinct("expression", self.patient_id, "row", "keep one row a patient")
        check_length("expression of patients", self.expression, len(self.patient_id))
        check_length("genes", self.genes, self.expression.shape[1])
        check_length("columns of signatures", self.columns, len(self.names))
        _refuse(~np.isfinite(self.expression), self.patient_id, self.genes.ids)

    def take(self, rows: Int[np.ndarray, " row"]) -> "SignatureScores":
        """These patients, in this order."""
        patients = tuple(self.patient_id[row] for row in rows)
        return replace(self, patient_id=patients, expression=self.expression[rows])

    def alone(self, number: int) -> "SignatureScores":
        """One signature of them."""
        return replace(self, names=(self.names[number],), columns=(self.columns[number],))

    def seen_from(
        self, is_training: Bool[np.ndarray, " patient"]
    ) -> Float64[np.ndarray, "patient signature"]:
        """The scores of all patients, z-scored on the training ones."""
        y = self.expression.astype(np.float64)
        mean, deviation = y[is_training].mean(axis=0), y[is_training].std(axis=0)
        is_flat = deviation <= FLAT * np.abs(y[is_training]).max(axis=0)
        z = np.where(is_flat, 0.0, (y - mean) / np.where(is_flat, 1.0, deviation))
        return np.stack([z[:, columns].mean(axis=1) for columns in self.columns], axis=1)


def score_signatures(
    patient_id: Sequence[str],
    genes: GenePanel,
    expression: Float[np.ndarray, "patient gene"],
    signatures: Sequence[Signature],
) -> tuple[SignatureScores, dict[str, int]]:
    """Find the genes of each signature, by symbol or id.

    Args:
        patient_id: Each patient once.
        genes: Columns of the expression.
        expression: In a log space, predicted or measured.
        signatures: Their genes.

    Returns:
        The scores of the signatures of which a gene was found; and how many genes of each were.

    Raises:
        MismatchError: If no gene of any signature is among the columns.
    """
    columns = {signature.name: _columns_of(signature, genes) for signature in signatures}
    found = {name: len(rows) for name, rows in columns.items()}
    kept = tuple(name for name, n in found.items() if n)
    if not kept:
        example = signatures[0].genes[:3] if signatures else ()
        raise MismatchError(
            f"no gene of {len(signatures)} signatures ({', '.join(example)}, ...) is among the "
            f"{len(genes)} genes ({', '.join(genes.symbols[:3])}, ...); give signatures in the "
            "same names, or a larger gene panel"
        )
    scores = SignatureScores(
        tuple(patient_id), genes, expression, kept, tuple(columns[name] for name in kept)
    )
    return scores, found


def _columns_of(signature: Signature, genes: GenePanel) -> Int64[np.ndarray, " _"]:
    wanted = set(signature.genes)
    names = zip(genes.ids, genes.symbols, strict=True)
    return np.array(
        [column for column, pair in enumerate(names) if wanted & set(pair)], dtype=np.int64
    )


def _refuse(
    bad: Bool[np.ndarray, "patient feature"], patients: Sequence[str], names: Sequence[str]
) -> None:
    if bad.any():
        row, column = (int(place) for place in np.argwhere(bad)[0])
        raise DataError(
            f"{names[column]} of patient {patients[row]} is missing or not finite; fill it in or "
            "leave the patient out"
        )
