r"""The partial likelihood of Cox's model with Breslow's ties: value, slope, curvature, baseline.

With risks eta (log hazard ratios), t_j the distinct times of death, D_j who died then, d_j how
many, and R_j who was followed at least until then (censoring at t_j counts as after it):

    l(eta)  = sum_j [ sum_{i in D_j} eta_i - d_j log sum_{k in R_j} exp(eta_k) ]
    H0(t)   = sum_{t_j <= t} d_j / sum_{k in R_j} exp(eta_k)

Sources: Cox 1972 (the likelihood), Breslow 1974 (ties, and H0). Sums of exponentials are taken as
logarithms, so that no risk is too large for them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

WIDEST = 500.0
"""Risks further than this below the highest count as this far in the curvature: exp(-708) is 0."""


@dataclass(frozen=True, eq=False)
class RiskSets:
    """Who was at risk when; made once for a set of patients.

    Attributes:
        event: Who died, in the order given.
        order: The patients by time.
        time_days: The distinct times of death, rising.
        deaths: How many died at each.
        start: Where in `order` those begin who were at risk then.
        n_passed: For each patient, in the order given: how many times of death had come.
    """

    event: Bool[np.ndarray, " patient"]
    order: Int64[np.ndarray, " patient"]
    time_days: Float64[np.ndarray, " death_time"]
    deaths: Float64[np.ndarray, " death_time"]
    start: Int64[np.ndarray, " death_time"]
    n_passed: Int64[np.ndarray, " patient"]

    @classmethod
    def of(
        cls, time_days: Float[np.ndarray, " patient"], event: Bool[np.ndarray, " patient"]
    ) -> "RiskSets":
        """The risk sets of these patients; any order."""
        time_days = np.asarray(time_days, dtype=np.float64)
        order = np.argsort(time_days, kind="stable")
        distinct, deaths = np.unique(time_days[event], return_counts=True)
        return cls(
            event=event,
            order=order,
            time_days=distinct,
            deaths=deaths.astype(np.float64),
            start=np.searchsorted(time_days[order], distinct, side="left"),
            n_passed=np.searchsorted(distinct, time_days, side="right"),
        )

    def log_likelihood(self, eta: Float64[np.ndarray, " patient"]) -> float:
        """The log partial likelihood l(eta)."""
        return float(eta[self.event].sum() - self.deaths @ self._log_at_risk(eta))

    def expected_deaths(
        self, eta: Float64[np.ndarray, " patient"]
    ) -> Float64[np.ndarray, " patient"]:
        """Deaths of each patient that the model expects, H0(t_i) exp(eta_i).

        The slope of l(eta) is `event - expected_deaths` (the martingale residuals).
        """
        padded = np.concatenate([[-np.inf], self._log_baseline(eta)])
        return np.exp(eta + padded[self.n_passed])

    def curvature(
        self,
        features: Float64[np.ndarray, "patient feature"],
        eta: Float64[np.ndarray, " patient"],
    ) -> Float64[np.ndarray, "feature feature"]:
        """The negative second derivative of l by the coefficients of `features`; never indefinite.

        sum_j d_j [ mean_j(x x') - mean_j(x) mean_j(x)' ], means over R_j weighted by exp(eta);
        the first term is summed by patient, so that no patient x feature x feature exists.
        """
        eta = eta.clip(min=eta.max() - WIDEST)
        weight = np.exp(eta - eta.max())[self.order]
        weighted = features[self.order] * weight[:, None]
        total = _sum_from_end(weight)[self.start]
        means = _sum_from_end(weighted)[self.start] / total[:, None]
        squares = (features * self.expected_deaths(eta)[:, None]).T @ features
        return squares - (means * self.deaths[:, None]).T @ means

    def baseline(self, eta: Float64[np.ndarray, " patient"]) -> Float64[np.ndarray, " death_time"]:
        """Breslow's cumulative hazard H0 of a patient of risk 0, at `time_days`."""
        return np.exp(self._log_baseline(eta))

    def _log_baseline(
        self, eta: Float64[np.ndarray, " patient"]
    ) -> Float64[np.ndarray, " death_time"]:
        return np.logaddexp.accumulate(np.log(self.deaths) - self._log_at_risk(eta))

    def _log_at_risk(
        self, eta: Float64[np.ndarray, " patient"]
    ) -> Float64[np.ndarray, " death_time"]:
        """Log of the sum of exp(eta) over who was at risk at each time of death."""
        from_end = np.logaddexp.accumulate(eta[self.order][::-1])[::-1]
        return from_end[self.start]


def _sum_from_end(values: Float64[np.ndarray, "row *column"]) -> Float64[np.ndarray, "row *column"]:
    return np.cumsum(values[::-1], axis=0)[::-1]
