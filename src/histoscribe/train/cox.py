r"""Cox's proportional hazards on the features of patients, with a ridge penalty.

    z = (x - mean) / scale        hazard(t | x) = h0(t) exp(z . b)
    b = argmin  -l(Z b) / n + (penalty / 2) |b|^2

with l the log partial likelihood of `partial_likelihood`, n the number of patients, mean and scale
those of the training patients. Sources: Cox 1972; Breslow 1974; the ridge, Verweij and van
Houwelingen 1994. The penalty counts for each patient, so that it means the same in any cohort.

The minimum is found by Newton's method with halved steps. Z is rotated to its principal axes
first, where a problem of more features than patients is no larger than the patients; the answer is
the same, as neither l nor |b| sees a rotation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Real

from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.train.partial_likelihood import RiskSets

PENALTIES = tuple(float(penalty) for penalty in 10.0 ** np.arange(-3, 2.6, 0.5))
"""Tried by default: from hardly any shrinkage of ten features to none left of hundreds."""

FLAT = 1e-6
"""Deviation, relative to the largest value, that float32 rounding makes of a constant column."""

STEEP = 1e-9
"""Largest slope (per patient) that counts as the bottom."""

MAX_STEPS = 100
NEGLIGIBLE = 1e-10
"""Axes this much shorter than the longest are rounding."""

Days = Real[np.ndarray, " _"]
Events = Bool[np.ndarray, " _"] | Real[np.ndarray, " _"]
"""Death 1, censored 0, of any numeric type; lengths and values are checked in our own words."""


@dataclass(frozen=True)
class CoxConfig:
    """How a Cox head is fitted.

    Attributes:
        penalties: Ridge penalties to choose from; one is taken as it is.
        n_folds: Parts of the training patients that are left out in turn to choose.
        seed: What deals the patients to these parts.
    """

    penalties: tuple[float, ...] = PENALTIES
    n_folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.penalties or not all(np.isfinite(p) and p > 0 for p in self.penalties):
            raise ConfigError(f"penalties = {self.penalties}; give at least one, all above 0")
        if self.n_folds < 2 or self.seed < 0:
            raise ConfigError(
                f"n_folds = {self.n_folds}, seed = {self.seed}; give two folds or more, and a "
                "seed of 0 or more"
            )


@dataclass(frozen=True, eq=False)
class CoxHead:
    """A fitted Cox model.

    Attributes:
        names: Of the features, in the order they are wanted.
        mean: Of each feature over the training patients.
        scale: Deviation of each over the training patients.
        coefficients: Log hazard ratio for one deviation of each feature.
        penalty: The ridge penalty.
        time_days: The distinct times of death of the training patients.
        cumulative_hazard: Breslow's, of a patient with mean features, at these times.
        score_of_penalty: (penalty, cross-validated log partial likelihood) of all that were
            tried; empty if there was no choice.
    """

    names: tuple[str, ...]
    mean: Float64[np.ndarray, " feature"]
    scale: Float64[np.ndarray, " feature"]
    coefficients: Float64[np.ndarray, " feature"]
    penalty: float
    time_days: Float64[np.ndarray, " death_time"]
    cumulative_hazard: Float64[np.ndarray, " death_time"]
    score_of_penalty: tuple[tuple[float, float], ...] = ()

    def risk(self, features: Float[np.ndarray, "row _"]) -> Float64[np.ndarray, " row"]:
        """Log hazard ratio of each row to a patient with mean features; higher dies sooner.

        Raises:
            MismatchError: If the rows have another number of features.
            DataError: If a value is not finite.
        """
        if features.shape[1] != len(self.names):
            raise MismatchError(
                f"the Cox head was fitted on {len(self.names)} features "
                f"({', '.join(self.names[:3])}, ...), these rows have {features.shape[1]}; give "
                "it what it was fitted on"
            )
        x = np.asarray(features, dtype=np.float64)
        _check_finite(x, self.names)
        return ((x - self.mean) / self.scale) @ self.coefficients

    def survival(
        self, features: Float[np.ndarray, "row _"], times_days: Float[np.ndarray, " time"]
    ) -> Float64[np.ndarray, "row time"]:
        """Probability of being alive after these times: exp(-H0(t) exp(risk)).

        H0 rises in steps at the times of death; after the last one it stays, which is no forecast.

        Raises:
            DataError: If a time is negative or not finite, or a feature not finite.
        """
        times = np.asarray(times_days, dtype=np.float64)
        if not (np.isfinite(times) & (times >= 0)).all():
            raise DataError("times of survival are negative or not finite; give days of 0 or more")
        steps = np.concatenate([[-np.inf], np.log(self.cumulative_hazard)])
        log_hazard = steps[np.searchsorted(self.time_days, times, side="right")]
        # beyond exp(700) nobody is alive, and float64 ends
        return np.exp(-np.exp((log_hazard + self.risk(features)[:, None]).clip(max=700.0)))


def fit_cox(
    features: Float[np.ndarray, "patient _"],
    time_days: Days,
    event: Events,
    names: Sequence[str] | None = None,
    config: CoxConfig | None = None,
) -> CoxHead:
    """Fit on these patients, with the penalty that does best on patients left out.

    The penalty has the highest cross-validated log partial likelihood, the sum over parts f of
    l(b without f; all patients) - l(b without f; all patients without f): what the patients of f
    add to it. Source: Verweij and van Houwelingen 1993. Features are standardised anew without
    each part.

    Args:
        features: One row a patient.
        time_days: Follow-up of each patient, until death or the last contact.
        event: 1 or True for death, 0 or False for censoring.
        names: Of the features; their numbers by default.
        config: Penalties, and how to choose.

    Raises:
        DataError: If features are not finite or constant, a time is negative or not finite, an
            event is not 0 or 1, or there are too few patients or deaths.
        ConfigError: If there are more parts than patients.
    """
    config = config or CoxConfig()
    x = np.asarray(features, dtype=np.float64)
    labels = tuple(map(str, range(x.shape[1]))) if names is None else tuple(names)
    has_died = _check(x, time_days, event, labels)
    times = np.asarray(time_days, dtype=np.float64)
    _check_varies(x, labels)
    penalty, scores = config.penalties[0], ()
    if len(config.penalties) > 1:
        scores = _score_penalties(x, times, has_died, config)
        penalty = max(scores, key=lambda pair: pair[1])[0]
    sets = RiskSets.of(times, has_died)
    mean, scale = _standards(x)
    coefficients = _Problem.of((x - mean) / scale, sets).solve([penalty])[0]
    hazard = sets.baseline(((x - mean) / scale) @ coefficients)
    return CoxHead(
        labels, mean, scale, coefficients, penalty, sets.time_days, hazard, tuple(scores)
    )


def deal_patients(
    event: Bool[np.ndarray, " patient"], n_folds: int, seed: int
) -> Int64[np.ndarray, " patient"]:
    """Deal patients to folds of the same size, to within one, and of as many deaths.

    Raises:
        ConfigError: If there are fewer than two folds, or fewer patients than folds.
    """
    if n_folds < 2:
        raise ConfigError(f"{n_folds} folds; give two or more")
    if len(event) < n_folds:
        raise ConfigError(
            f"{len(event)} patients cannot fill {n_folds} folds; give fewer folds or more patients"
        )
    generator = np.random.default_rng(seed)
    groups = [generator.permutation(np.flatnonzero(group)) for group in (event, ~event)]
    fold = np.empty(len(event), dtype=np.int64)
    fold[np.concatenate(groups)] = np.arange(len(event)) % n_folds
    return fold


def is_varying(
    features: Float64[np.ndarray, "patient feature"],
) -> Bool[np.ndarray, " feature"]:
    """Features that are not constant over these patients, rounding apart."""
    return features.std(axis=0) > FLAT * np.abs(features).max(axis=0)


def _score_penalties(
    x: Float64[np.ndarray, "patient feature"],
    times: Float64[np.ndarray, " patient"],
    event: Bool[np.ndarray, " patient"],
    config: CoxConfig,
) -> tuple[tuple[float, float], ...]:
    """The cross-validated log partial likelihood of each penalty."""
    if event.sum() < 2:
        raise DataError(
            "one death only; a penalty is chosen with two or more: add patients, or give one "
            "penalty"
        )
    whole = RiskSets.of(times, event)
    scores = np.zeros(len(config.penalties))
    fold = deal_patients(event, config.n_folds, config.seed)
    for left_out in range(config.n_folds):
        kept = fold != left_out
        mean, scale = _standards(x[kept])
        z = (x - mean) / scale
        sets = RiskSets.of(times[kept], event[kept])
        for i, b in enumerate(_Problem.of(z[kept], sets).solve(config.penalties)):
            risk = z @ b
            scores[i] += whole.log_likelihood(risk) - sets.log_likelihood(risk[kept])
    return tuple(zip(config.penalties, scores.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class _Problem:
    """Standardised patients on their principal axes, and who was at risk when."""

    rows: Float64[np.ndarray, "patient axis"]
    axes: Float64[np.ndarray, "axis feature"]
    sets: RiskSets

    @classmethod
    def of(cls, z: Float64[np.ndarray, "patient feature"], sets: RiskSets) -> "_Problem":
        left, length, axes = np.linalg.svd(z, full_matrices=False)
        kept = length > NEGLIGIBLE * max(length.max(initial=0.0), 1.0)
        return cls(left[:, kept] * length[kept], axes[kept], sets)

    def solve(self, penalties: Sequence[float]) -> list[Float64[np.ndarray, " feature"]]:
        """The coefficients for each penalty; the strongest first, each from the one before."""
        answers: dict[float, np.ndarray] = {}
        b = np.zeros(self.rows.shape[1])
        for penalty in sorted(penalties, reverse=True):
            b = self._descend(b, penalty)
            answers[penalty] = self.axes.T @ b
        return [answers[penalty] for penalty in penalties]

    def _descend(
        self, b: Float64[np.ndarray, " axis"], penalty: float
    ) -> Float64[np.ndarray, " axis"]:
        n = len(self.rows)
        value = self._height(b, penalty)
        for _ in range(MAX_STEPS):
            risk = self.rows @ b
            residual = self.sets.event - self.sets.expected_deaths(risk)
            slope = penalty * b - self.rows.T @ residual / n
            if np.abs(slope).max(initial=0.0) < STEEP:
                return b
            curvature = self.sets.curvature(self.rows, risk) / n
            step = np.linalg.solve(curvature + penalty * np.eye(len(b)), slope)
            share = 1.0
            while (lower := self._height(b - share * step, penalty)) > value + 1e-12 * abs(value):
                share /= 2
                if share < 1e-9:
                    raise _no_minimum(penalty)
            b, value = b - share * step, lower
        raise _no_minimum(penalty)

    def _height(self, b: Float64[np.ndarray, " axis"], penalty: float) -> float:
        likelihood = self.sets.log_likelihood(self.rows @ b) / len(self.rows)
        return penalty / 2 * float(b @ b) - likelihood


def _no_minimum(penalty: float) -> DataError:
    return DataError(
        f"the Cox model finds no minimum with penalty {penalty:g}; give larger penalties or fewer "
        "features"
    )


def _standards(
    x: Float64[np.ndarray, "patient feature"],
) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " feature"]]:
    """Mean and deviation; a feature that is constant here says nothing, and infinity mutes it."""
    return x.mean(axis=0), np.where(is_varying(x), x.std(axis=0), np.inf)


def _check(
    x: Float64[np.ndarray, "patient feature"],
    time_days: np.ndarray,
    event: np.ndarray,
    names: tuple[str, ...],
) -> Bool[np.ndarray, " patient"]:
    """Refuse what cannot be fitted; who died."""
    if not len(x) == len(time_days) == len(event):
        raise DataError(
            f"{len(x)} rows of features, {len(time_days)} times and {len(event)} events; give one "
            "of each for every patient"
        )
    if len(names) != x.shape[1] or not names:
        raise DataError(f"{len(names)} names of {x.shape[1]} features; give each feature one name")
    if len(x) < 2:
        raise DataError(f"{len(x)} patient(s); a Cox model compares at least two")
    _check_finite(x, names)
    bad = ~(np.isfinite(time_days) & (np.asarray(time_days) >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"the follow-up of patient {row} is {time_days[row]} days; give 0 or more, and leave "
            "out patients whose follow-up is not known"
        )
    strange = ~np.isin(event, (0, 1))
    if strange.any():
        row = int(strange.argmax())
        raise DataError(
            f"the event of patient {row} is {event[row]}; give 1 for death and 0 for censoring"
        )
    has_died = np.asarray(event, dtype=bool)
    if not has_died.any():
        raise DataError("nobody died; a Cox model needs at least one death")
    return has_died


def _check_finite(x: Float64[np.ndarray, "row feature"], names: tuple[str, ...]) -> None:
    bad = ~np.isfinite(x)
    if bad.any():
        row, column = (int(place) for place in np.argwhere(bad)[0])
        raise DataError(
            f"feature {names[column]} of patient {row} is {x[row, column]}; fill it in or leave "
            "the patient out"
        )


def _check_varies(x: Float64[np.ndarray, "patient feature"], names: tuple[str, ...]) -> None:
    constant = np.flatnonzero(~is_varying(x))
    if len(constant):
        raise DataError(
            f"feature {names[constant[0]]} has the same value in all {len(x)} patients and says "
            f"nothing ({len(constant)} such in all); leave it out"
        )
