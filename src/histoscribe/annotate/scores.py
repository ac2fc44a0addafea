"""From points of the space to scores, to probabilities, to labels; arrays in, arrays out."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64

from histoscribe.annotate.queries import Queries
from histoscribe.annotate.word_model import AnnotateConfig
from histoscribe.data.annotation import NO_CELL, UNSURE, Calibration
from histoscribe.errors import MismatchError

Rows = Float32[np.ndarray, "unit d"]
Scores = Float32[np.ndarray, "unit term"]


def score_units(rows: Rows, queries: Queries, rule: str, scale: float) -> Scores:
    """Cosine of each unit to each class; NaN for rows that are NaN.

    A class of several terms has the maximum or the mean of its members' cosines, or their soft
    maximum (1 / s) log mean exp(s r), which lies between the two and rewards no number of members.
    """
    if rows.shape[1] != queries.embedding.shape[1]:
        raise MismatchError(
            f"units lie in {rows.shape[1]} dimensions, texts in {queries.embedding.shape[1]}"
        )
    cosine = rows.astype(np.float32) @ queries.embedding.T
    if len(queries.class_of_term) == len(queries.classes):
        return cosine
    combined = np.empty((len(rows), len(queries.classes)), np.float32)
    for number in range(len(queries.classes)):
        some = cosine[:, queries.class_of_term == number].astype(np.float64)
        combined[:, number] = combine(some, rule, scale)
    return combined


def combine(
    cosine: Float64[np.ndarray, "unit member"], rule: str, scale: float
) -> Float64[np.ndarray, " unit"]:
    """One score of a class from those of its members."""
    if rule == "max":
        return cosine.max(axis=1)
    if rule == "mean":
        return cosine.mean(axis=1)
    top = cosine.max(axis=1)
    return top + np.log(np.exp(scale * (cosine - top[:, None])).mean(axis=1)) / scale


def probabilities(calibration: Calibration, score: Scores, scale: float) -> Scores:
    """softmax(s sd r~): see `annotate`. Without calibration it is softmax(s r)."""
    spread = float(calibration.deviation.mean(dtype=np.float64))
    logits = scale * spread * calibration.apply(score).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    p = np.exp(logits)
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def disagreement(p: Scores, q: Scores) -> Float32[np.ndarray, " unit"]:
    """Jensen-Shannon divergence of each row, in bits: 0 for equal rows, 1 for disjoint ones."""
    a, b = p.astype(np.float64), q.astype(np.float64)
    middle = (a + b) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [
            np.where(x > 0, x * np.log2(x / middle), np.where(np.isnan(x), x, 0)) for x in (a, b)
        ]
    return ((parts[0] + parts[1]).sum(axis=1) / 2).clip(0, 1).astype(np.float32)


def decide(probability: Scores, classes: Sequence[str], config: AnnotateConfig) -> tuple[str, ...]:
    """The label of each row: the most probable class unless the rule of abstention holds."""
    is_said = np.asarray(np.isfinite(probability).all(axis=1))
    filled = np.where(is_said[:, None], probability, 0)
    best = filled.argmax(axis=1)
    is_unsure = _is_unsure(filled, config)
    names = tuple(classes)
    return tuple(
        NO_CELL if not said else UNSURE if unsure else names[term]
        for said, unsure, term in zip(is_said, is_unsure, best.tolist(), strict=True)
    )


def _is_unsure(probability: Scores, config: AnnotateConfig) -> Bool[np.ndarray, " unit"]:
    if config.abstention == "none":
        return np.zeros(len(probability), dtype=bool)
    ranked = np.sort(probability, axis=1)
    if config.abstention == "probability":
        return ranked[:, -1] < config.below
    return ranked[:, -1] - ranked[:, -2] < config.below
