"""The grid of settings, tried on the inner folds alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from histoscribe.errors import ConfigError
from histoscribe.train.fit import fit
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.loop import NetModule
from histoscribe.train.net_task import DivergenceError, FitLog
from histoscribe.train.search import SearchConfig, search
from histoscribe.train.transfer import Start

GRID = SearchConfig((3e-3, 1e-6), (0.0, 0.2), (0.3,))


@pytest.fixture(scope="module")
def two_epochs(quick):
    return replace(quick, max_epochs=2)


@pytest.fixture(scope="module")
def found(slides, split, panel, two_epochs, small):
    return search(slides, split, panel, config=two_epochs, model_settings=small, search=GRID)


def settings_of(trial):
    return (trial.learning_rate, trial.dropout, trial.cluster_weight)


def poison(slide):
    """The same slide with other features and other counts."""
    rng = np.random.default_rng(0)
    features = (100 * rng.normal(size=slide.cells.features.shape)).astype(np.float16)
    counts = csr_array(rng.poisson(50, slide.regions.expression.shape).astype(np.float32))
    return replace(
        slide,
        cells=replace(slide.cells, features=features),
        regions=replace(slide.regions, expression=counts),
    )


def test_every_setting_is_tried_once_and_the_best_is_chosen(found, two_epochs, small):
    assert [settings_of(trial) for trial in found.trials] == list(GRID.grid())
    assert len(found.trials) == len(GRID) == 4
    scores = [trial.score for trial in found.trials]
    assert found.best == scores.index(max(scores))
    best = found.trials[found.best]
    assert (found.config.learning_rate, found.model_settings["dropout"]) == settings_of(best)[:2]
    assert found.config.cluster_weight == best.cluster_weight
    changed = {"learning_rate", "cluster_weight"}
    kept = {**vars(found.config), **{name: getattr(two_epochs, name) for name in changed}}
    assert FitConfig(**kept) == replace(two_epochs, stop_on="gene_pcc")
    assert {**small, "dropout": best.dropout} == dict(found.model_settings)


def test_a_rate_that_learns_nothing_is_not_chosen(found):
    assert found.config.learning_rate == 3e-3
    slow = [trial.score for trial in found.trials if trial.learning_rate == 1e-6]
    assert max(slow) < found.trials[found.best].score - 0.05


def test_a_trial_is_the_fit_of_its_setting(found, slides, split, panel, two_epochs, small):
    for trial in (found.trials[1], found.trials[found.best]):
        rate, dropout, weight = settings_of(trial)
        config = replace(two_epochs, learning_rate=rate, cluster_weight=weight)
        settings = {**small, "dropout": dropout}
        checkpoint = fit(slides, split, panel, config=config, model_settings=settings)
        assert tuple(net["best_score"] for net in checkpoint.report) == trial.net_scores
        assert tuple(net["best_epoch"] for net in checkpoint.report) == trial.best_epochs
        assert trial.score == np.mean(trial.net_scores)


def test_a_poisoned_test_side_changes_no_score(found, slides, split, panel, two_epochs, small):
    words = {"config": two_epochs, "model_settings": small, "search": GRID}
    again = search([*slides[:3], poison(slides[3])], split, panel, **words)
    assert again == found
    trained_on_it = search([*slides[:2], poison(slides[2]), slides[3]], split, panel, **words)
    assert [t.score for t in trained_on_it.trials] != [t.score for t in found.trials]


def test_the_cluster_loss_is_no_part_of_the_score(
    slides, split, panel, two_epochs, small, monkeypatch
):
    """Minus the loss of expression, as an own sum over the nets' last answers has it."""
    said = []
    score_answers = NetModule.score_answers

    def listen(module):
        answer, target, is_observed = module.outputs[0]
        everything = np.ones(tuple(target.shape), bool) if is_observed is None else is_observed
        assert len(module.outputs) == 1
        error = ((answer - target) ** 2).numpy()[np.asarray(everything)]
        score = score_answers(module)
        said.append((module.config.cluster_weight, score, -float(error.mean())))
        return score

    monkeypatch.setattr(NetModule, "score_answers", listen)
    config = replace(two_epochs, stop_on="loss")
    grid = SearchConfig((3e-3,), (0.0,), (0.0, 50.0))
    search(slides, split, panel, config=config, model_settings=small, search=grid)
    assert {weight for weight, _, _ in said} == {0.0, 50.0}
    for _, score, plain in said:
        assert score == pytest.approx(plain, rel=1e-5)


def test_of_equals_the_first_is_taken(slides, split, panel, two_epochs, small):
    """Rates that leave the nets as they were drawn, to the last bit."""
    grid = SearchConfig((1e-30, 1e-31), (0.0,), (0.3, 0.0))
    config = replace(two_epochs, max_epochs=1, weight_decay=0.0)
    same = search(slides, split, panel, config=config, model_settings=small, search=grid)
    assert len({trial.score for trial in same.trials}) == 1
    assert same.best == 0
    assert same.config.cluster_weight == 0.3


@pytest.mark.parametrize("kill_at", [(0, 1), (2, 2), (4, 1)])
def test_a_killed_search_goes_on(kill_at, slides, split, panel, two_epochs, small, tmp_path):
    grid = SearchConfig((3e-3,), (0.0, 0.2), (0.0,))
    words = {"config": two_epochs, "model_settings": small, "search": grid}
    whole = search(slides, split, panel, **words)

    def kill(epoch):
        if (epoch.net, epoch.epoch) >= kill_at:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        search(slides, split, panel, **words, log=FitLog(tmp_path, kill, 0.0))
    told = []
    log = FitLog(tmp_path, lambda e: told.append((e.net, e.n_nets, e.epoch)), 0.0)
    assert search(slides, split, panel, **words, log=log) == whole
    assert {n_nets for _, n_nets, _ in told} == {6}
    assert told[-1] == (5, 6, 2)
    if kill_at[0] > 2:
        assert min(net for net, _, _ in told) >= 3  # the first trial was kept whole
    assert len(told) < 12
    told.clear()
    assert search(slides, split, panel, **words, log=log) == whole
    assert not told
    assert not list(tmp_path.glob("*/state"))  # weights of trials are not kept


def test_a_kept_trial_of_other_data_or_a_broken_one_is_made_again(
    slides, split, panel, two_epochs, small, tmp_path
):
    grid = SearchConfig((3e-3,), (0.0,), (0.0,))
    words = {"config": replace(two_epochs, max_epochs=1), "model_settings": small, "search": grid}
    first = search(slides, split, panel, **words, log=FitLog(tmp_path))
    (kept,) = tmp_path.glob("*/trial.json")
    record = json.loads(kept.read_text())
    assert record["score"] == first.trials[0].score
    other = search([*slides[:2], poison(slides[2]), slides[3]], split, panel, **words,
                   log=FitLog(tmp_path))  # fmt: skip
    assert other.trials[0].key != first.trials[0].key
    kept.write_text(json.dumps({**record, "score": 7.0, "key": "0" * 16}))
    assert search(slides, split, panel, **words, log=FitLog(tmp_path)) == first
    kept.write_text("{")
    assert search(slides, split, panel, **words, log=FitLog(tmp_path)) == first


@pytest.mark.parametrize("stop_on", ["gene_pcc", "loss"])
def test_a_trial_that_diverges_loses(stop_on, slides, split, panel, two_epochs, small):
    words = {"config": replace(two_epochs, stop_on=stop_on), "model_settings": small}
    grid = SearchConfig((1e30, 3e-3), (0.0,), (0.0,))
    result = search(slides, split, panel, **words, search=grid)
    assert result.trials[0].score is None
    assert result.config.learning_rate == 3e-3
    with pytest.raises(DivergenceError, match="each of the 1 trials"):
        search(slides, split, panel, **words, search=replace(grid, learning_rates=(1e30,)))


def test_a_search_goes_on_from_a_checkpoint(slides, split, panel, two_epochs, small):
    config = replace(two_epochs, max_epochs=1)
    start = Start(fit(slides, split, panel, config=config, model_settings=small))
    grid = SearchConfig((3e-3,), (0.0, 0.2), (0.0,))
    result = search(slides, split, panel, config=config, start=start, search=grid)
    assert dict(result.model_settings) == {"dropout": settings_of(result.trials[result.best])[1]}
    again = fit(
        slides, split, panel, config=result.config, model_settings=result.model_settings,
        start=start,
    )  # fmt: skip
    scores = tuple(net["best_score"] for net in again.report)
    assert scores == result.trials[result.best].net_scores


def test_the_paper_s_values_and_our_defaults_are_in_the_grid():
    usual = SearchConfig()
    assert usual.learning_rates == (1e-3, 5e-4, 1e-4, 1e-5)
    assert usual.dropouts == (0.0, 0.1, 0.2)
    config = FitConfig()
    for kind in ("spot", "bulk"):
        default = (config.learning_rate, 0.1, config.resolve(kind).cluster_weight)
        assert default in list(usual.grid())
    assert max(usual.cluster_weights) == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rates": ()},
        {"learning_rates": (0.0,)},
        {"dropouts": (1.0,)},
        {"cluster_weights": (-0.1,)},
        {"cluster_weights": (0.1, 0.1)},
        {"learning_rates": (float("nan"),)},
    ],
)
def test_a_grid_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigError, match="search." + next(iter(wrong))):
        SearchConfig(**wrong)
