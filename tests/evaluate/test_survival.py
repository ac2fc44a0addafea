import csv
import io
import json

import numpy as np
import pandas as pd
import pytest

from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.evaluate.bootstrap import BootstrapConfig, Interval
from histoscribe.evaluate.covariates import PatientFeatures
from histoscribe.evaluate.survival import (
    CONSTANT,
    SurvivalConfig,
    clinical_covariates,
    fit_head,
    foretell,
    score_survival,
    share_patients,
)
from histoscribe.readers.follow_up import FollowUp
from histoscribe.train.cox import CoxConfig, deal_patients

lifelines = pytest.importorskip("lifelines", reason="no lifelines: the extra 'survival'")
QUICK = SurvivalConfig(
    n_folds=4,
    seed=3,
    cox=CoxConfig(penalties=(0.01, 1.0), n_folds=3),
    bootstrap=BootstrapConfig(n_draws=200),
)


def world(n: int = 237, seed: int = 0, effect: float = 1.2):
    """Patients whose first of five features decides, and an age that helps a little less."""
    rng = np.random.default_rng(seed)
    x, age = rng.normal(size=(n, 5)), rng.normal(size=n)
    death = rng.exponential(np.exp(-effect * x[:, 0] - 0.8 * age)) * 1000
    censored = rng.exponential(1500, size=n)
    age = np.where(rng.random(n) < 0.1, np.nan, 60 + 10 * age)
    names = tuple(f"p{i:03}" for i in range(n))
    follow_up = FollowUp(
        names,
        np.minimum(death, censored),
        death <= censored,
        ("age",),
        age[:, None],
    )
    features = PatientFeatures(names, tuple("uvwxy"), x.astype(np.float32))
    return follow_up, features


@pytest.fixture(scope="module")
def table():
    follow_up, features = world()
    return score_survival(
        follow_up, {"model": features}, {"age": clinical_covariates(follow_up)}, QUICK
    )


def test_a_planted_signal_is_found_and_a_constant_is_chance(table):
    model, age, chance = (table.row(name) for name in ("model", "age", CONSTANT))
    assert model.c_index.low > 0.6
    assert model.c_index.low < model.c_index.value < model.c_index.high
    assert 0.5 < age.c_index.value < model.c_index.value
    assert chance.c_index == Interval(0.5, 0.5, 0.5)
    assert np.isnan(chance.logrank_p)
    assert model.logrank_p < 1e-4
    over_age, over_chance = table.gains
    assert (over_age.over, over_chance.over) == ("age", CONSTANT)
    assert over_age.gain.value == pytest.approx(model.c_index.value - age.c_index.value)
    assert over_chance.gain.low == pytest.approx(model.c_index.low - 0.5)


def test_each_fold_agrees_with_lifelines_on_the_same_patients():
    follow_up, features = world()
    fold = deal_patients(follow_up.event, 4, 3)
    answer = foretell(follow_up, features, fold, CoxConfig(penalties=(0.05,)))
    frame = pd.DataFrame(features.values.astype(float), columns=list("uvwxy"))
    frame = frame.assign(time=follow_up.time_days, event=follow_up.event)
    for left_out in range(4):
        train, test = fold != left_out, fold == left_out
        n = train.sum()
        fitter = lifelines.CoxPHFitter(penalizer=0.05 * (n - 1) / n, l1_ratio=0.0)
        fitter.fit(frame[train], "time", "event", fit_options={"precision": 1e-12})
        risk = fitter.predict_log_partial_hazard(frame[test])
        np.testing.assert_allclose(answer.risk[test], risk, atol=1e-5)
        median = fitter.predict_log_partial_hazard(frame[train]).median()
        np.testing.assert_array_equal(answer.is_high[test], risk > median)


def test_a_patient_left_out_does_not_change_what_is_said_of_its_fold():
    """Poison one fold: heads that foretell it were fitted without it."""
    follow_up, features = world()
    fold = deal_patients(follow_up.event, 4, 3)
    rows = np.flatnonzero(fold == 2)
    first = foretell(follow_up, features, fold, QUICK.cox)
    values, times, age = features.values.copy(), follow_up.time_days.copy(), follow_up.covariates
    values[rows[1:]] = 900.0
    times[rows] = 1.0
    age = np.where(fold[:, None] == 2, 1e4, age)
    poisoned = FollowUp(follow_up.patient_id, times, follow_up.event, ("age",), age)
    other = PatientFeatures(features.patient_id, features.names, values)
    second = foretell(poisoned, other, fold, QUICK.cox)
    assert first.risk[rows[0]] == second.risk[rows[0]]
    assert first.is_high[rows[0]] == second.is_high[rows[0]]
    aged, poisoned_age = clinical_covariates(follow_up), clinical_covariates(poisoned)
    train = np.asarray(fold != 2)
    fitted, wanted = (
        fit_head(f, c, train, QUICK.cox)[0]
        for f, c in ((follow_up, aged), (poisoned, poisoned_age))
    )
    np.testing.assert_array_equal(fitted.coefficients, wanted.coefficients)


def test_equal_questions_have_equal_answers_whatever_the_order_of_patients(table):
    follow_up, features = world()
    order = np.random.default_rng(9).permutation(len(follow_up))
    sorted_up, (sorted_features,) = share_patients(follow_up.take(order), [features.take(order)])
    again = score_survival(
        sorted_up, {"model": sorted_features}, {"age": clinical_covariates(sorted_up)}, QUICK
    )
    assert again.to_json() == table.to_json()
    assert again.risks_to_csv() == table.risks_to_csv()


def test_features_constant_in_a_fold_are_left_out_and_counted():
    follow_up, features = world()
    dead = np.zeros((len(follow_up), 2), np.float32)
    dead[0, 1] = 1.0  # varies where patient 0 is trained on only
    wide = PatientFeatures(
        features.patient_id, (*"uvwxy", "d", "e"), np.concatenate([features.values, dead], axis=1)
    )
    fold = deal_patients(follow_up.event, 4, 3)
    answer = foretell(follow_up, wide, fold, QUICK.cox)
    assert answer.n_features == 7
    assert sorted(answer.n_constant) == [1, 1, 1, 2]
    with pytest.raises(DataError, match="none of 1 features"):
        foretell(
            follow_up, PatientFeatures(features.patient_id, ("d",), dead[:, :1]), fold, QUICK.cox
        )


def test_shared_patients_are_those_that_all_know_in_order():
    follow_up, features = world(20)
    some = features.take(np.array([7, 3, 11, 4]))
    other = PatientFeatures(("p003", "p011", "q"), ("z",), np.ones((3, 1)))
    shared, (one, two) = share_patients(follow_up, [some, other])
    assert shared.patient_id == one.patient_id == two.patient_id == ("p003", "p011")
    np.testing.assert_array_equal(one.values, features.values[[3, 11]])
    np.testing.assert_array_equal(shared.time_days, follow_up.time_days[[3, 11]])
    with pytest.raises(MismatchError, match="no patient is both"):
        share_patients(follow_up, [PatientFeatures(("q",), ("z",), np.ones((1, 1)))])


def test_json_and_csv_hold_what_the_table_holds(table):
    record = json.loads(table.to_json())
    assert record["n_patients"] == 237
    assert record["n_folds"] == 4
    assert [row["method"] for row in record["rows"]] == ["model", "age", CONSTANT]
    assert [len(row["penalties"]) for row in record["rows"]] == [4, 4, 0]
    assert record["rows"][2]["logrank_p"] is None
    assert record["gains"][0]["over"] == "age"
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert float(rows[0]["c_index"]) == table.row("model").c_index.value
    risks = list(csv.DictReader(io.StringIO(table.risks_to_csv())))
    assert len(risks) == 237
    assert float(risks[5]["model: risk"]) == table.row("model").answer.risk[5]
    assert {row["model: group"] for row in risks} == {"high", "low"}
    assert "model - age" in table.to_text()
    with pytest.raises(DataError, match="no survival score of 'x'"):
        table.row("x")


def test_wrong_requests_are_refused():
    follow_up, features = world(30)
    with pytest.raises(MismatchError, match="at least one"):
        score_survival(follow_up, {}, config=QUICK)
    with pytest.raises(MismatchError, match="both a method and a baseline"):
        score_survival(follow_up, {"a": features}, {"a": features}, QUICK)
    with pytest.raises(MismatchError, match="share_patients"):
        score_survival(follow_up, {"a": features.take(np.arange(29))}, config=QUICK)
    with pytest.raises(ConfigError, match="30 patients cannot fill 31 folds"):
        score_survival(follow_up, {"a": features}, config=SurvivalConfig(n_folds=31))
    with pytest.raises(ConfigError, match="two folds"):
        SurvivalConfig(n_folds=1)
    alive = FollowUp(
        follow_up.patient_id, follow_up.time_days, np.zeros(30, bool), (), np.empty((30, 0))
    )
    with pytest.raises(DataError, match="nobody died"):
        score_survival(alive, {"a": features}, config=QUICK)
