"""What a block learns of the blocks around it: rings, attention among blocks, both, or nothing.

    python benchmarks/second_level.py --study /tmp/her2st --out /tmp/second-level

Wants the sections that `her2st.py` has prepared in the study. Pseudo-bulk regions of 3 x 3 spots
(at least six of them), leave one section out, three seeds; paired gains over rings by a bootstrap
over the regions of the left-out section. The two forms of the second level:

    rings      the mean of the other blocks within 250, 450 and 1000 µm joins a block's own tokens;
               computed once, whatever blocks a training step draws
    attention  two layers of attention among the blocks of a region, in windows along a Hilbert
               curve; what a block sees depends on which others are drawn

Attention sees the blocks of a region, here at most nine spots of a patch; rings see all spots to
1 mm. So this compares the two inside small regions and says nothing of whole slides. Four serial
sections of one patient: optimistic, and labelled so. What is finished is kept in --out; after a
change of code or data give another.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from her2st import load_section
from histoscribe.data.bags import BagBatch, BagConfig
from histoscribe.data.splits import Split
from histoscribe.evaluate.bootstrap import BootstrapConfig, bootstrap_gene_pcc
from histoscribe.evaluate.metrics import measure_all
from histoscribe.models.bitro import Bitro
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.models.predictor import MODELS
from histoscribe.predict import predict_regions
from histoscribe.train.fit import fit
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.gene_panel import PanelConfig, choose_panel
from histoscribe.train.targets import measure
from transfer_jobs import SECTIONS, as_kind
from windowed import BlockOrder, WindowedTransformer

N_GENES, SEEDS, WINDOW = 250, (0, 1, 2), 64
RINGS = BagConfig()
ALONE = BagConfig(rings_um=())
VARIANTS = {
    "rings": ("bitro", RINGS),
    "own field only": ("bitro", ALONE),
    "attention": ("attending", ALONE),
    "rings and attention": ("attending", RINGS),
}


class Attending(Bitro):
    """BiTro whose blocks attend to the other blocks of their region."""

    def __init__(self, config: BitroConfig) -> None:
        super().__init__(config)
        width = config.context_width
        self.among = WindowedTransformer(width, 2, 4, 2, 0.1, WINDOW)
        self.scale = nn.Parameter(torch.tensor(0.1))

    def look_around(self, batch: BagBatch) -> torch.Tensor | None:
        """Regions here have fewer blocks than half a window: any order of them is one window."""
        context = super().look_around(batch)
        assert context is not None
        order = BlockOrder(torch.arange(batch.n_blocks), batch.bag_of_block)
        return context + self.scale * self.among(context, order)


def answer(study: Path, out: Path, name: str, test: str, seed: int) -> dict[str, Any]:
    """One fit and what it says of the left-out section; kept."""
    path = out / f"{name.replace(' ', '-')}-{test}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    started = time.monotonic()
    spots = {section: load_section(study, section) for section in SECTIONS}
    train = tuple(section for section in SECTIONS if section != test)
    panel = choose_panel([spots[s].regions for s in train], PanelConfig("pearson", N_GENES))
    slides = {section: as_kind(slide, "bulk") for section, slide in spots.items()}
    model, bags = VARIANTS[name]
    config = FitConfig(model=model, seed=seed, cluster_weight=0.0, stop_on="loss")
    split = Split(train, (test,), "section")
    made = fit([slides[s] for s in train], split, panel, config=config, bags=bags)
    said = predict_regions(made, [slides[test]]).mean
    measured, _ = measure(slides[test].regions, panel, "log1p_cp10k")
    record = {
        "said": said.tolist(),
        "measured": measured.tolist(),
        "inner": [net["best_score"] for net in made.report],
        "seconds": time.monotonic() - started,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return record


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    MODELS["attending"] = f"{Path(__file__).stem}:Attending"
    draws: dict[str, list[np.ndarray]] = {name: [] for name in VARIANTS}
    values: dict[str, list[float]] = {name: [] for name in VARIANTS}
    inner: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for test in SECTIONS:
        for seed in SEEDS:
            records = {
                name: answer(options.study, options.out, name, test, seed) for name in VARIANTS
            }
            measured = np.array(records["rings"]["measured"], np.float32)
            said = {name: np.array(one["said"], np.float32) for name, one in records.items()}
            drawn = bootstrap_gene_pcc(said, measured, replace(BootstrapConfig(), seed=0))
            for name in VARIANTS:
                draws[name].append(drawn[name])
                values[name].append(measure_all(said[name], measured).gene_pcc)
                inner[name] += records[name]["inner"]
    print("| second level | gene PCC | over rings | held-out loss, inner |")
    print("|---|---|---|---|")
    base, base_value = np.mean(draws["rings"], axis=0), np.mean(values["rings"])
    for name in VARIANTS:
        over = np.mean(draws[name], axis=0) - base
        low, high = np.quantile(over, [0.025, 0.975])
        value = np.mean(values[name])
        print(
            f"| {name} | {value:.3f} | {value - base_value:+.3f} [{low:+.3f}, {high:+.3f}] | "
            f"{-np.mean(inner[name]):.4f} |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
