"""Leave one section out on first-generation ST, laid out as her2st was published.

    python benchmarks/her2st.py --data ../shared/data/her2st --study /tmp/her2st
    python benchmarks/her2st.py --data ... --study ... --sections B1,B2,B3 --mpp 0.690
    python benchmarks/her2st.py --data ... --study ... --ablation

Ingests the sections, prepares them with InstanSeg (kept in the study, taken up if current), and for
each left-out section fits the model and every baseline on the others. Gene panels are chosen inside
the training sections. Neighbouring sections of one patient: optimistic, and labelled so.

What is finished is kept in the study, keyed by all that made it; the same command goes on from
there. Tables are printed as Markdown (`her2st_tables.py`). Ends with the bars, and PASS or FALLS
SHORT.
"""

import argparse
import hashlib
import json
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from her2st_tables import (
    MODEL,
    WHAT_BASELINES_SEE,
    Section,
    Setting,
    print_bars,
    print_setting,
    score_setting,
)
from histoscribe import __version__
from histoscribe.data.bags import BagConfig
from histoscribe.data.genes import GenePanel
from histoscribe.data.splits import Split
from histoscribe.data.store import (
    is_current,
    read_cells,
    read_regions,
    read_tiles,
    write_cells,
    write_regions,
    write_tiles,
)
from histoscribe.evaluate import baselines
from histoscribe.models.bitro_config import paper_settings
from histoscribe.predict import predict_regions
from histoscribe.preprocess.preparation import PrepareConfig, plan_preparation
from histoscribe.preprocess.run import carry_out
from histoscribe.readers.legacy_st import her2st_manifest
from histoscribe.readers.manifest import SampleRow, read_manifest, write_manifest
from histoscribe.readers.sample import read_sample
from histoscribe.slides.open import open_slide
from histoscribe.train.assemble import SlideData
from histoscribe.train.fit import FitConfig, fit
from histoscribe.train.gene_panel import PanelConfig, choose_panel
from histoscribe.train.targets import TargetSpace

MAIN_PANEL, MAIN_SPACE = "pearson", "log1p_cp10k"
PANELS, SPACES = ("pearson", "dispersion"), ("log1p_cp10k", "log1p_counts")
N_GENES = 250
PAPER = "paper's literal configuration"


@dataclass(frozen=True)
class Variant:
    """A way to fit.

    Attributes:
        name: Name of its row.
        model: Settings of the model.
        bags: How bags are cut.
        fit: Settings of the fit that are not its defaults.
    """

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    bags: BagConfig = field(default_factory=BagConfig)
    fit: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant(MODEL),
    Variant(
        PAPER,
        paper_settings(),
        BagConfig(),
        {"learning_rate": 1e-4, "weight_decay": 0.0, "max_epochs": 100, "patience": 6},
    ),
)
ABLATIONS = (
    Variant("without graph", {"gat_layers": 0}),
    Variant("without Transformer", {"transformer_layers": 0}),
    Variant("mean pooling of cells", {"pooling": "mean"}),
    Variant("shared readout", {"readout": "shared"}),
    Variant("with a ring of context cells of 25 µm", bags=BagConfig(ring_um=25.0)),
    Variant("without context of regions", {"has_context": False}),
    Variant("without cells", {"has_cells": False}),
    Variant("context describes nuclei too", fit={"has_cell_context": True}),
)


@dataclass(frozen=True)
class Job:
    """One fit: a variant, a left-out section, a panel, a space and a seed."""

    variant: Variant
    section: str
    panel: str
    space: TargetSpace
    seed: int


@dataclass(frozen=True)
class Answered:
    """What a job said of its test section, and what it cost."""

    predicted: np.ndarray
    facts: dict[str, Any]


class Bench:
    """The prepared sections, and the answers that are kept beside them."""

    def __init__(self, study: Path, sections: tuple[str, ...], device: str) -> None:
        self.study, self.sections, self.device = study, sections, device
        self.slides = {name: load_section(study, name) for name in sections}
        self.kept = study / "her2st"
        self.kept.mkdir(exist_ok=True)
        self.panels: dict[tuple[str, str], GenePanel] = {}

    def train(self, section: str) -> list[SlideData]:
        """All sections but one."""
        return [slide for name, slide in self.slides.items() if name != section]

    def panel(self, rule: str, section: str) -> GenePanel:
        """The panel chosen inside the training sections."""
        if (rule, section) not in self.panels:
            config = PanelConfig(rule=rule, n_genes=N_GENES)  # type: ignore[arg-type]
            regions = [slide.regions for slide in self.train(section)]
            self.panels[rule, section] = choose_panel(regions, config)
        return self.panels[rule, section]

    def key(self, job: Job | None, **more: Any) -> str:
        """Names an answer by all that made it."""
        data = {
            name: [s.cells.provenance.key, s.tiles.provenance.key, s.regions.provenance.key]
            for name, s in self.slides.items()
        }
        record = {"version": __version__, "data": data, "job": asdict(job) if job else None, **more}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:20]

    def answer(self, job: Job) -> Answered:
        """Fit and predict, or take up what was kept."""
        config = FitConfig(target_space=job.space, seed=job.seed, **job.variant.fit)
        place = self.kept / f"{self.key(job, fit=asdict(replace(config, device='cpu')))}"
        if place.with_suffix(".json").exists():
            facts = json.loads(place.with_suffix(".json").read_text())
            return Answered(np.load(place.with_suffix(".npy")), facts)
        started = time.perf_counter()
        others = tuple(name for name in self.sections if name != job.section)
        checkpoint = fit(
            list(self.slides.values()),
            Split(others, (job.section,), "section"),
            self.panel(job.panel, job.section),
            config=replace(config, device=self.device),  # type: ignore[arg-type]
            bags=job.variant.bags,
            model_settings=job.variant.model,
        )
        seconds = time.perf_counter() - started
        predicted = predict_regions(checkpoint, [self.slides[job.section]]).mean
        facts = {
            "seconds": seconds,
            "epochs": [net["n_epochs"] for net in checkpoint.report],
            "held_out": [net["best_score"] for net in checkpoint.report],
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "job": asdict(job),
        }
        np.save(place.with_suffix(".npy"), predicted)
        place.with_suffix(".json").write_text(json.dumps(facts, indent=1))
        return Answered(predicted, facts)

    def baselines(self, section: str, panel: str, space: TargetSpace) -> dict[str, np.ndarray]:
        """The baselines on a left-out section, or what was kept of them."""
        key = self.key(None, section=section, panel=panel, space=space)
        path = self.kept / f"baselines-{key}.npz"
        if not path.exists():
            answers = baselines.predict_baselines(
                self.train(section),
                [self.slides[section]],
                self.panel(panel, section),
                space,
                BagConfig(),
            )
            np.savez(path, **{name: parts[0] for name, parts in answers.items()})
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}


def ingest(data: Path, study: Path, sections: tuple[str, ...], mpp: float) -> list[SampleRow]:
    """The rows of the sections asked for."""
    rows = [row for row in her2st_manifest(data, mpp) if not sections or row["sample"] in sections]
    missing = sorted(set(sections) - {row["sample"] for row in rows})
    if missing or len(rows) < 3:
        raise SystemExit(f"sections {missing or 'fewer than 3'}: not found under {data}")
    study.mkdir(parents=True, exist_ok=True)
    write_manifest(rows, study / "manifest.csv")
    return read_manifest(study / "manifest.csv")


def prepare(row: SampleRow, study: Path) -> dict[str, Any] | None:
    """Nuclei, features and tiles of a section into the study; None if they are there already."""
    folder = study / "samples" / row.sample
    folder.mkdir(parents=True, exist_ok=True)
    slide = open_slide(row.slide, mpp=row.mpp, slide_id=row.sample)
    read = read_sample(row, slide)
    if read is None:
        raise SystemExit(f"{row.sample} has no expression")
    regions, report = read
    write_regions(regions, folder)
    plan = plan_preparation(slide, regions, PrepareConfig(around_regions=True))
    dropped = [*report.without_counts, *report.below_min_counts]
    print(f"{row.sample}: {len(regions)} spots, dropped {dropped or 'none'}", flush=True)
    if all(is_current(folder, noun, plan.provenance) for noun in ("cells", "tiles")):
        return None
    started = time.perf_counter()
    cells, tiles = carry_out(plan)
    seconds = time.perf_counter() - started
    write_cells(cells, folder)
    write_tiles(tiles, folder)
    return {
        "section": row.sample,
        "mm2": plan.searched_mm2,
        "seconds": seconds,
        "s_per_mm2": seconds / plan.searched_mm2,
        "cells": len(cells),
        "cells_per_s": len(cells) / seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def load_section(study: Path, name: str) -> SlideData:
    folder = study / "samples" / name
    return SlideData(read_cells(folder), read_tiles(folder), read_regions(folder))


BENCH: Bench | None = None


def start_worker(study: Path, sections: tuple[str, ...], device: str) -> None:
    global BENCH
    torch.set_num_threads(1)
    BENCH = Bench(study, sections, device)


def work(job: Job) -> tuple[Job, float]:
    assert BENCH is not None
    return job, BENCH.answer(job).facts["seconds"]


def all_jobs(arguments: argparse.Namespace, sections: tuple[str, ...]) -> list[Job]:
    """Three seeds where the bars are, one elsewhere; variants where the bars are."""
    jobs = []
    for section in sections:
        for panel in PANELS:
            for space in SPACES:
                is_main = (panel, space) == (MAIN_PANEL, MAIN_SPACE)
                n_seeds = arguments.seeds if is_main else arguments.seeds_elsewhere
                jobs += [Job(VARIANTS[0], section, panel, space, s) for s in range(n_seeds)]
        variants = VARIANTS[1:] + (ABLATIONS if arguments.ablation else ())
        jobs += [Job(v, section, MAIN_PANEL, MAIN_SPACE, 0) for v in variants]
    return sorted(jobs, key=lambda j: (j.variant.name != MODEL, j.panel != MAIN_PANEL, j.seed))


def run_jobs(jobs: list[Job], bench: Bench, workers: int) -> None:
    started = time.perf_counter()
    for done, (job, seconds) in enumerate(_finish(jobs, bench, workers), start=1):
        print(
            f"[{done}/{len(jobs)}, {time.perf_counter() - started:.0f} s] {job.variant.name}, "
            f"{job.section}, {job.panel}, {job.space}, seed {job.seed}: {seconds:.0f} s",
            flush=True,
        )


def _finish(jobs: list[Job], bench: Bench, workers: int) -> Iterator[tuple[Job, float]]:
    if workers == 1:
        for job in jobs:
            yield job, bench.answer(job).facts["seconds"]
        return
    with ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),
        initializer=start_worker,
        initargs=(bench.study, bench.sections, bench.device),
    ) as pool:
        yield from pool.map(work, jobs)


def gather(bench: Bench, jobs: list[Job], panel: str, space: TargetSpace) -> Setting:
    """All answers of a panel and space, ready to be scored."""
    sections = []
    for name in bench.sections:
        answers = {m: [y] for m, y in bench.baselines(name, panel, space).items()}
        for job in jobs:
            if (job.section, job.panel, job.space) == (name, panel, space):
                answers.setdefault(job.variant.name, []).append(bench.answer(job).predicted)
        train = [slide.regions for slide in bench.train(name)]
        test = bench.slides[name].regions
        sections.append(Section(name, train, test, bench.panel(panel, name), answers))
    return Setting(panel, space, tuple(sections))


def print_cost(bench: Bench, jobs: list[Job]) -> None:
    """Seconds a net and an epoch of the default fit."""
    facts = [bench.answer(job).facts for job in jobs if job.variant.name == MODEL]
    by_fit = [f["seconds"] for f in facts]
    by_epoch = [f["seconds"] / sum(f["epochs"]) for f in facts]
    print(
        f"\nFits of the default: median {np.median(by_fit):.1f} s for "
        f"{len(facts[0]['epochs'])} nets, {np.median(by_epoch):.2f} s an epoch (scaling and bags "
        f"included), peak memory {max(f['peak_gb'] for f in facts):.1f} GB."
    )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder laid out as her2st")
    parser.add_argument("--study", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--sections", default="C2,C3,C4,C5", help="comma-separated; '' takes all")
    parser.add_argument("--mpp", type=float, default=0.690, help="µm per pixel of the images")
    parser.add_argument("--seeds", type=int, default=3, help="seeds where the bars are")
    parser.add_argument("--seeds-elsewhere", type=int, default=1, help="seeds in the other tables")
    parser.add_argument("--ablation", action="store_true", help="leave out one part at a time")
    parser.add_argument("--workers", type=int, default=1, help="fits at once, one thread each")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--only-prepare", action="store_true", help="stop after preparation")
    return parser.parse_args()


def main() -> int:
    arguments = read_arguments()
    wanted = tuple(name for name in arguments.sections.split(",") if name)
    rows = ingest(arguments.data, arguments.study, wanted, arguments.mpp)
    for row in rows:
        cost = prepare(row, arguments.study)
        if cost:
            print("prepared: " + json.dumps(cost), flush=True)
    if arguments.only_prepare:
        return 0
    sections = tuple(row.sample for row in rows)
    bench = Bench(arguments.study, sections, arguments.device)
    jobs = all_jobs(arguments, sections)
    run_jobs(jobs, bench, arguments.workers)
    print(f"\n## {', '.join(sections)}, leave one section out\n")
    print("Mean per-gene PCC. Each fit averages nets stopped on different inner sections.\n")
    print(WHAT_BASELINES_SEE)
    passed = False
    for panel in PANELS:
        for space in SPACES:
            setting = gather(bench, jobs, panel, space)
            scored = score_setting(setting)
            print_setting(setting, scored)
            if (panel, space) == (MAIN_PANEL, MAIN_SPACE):
                passed = print_bars(setting, scored)
    print_cost(bench, jobs)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
