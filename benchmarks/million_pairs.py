"""A million image-gene and a million gene-text pairs with cached features: speed and memory.

    python benchmarks/million_pairs.py                       # makes 4 GB of arrays in a temp folder
    python benchmarks/million_pairs.py --pairs 100000 --steps 50 --device cuda

The arrays are synthetic and memory-mapped, half precision: a feature vector of a frozen patch
encoder and an expression profile for each region, a profile for each labelled profile, a feature
vector of a frozen text tower for each of some thousand texts. What is timed is the product's own
step (`learn_step`: draw, read, embed, losses, gradient, AdamW), some hundred of them after a few to
warm up; the hours of a full run are projected from it and not run. A full run is four epochs of
both kinds of pairs, as SpatialWhisperer's. Bar: below 8 GiB resident at the peak, arrays included
as far as their pages are in memory (the authors' job asked for 900 GB).
"""

import argparse
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from histoscribe.data.mapped import as_read_only, new_mapped, release
from histoscribe.data.texts import Texts
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.models.trimodal import Trimodal
from histoscribe.models.trimodal_config import TrimodalConfig
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_data import (
    AlignData,
    HeldOut,
    MadeGenes,
    MappedPatches,
    StackedGenes,
    TextRows,
)
from histoscribe.train.align_loop import learn_step, make_optimiser
from histoscribe.train.align_step import Aligner
from histoscribe.train.pairs import PairStream, pair_rows, pair_texts

GIB = 2**30
BAR_GIB = 8.0
N_EPOCHS = 4
N_TEXTS = 5_000
ROWS_AT_ONCE = 65_536
WARM_UP = 20


def fill(path: Path, shape: tuple[int, int], seed: int) -> np.ndarray:
    """A mapped array of noise, written in parts; its pages are given back."""
    array = new_mapped(path, shape, np.float16)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((min(ROWS_AT_ONCE, shape[0]), shape[1]), np.float32)
    for first in range(0, shape[0], ROWS_AT_ONCE):
        n = min(ROWS_AT_ONCE, shape[0] - first)
        array[first : first + n] = (noise[:n] + 0.1 * rng.standard_normal()).astype(np.float16)
        release(array)
    return as_read_only(array)


def make_data(folder: Path, asked: argparse.Namespace) -> AlignData:
    """Mapped arrays and the pairs over them."""
    n = asked.pairs
    images = fill(folder / "images", (n, asked.features), 1)
    regions = fill(folder / "regions", (n, asked.genes), 2)
    profiles = fill(folder / "profiles", (n, asked.genes), 3)
    texts = fill(folder / "texts", (N_TEXTS, asked.text), 4)
    seen = np.ones(asked.genes, dtype=bool)
    names = tuple(f"text {row}" for row in range(N_TEXTS))
    rows = np.arange(n)
    pairs = (
        pair_rows("image-gene", rows, rows),
        pair_texts(
            "gene-text",
            ("",) * n + tuple(names[row % N_TEXTS] for row in range(n)),
            Texts(names, names),
            n + rows,
        ),
    )
    held = np.arange(0, n, max(1, n // 256))
    return AlignData(
        MappedPatches(images, regions[:, : asked.panel]),
        StackedGenes((MadeGenes(regions, seen), MadeGenes(profiles, seen))),
        TextRows(np.arange(N_TEXTS), texts),
        pairs,
        HeldOut(held, held),
    )


def make_net(asked: argparse.Namespace, config: AlignConfig) -> Trimodal:
    """A patch is a region of one cell, without graph and surroundings."""
    torch.manual_seed(0)
    bitro = BitroConfig(
        asked.features,
        1,
        1,
        asked.panel,
        has_context=False,
        cells_in_training=0,
        width=128,
        gat_layers=0,
        transformer_layers=0,
        position="none",
    )
    return Trimodal(
        TrimodalConfig(
            bitro,
            n_text=asked.text,
            n_more_genes=asked.genes - asked.panel,
            gene_space=config.gene_space,
            embedding_width=config.embedding_width,
            gene_width=config.gene_width,
        )
    )


def time_steps(asked: argparse.Namespace, data: AlignData, config: AlignConfig) -> list[float]:
    """Seconds of each step, the first ones left out."""
    net = Aligner(make_net(asked, config)).to(asked.device)
    optimiser = make_optimiser(net, config)
    rows = config.pair_rows()
    streams = [PairStream(pairs, rows[pairs.kind], 0) for pairs in data.pairs]
    seconds = []
    for step in range(WARM_UP + asked.steps):
        started = time.perf_counter()
        losses = learn_step(net, data, streams, optimiser, 0, step, config)
        float(losses["loss"].detach())  # waits for the device
        seconds.append(time.perf_counter() - started)
    return seconds[WARM_UP:]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--pairs", type=int, default=1_000_000)
    words.add_argument("--steps", type=int, default=200)
    words.add_argument("--rows", type=int, default=256, help="pairs of each kind a step")
    words.add_argument("--features", type=int, default=512)
    words.add_argument("--genes", type=int, default=500)
    words.add_argument("--panel", type=int, default=100, help="of them predicted")
    words.add_argument("--text", type=int, default=384)
    words.add_argument("--device", default="cpu")
    words.add_argument("--folder", type=Path, help="for the arrays; a temporary one by default")
    asked = words.parse_args()
    common = AlignConfig(
        image_gene_rows=asked.rows,
        gene_text_rows=asked.rows,
        embedding_width=128,
        patience=10**6,
        cycle_weight=0.0,
        device=asked.device,
    )
    configs = {
        "anchor, fixed genes, joint": common,
        "softmax, gene tower, align": replace(
            common, loss="softmax", gene_space="learned", objective="align"
        ),
    }
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        started = time.perf_counter()
        data = make_data(Path(folder), asked)
        made = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"{asked.pairs:,} image-gene and {asked.pairs:,} gene-text pairs, {size / GIB:.1f} "
              f"GiB of arrays made in {made:.0f} s; {torch.get_num_threads()} thread(s) on "
              f"{asked.device}; {asked.steps} steps timed, hours projected")  # fmt: skip
        print(f"{'':30s} {'ms/step':>8s} {'pairs/s':>9s} {'hours':>7s} {'peak GiB':>9s}")
        for name, config in configs.items():
            step_s = float(np.mean(time_steps(asked, data, config)))
            per_s = 2 * asked.rows / step_s
            hours = N_EPOCHS * 2 * asked.pairs / per_s / 3600
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
            verdict = "" if peak < BAR_GIB else f"  above {BAR_GIB:g} GiB"
            print(f"{name:30s} {1e3 * step_s:8.1f} {per_s:9,.0f} {hours:7.2f} {peak:9.2f}{verdict}")


if __name__ == "__main__":
    main()
