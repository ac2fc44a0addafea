"""One slide of many cells, predicted as a whole sample: time and memory against cells.

    python benchmarks/whole_slide.py --cells 125000,250000,500000,1000000 --genes 2000

Cells are placed at random over a square of tissue, 2,500 to a square millimetre, and listed field
by field, as `prepare` lists them; their features and the tiles' are drawn: the figures are of cost,
and say nothing of quality. The model has the default settings with weights as they begin. Each
size runs in a process of its own, whose peak memory is printed, round after round; medians over the
rounds. Then the cost of a training step on the smallest and the largest slide. Ends with PASS or
FALLS SHORT.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from scipy.sparse import csr_array

from histoscribe.data.bags import BagConfig
from histoscribe.data.cells import Cells
from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions, RegionSize
from histoscribe.data.splits import Split
from histoscribe.data.tiles import Tiles
from histoscribe.predict import predict_regions
from histoscribe.train.assemble import SlideData, assemble, cut_bags
from histoscribe.train.checkpoint import Checkpoint, build_model
from histoscribe.train.draw import draw_blocks
from histoscribe.train.fit import fit_scaling
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.losses import objective

CELLS_PER_MM2 = 2500
TILE_UM = 32.0
FIELD_UM = 512.0
N_CHANNELS = 320
"""Cells have this many features, and so have tiles."""
MOST_GIB, MOST_MINUTES, MOST_EXPONENT, MOST_STEP = 12.0, 15.0, 1.05, 1.3
MADE = Provenance("whole_slide.py", {}, {})


def make_slide(n_cells: int, panel: GenePanel) -> SlideData:
    """A bulk sample of one slide."""
    rng = np.random.default_rng(n_cells)
    side_um = 1000 * (n_cells / CELLS_PER_MM2) ** 0.5
    xy_um = (rng.random((n_cells, 2)) * side_um).astype(np.float32)
    column, row = (xy_um // FIELD_UM).T
    xy_um = xy_um[np.lexsort((column, row))]
    cells = Cells(
        "slide",
        xy_um,
        np.full(n_cells, 40.0, np.float32),
        rng.standard_normal((n_cells, N_CHANNELS), dtype=np.float32).astype(np.float16),
        "drawn",
        "drawn",
        MADE,
    )
    centres = np.arange(TILE_UM / 2, side_um, TILE_UM)
    places = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2).astype(np.float32)
    features = np.abs(rng.standard_normal((len(places), N_CHANNELS), dtype=np.float32))
    colour = np.full((len(places), 6), 100.0, np.float32)
    tiles = Tiles("slide", TILE_UM, places, features.astype(np.float16), colour, "drawn", MADE)
    regions = Regions(
        kind="bulk",
        region_id=("patient",),
        slide_id=("slide",),
        patient_id=("patient",),
        xy_um=np.full((1, 2), np.nan, np.float32),
        radius_um=np.inf,
        pitch_um=np.nan,
        genes=panel,
        expression=csr_array(rng.lognormal(3, 1, (1, len(panel))).astype(np.float32)),
        expression_unit="tpm",
        gene_observed=np.ones(len(panel), dtype=bool),
        platform="drawn",
        provenance=MADE,
    )
    return SlideData(cells, tiles, regions)


def make_checkpoint(panel: GenePanel) -> Checkpoint:
    """A model with the weights it begins with, and scales fitted on a small slide."""
    config = FitConfig(target_space="log1p_tpm")
    small = cut_bags(make_slide(5000, panel), BagConfig())
    scaling = fit_scaling([small], panel, config)
    batch = assemble([small], scaling, panel, has_target=True).batch
    sizes = {
        "n_features": batch.features.shape[1],
        "n_descriptors": batch.field.shape[2],
        "n_rings": batch.field.shape[1],
        "n_genes": len(panel),
    }
    net = build_model("bitro", sizes, seed=0)
    return Checkpoint(
        model="bitro",
        model_settings=sizes,
        nets=(net.state_dict(),),
        scaling=scaling,
        panel=panel,
        bags=BagConfig(),
        encoder_id="drawn",
        region_size=RegionSize("bulk", None, None),
        split=Split(("other",), ("slide",), "patient"),
        fit_settings={},
        report=({},),
        provenance=MADE,
    )


def make_panel(n_genes: int) -> GenePanel:
    """Genes that are none."""
    ids = tuple(f"ENSG{number:011d}" for number in range(n_genes))
    return GenePanel(ids, ids, "ensembl")


def measure(n_cells: int, n_genes: int) -> dict[str, float]:
    """Seconds of a prediction and of training steps, and the peak of this process."""
    panel = make_panel(n_genes)
    checkpoint = make_checkpoint(panel)
    slide = make_slide(n_cells, panel)
    started, of_cpu = time.monotonic(), time.process_time()
    answer = predict_regions(checkpoint, [slide]).mean
    seconds, cpu = time.monotonic() - started, time.process_time() - of_cpu
    assert np.isfinite(answer).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cut = cut_bags(slide, checkpoint.bags)
    batch = assemble([cut], checkpoint.scaling, panel, has_target=True).batch
    net = build_model("bitro", checkpoint.model_settings, seed=0).train()
    n_steps, one = 20, torch.tensor([0])
    objective(net, draw_blocks(batch, one, 64, 0), 0.1, checkpoint.scaling.target)
    of_cpu = time.process_time()
    for step in range(n_steps):
        some = draw_blocks(batch, one, 64, step)
        objective(net, some, 0.1, checkpoint.scaling.target)["loss"].backward()
    return {
        "cells": n_cells,
        "blocks": batch.n_blocks,
        "seconds": seconds,
        "cpu": cpu,
        "peak_gib": peak,
        "step": (time.process_time() - of_cpu) / n_steps,
    }


def measure_apart(n_cells: int, n_genes: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", str(n_cells), "--genes", str(n_genes)]
    made = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ)
    return json.loads(made.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", default="125000,250000,500000,1000000")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3, help="medians are over so many")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.genes)))
        return 0
    sizes = list(map(int, options.cells.split(",")))
    rounds = [
        [measure_apart(n_cells, options.genes) for n_cells in sizes] for _ in range(options.rounds)
    ]
    found = [
        {name: float(np.median([one[name] for one in ones])) for name in ones[0]}
        for ones in zip(*rounds, strict=True)
    ]
    print(f"{options.genes} genes, {torch.get_num_threads()} threads; a net; {len(rounds)} rounds")
    print("| cells | blocks | prediction, s | CPU s | peak, GiB | training step, CPU s |")
    print("|---|---|---|---|---|---|")
    for one in found:
        print(
            f"| {one['cells']:,.0f} | {one['blocks']:,.0f} | {one['seconds']:.1f} | "
            f"{one['cpu']:.1f} | {one['peak_gib']:.2f} | {one['step']:.3f} |"
        )
    log_cells = np.log([one["cells"] for one in found])
    exponents = {
        name: float(np.polyfit(log_cells, np.log([one[name] for one in found]), 1)[0])
        for name in ("seconds", "cpu")
    }
    last, first = found[-1], found[0]
    is_pass = (
        last["peak_gib"] < MOST_GIB
        and last["seconds"] < 60 * MOST_MINUTES
        and exponents["seconds"] <= MOST_EXPONENT
        and last["step"] <= MOST_STEP * first["step"]
    )
    print(
        f"\nExponent of time over cells {exponents['seconds']:.3f} by the clock, "
        f"{exponents['cpu']:.3f} of CPU time (bar {MOST_EXPONENT}); a training step on the largest "
        f"costs {last['step'] / first['step']:.2f} times one on the smallest. "
        + ("PASS" if is_pass else "FALLS SHORT")
    )
    return 0 if is_pass else 1


if __name__ == "__main__":
    raise SystemExit(main())
