import jaxtyping
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.train.cox import CoxConfig, deal_patients, fit_cox
from histoscribe.train.partial_likelihood import RiskSets


def cohort(n: int = 151, p: int = 5, seed: int = 0, levels: int | None = None):
    """Follow-up with a planted log hazard ratio; whole days up to `levels` make ties."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) * rng.uniform(0.2, 8, p) + rng.normal(size=p)
    risk = (x - x.mean(0)) / x.std(0) @ np.linspace(1.0, -0.5, p)
    death = rng.exponential(np.exp(-risk)) * 900
    censored = rng.exponential(900, size=n)
    times = np.minimum(death, censored)
    if levels:
        times = np.ceil(times / times.max() * levels)
    return x, times, death <= censored


def one(penalty: float) -> CoxConfig:
    return CoxConfig(penalties=(penalty,))


def plain_objective(x, times, event, penalty):
    """Breslow's formula by a double loop, and the ridge."""
    z = (x - x.mean(0)) / x.std(0)

    def objective(b):
        eta = z @ b
        total = 0.0
        for i in np.flatnonzero(event):
            total += eta[i] - np.log(np.exp(eta[times >= times[i]]).sum())
        return -total / len(x) + penalty / 2 * b @ b

    return objective


@pytest.mark.parametrize("levels", [None, 11])
@pytest.mark.parametrize("penalty", [1e-3, 0.2])
def test_is_the_minimum_of_the_plain_objective(levels, penalty):
    x, times, event = cohort(61, 3, levels=levels)
    head = fit_cox(x, times, event, config=one(penalty))
    objective = plain_objective(x, times, event, penalty)
    other = minimize(objective, np.zeros(3), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(head.coefficients, other.x, atol=1e-6)
    assert objective(head.coefficients) <= other.fun + 1e-12


def lifelines_fit(x, times, event, penalizer):
    lifelines = pytest.importorskip("lifelines", reason="no lifelines: the extra 'survival'")
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
    frame = frame.assign(time=times, event=event)
    fitter = lifelines.CoxPHFitter(penalizer=penalizer, l1_ratio=0.0)
    return fitter.fit(frame, "time", "event", fit_options={"precision": 1e-12})


@pytest.mark.parametrize("penalizer", [1e-4, 0.1, 2.0])
def test_equals_lifelines_without_ties(penalizer):
    """Efron's ties, which lifelines takes, are Breslow's where there are none."""
    x, times, event = cohort()
    n = len(x)
    theirs = lifelines_fit(x, times, event, penalizer)
    # lifelines divides by the deviation with n - 1 before it penalises, we by that with n
    ours = fit_cox(x, times, event, config=one(penalizer * n / (n - 1)))
    np.testing.assert_allclose(ours.coefficients / ours.scale, theirs.params_, rtol=1e-5, atol=1e-9)
    risk = theirs.predict_log_partial_hazard(pd.DataFrame(x, columns=theirs.params_.index))
    np.testing.assert_allclose(ours.risk(x), risk, atol=1e-5)
    baseline = theirs.baseline_cumulative_hazard_
    at_deaths = baseline.loc[ours.time_days].to_numpy()[:, 0]
    np.testing.assert_allclose(ours.cumulative_hazard, at_deaths, rtol=1e-4)
    when = np.array([100.0, 400.0, 800.0])
    alive = theirs.predict_survival_function(
        pd.DataFrame(x[:7], columns=theirs.params_.index), times=when
    )
    # between deaths lifelines draws a line, Breslow's hazard stays as it is
    assert np.abs(ours.survival(x[:7], when) - alive.to_numpy().T).max() < 0.02


def test_tied_deaths_by_hand():
    """Three die at 1 (x = 1, 1, 0), one at 2 (x = 0), one is censored at 2 (x = 1)."""
    x = np.array([[1.0], [1.0], [0.0], [0.0], [1.0]])
    times, event = np.array([1.0, 1, 1, 2, 2]), np.array([1, 1, 1, 1, 0])
    penalty = 0.1
    head = fit_cox(x, times, event, config=one(penalty))
    # l(u) = 2u - 3 log(3 e^u + 2) - log(1 + e^u), u the log hazard ratio of x; its slope is 0 at
    # the minimum, where the ridge on b = u s, s the deviation of x, holds it back.
    u, s = head.coefficients[0] / head.scale[0], np.sqrt(0.24)
    e = np.exp(u)
    slope = 2 - 3 * 3 * e / (3 * e + 2) - e / (1 + e)
    assert slope == pytest.approx(5 * penalty * u * s**2, abs=1e-8)
    first = 3 / (3 * np.exp(u * 0.4) + 2 * np.exp(-u * 0.6))
    np.testing.assert_allclose(
        head.cumulative_hazard, [first, first + 1 / (np.exp(u * 0.4) + np.exp(-u * 0.6))]
    )


def test_survival_is_one_before_the_first_death_and_falls():
    x, times, event = cohort(80, 2)
    head = fit_cox(x, times, event, config=one(0.05))
    when = np.array([0.0, 200.0, 500.0, 1e6])
    alive = head.survival(x, when)
    assert alive.shape == (80, 4)
    assert (alive[:, 0] == 1).all()
    assert (np.diff(alive, axis=1) <= 0).all()
    order = np.argsort(head.risk(x))
    assert (np.diff(alive[order, 2]) <= 0).all()
    np.testing.assert_allclose(
        alive[:, 3], np.exp(-head.cumulative_hazard[-1] * np.exp(head.risk(x)))
    )


def test_more_features_than_patients_is_the_same_problem():
    x, times, event = cohort(40, 3, levels=13)
    wide = np.concatenate([x, x @ np.random.default_rng(1).normal(size=(3, 90))], axis=1)
    head = fit_cox(wide, times, event, config=one(0.3))
    z = (wide - wide.mean(0)) / wide.std(0)
    sets = RiskSets.of(times, event)
    residual = event - sets.expected_deaths(z @ head.coefficients)
    np.testing.assert_allclose(z.T @ residual / 40, 0.3 * head.coefficients, atol=1e-8)


def test_units_order_and_copies_of_rows_do_not_matter():
    x, times, event = cohort(70, 4, levels=17)
    config = CoxConfig(penalties=(0.01, 0.3))
    head = fit_cox(x, times, event, config=one(0.02))
    factors = np.array([1e-3, 1.0, 7.0, 1e5])
    scaled = fit_cox(x * factors + 3.0, times, event, config=one(0.02))
    np.testing.assert_allclose(scaled.coefficients, head.coefficients, rtol=1e-6)
    order = np.random.default_rng(3).permutation(70)
    shuffled = fit_cox(x[order], times[order], event[order], config=one(0.02))
    np.testing.assert_allclose(shuffled.coefficients, head.coefficients, rtol=1e-8)
    assert fit_cox(x, times, event, config=config).penalty in config.penalties


def test_the_penalty_is_the_best_of_a_loop_over_parts():
    x, times, event = cohort(90, 30, seed=4)
    config = CoxConfig(penalties=(1e-3, 0.1, 3.0, 100.0), n_folds=4, seed=7)
    head = fit_cox(x, times, event, config=config)
    fold = deal_patients(event, 4, 7)
    whole = RiskSets.of(times, event)
    for penalty, score in head.score_of_penalty:
        wanted = 0.0
        for part in range(4):
            kept = fold != part
            inner = fit_cox(x[kept], times[kept], event[kept], config=one(penalty))
            sets = RiskSets.of(times[kept], event[kept])
            wanted += whole.log_likelihood(inner.risk(x)) - sets.log_likelihood(inner.risk(x[kept]))
        assert score == pytest.approx(wanted, abs=1e-5)
    assert head.penalty == max(head.score_of_penalty, key=lambda pair: pair[1])[0]
    assert head.penalty not in (1e-3, 100.0)  # thirty features of ninety patients want some


def test_noise_is_shrunk_away_and_signal_is_found():
    x, times, event = cohort(300, 4, seed=2)
    found = fit_cox(x, times, event)
    np.testing.assert_allclose(found.coefficients, np.linspace(1.0, -0.5, 4), atol=0.3)
    shrinkage = []
    for seed in range(5):
        noise = np.random.default_rng(seed).normal(size=(300, 20))
        lost, free = fit_cox(noise, times, event), fit_cox(noise, times, event, config=one(1e-3))
        shrinkage.append(np.linalg.norm(lost.coefficients) / np.linalg.norm(free.coefficients))
    assert np.median(shrinkage) < 0.2


def test_folds_are_even_seeded_and_share_the_deaths():
    event = np.random.default_rng(1).random(83) < 0.2
    fold = deal_patients(event, 5, 3)
    assert set(np.bincount(fold, minlength=5)) <= {16, 17}
    n_died = np.bincount(fold[event], minlength=5)
    assert n_died.max() - n_died.min() <= 1
    assert np.array_equal(fold, deal_patients(event, 5, 3))
    assert not np.array_equal(fold, deal_patients(event, 5, 4))


def test_a_feature_constant_without_one_part_is_mute_there():
    x, times, event = cohort(60, 3)
    rare = np.zeros((60, 1))
    rare[np.flatnonzero(event)[0]] = 1.0
    head = fit_cox(np.concatenate([x, rare], axis=1), times, event)
    assert np.isfinite(head.coefficients).all()
    assert all(np.isfinite(score) for _, score in head.score_of_penalty)


@pytest.fixture
def unchecked(monkeypatch):
    # The shapes refuse some of these as well, where they are checked; users run without.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def test_wrong_patients_are_refused(unchecked):
    x, times, event = cohort(30, 3)
    with pytest.raises(DataError, match="nobody died"):
        fit_cox(x, times, np.zeros(30))
    with pytest.raises(DataError, match="1 patient"):
        fit_cox(x[:1], times[:1], np.ones(1))
    with pytest.raises(DataError, match="one of each"):
        fit_cox(x, times[1:], event)
    with pytest.raises(DataError, match=r"patient 4 is -1"):
        fit_cox(x, np.where(np.arange(30) == 4, -1.0, times), event)
    with pytest.raises(DataError, match="patient 5 is nan days"):
        fit_cox(x, np.where(np.arange(30) == 5, np.nan, times), event)
    with pytest.raises(DataError, match="event of patient 2 is 2"):
        fit_cox(x, times, np.where(np.arange(30) == 2, 2, event))
    with pytest.raises(DataError, match="event of patient 0 is nan"):
        fit_cox(x, times, np.where(np.arange(30) == 0, np.nan, event))
    only = np.arange(30) == 9
    with pytest.raises(DataError, match="one death only"):
        fit_cox(x, times, only)
    assert fit_cox(x, times, only, config=one(0.1)).time_days == times[9]


def test_wrong_features_are_refused(unchecked):
    x, times, event = cohort(30, 3)
    bad = x.copy()
    bad[7, 1] = np.nan
    with pytest.raises(DataError, match="feature age of patient 7 is nan"):
        fit_cox(bad, times, event, ["stage", "age", "dose"])
    bad[:, 1] = 4.0
    with pytest.raises(DataError, match="feature 1 has the same value in all 30"):
        fit_cox(bad, times, event)
    bad[:, 1] = np.float32(0.1) + np.random.default_rng(0).normal(size=30) * 1e-9
    with pytest.raises(DataError, match="same value"):
        fit_cox(bad, times, event)
    with pytest.raises(DataError, match="2 names of 3"):
        fit_cox(x, times, event, ["a", "b"])
    head = fit_cox(x, times, event, config=one(0.1))
    with pytest.raises(MismatchError, match="3 features"):
        head.risk(x[:, :2])
    with pytest.raises(DataError, match="is inf"):
        head.risk(np.full((2, 3), np.inf))
    with pytest.raises(DataError, match="times of survival"):
        head.survival(x, np.array([-1.0]))


def test_wrong_settings_are_refused():
    x, times, event = cohort(30, 3)
    with pytest.raises(ConfigError, match="30 patients cannot fill 31"):
        fit_cox(x, times, event, config=CoxConfig(n_folds=31))
    with pytest.raises(ConfigError, match="above 0"):
        CoxConfig(penalties=(0.1, 0.0))
    with pytest.raises(ConfigError, match="two folds"):
        CoxConfig(n_folds=1)
    with pytest.raises(ConfigError, match="1 folds"):
        deal_patients(event, 1, 0)
