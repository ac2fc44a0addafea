"""Two processes that share every batch come to the weights of one."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from histoscribe.data.splits import Split
from histoscribe.data.toy import toy_bag_batch, toy_study
from histoscribe.errors import ConfigError, MissingExtra
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import Checkpoint
from histoscribe.train.draw import BagOrder, Bags, Draw
from histoscribe.train.fit import fit
from histoscribe.train.fit_config import FitConfig, check_device
from histoscribe.train.gene_panel import PanelConfig, choose_panel
from histoscribe.train.net_task import FitLog
from histoscribe.train.processes import NAMES, Processes, find_processes, weigh_loss

SETTINGS = {
    "width": 6,
    "gat_layers": 1,
    "gat_width": 10,
    "gat_heads": 2,
    "transformer_layers": 1,
    "transformer_heads": 3,
    "context_width": 14,
    "cells_in_training": 0,
    "dropout": 0.0,
    "context_dropout": 0.0,
    "context_input_dropout": 0.0,
}


def fit_toys(folder: Path) -> None:
    """What each process does; genes that some slides lack make the shares of a batch unequal."""
    slides = [SlideData(world.cells, world.tiles, world.regions) for world in toy_study(3, 3)]
    seen = slides[1].regions.gene_observed.copy()
    seen[2] = False
    expression = slides[1].regions.expression.toarray()
    expression[:, 2] = 0
    hidden = replace(
        slides[1].regions,
        gene_observed=seen,
        expression=type(slides[1].regions.expression)(expression),
    )
    panel = choose_panel([slides[0].regions], PanelConfig(n_genes=7))
    slides[1] = replace(slides[1], regions=hidden)
    config = FitConfig(
        n_components=9, n_field_components=6, n_phenotypes=3, max_epochs=3, batch_regions=17
    )
    split = Split(("toy-0", "toy-1"), ("toy-2",), "patient")
    made = fit(
        slides, split, panel, config=config, model_settings=SETTINGS, log=FitLog(folder / "log")
    )
    if find_processes().is_first:
        made.save(folder / "checkpoint")


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(tmp_path, torchrun):
    fit_toys(tmp_path / "one")
    done = torchrun(__file__, tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (Checkpoint.load(tmp_path / name / "checkpoint") for name in ("one", "two"))
    assert [net["best_epoch"] for net in one.report] == [net["best_epoch"] for net in two.report]
    moved = 0.0
    for a, b in zip(one.nets, two.nets, strict=True):
        for name, tensor in a.items():
            assert torch.allclose(tensor, b[name], atol=1e-5), name
        moved += sum(float(tensor.abs().sum()) for tensor in a.values())
    assert moved > 0


def test_shares_of_a_batch_are_all_of_it():
    batch = toy_bag_batch(torch.Generator().manual_seed(2), n_bags=11, most_blocks=6)
    draw = Draw(torch.tensor([4, 1, 7, 3, 9]), 5)
    whole = Bags(batch, 2)[draw]
    for rank in range(3):
        share = Bags(batch, 2, Processes(rank, 3, 3))[draw]
        own = whole.take(torch.arange(rank, 5, 3))
        assert torch.equal(share.target, own.target)
        assert torch.equal(share.features, own.features)
    for n_bags, most, n in ((7, 32, 2), (101, 31, 4), (5, 2, 5)):
        sizes = [len(draw.bags) for draw in BagOrder(n_bags, most, 0, n)]
        assert sum(sizes) == n_bags
        assert min(sizes) >= n
    with pytest.raises(ConfigError, match="3 processes share 2 training regions"):
        BagOrder(2, 32, 0, 3)


def test_what_torchrun_says(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert find_processes() == Processes(0, 1, 1)
    for name, value in zip(NAMES, ("3", "8", "4"), strict=True):
        monkeypatch.setenv(name, value)
    assert find_processes() == Processes(3, 8, 4)
    assert not find_processes().is_first
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ConfigError, match="torchrun"):
        find_processes()


@pytest.mark.parametrize(
    ("device", "said", "wrong"),
    [
        ("cpu", "0 8 4", None),
        ("cpu", "0 6 4", "started 4 of 6 processes on this machine"),
        ("cuda", "0 4 2", None),
        ("cuda", "0 1 1", None),
        ("cuda", "0 3 3", "started 3 processes on this machine, which has 2 GPU"),
        ("mps", "0 1 1", None),
        ("mps", "0 2 2", "mps works in one process and torchrun started 2"),
    ],
)
def test_processes_that_cannot_share_a_device_are_refused(monkeypatch, device, said, wrong):
    for name, value in zip(NAMES, said.split(), strict=True):
        monkeypatch.setenv(name, value)
    for backend in (torch.cuda, torch.mps):
        monkeypatch.setattr(backend, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = FitConfig(device=device)
    if wrong is None:
        check_device(config)
    else:
        with pytest.raises(ConfigError, match=wrong):
            check_device(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if device == "cuda":
        with pytest.raises(MissingExtra, match="does not find"):
            check_device(config)


def test_one_process_weighs_nothing():
    loss = torch.tensor(0.7)
    assert weigh_loss(loss, 5, Processes()) is loss


if __name__ == "__main__":
    torch.set_num_threads(1)
    fit_toys(Path(sys.argv[1]))
