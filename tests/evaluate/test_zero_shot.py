"""Zero-shot scores: image, then class, then mean; intervals; what is not defined is counted."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from histoscribe.errors import DataError, MismatchError
from histoscribe.evaluate.bootstrap import BootstrapConfig
from histoscribe.evaluate.zero_shot import (
    ZeroShotTask,
    above_median,
    auroc_by_image,
    dominant_class,
    gain,
    score_zero_shot,
)

CLASSES = ("a", "b", "c", "never")
CONFIG = BootstrapConfig(n_draws=211, seed=3)


def task(signal: float = 1.0, seed: int = 0) -> ZeroShotTask:
    """Seven images of three patients; class "never" is nowhere."""
    rng = np.random.default_rng(seed)
    n = 7 * 23
    amount = rng.poisson(0.7, (n, 4)).astype(float)
    amount[:, 3] = 0
    image = np.repeat([f"i{i}" for i in range(7)], 23)
    score = signal * amount + rng.normal(size=(n, 4)) + 3 * (image == "i2")[:, None]
    return ZeroShotTask(
        CLASSES,
        score.astype(np.float32),
        amount > 0,
        tuple(image),
        tuple(f"p{int(name[1]) % 3}" for name in image),
        "patient",
        score.argmax(axis=1),
        dominant_class(amount),
    )


def test_every_score_equals_its_plain_form():
    one = task()
    scores = score_zero_shot(one, CONFIG)
    by_class = []
    for column in range(3):
        rows = [np.flatnonzero(np.array(one.image) == f"i{i}") for i in range(7)]
        areas = [roc_auc_score(one.is_present[r, column], one.score[r, column]) for r in rows]
        by_class.append(np.mean(areas))
        assert scores.by_class[column].auroc.value == pytest.approx(np.mean(areas))
        assert scores.by_class[column].n_valid_images == 7
        pooled = roc_auc_score(one.is_present[:, column], one.score[:, column])
        assert scores.by_class[column].pooled_auroc == pytest.approx(pooled)
    assert scores.auroc.value == pytest.approx(np.mean(by_class))
    has_any = one.dominant >= 0
    f1 = f1_score(one.dominant[has_any], one.label[has_any], labels=range(4), average=None,
                  zero_division=0)  # fmt: skip
    assert scores.f1.value == pytest.approx(f1.mean())  # "never" is said, and so counts
    # an image whose scores are all higher spoils the pooled score, not the mean over images
    assert scores.pooled_auroc.value < scores.auroc.value


def test_a_class_that_is_nowhere_is_counted_and_left_out():
    scores = score_zero_shot(task(), CONFIG)
    never = scores.by_class[3]
    assert np.isnan(never.auroc.value)
    assert never.n_valid_images == 0
    assert scores.n_without_image == 1
    record = json.loads(scores.to_json())
    assert record["by_class"][3]["auroc"]["value"] is None
    assert "draws" not in record
    lines = scores.to_csv().splitlines()
    assert len(lines) == 6
    assert lines[4].startswith("never,,,,0,")


def test_units_without_a_score_are_left_out_and_counted():
    one = task()
    score = one.score.copy()
    score[5] = np.nan
    scores = score_zero_shot(replace(one, score=score), CONFIG)
    assert (scores.n_unscored, scores.n_units, scores.n_groups) == (1, 160, 3)
    with pytest.raises(DataError, match="no unit"):
        score_zero_shot(replace(one, score=np.full_like(score, np.nan)), CONFIG)


def test_intervals_are_of_whole_patients():
    one = task()
    scores = score_zero_shot(one, CONFIG)
    number = np.array([int(name[1]) for name in one.image])
    exact = auroc_by_image(one.score, one.is_present, number, 7)
    patient = np.arange(7) % 3
    rng = np.random.default_rng(CONFIG.seed)
    draws = []
    for counts in rng.multinomial(3, [1 / 3] * 3, size=CONFIG.n_draws):
        rows = np.concatenate(
            [np.repeat(np.flatnonzero(patient == p), counts[p]) for p in range(3)]
        )
        draws.append(exact[rows, :3].mean(axis=0).mean())
    assert np.allclose(scores.draws, draws)
    assert scores.auroc.low == pytest.approx(np.quantile(draws, 0.025))


def test_gains_are_paired_and_need_the_same_units():
    good, weak = score_zero_shot(task(1.0), CONFIG), score_zero_shot(task(0.1), CONFIG)
    better = gain(good, weak, CONFIG)
    assert better.value == pytest.approx(good.auroc.value - weak.auroc.value)
    assert better.low > 0
    same = gain(good, good, CONFIG)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(MismatchError, match="paired"):
        gain(good, score_zero_shot(task(), replace(CONFIG, n_draws=7)), CONFIG)


def test_chance_is_a_half_and_signal_is_found():
    noise = score_zero_shot(task(0.0), CONFIG)
    assert abs(noise.auroc.value - 0.5) < 0.08
    assert score_zero_shot(task(2.0), CONFIG).auroc.value > 0.8
    assert noise.recall[1] < score_zero_shot(task(2.0), CONFIG).recall[1]


def test_presence_above_the_median_is_of_each_image():
    amount = np.array([[1.0], [2.0], [3.0], [10.0], [20.0], [20.0]])
    is_above = above_median(amount, ("i", "i", "i", "j", "j", "j"))
    assert is_above[:, 0].tolist() == [False, False, True, False, False, False]


def test_an_image_of_two_patients_is_refused():
    one = task()
    with pytest.raises(DataError, match="image i0"):
        replace(one, group=("x", *one.group[1:]))
