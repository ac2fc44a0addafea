import numpy as np
import pytest

from histoscribe.train.partial_likelihood import RiskSets

# Five patients; deaths at 2 (two of them) and 5, censored at 5 and 7. Censoring at 5 is after it.
TIMES = np.array([5.0, 2.0, 7.0, 5.0, 2.0])
EVENT = np.array([False, True, False, True, True])
ETA = np.log(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
# By hand: risk set at 2 is everybody (15), at 5 patients 0, 2 and 3 (8).
BY_HAND = np.log(2 * 5 * 4) - 2 * np.log(15) - np.log(8)


def cohort(n: int = 37, p: int = 4, levels: int = 9):
    rng = np.random.default_rng(n)
    times = rng.integers(0, levels, n).astype(float)
    return rng.normal(size=(n, p)), times, rng.random(n) < 0.6


def plain_log_likelihood(eta, times, event) -> float:
    """Breslow's formula as it is written: for each death, over who was at risk then."""
    total = 0.0
    for i in range(len(eta)):
        if event[i]:
            at_risk = sum(np.exp(eta[k]) for k in range(len(eta)) if times[k] >= times[i])
            total += eta[i] - np.log(at_risk)
    return total


def plain_hazard(eta, times, event, when: float) -> float:
    total = 0.0
    for i in range(len(eta)):
        if event[i] and times[i] <= when:
            total += 1 / sum(np.exp(eta[k]) for k in range(len(eta)) if times[k] >= times[i])
    return total


def test_tied_deaths_by_hand():
    sets = RiskSets.of(TIMES, EVENT)
    assert sets.log_likelihood(ETA) == pytest.approx(BY_HAND, abs=1e-12)
    np.testing.assert_allclose(sets.baseline(ETA), [2 / 15, 2 / 15 + 1 / 8])
    expected = [2 / 15 + 1 / 8, 2 * 2 / 15, 3 * (2 / 15 + 1 / 8), 4 * (2 / 15 + 1 / 8), 5 * 2 / 15]
    np.testing.assert_allclose(sets.expected_deaths(ETA), expected)


@pytest.mark.parametrize("levels", [3, 9, 1000])
def test_equals_the_plain_form_with_and_without_ties(levels):
    x, times, event = cohort(levels=levels)
    eta = x[:, 0] * 2
    sets = RiskSets.of(times, event)
    assert sets.log_likelihood(eta) == pytest.approx(plain_log_likelihood(eta, times, event))
    wanted = [plain_hazard(eta, times, event, t) for t in sets.time_days]
    np.testing.assert_allclose(sets.baseline(eta), wanted)
    wanted = [np.exp(eta[i]) * plain_hazard(eta, times, event, times[i]) for i in range(len(eta))]
    np.testing.assert_allclose(sets.expected_deaths(eta), wanted)


def test_slope_and_curvature_are_those_of_finite_differences():
    x, times, event = cohort()
    b, step = np.array([0.3, -0.5, 0.2, 0.9]), 1e-5
    sets = RiskSets.of(times, event)

    def slope(at):
        return x.T @ (event - sets.expected_deaths(x @ at))

    for i, unit in enumerate(np.eye(4) * step):
        rise = sets.log_likelihood(x @ (b + unit)) - sets.log_likelihood(x @ (b - unit))
        assert slope(b)[i] == pytest.approx(rise / (2 * step), rel=1e-6)
        fall = (slope(b - unit) - slope(b + unit)) / (2 * step)
        np.testing.assert_allclose(sets.curvature(x, x @ b)[i], fall, rtol=1e-6)


def test_the_order_of_patients_and_a_shift_of_all_risks_change_nothing():
    x, times, event = cohort()
    eta = x[:, 1]
    order = np.random.default_rng(5).permutation(len(x))
    sets, shuffled = RiskSets.of(times, event), RiskSets.of(times[order], event[order])
    assert sets.log_likelihood(eta) == pytest.approx(shuffled.log_likelihood(eta[order] + 7))
    np.testing.assert_allclose(
        sets.curvature(x, eta), shuffled.curvature(x[order], eta[order] - 3), rtol=1e-10
    )


def test_risks_that_exp_cannot_hold_are_no_trouble():
    x, times, event = cohort()
    eta = x[:, 0] * 4000  # exp(710) is infinite in float64
    sets = RiskSets.of(times, event)
    assert np.isfinite(sets.log_likelihood(eta))
    assert np.isfinite(sets.expected_deaths(eta)).all()
    curvature = sets.curvature(x, eta)
    assert np.linalg.eigvalsh(curvature).min() > -1e-9
