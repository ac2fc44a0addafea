"""Kaplan-Meier curves of groups of patients, and the log-rank test between two, by lifelines."""

import numpy as np
from jaxtyping import Bool

from histoscribe.evaluate.lifelines_extra import import_lifelines
from histoscribe.plot import SurvivalCurve
from histoscribe.readers.follow_up import FollowUp

LEVEL = 0.95
"""Of the pointwise interval (log of minus log of the survival, Greenwood's variance)."""


def kaplan_meier(
    name: str, follow_up: FollowUp, is_member: Bool[np.ndarray, " patient"]
) -> SurvivalCurve:
    """The curve of a group of patients.

    Raises:
        MissingExtra: If lifelines is not installed.
    """
    lifelines = import_lifelines()
    time, event = follow_up.time_days[is_member], follow_up.event[is_member]
    fitted = lifelines.KaplanMeierFitter(alpha=1 - LEVEL).fit(time, event)
    low, high = fitted.confidence_interval_.to_numpy(dtype=np.float64).T
    return SurvivalCurve(
        name=name,
        step_days=fitted.survival_function_.index.to_numpy(dtype=np.float64),
        alive=fitted.survival_function_.iloc[:, 0].to_numpy(dtype=np.float64),
        low=low,
        high=high,
        followed_days=time,
        has_died=event,
    )


def logrank_p(follow_up: FollowUp, is_high: Bool[np.ndarray, " patient"]) -> float:
    """P value of the log-rank test between two groups; NaN if one of them is empty.

    Raises:
        MissingExtra: If lifelines is not installed.
    """
    lifelines = import_lifelines()
    if is_high.all() or not is_high.any():
        return float("nan")
    time, event = follow_up.time_days, follow_up.event
    test = lifelines.statistics.logrank_test(
        time[is_high], time[~is_high], event[is_high], event[~is_high]
    )
    return float(test.p_value)


def median_days(curve: SurvivalCurve) -> float:
    """The first time at which at most half are alive; infinite if more than half still are."""
    below = curve.step_days[curve.alive <= 0.5]
    return float(below[0]) if len(below) else float("inf")
