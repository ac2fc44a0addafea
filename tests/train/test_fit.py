import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from histoscribe.data.bags import BagConfig
from histoscribe.data.splits import Split
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.evaluate.benchmark import split_by_slide
from histoscribe.evaluate.metrics import measure_all
from histoscribe.predict import predict_regions
from histoscribe.train.assemble import assemble, cut_bags, cut_into_strips
from histoscribe.train.checkpoint import RECORD, SCALING, WEIGHTS
from histoscribe.train.fit import FitConfig, FitLog, fit, fit_scaling
from histoscribe.train.loop import BagOrder, NetModule, mean_gene_pcc
from histoscribe.train.nets import inner_folds
from histoscribe.train.targets import measure

FILES = (WEIGHTS, SCALING, RECORD)


@pytest.fixture(scope="module")
def fitted(slides, split, panel, quick, small):
    return fit(slides, split, panel, config=quick, model_settings=small)


def as_bytes(checkpoint, folder):
    checkpoint.save(folder)
    return {name: (folder / name).read_bytes() for name in FILES}


def test_same_seed_same_bytes_and_another_seed_others(
    fitted, slides, split, panel, quick, small, tmp_path
):
    before = torch.random.get_rng_state()
    again = fit(slides, split, panel, config=quick, model_settings=small, log=FitLog(tmp_path))
    assert torch.equal(before, torch.random.get_rng_state())
    assert as_bytes(again, tmp_path / "a") == as_bytes(fitted, tmp_path / "b")
    other = fit(slides, split, panel, config=replace(quick, seed=6), model_settings=small)
    assert as_bytes(other, tmp_path / "c")[WEIGHTS] != as_bytes(fitted, tmp_path / "a")[WEIGHTS]


def test_an_interrupt_comes_out_as_one(slides, split, panel, quick, small):
    def interrupt(_):
        signal.raise_signal(signal.SIGINT)

    hears = signal.default_int_handler
    before = signal.signal(signal.SIGINT, hears)  # a process in the background may be deaf
    try:
        log = FitLog(on_epoch=interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(slides, split, panel, config=quick, model_settings=small, log=log)
        assert signal.getsignal(signal.SIGINT) is hears
    finally:
        signal.signal(signal.SIGINT, before)


def poison(slide):
    """The same slide with other features, other places and other counts."""
    rng = np.random.default_rng(0)
    cells = replace(
        slide.cells,
        features=(100 * rng.normal(size=slide.cells.features.shape)).astype(np.float16),
        xy_um=slide.cells.xy_um[::-1].copy(),
    )
    tiles = replace(slide.tiles, features=(-3 * slide.tiles.features).astype(np.float16))
    counts = csr_array(rng.poisson(50, slide.regions.expression.shape).astype(np.float32))
    regions = replace(slide.regions, expression=counts)
    return replace(slide, cells=cells, tiles=tiles, regions=regions)


def test_a_poisoned_test_fold_changes_nothing_that_is_fitted(
    fitted, slides, split, panel, quick, small, tmp_path
):
    poisoned = [*slides[:3], poison(slides[3])]
    again = fit(poisoned, split, panel, config=quick, model_settings=small)
    assert as_bytes(again, tmp_path / "a") == as_bytes(fitted, tmp_path / "b")
    trained_on_it = fit(
        [*slides[:2], poison(slides[2]), slides[3]],
        split,
        panel,
        config=quick,
        model_settings=small,
    )
    assert as_bytes(trained_on_it, tmp_path / "c") != as_bytes(fitted, tmp_path / "b")


def test_each_net_stops_on_another_slide(fitted):
    assert [net["held_out"] for net in fitted.report] == [["toy-0"], ["toy-1"], ["toy-2"]]
    assert all(1 <= net["best_epoch"] <= net["n_epochs"] <= 3 for net in fitted.report)
    a, b = fitted.nets[0], fitted.nets[1]
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_slides_of_one_patient_are_held_out_together(slides, panel, quick, small):
    def of(slide, patient):
        regions = slide.regions
        named = replace(regions, patient_id=(patient,) * len(regions))
        return replace(slide, regions=named)

    known = [of(slides[0], "x"), of(slides[1], "y"), of(slides[2], "x"), slides[3]]
    split = Split(("toy-0", "toy-1", "toy-2"), ("toy-3",), "patient")
    config = replace(quick, max_epochs=1)
    checkpoint = fit(known, split, panel, config=config, model_settings=small)
    assert [net["held_out"] for net in checkpoint.report] == [["toy-0", "toy-2"], ["toy-1"]]


@pytest.mark.parametrize("kill_at", [(0, 1), (1, 0), (1, 2), (2, 3)])
def test_a_killed_fit_goes_on_to_the_same_bits(
    kill_at, fitted, slides, split, panel, quick, small, tmp_path
):
    """Killed in a net and epoch, between two writings of the state or right after one."""
    every_s = 0.0 if kill_at != (1, 2) else 0.05

    def kill(epoch):
        if (epoch.net, epoch.epoch) >= kill_at:
            raise KeyboardInterrupt

    log = FitLog(tmp_path / "run", kill, every_s)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(slides, split, panel, config=quick, model_settings=small, log=log)
    told = []
    log = FitLog(tmp_path / "run", lambda epoch: told.append((epoch.net, epoch.epoch)), 0.0)
    resumed = fit(slides, split, panel, config=quick, model_settings=small, log=log)
    assert as_bytes(resumed, tmp_path / "a") == as_bytes(fitted, tmp_path / "b")
    assert len(told) < 9  # something was taken up


def same_threads() -> dict[str, str]:
    """The environment of a process that sums in as many threads as this one: to the same bits."""
    others = ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in others}
    return {**kept, "OMP_NUM_THREADS": str(torch.get_num_threads())}


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from histoscribe.data.splits import Split
from histoscribe.data.toy import toy_study
from histoscribe.train import loop
from histoscribe.train.assemble import SlideData
from histoscribe.train.fit import FitConfig, FitLog, fit
from histoscribe.train.gene_panel import PanelConfig, choose_panel

folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
slides = [SlideData(w.cells, w.tiles, w.regions) for w in toy_study(3, n_slides=4)]
panel = choose_panel([s.regions for s in slides[:3]], PanelConfig(n_genes=7))
config = FitConfig(seed=5, n_components=9, n_field_components=6, n_phenotypes=3, batch_regions=31,
                   max_epochs=3, learning_rate=3e-3)
small = dict(width=6, gat_layers=1, gat_width=10, gat_heads=2, transformer_layers=1,
             transformer_heads=3, context_width=14, dropout=0.2, context_dropout=0.2)
steps = 0
first = loop.NetModule.training_step
def step(self, batch, batch_idx):
    global steps
    steps += 1
    if steps == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return first(self, batch, batch_idx)
loop.NetModule.training_step = step
split = Split(("toy-0", "toy-1", "toy-2"), ("toy-3",), "patient")
log = FitLog(folder / "run", None, 0.0)
fit(slides, split, panel, config=config, model_settings=small, log=log).save(folder / "model")
"""


class Killed(BaseException):
    """Nothing that Lightning knows how to meet."""


@pytest.mark.slow
def test_a_fit_that_falls_over_at_every_step_goes_on_to_the_same_bits(
    fitted, slides, split, panel, quick, small, tmp_path, monkeypatch
):
    """Each attempt falls at the first step that none fell at before: before, in and between epochs.

    Only the state on disk lives on; a fall before the first writing loses all that was done.
    """
    seen, fallen = set(), []
    learn = NetModule.training_step

    def fall(module, batch, batch_idx):
        at = (module.seed, module.global_step)
        if at not in seen:
            seen.add(at)
            fallen.append(at)
            raise Killed
        return learn(module, batch, batch_idx)

    monkeypatch.setattr(NetModule, "training_step", fall)
    log = FitLog(tmp_path / "run", None, 0.0)
    for _ in range(99):
        try:
            resumed = fit(slides, split, panel, config=quick, model_settings=small, log=log)
            break
        except Killed:
            continue
    assert len({seed for seed, _ in fallen}) == 3
    steps = max(step for _, step in fallen) + 1
    assert len(fallen) == 3 * steps
    assert steps % 3 == 0
    assert steps > 6  # three epochs of several steps
    assert as_bytes(resumed, tmp_path / "a") == as_bytes(fitted, tmp_path / "b")


@pytest.mark.slow
def test_a_process_killed_at_a_step_goes_on_to_the_same_bits(fitted, tmp_path):
    """Killed before anything is written, in a later epoch, in the next net."""
    for attempt in (2, 7, 9, -1):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path), str(attempt)],
            env=same_threads(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == (-9 if attempt > 0 else 0), done.stderr.decode()[-2000:]
    resumed = {name: (tmp_path / "model" / name).read_bytes() for name in FILES}
    assert resumed == as_bytes(fitted, tmp_path / "b")


def test_other_settings_do_not_take_up_the_state(slides, split, panel, quick, small, tmp_path):
    log = FitLog(tmp_path, None, 0.0)
    config = replace(quick, max_epochs=1)
    fit(slides, split, panel, config=config, model_settings=small, log=log)
    told = []
    log = FitLog(tmp_path, told.append, 0.0)
    config = replace(config, weight_decay=0.5)
    fit(slides, split, panel, config=config, model_settings=small, log=log)
    assert len(told) == 3


def test_other_slides_do_not_take_up_the_state(slides, split, panel, quick, small, tmp_path):
    config = replace(quick, max_epochs=1)
    fit(slides, split, panel, config=config, model_settings=small, log=FitLog(tmp_path))
    told = []
    log = FitLog(tmp_path, told.append, 0.0)
    fit(slides, split, panel, config=config, model_settings=small, log=log)
    assert told == []
    counts = slides[1].regions.expression.copy()
    counts.data = counts.data + 1
    recounted = replace(slides[1], regions=replace(slides[1].regions, expression=counts))
    changed = [slides[0], recounted, *slides[2:]]
    fit(changed, split, panel, config=config, model_settings=small, log=log)
    assert len(told) == 3


def test_logs_are_csv_and_tensorboard(slides, split, panel, quick, small, tmp_path):
    fit(slides, split, panel, config=quick, model_settings=small, log=FitLog(tmp_path))
    lines = (tmp_path / "logs/csv/net1/metrics.csv").read_text().splitlines()
    assert "held_out_gene_pcc" in lines[0]
    assert "train_loss" in lines[0]
    assert len(lines) == 1 + 3
    assert list(Path(tmp_path / "logs/tensorboard/net2").glob("events*"))


def test_a_toy_fit_beats_the_mean_and_says_what_is_below_it(slides, split, panel, quick, small):
    config = replace(quick, max_epochs=12, learning_rate=1e-2)
    checkpoint = fit(slides, split, panel, config=config, model_settings=small)
    ((predicted,),) = [split_by_slide(predict_regions(checkpoint, slides[3:]), slides[3:])]
    measured, _ = measure(slides[3].regions, panel, "log1p_cp10k")
    mean = np.tile(checkpoint.scaling.target.mu, (len(measured), 1))
    ours, theirs = measure_all(predicted, measured), measure_all(mean, measured)
    assert ours.gene_pcc > 0.7
    assert ours.rmse < 0.8 * theirs.rmse
    assert (predicted < checkpoint.scaling.target.mu).mean() > 0.2


def test_one_slide_on_a_narrow_lattice_is_cut_into_inner_folds(slides, panel):
    """Two columns of spots: borders at quantiles of x would leave a part empty."""
    regions = slides[0].regions
    columns = np.unique(regions.xy_um[:, 0])[:2]
    narrow = replace(
        slides[0], regions=regions.take(np.flatnonzero(np.isin(regions.xy_um[:, 0], columns)))
    )
    bags = cut_bags(narrow, BagConfig())
    config = FitConfig(n_components=3, n_field_components=2, n_phenotypes=2)
    assembled = assemble([bags], fit_scaling([bags], panel, config), panel, has_target=True)
    size = np.bincount(inner_folds(assembled, 5))
    assert len(size) == 3
    assert size.max() - size.min() <= 1


def test_one_slide_can_be_fitted_in_strips(slides, panel, quick, small):
    strips = cut_into_strips(slides[0], 4, 50.0)
    assert [s.slide_id for s in strips] == [f"toy-0-strip{i}" for i in (1, 2, 3, 4)]
    names = [name for strip in strips for name in strip.regions.region_id]
    assert len(names) == len(set(names)) <= len(slides[0].regions)
    split = Split(tuple(s.slide_id for s in strips[:3]), (strips[3].slide_id,), "strip")
    config = replace(quick, max_epochs=1)
    checkpoint = fit(strips, split, panel, config=config, model_settings=small)
    assert len(checkpoint.nets) == 3
    alone = Split(("toy-0",), ("toy-1",), "patient")
    assert len(fit(slides, alone, panel, config=config, model_settings=small).nets) == 3


def test_repeats_add_nets_with_other_seeds(slides, split, panel, quick, small, fitted):
    config = replace(quick, n_repeats=2)
    checkpoint = fit(slides, split, panel, config=config, model_settings=small)
    assert len(checkpoint.nets) == 6
    for name, weight in fitted.nets[1].items():
        assert torch.equal(checkpoint.nets[1][name], weight)
    assert any(not torch.equal(checkpoint.nets[4][n], w) for n, w in fitted.nets[1].items())


def test_what_does_not_fit_together_is_told(slides, split, panel, quick, small):
    stranger = replace(
        slides[1],
        cells=replace(slides[1].cells, encoder_id="other"),
        tiles=replace(slides[1].tiles, encoder_id="other"),
    )
    with pytest.raises(MismatchError, match="never meet in one fit"):
        fit([slides[0], stranger, *slides[2:]], split, panel, config=quick)
    with pytest.raises(DataError, match="training slide toy-2 was not given"):
        fit(slides[:2], split, panel, config=quick)
    with pytest.raises(ConfigError, match="bananas"):
        fit(slides, split, panel, config=quick, model_settings={"bananas": 2})
    with pytest.raises(ConfigError, match="told by the data"):
        fit(slides, split, panel, config=quick, model_settings={"n_genes": 2})
    with pytest.raises(ConfigError, match="model 'bitrot' is not known"):
        fit(slides, split, panel, config=replace(quick, model="bitrot"))
    empty = replace(slides[1].regions, expression=None)
    with pytest.raises(DataError, match="have no expression"):
        fit([slides[0], replace(slides[1], regions=empty), *slides[2:]], split, panel, config=quick)


@pytest.mark.parametrize(
    ("name", "value"),
    [("patience", 0), ("learning_rate", 0.0), ("n_folds", 1), ("seed", -1), ("clip_norm", -1.0)],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        FitConfig(**{name: value})


def test_batches_hold_every_bag_once_in_an_order_of_the_epoch():
    order = BagOrder(101, 31, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        batches = [draw.bags for draw in order]
        assert len(batches) == len(order) == 4
        assert {len(batch) for batch in batches} == {25, 26}
        assert sorted(torch.cat(batches).tolist()) == list(range(101))
        epochs.append(torch.cat(batches))
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


def test_held_out_score_is_the_mean_pcc_of_genes_that_vary():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(23, 5, generator=generator) for _ in range(2))
    y[:, 2], x[:, 3] = 1.5, 0.0
    seen = torch.ones_like(y, dtype=torch.bool)
    seen[7:, 4] = False
    wanted = [np.corrcoef(x[:, g], y[:, g])[0, 1] for g in (0, 1)]
    wanted += [0.0, np.corrcoef(x[:7, 4], y[:7, 4])[0, 1]]
    assert abs(mean_gene_pcc(x, y, seen) - np.mean(wanted)) < 1e-6
