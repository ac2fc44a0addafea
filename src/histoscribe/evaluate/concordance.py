r"""Harrell's concordance of risks with what happened, within folds, and its bootstrap.

    C = (pairs whose first to die had the higher risk + ties / 2) / comparable pairs

A pair is comparable if it is known who of the two died first: the time of one's death is before
the other's time, or the same as the day the other was censored. Source: Harrell et al. 1982.
Pairs are of one fold, as risks of two folds come from two fits and have no common zero.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from histoscribe.errors import DataError
from histoscribe.evaluate.bootstrap import BootstrapConfig, Interval, interval
from histoscribe.evaluate.lifelines_extra import import_lifelines
from histoscribe.readers.follow_up import FollowUp


class FoldPairs(NamedTuple):
    """The pairs of one fold.

    Attributes:
        rows: The fold's patients.
        is_first: [i, j]: i is known to have died before j.
    """

    rows: Int64[np.ndarray, " row"]
    is_first: Bool[np.ndarray, "row row"]


def concordance(
    follow_up: FollowUp,
    risk: Float64[np.ndarray, " patient"],
    fold: Int64[np.ndarray, " patient"],
) -> float:
    """The C-index by lifelines of each fold, weighted by its comparable pairs.

    Raises:
        DataError: If no fold has a comparable pair.
        MissingExtra: If lifelines is not installed.
    """
    lifelines = import_lifelines()
    total = n_pairs = 0.0
    for pairs in pairs_in_folds(follow_up, fold):
        n_comparable = pairs.is_first.sum()
        if n_comparable:
            rows = pairs.rows
            total += n_comparable * lifelines.utils.concordance_index(
                follow_up.time_days[rows], -risk[rows], follow_up.event[rows]
            )
            n_pairs += n_comparable
    if not n_pairs:
        raise DataError(
            f"no two of {len(follow_up)} patients can be compared: of no pair within a fold is it "
            "known who died first; give more patients or longer follow-up"
        )
    return float(total / n_pairs)


def concordance_draws(
    follow_up: FollowUp,
    risk: Float64[np.ndarray, " patient"],
    fold: Int64[np.ndarray, " patient"],
    weights: Float64[np.ndarray, "draw patient"],
) -> Float64[np.ndarray, " draw"]:
    """The C-index of each draw of the patients; NaN where a draw has no comparable pair.

    The same as `concordance` of the drawn rows, by counting each pair as often as it is drawn.

    Args:
        follow_up: What happened.
        risk: What was foretold; higher dies sooner.
        fold: Of each patient.
        weights: How often each patient is in each draw.
    """
    right, total = np.zeros(len(weights)), np.zeros(len(weights))
    for rows, is_first in pairs_in_folds(follow_up, fold):
        difference = risk[rows][:, None] - risk[rows]
        score = is_first * (np.sign(difference) + 1) / 2
        drawn = weights[:, rows]
        right += ((drawn @ score) * drawn).sum(axis=1)
        total += ((drawn @ is_first.astype(np.float64)) * drawn).sum(axis=1)
    return np.where(total > 0, right / np.where(total > 0, total, 1.0), np.nan)


def draw_patients(n_patients: int, config: BootstrapConfig) -> Float64[np.ndarray, "draw patient"]:
    """How often each patient is in each draw."""
    generator = np.random.default_rng(config.seed)
    share = np.full(n_patients, 1 / n_patients)
    return generator.multinomial(n_patients, share, size=config.n_draws).astype(np.float64)


def c_interval(
    value: float, draws: Float64[np.ndarray, " draw"], config: BootstrapConfig
) -> Interval:
    """The interval over the draws that have a comparable pair; nearly all have."""
    return interval(value, draws[np.isfinite(draws)], config)


def pairs_in_folds(follow_up: FollowUp, fold: Int64[np.ndarray, " patient"]) -> Iterator[FoldPairs]:
    """The comparable pairs of each fold."""
    for name in np.unique(fold):
        rows = np.flatnonzero(fold == name)
        time, event = follow_up.time_days[rows], follow_up.event[rows]
        is_before = (time[:, None] < time) | ((time[:, None] == time) & ~event)
        yield FoldPairs(rows, is_before & event[:, None])
