"""Do cells described all at once predict genes as well as cells described one by one?

    python benchmarks/encoder_pcc.py --data ../shared/data/her2st --study /tmp/encoders

Sections C2-C5 of her2st, leave one section out (one patient: optimistic), for encoders whose real
weights can be had: InstanSeg's own and EfficientNet-Lite0, each `tile`, `dense` (pooled inside the
nucleus) and `dense` pooled over the very square that a tile shows. The nuclei are
the same for all (InstanSeg's). Only nuclei within 60 µm of a spot are described (spots have a
radius of 50 µm), so that `tile` is done in time. Scores are those of the benchmark's ridge on cell
features: the mean over a spot's cells, PCA and penalty fitted on training sections only, gene
panel of 250 by Pearson residuals on training sections only, log1p CP10k. Prints the mean over
genes of the PCC in the left-out section, and of the paired difference a bootstrap interval over
spots. Bar: dense at most .005 below tile.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from her2st import load_section
from histoscribe.data.bags import BagConfig
from histoscribe.data.store import is_current, write_cells, write_regions, write_tiles
from histoscribe.evaluate.baselines import CELL_RIDGE, STRONG_RIDGE, predict_baselines
from histoscribe.evaluate.metrics import gene_pcc
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.preparation import PrepareConfig, plan_preparation
from histoscribe.preprocess.run import carry_out
from histoscribe.readers.legacy_st import her2st_manifest
from histoscribe.readers.manifest import read_manifest, write_manifest
from histoscribe.readers.sample import read_sample
from histoscribe.slides.open import open_slide
from histoscribe.train.gene_panel import PanelConfig, choose_panel
from histoscribe.train.targets import measure

ENCODERS = {"instanseg": 48, "efficientnet-lite0": 64}
"""What a tile of 24 µm is resized to: its size at 0.5 µm/px, up to whole steps of the network."""
WAYS = {
    "tile": ViewConfig(way="tile"),
    "dense": ViewConfig(way="dense"),
    "dense, the nucleus alone": ViewConfig(way="dense", window_um=0.0),
}
AROUND_UM = 60.0
N_GENES, N_DRAWS = 250, 2000
BAR = 0.005
MPP = 0.690
SPACE = "log1p_cp10k"


def prepare(manifest: Path, home: Path, config: PrepareConfig) -> str:
    """Cells and tiles of all sections, as one encoder sees them; returns what it cost."""
    seconds, n_cells = 0.0, 0
    for row in read_manifest(manifest):
        folder = home / "samples" / row.sample
        folder.mkdir(parents=True, exist_ok=True)
        slide = open_slide(row.slide, mpp=row.mpp, slide_id=row.sample)
        read = read_sample(row, slide)
        if read is None:
            raise SystemExit(f"{row.sample} has no expression")
        write_regions(read[0], folder)
        plan = plan_preparation(slide, read[0], config)
        if all(is_current(folder, noun, plan.provenance) for noun in ("cells", "tiles")):
            continue
        started = time.perf_counter()
        cells, tiles = carry_out(plan)
        seconds, n_cells = seconds + time.perf_counter() - started, n_cells + len(cells)
        write_cells(cells, folder)
        write_tiles(tiles, folder)
    return f"{n_cells / seconds:.0f} cells/s with segmentation" if n_cells else "as stored"


def leave_one_out(
    home: Path, sections: list[str]
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Predicted and measured of each left-out section, by baseline."""
    slides = {name: load_section(home, name) for name in sections}
    answers: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {CELL_RIDGE: [], STRONG_RIDGE: []}
    for name in sections:
        train = [slide for other, slide in slides.items() if other != name]
        panel = choose_panel([one.regions for one in train], PanelConfig(n_genes=N_GENES))
        said = predict_baselines(train, [slides[name]], panel, SPACE, BagConfig())
        truth = measure(slides[name].regions, panel, SPACE)[0]
        for method, kept in answers.items():
            is_there = np.isfinite(said[method][0]).all(axis=1)
            kept.append((said[method][0][is_there], truth[is_there]))
    return answers


def mean_pcc(
    parts: list[tuple[np.ndarray, np.ndarray]], rows: list[np.ndarray] | None = None
) -> float:
    """Mean over sections of the mean over genes."""
    chosen = rows or [np.arange(len(truth)) for _, truth in parts]
    scores = [
        np.nan_to_num(gene_pcc(said[row], truth[row])).mean()
        for (said, truth), row in zip(parts, chosen, strict=True)
    ]
    return float(np.mean(scores))


def difference(
    dense: list[tuple[np.ndarray, np.ndarray]], tile: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[float, float]:
    """95 % interval of dense minus tile, spots drawn with replacement within sections."""
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(N_DRAWS):
        rows = [generator.integers(len(truth), size=len(truth)) for _, truth in dense]
        draws.append(mean_pcc(dense, rows) - mean_pcc(tile, rows))
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--sections", default="C2,C3,C4,C5")
    parser.add_argument("--encoders", default=",".join(ENCODERS))
    parser.add_argument("--input-px", type=int, help="of tiles, e.g. 224 as the paper has it")
    options = parser.parse_args()
    sections = options.sections.split(",")
    options.study.mkdir(parents=True, exist_ok=True)
    rows = [row for row in her2st_manifest(options.data, MPP) if row["sample"] in sections]
    manifest = options.study / "manifest.csv"
    write_manifest(rows, manifest)
    print("| encoder | way | features | cell ridge PCC | strong ridge PCC | cost |")
    print("|---|---|---|---|---|---|")
    verdicts = []
    for encoder in options.encoders.split(","):
        answers = {}
        for way in WAYS:
            view = replace(WAYS[way], input_px=options.input_px or ENCODERS[encoder])
            suffix = f"-{view.input_px}px" if view.way == "tile" else f"-{view.window_um:g}um"
            home = options.study / f"{encoder}-{view.way}{suffix}"
            config = PrepareConfig(
                encoder=encoder,
                view=view,
                around_regions=True,
                around_um=AROUND_UM,
            )
            cost = prepare(manifest, home, config)
            answers[way] = leave_one_out(home, sections)
            n_features = load_section(home, sections[0]).cells.features.shape[1]
            cell, strong = (mean_pcc(answers[way][name]) for name in (CELL_RIDGE, STRONG_RIDGE))
            print(
                f"| {encoder} | {way} | {n_features} | {cell:.3f} | {strong:.3f} | {cost} |",
                flush=True,
            )
        tile = answers["tile"][CELL_RIDGE]
        for way in list(WAYS)[1:]:
            dense = answers[way][CELL_RIDGE]
            gain = mean_pcc(dense) - mean_pcc(tile)
            low, high = difference(dense, tile)
            verdict = "PASS" if gain >= -BAR else "FALLS SHORT"
            verdicts.append(
                f"{encoder}, {way}: {gain:+.4f} [{low:+.4f}, {high:+.4f}] against tile "
                f"(bar {-BAR}): {verdict}"
            )
    n_spots = sum(len(truth) for _, truth in tile)
    print(f"\n{n_spots} spots, {N_GENES} genes, cells within {AROUND_UM:g} µm of a spot")
    print("\n".join(verdicts))


if __name__ == "__main__":
    main()
