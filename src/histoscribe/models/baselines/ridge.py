r"""Ridge regression in closed form, for many genes and many penalties at once.

    z = (x - mean) / scale          W = argmin |Y - Z W - b|^2 + alpha |W|^2

Source: Hoerl and Kennard 1970. The penalty is chosen by leaving out one group (a section, a
patient) at a time, then everything is fitted again on all rows. With more features than rows the
rows' Gram matrix is solved instead: same answer, smaller.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64

from histoscribe.errors import DataError, MismatchError

ALPHAS = tuple(float(alpha) for alpha in 10.0 ** np.arange(-1, 7.5, 0.5))
"""Penalties tried by default; features have unit variance, so they count in rows."""

FLAT = 1e-6
"""Deviation below which a feature is taken as constant."""


@dataclass(frozen=True)
class RidgeFit:
    """A fitted ridge.

    Attributes:
        mean: Of each feature over the training rows.
        scale: Deviation of each feature over the training rows; 1 for constant ones.
        weights: Of the standardised features.
        intercept: Mean of each target.
        alpha: The penalty that was chosen.
        score_of_alpha: Inner score of every penalty, in the order given; empty if there was no
            choice.
    """

    mean: Float64[np.ndarray, " feature"]
    scale: Float64[np.ndarray, " feature"]
    weights: Float64[np.ndarray, "feature target"]
    intercept: Float64[np.ndarray, " target"]
    alpha: float
    score_of_alpha: tuple[float, ...]

    def predict(
        self, features: Float[np.ndarray, "row feature"]
    ) -> Float64[np.ndarray, "row target"]:
        """Targets of these rows.

        Raises:
            MismatchError: If they have another number of features.
        """
        if features.shape[1] != len(self.mean):
            raise MismatchError(
                f"the ridge was fitted on {len(self.mean)} features, these rows have "
                f"{features.shape[1]}"
            )
        return ((features - self.mean) / self.scale) @ self.weights + self.intercept


@dataclass(frozen=True)
class _Solver:
    """The eigenvectors from which the answer for every penalty follows."""

    rows: Float64[np.ndarray, "row feature"]
    vectors: Float64[np.ndarray, "n n"]
    values: Float64[np.ndarray, " n"]
    projected: Float64[np.ndarray, "n target"]

    def weights(self, alpha: float) -> Float64[np.ndarray, "feature target"]:
        solved = self.vectors @ (self.projected / (self.values + alpha)[:, None])
        return self.rows.T @ solved if self.is_dual else solved

    @property
    def is_dual(self) -> bool:
        return self.rows.shape[1] > len(self.rows)


def fit_ridge(
    features: Float[np.ndarray, "row feature"],
    targets: Float[np.ndarray, "row target"],
    groups: Sequence[str] | np.ndarray,
    alphas: Sequence[float] = ALPHAS,
    *,
    choose_by: Literal["pcc", "mse"] = "pcc",
) -> RidgeFit:
    """Fit on all rows, with the penalty that does best on groups left out.

    Args:
        features: One row a region; standardised here, on the rows that are fitted on.
        targets: One column a gene.
        groups: Group of each row; with one alpha it is not looked at.
        alphas: Penalties to choose from.
        choose_by: "pcc" takes the mean over left-out groups of the mean over genes of the Pearson
            correlation within the group, what models are scored by; "mse" the squared error.

    Raises:
        DataError: If something is not finite, or there is nothing to choose with.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    _check(x, y, groups, alphas)
    scores: tuple[float, ...] = ()
    alpha = alphas[0]
    if len(alphas) > 1:
        scores = _score_alphas(x, y, np.asarray(groups), alphas, choose_by)
        alpha = alphas[int(np.argmax(scores))]
    mean, scale = _standards(x)
    intercept = y.mean(axis=0)
    weights = _solver((x - mean) / scale, y - intercept).weights(alpha)
    return RidgeFit(mean, scale, weights, intercept, float(alpha), scores)


def _score_alphas(
    x: Float64[np.ndarray, "row feature"],
    y: Float64[np.ndarray, "row target"],
    groups: np.ndarray,
    alphas: Sequence[float],
    choose_by: str,
) -> tuple[float, ...]:
    """Mean over left-out groups of the score of each penalty; higher is better."""
    scores = np.zeros(len(alphas))
    names = np.unique(groups)
    for name in names:
        train, out = groups != name, groups == name
        mean, scale = _standards(x[train])
        intercept = y[train].mean(axis=0)
        solver = _solver((x[train] - mean) / scale, y[train] - intercept)
        rows = (x[out] - mean) / scale
        # One product for all penalties: their answers differ in the eigenvalues only.
        across = (rows @ solver.rows.T if solver.is_dual else rows) @ solver.vectors
        for i, alpha in enumerate(alphas):
            answer = across @ (solver.projected / (solver.values + alpha)[:, None]) + intercept
            score = _mean_pcc if choose_by == "pcc" else _minus_mse
            scores[i] += score(answer, y[out]) / len(names)
    return tuple(scores.tolist())


def _solver(
    rows: Float64[np.ndarray, "row feature"], targets: Float64[np.ndarray, "row target"]
) -> _Solver:
    is_dual = rows.shape[1] > len(rows)
    gram = rows @ rows.T if is_dual else rows.T @ rows
    values, vectors = np.linalg.eigh(gram)
    projected = vectors.T @ (targets if is_dual else rows.T @ targets)
    return _Solver(rows, vectors, values.clip(min=0), projected)


def _standards(
    x: Float64[np.ndarray, "row feature"],
) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
    scale = x.std(axis=0)
    return x.mean(axis=0), np.where(scale < FLAT, 1.0, scale)


def _mean_pcc(
    answer: Float64[np.ndarray, "row target"], target: Float64[np.ndarray, "row target"]
) -> float:
    """Genes that are constant in the group do not count; constant answers count 0."""
    a, t = answer - answer.mean(axis=0), target - target.mean(axis=0)
    aa, tt = (a * a).sum(axis=0), (t * t).sum(axis=0)
    counts = tt / len(t) > 1e-12
    if not counts.any():
        return 0.0
    norm = np.sqrt(aa * tt)
    r = np.divide((a * t).sum(axis=0), norm, out=np.zeros_like(norm), where=norm > 1e-12)
    return float(r[counts].mean())


def _minus_mse(
    answer: Float64[np.ndarray, "row target"], target: Float64[np.ndarray, "row target"]
) -> float:
    return -float(((answer - target) ** 2).mean())


def _check(
    x: np.ndarray, y: np.ndarray, groups: Sequence[str] | np.ndarray, alphas: Sequence[float]
) -> None:
    if len(x) != len(y) or len(x) != len(groups):
        raise DataError(
            f"{len(x)} rows of features, {len(y)} of targets and {len(groups)} groups; "
            "give one of each for every region"
        )
    if len(x) < 2:
        raise DataError(f"{len(x)} rows; a ridge needs at least two regions")
    for name, values in (("features", x), ("targets", y)):
        if not np.isfinite(values).all():
            raise DataError(f"{name} are not all finite; leave out regions without cells or counts")
    if not alphas or not all(np.isfinite(a) and a > 0 for a in alphas):
        raise DataError(f"alphas = {tuple(alphas)}; give at least one, all above 0")
    if len(alphas) > 1 and len(np.unique(np.asarray(groups))) < 2:
        raise DataError("all rows are of one group; give two groups, or one alpha")
