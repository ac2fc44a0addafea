"""Scores of rankings with weights: AUROC, average precision, recall at k, macro F1, in float64.

Weights are how often a unit counts, which is what a bootstrap draw is.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

Weights = Float64[np.ndarray, "draw unit"]


def auroc(
    score: Float[np.ndarray, " unit"],
    is_present: Bool[np.ndarray, " unit"],
    weights: Weights | None = None,
) -> Float64[np.ndarray, " draw"]:
    r"""Area under the ROC curve, for each draw; ties count half.

        AUROC = sum_p w_p (W_n(below p) + W_n(tied with p) / 2) / (W_p W_n)

    NaN where one side has no weight: nothing can be ranked.
    """
    w = np.ones((1, len(score))) if weights is None else weights
    order, last = _tied(score)
    present = is_present[order]
    positive, negative = w[:, order] * present, w[:, order] * ~present
    below = np.cumsum(negative, axis=1)
    up_to = below[:, last]
    first = np.concatenate([[0], np.flatnonzero(np.diff(last)) + 1]) if len(last) else last
    start = np.zeros_like(up_to)
    if len(last):
        before = np.concatenate([np.zeros((len(w), 1)), below], axis=1)
        run = np.searchsorted(first, np.arange(len(last)), side="right") - 1
        start = before[:, first[run]]
    area = (positive * (up_to + start) / 2).sum(axis=1)
    total = positive.sum(axis=1) * negative.sum(axis=1)
    return np.where(total > 0, area / np.where(total > 0, total, 1), np.nan)


def average_precision(
    score: Float[np.ndarray, " unit"],
    is_present: Bool[np.ndarray, " unit"],
    weights: Weights | None = None,
) -> Float64[np.ndarray, " draw"]:
    """Sum over thresholds of precision times the gain in recall; NaN where nothing is present."""
    w = np.ones((1, len(score))) if weights is None else weights
    order, last = _tied(-score)
    found = np.cumsum(w[:, order] * is_present[order], axis=1)[:, last]
    taken = np.cumsum(w[:, order], axis=1)[:, last]
    precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
    share = (w[:, order] * is_present[order] * precision).sum(axis=1)
    total = (w * is_present).sum(axis=1)
    return np.where(total > 0, share / np.where(total > 0, total, 1), np.nan)


def class_f1(
    predicted: Int64[np.ndarray, " unit"],
    truth: Int64[np.ndarray, " unit"],
    n_classes: int,
    weights: Weights | None = None,
) -> Float64[np.ndarray, "draw class"]:
    """F1 of each class, 2 TP / (2 TP + FP + FN); NaN for a class that is neither there nor said.

    A prediction of -1 ("unsure") is wrong for the class that is there, and of no other.
    """
    w = np.ones((1, len(truth))) if weights is None else weights
    scores = np.full((len(w), n_classes), np.nan)
    for number in range(n_classes):
        is_said, is_there = predicted == number, truth == number
        hit = w @ (is_said & is_there)
        total = w @ is_said.astype(np.float64) + w @ is_there.astype(np.float64)
        scores[:, number] = np.where(total > 0, 2 * hit / np.where(total > 0, total, 1), np.nan)
    return scores


def recall_at(
    score: Float[np.ndarray, "query item"], is_match: Bool[np.ndarray, "query item"], k: int
) -> float:
    """Share of queries with a match among their k best items; queries without any match left out.

    An item that ties with a match stands before it, so a score that is constant finds nothing.
    """
    has_match = is_match.any(axis=1) & ~np.isnan(score).any(axis=1)
    if not has_match.any():
        return float("nan")
    score, is_match = score[has_match], is_match[has_match]
    best = np.where(is_match, score, -np.inf).max(axis=1, keepdims=True)
    n_before = ((score >= best) & ~is_match).sum(axis=1)
    return float((n_before < k).mean())


def _tied(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rising order, and for each place the last place that ties with it."""
    order = np.argsort(score, kind="stable")
    if not len(order):
        return order, order
    is_end = np.append(np.diff(score[order]) != 0, True)
    ends = np.flatnonzero(is_end)
    return order, ends[np.searchsorted(ends, np.arange(len(order)))]
