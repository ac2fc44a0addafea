"""Rankings against scikit-learn, weights against repetition."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from histoscribe.evaluate.ranking import auroc, average_precision, class_f1, recall_at


def world(seed: int, n: int = 61):
    rng = np.random.default_rng(seed)
    is_present = rng.random(n) < 0.3
    score = np.round(rng.normal(is_present * 0.8, 1.0), 1)  # rounded: many ties
    weights = rng.integers(0, 4, (5, n)).astype(np.float64)
    return score, is_present, weights


@pytest.mark.parametrize("seed", range(4))
def test_areas_equal_scikit_learn_with_ties_and_weights(seed):
    score, is_present, weights = world(seed)
    assert np.isclose(auroc(score, is_present)[0], roc_auc_score(is_present, score))
    assert np.isclose(
        average_precision(score, is_present)[0], average_precision_score(is_present, score)
    )
    for draw, area, precision in zip(
        weights,
        auroc(score, is_present, weights),
        average_precision(score, is_present, weights),
        strict=True,
    ):
        rows = np.repeat(np.arange(len(score)), draw.astype(int))
        assert np.isclose(area, roc_auc_score(is_present[rows], score[rows]))
        assert np.isclose(precision, average_precision_score(is_present[rows], score[rows]))


def test_what_cannot_be_ranked_is_not_a_number():
    score = np.array([0.1, 0.5, 0.5])
    for present in ([True] * 3, [False] * 3):
        assert np.isnan(auroc(score, np.array(present))[0])
    assert np.isnan(average_precision(score, np.zeros(3, bool))[0])
    assert np.isnan(auroc(np.zeros(0), np.zeros(0, bool))[0])
    assert auroc(np.zeros(4), np.array([True, False, True, False]))[0] == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_f1_equals_scikit_learn_and_unsure_is_wrong_once(seed):
    rng = np.random.default_rng(seed)
    truth, said = rng.integers(0, 4, 70), rng.integers(-1, 4, 70)
    mine = class_f1(said, truth, 4)[0]
    theirs = f1_score(truth, said, labels=range(4), average=None, zero_division=0)
    assert np.allclose(mine, theirs)
    weights = rng.integers(0, 3, (1, 70)).astype(np.float64)
    rows = np.repeat(np.arange(70), weights[0].astype(int))
    assert np.allclose(
        class_f1(said, truth, 4, weights)[0], class_f1(said[rows], truth[rows], 4)[0]
    )
    assert np.isnan(class_f1(said, truth, 5)[0, 4])


def test_recall_at_k_by_hand():
    score = np.array([[0.9, 0.5, 0.1], [0.2, 0.2, 0.2], [0.1, 0.8, 0.3], [np.nan] * 3])
    match = np.eye(3, dtype=bool)[[0, 1, 2, 0]]
    assert recall_at(score, match, 1) == pytest.approx(1 / 3)
    assert recall_at(score, match, 2) == pytest.approx(2 / 3)  # all tied: the match stands last
    assert recall_at(score, match, 3) == 1.0
    assert np.isnan(recall_at(score, np.zeros_like(match), 1))
