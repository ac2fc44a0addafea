import sys

import numpy as np
import pytest

from histoscribe.errors import DataError, MissingExtra
from histoscribe.evaluate.bootstrap import BootstrapConfig
from histoscribe.evaluate.concordance import (
    concordance,
    concordance_draws,
    draw_patients,
    pairs_in_folds,
)
from histoscribe.evaluate.kaplan_meier import kaplan_meier, logrank_p, median_days
from histoscribe.readers.follow_up import FollowUp

utils = pytest.importorskip("lifelines.utils", reason="no lifelines: the extra 'survival'")


def follow(times, event) -> FollowUp:
    n = len(times)
    names = tuple(f"p{i:03}" for i in range(n))
    return FollowUp(names, np.asarray(times, float), np.asarray(event, bool), (), np.empty((n, 0)))


def cohort(n: int = 73, levels: int = 12, seed: int = 0):
    """Times and risks with ties of every kind."""
    rng = np.random.default_rng(seed)
    times, event = rng.integers(0, levels, n).astype(float), rng.random(n) < 0.6
    risk = np.round(rng.normal(size=n) - times / levels, 1)
    return follow(times, event), risk, np.arange(n) % 3


def test_pairs_by_hand():
    # Deaths at 2 and 5, censored at 2 and 3: who of a pair died first is known where one did.
    patients = follow([2, 2, 3, 5], [1, 0, 0, 1])
    ((rows, is_first),) = pairs_in_folds(patients, np.zeros(4, dtype=np.int64))
    np.testing.assert_array_equal(rows, np.arange(4))
    assert np.argwhere(is_first).tolist() == [[0, 1], [0, 2], [0, 3]]


def test_one_fold_is_the_index_of_lifelines():
    patients, risk, _ = cohort()
    wanted = utils.concordance_index(patients.time_days, -risk, patients.event)
    one = np.zeros(len(risk), dtype=np.int64)
    assert concordance(patients, risk, one) == pytest.approx(wanted, abs=1e-12)
    once = np.ones((1, len(risk)))
    assert concordance_draws(patients, risk, one, once)[0] == pytest.approx(wanted, abs=1e-12)


def test_folds_are_weighted_by_their_pairs_and_shifts_of_a_fold_change_nothing():
    patients, risk, fold = cohort()
    value = concordance(patients, risk, fold)
    right = total = 0.0
    for rows, is_first in pairs_in_folds(patients, fold):
        for i, j in np.argwhere(is_first):
            right += (np.sign(risk[rows[i]] - risk[rows[j]]) + 1) / 2
            total += 1
    assert value == pytest.approx(right / total, abs=1e-12)
    shifted = risk + np.array([0.0, 50.0, -9.0])[fold]
    assert concordance(patients, shifted, fold) == pytest.approx(value, abs=1e-12)
    assert concordance(patients, -risk, fold) == pytest.approx(1 - value, abs=1e-12)
    assert concordance(patients, np.zeros(len(risk)), fold) == 0.5


def test_draws_equal_the_index_of_the_drawn_rows():
    patients, risk, fold = cohort()
    weights = draw_patients(len(risk), BootstrapConfig(n_draws=11, seed=3))
    got = concordance_draws(patients, risk, fold, weights)
    for draw, weight in zip(got, weights.astype(int), strict=True):
        rows = np.repeat(np.arange(len(risk)), weight)
        again = follow(patients.time_days[rows], patients.event[rows])
        assert draw == pytest.approx(concordance(again, risk[rows], fold[rows]), abs=1e-12)


def test_a_fold_or_a_draw_without_pairs_does_not_count():
    patients = follow([3, 4, 1, 2], [1, 0, 0, 0])
    fold = np.array([0, 0, 1, 1])
    risk = np.array([2.0, 1.0, 5.0, 6.0])
    assert concordance(patients, risk, fold) == 1.0
    draws = concordance_draws(patients, risk, fold, np.array([[1.0, 1, 1, 1], [2, 0, 1, 1]]))
    assert draws[0] == 1.0
    assert np.isnan(draws[1])
    with pytest.raises(DataError, match="no two of 4 patients"):
        concordance(follow([3, 4, 1, 2], [0, 0, 0, 0]), risk, fold)


def test_curves_by_hand():
    # Deaths at 1, 3 and 3 of five; one is censored at 2: 4/5, then 4/5 * 1/3.
    patients = follow([1, 2, 3, 3, 6, 9], [1, 0, 1, 1, 0, 1])
    curve = kaplan_meier("low", patients, np.arange(6) < 5)
    np.testing.assert_allclose(curve.step_days, [0, 1, 2, 3, 6])
    np.testing.assert_allclose(curve.alive, [1, 4 / 5, 4 / 5, 4 / 15, 4 / 15])
    assert (curve.low <= curve.alive).all()
    assert (curve.high >= curve.alive).all()
    assert [curve.n_at_risk(day) for day in (0.0, 1.0, 1.5, 3.0, 7.0)] == [5, 5, 4, 3, 0]
    assert median_days(curve) == 3
    alone = kaplan_meier("censored", patients, np.arange(6) == 4)
    assert median_days(alone) == np.inf


def test_logrank_by_hand():
    # Freireich's remission times of children with leukaemia, weeks (6-MP, then placebo).
    drug = [6, 6, 6, 7, 10, 13, 16, 22, 23, 6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    placebo = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]
    patients = follow([*drug, *placebo], [1] * 9 + [0] * 12 + [1] * 21)
    is_placebo = np.arange(42) >= 21
    assert logrank_p(patients, is_placebo) == pytest.approx(4.17e-5, rel=0.01)  # chi2 = 16.79
    assert np.isnan(logrank_p(patients, np.zeros(42, bool)))


def test_without_lifelines_the_extra_is_named(monkeypatch):
    patients, risk, fold = cohort()
    monkeypatch.setitem(sys.modules, "lifelines", None)
    with pytest.raises(MissingExtra, match=r"histoscribe\[survival\]"):
        concordance(patients, risk, fold)
