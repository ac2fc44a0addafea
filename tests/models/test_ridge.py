import jaxtyping
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from histoscribe.errors import DataError, MismatchError
from histoscribe.models.baselines.ridge import fit_ridge


def study(n: int, p: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n * p)
    x = rng.normal(size=(n, p)) * rng.uniform(0.1, 9, p) + rng.normal(size=p)
    weights = rng.normal(size=(p, 7)) * (rng.random((p, 1)) < 0.5)
    y = (x - x.mean(0)) / x.std(0) @ weights + noise * rng.normal(size=(n, 7)) + 3
    return x, y, np.array(["a", "b", "c"])[np.arange(n) % 3]


@pytest.mark.parametrize("p", [5, 149, 151, 403])
@pytest.mark.parametrize("alpha", [0.1, 30.0, 1e4])
def test_equals_sklearn(p, alpha):
    x, y, groups = study(150, p)
    fitted = fit_ridge(x, y, groups, [alpha])
    z = (x - x.mean(0)) / x.std(0)
    theirs = Ridge(alpha=alpha).fit(z, y)
    new = study(41, p)[0]
    np.testing.assert_allclose(
        fitted.predict(new), theirs.predict((new - x.mean(0)) / x.std(0)), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("choose_by", ["pcc", "mse"])
@pytest.mark.parametrize("p", [19, 211])
def test_the_penalty_is_the_best_of_a_loop_over_groups(p, choose_by):
    x, y, groups = study(90, p, noise=8.0)
    alphas = [1.0, 30.0, 900.0, 3e4]
    fitted = fit_ridge(x, y, groups, alphas, choose_by=choose_by)
    wanted = []
    for alpha in alphas:
        scores = []
        for name in "abc":
            train, out = groups != name, groups == name
            mean, scale = x[train].mean(0), x[train].std(0)
            net = Ridge(alpha=alpha).fit((x[train] - mean) / scale, y[train])
            answer = net.predict((x[out] - mean) / scale)
            if choose_by == "mse":
                scores.append(-((answer - y[out]) ** 2).mean())
            else:
                scores.append(
                    np.mean([np.corrcoef(answer[:, g], y[out][:, g])[0, 1] for g in range(7)])
                )
        wanted.append(np.mean(scores))
    np.testing.assert_allclose(fitted.score_of_alpha, wanted, rtol=1e-6)
    assert fitted.alpha == alphas[int(np.argmax(wanted))]


def test_constant_features_and_genes_do_no_harm():
    x, y, groups = study(60, 11)
    fitted = fit_ridge(x, y, groups, [1.0, 10.0])
    x2 = np.concatenate([x, np.full((60, 2), 4.0)], axis=1)
    y2 = np.concatenate([y, np.full((60, 1), 2.5)], axis=1)
    with_constants = fit_ridge(x2, y2, groups, [1.0, 10.0])
    np.testing.assert_allclose(with_constants.predict(x2)[:, :7], fitted.predict(x), rtol=1e-9)
    np.testing.assert_allclose(with_constants.predict(x2)[:, 7], 2.5)
    assert with_constants.alpha == fitted.alpha


def test_wrong_input_is_refused(monkeypatch):
    # The shapes refuse some of these as well, where they are checked; users run without.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x, y, groups = study(30, 4)
    with pytest.raises(DataError, match="one of each"):
        fit_ridge(x[1:], y, groups)
    with pytest.raises(DataError, match="finite"):
        fit_ridge(np.where(x > 0, np.nan, x), y, groups)
    with pytest.raises(DataError, match="one group"):
        fit_ridge(x, y, ["a"] * 30)
    with pytest.raises(DataError, match="above 0"):
        fit_ridge(x, y, groups, [0.0])
    with pytest.raises(DataError, match="at least two"):
        fit_ridge(x[:1], y[:1], groups[:1])
    with pytest.raises(MismatchError, match="4 features"):
        fit_ridge(x, y, groups, [1.0]).predict(x[:, :3])
