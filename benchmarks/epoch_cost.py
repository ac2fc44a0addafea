"""What an epoch of training costs: batched, against the same modules called region by region.

    python benchmarks/epoch_cost.py
    python benchmarks/epoch_cost.py --setting has_context=false --device cuda
    python benchmarks/epoch_cost.py --study STUDY --train C2,C3,C4

The regions are made up in the shape of her2st C2-C5 (732 spots, nuclei within 50 µm and a ring
around them), or come from a study that was prepared. Three ways, timed in turn in one run, the
median of three epochs each; every epoch has the same batches, dropout and one optimiser step a
batch:

- batched: what `fit` does;
- alone: the same forms, one region at a time;
- plain: one region at a time, in the reference forms of the tests.

Without dropout, all three must give the same loss to 1e-5. The bar is held against the faster of
the two that go region by region.
"""

import argparse
import json
import platform
import statistics
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from histoscribe.data.bags import BagBatch
from histoscribe.data.join import knn_within_bags
from histoscribe.models import bitro
from histoscribe.models.bitro import Bitro
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.nn import gat, transformer
from histoscribe.nn.gat import sum_neighbours_plain
from histoscribe.nn.gene_query import pool_by_gene_plain
from histoscribe.nn.transformer import attend_within_bags_plain
from histoscribe.train.losses import objective

BATCH_REGIONS = 32
LEARNING_RATE = 1e-3
CLIP_NORM = 1.0
RADIUS_UM = 50.0
RING_UM = 25.0
BAR = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regions", type=int, default=732)
    parser.add_argument("--genes", type=int, default=250)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--setting", action="append", default=[], help="of the model: name=JSON")
    parser.add_argument("--study", type=Path, help="a prepared study, instead of made-up regions")
    parser.add_argument(
        "--train", default="", help="its training slides, by comma; all if left out"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.study:
        everything = read_bags(given.study, given.train, given.genes).to(given.device)
    else:
        everything = make_bags(given.regions, given.genes).to(given.device)
    net = make_net(everything, dict(s.split("=", 1) for s in given.setting)).to(given.device)
    n_cells = everything.cells_per_bag().float()
    print(
        f"{everything.n_bags} regions, {everything.n_cells} cells with context "
        f"({n_cells.mean():.0f} a region, {n_cells.min():.0f} to {n_cells.max():.0f}), "
        f"{everything.target.shape[1]} genes, {sum(p.numel() for p in net.parameters()):,} weights"
    )
    print(f"{platform.processor() or platform.machine()}, {given.device}, {given.threads} threads")
    if given.device == "cuda":
        print(torch.cuda.get_device_name())
    losses = {way: epoch_loss(net, everything, way) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(given.repeats):
        for way in WAYS:
            seconds[way].append(time_epoch(net, everything, way))
    report(losses, seconds)


def plain_forms() -> AbstractContextManager:
    """The model, with the reference forms of the tests in place of the fast ones."""
    stack = ExitStack()
    stack.enter_context(patch.object(gat, "sum_neighbours", sum_neighbours_plain))
    stack.enter_context(patch.object(transformer, "attend_within_bags", attend_within_bags_plain))
    stack.enter_context(patch.object(bitro, "pool_by_gene", pool_by_gene_plain))
    return stack


WAYS = {"batched": nullcontext, "alone": nullcontext, "plain": plain_forms}


def batch_loss(net: Bitro, batch: BagBatch, way: str) -> torch.Tensor:
    """Loss of a batch; every gene is measured in every region, so that means may be averaged."""
    if way == "batched":
        return objective(net, batch)["loss"]
    alone = [
        objective(net, batch.take(torch.tensor([b], device=batch.bag_of_cell.device)))["loss"]
        for b in range(batch.n_bags)
    ]
    return torch.stack(alone).mean()


def batches(everything: BagBatch) -> list[torch.Tensor]:
    order = torch.randperm(everything.n_bags, generator=torch.Generator().manual_seed(0))
    n_batches = -(-everything.n_bags // BATCH_REGIONS)
    return [rows.to(everything.bag_of_cell.device) for rows in order.tensor_split(n_batches)]


def epoch_loss(net: Bitro, everything: BagBatch, way: str) -> float:
    """Mean loss over an epoch without dropout and without steps."""
    net.eval()
    with torch.no_grad(), WAYS[way]():
        losses = [batch_loss(net, everything.take(rows), way) for rows in batches(everything)]
    return float(torch.stack(losses).mean())


def time_epoch(net: Bitro, everything: BagBatch, way: str) -> float:
    """Seconds of one epoch from the same weights."""
    start_weights = {name: t.clone() for name, t in net.state_dict().items()}
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    net.train()
    wait(everything)
    started = time.perf_counter()
    with WAYS[way]():
        for rows in batches(everything):
            loss = batch_loss(net, everything.take(rows), way)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
            optimiser.step()
    wait(everything)
    seconds = time.perf_counter() - started
    net.load_state_dict(start_weights)
    return seconds


def wait(everything: BagBatch) -> None:
    if everything.features.is_cuda:
        torch.cuda.synchronize()


def report(losses: dict[str, float], seconds: dict[str, list[float]]) -> None:
    print(f"\n{'':8} {'s / epoch':>10} {'all':>24} {'times':>7} {'loss':>12} {'off by':>9}")
    median = {way: statistics.median(times) for way, times in seconds.items()}
    for way, times in seconds.items():
        every = " ".join(f"{t:.2f}" for t in times)
        off = abs(losses[way] - losses["batched"])
        print(
            f"{way:8} {median[way]:10.2f} {every:>24} {median[way] / median['batched']:6.1f}x "
            f"{losses[way]:12.7f} {off:9.1e}"
        )
    is_same = all(abs(loss - losses["batched"]) <= 1e-5 for loss in losses.values())
    # Both ways are "region by region"; the bar is held against the faster of the two.
    ratio = min(median["alone"], median["plain"]) / median["batched"]
    print(
        f"\nsame loss to 1e-5: {'yes' if is_same else 'NO'}; at least {BAR:g} times faster than "
        f"region by region: {'yes' if ratio >= BAR else 'NO'} ({ratio:.1f}x)"
    )
    if not is_same or ratio < BAR:
        raise SystemExit(1)


def make_net(everything: BagBatch, settings: dict[str, str]) -> Bitro:
    torch.manual_seed(0)
    assert everything.target is not None
    config = BitroConfig(
        n_features=everything.features.shape[1],
        n_descriptors=everything.field.shape[2],
        n_rings=everything.field.shape[1],
        n_genes=everything.target.shape[1],
        **{name: json.loads(value) for name, value in settings.items()},
    )
    return Bitro(config)


def make_bags(n_bags: int, n_genes: int) -> BagBatch:
    """Regions in the shape of her2st C2-C5: 49 nuclei inside on average, as densely around."""
    generator = torch.Generator().manual_seed(0)
    n_inside = (49 + 14 * torch.randn(n_bags, generator=generator)).clamp(5, 95)
    n_cells = (n_inside * (1 + RING_UM / RADIUS_UM) ** 2).long()
    bag_of_cell = torch.repeat_interleave(torch.arange(n_bags), n_cells)
    total = len(bag_of_cell)
    distance_um = (RADIUS_UM + RING_UM) * torch.rand(total, generator=generator).sqrt()
    distance_um[n_cells.cumsum(0) - n_cells] = 0.0
    angle = 2 * torch.pi * torch.rand(total, generator=generator)
    offset_um = distance_um[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    neighbours = knn_within_bags(offset_um.numpy(), bag_of_cell.numpy(), 8)
    return BagBatch(
        features=torch.randn(total, 128, generator=generator),
        offset_um=offset_um,
        is_inside=distance_um <= RADIUS_UM,
        neighbours=torch.from_numpy(neighbours),
        phenotype=torch.randint(0, 8, (total,), generator=generator),
        block_of_cell=bag_of_cell,
        bag_of_block=torch.arange(n_bags),
        field=torch.randn(n_bags, 4, 256, generator=generator),
        n_bags=n_bags,
        target=torch.randn(n_bags, n_genes, generator=generator),
    )


def read_bags(study: Path, train: str, n_genes: int) -> BagBatch:
    """Bags of a prepared study in the default settings, all genes taken as measured."""
    from histoscribe.data.bags import BagConfig
    from histoscribe.data.store import read_cells, read_regions, read_tiles
    from histoscribe.train.assemble import SlideData, assemble, cut_bags
    from histoscribe.train.fit import FitConfig, fit_scaling
    from histoscribe.train.gene_panel import PanelConfig, choose_panel

    names = train.split(",") if train else sorted(p.name for p in (study / "samples").iterdir())
    folders = [study / "samples" / name for name in names]
    slides = [SlideData(read_cells(f), read_tiles(f), read_regions(f)) for f in folders]
    panel = choose_panel([slide.regions for slide in slides], PanelConfig(n_genes=n_genes))
    cut = [cut_bags(slide, BagConfig()) for slide in slides]
    bags = assemble(cut, fit_scaling(cut, panel, FitConfig()), panel, has_target=True)
    return replace(bags.batch, is_observed=None)


if __name__ == "__main__":
    main()
