"""Scores, probabilities, disagreement and abstention, against plain forms."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import logsumexp, softmax

from histoscribe.annotate.queries import Queries
from histoscribe.annotate.scores import (
    combine,
    decide,
    disagreement,
    probabilities,
    score_units,
)
from histoscribe.annotate.word_model import AnnotateConfig
from histoscribe.data.annotation import Calibration
from histoscribe.errors import ConfigError, MismatchError


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def unit_rows(n: int, d: int = 7) -> np.ndarray:
    rows = rng().normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def queries_of(class_of_term: list[int]) -> Queries:
    n_classes = max(class_of_term) + 1
    names = tuple(f"c{i}" for i in range(n_classes))
    return Queries(names, names and ((),) * n_classes, unit_rows(9)[: len(class_of_term)],
                   np.array(class_of_term))  # fmt: skip


def test_single_terms_are_scored_by_their_cosine_and_missing_units_stay_missing():
    rows = unit_rows(11)
    rows[4] = np.nan
    queries = queries_of([0, 1, 2])
    score = score_units(rows, queries, "logsumexp", 14.0)
    assert np.isnan(score[4]).all()
    known = np.delete(np.arange(11), 4)
    for row in known:
        for term in range(3):
            assert np.isclose(score[row, term], rows[row] @ queries.embedding[term], atol=1e-6)


@pytest.mark.parametrize("rule", ["max", "mean", "logsumexp"])
def test_a_class_of_members_is_scored_from_them(rule):
    rows, queries = unit_rows(11), queries_of([0, 1, 1, 2, 1])
    score = score_units(rows, queries, rule, 14.0)
    cosine = (rows @ queries.embedding.T).astype(np.float64)
    some = cosine[:, [1, 2, 4]]
    wanted = {
        "max": some.max(axis=1),
        "mean": some.mean(axis=1),
        "logsumexp": (logsumexp(14.0 * some, axis=1) - np.log(3)) / 14.0,
    }[rule]
    assert np.allclose(score[:, 1], wanted, atol=1e-6)
    assert np.allclose(score[:, [0, 2]], cosine[:, [0, 3]], atol=1e-6)


def test_the_soft_maximum_lies_between_mean_and_maximum_and_ignores_repetition():
    cosine = rng().uniform(-1, 1, (13, 4))
    soft = combine(cosine, "logsumexp", 10.0)
    assert (soft <= cosine.max(axis=1) + 1e-12).all()
    assert (soft >= cosine.mean(axis=1) - 1e-12).all()
    assert np.allclose(combine(np.repeat(cosine, 3, axis=1), "logsumexp", 10.0), soft)
    assert np.allclose(combine(cosine[:, :1], "logsumexp", 10.0), cosine[:, 0])


def test_units_and_texts_of_other_widths_are_refused():
    with pytest.raises(MismatchError, match="5 dimensions, texts in 7"):
        score_units(unit_rows(2, 5), queries_of([0]), "max", 1.0)


def test_probabilities_are_the_softmax_of_calibrated_scores_on_the_scale_of_cosines():
    score = rng().normal(0.2, 0.1, (9, 4)).astype(np.float32)
    mean, deviation = np.float32([0.1, 0.2, 0.3, 0.0]), np.float32([0.05, 0.1, 0.2, 0.15])
    p = probabilities(Calibration(mean, deviation, "reference", 9), score, 14.0)
    assert np.allclose(p, softmax(14.0 * 0.125 * (score - mean) / deviation, axis=1), atol=1e-5)
    none = Calibration(np.zeros(4, np.float32), np.ones(4, np.float32), "none", 0)
    assert np.allclose(probabilities(none, score, 14.0), softmax(14.0 * score, axis=1), atol=1e-5)


def test_calibration_takes_a_constant_bias_of_a_class_away():
    score = rng().normal(0.2, 0.1, (50, 3)).astype(np.float32)
    biased = score + np.float32([0.0, 0.5, 0.0])

    def fitted(values):
        return Calibration(values.mean(0), values.std(0), "transductive", len(values))

    assert np.allclose(
        probabilities(fitted(score), score, 9.0), probabilities(fitted(biased), biased, 9.0),
        atol=1e-4,
    )  # fmt: skip


def test_disagreement_is_the_jensen_shannon_divergence_in_bits():
    p, q = (rng().dirichlet(np.ones(5), 2 * 8).reshape(2, 8, 5)).astype(np.float32)
    wanted = [jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q, strict=True)]
    assert np.allclose(disagreement(p, q), wanted, atol=1e-6)
    sure = np.eye(5, dtype=np.float32)
    assert np.allclose(disagreement(sure, sure), 0)
    assert np.allclose(disagreement(sure, np.roll(sure, 1, axis=1)), 1)
    p[3] = np.nan
    assert np.isnan(disagreement(p, q)).tolist() == [row == 3 for row in range(8)]


def test_each_rule_of_abstention():
    p = np.float32([[0.50, 0.45, 0.05], [0.6, 0.3, 0.1], [np.nan] * 3, [0.25, 0.35, 0.4]])

    def labels(**settings):
        return decide(p, ("a", "b", "c"), AnnotateConfig(**settings))

    assert labels(abstention="none") == ("a", "a", "", "c")
    assert labels(abstention="margin", below=0.1) == ("unsure", "a", "", "unsure")
    assert labels(abstention="probability", below=0.45) == ("a", "a", "", "unsure")


@pytest.mark.parametrize(
    "settings",
    [
        {"level": "slide"},
        {"calibration": "train"},
        {"route": "text"},
        {"below": 1.5},
        {"templates": ("a cell",)},
        {"abstention": "never"},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ConfigError):
        AnnotateConfig(**settings)
