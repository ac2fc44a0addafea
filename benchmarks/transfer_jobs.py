"""The fits of `transfer.py`: what is fitted on what; each is made once and kept."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from her2st import load_section
from histoscribe import __version__
from histoscribe.data.bags import BagConfig
from histoscribe.data.blocks import Blocks
from histoscribe.data.genes import GenePanel
from histoscribe.data.pseudobulk import cut_patches, lattice_of, sum_regions
from histoscribe.data.splits import Split
from histoscribe.evaluate.baselines import predict_baselines
from histoscribe.predict import predict_regions
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import Checkpoint
from histoscribe.train.fit import fit
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.gene_panel import PanelConfig, choose_panel
from histoscribe.train.transfer import (
    Start,
    TransferConfig,
)

Kind = Literal["spot", "bulk"]
SECTIONS = ("C2", "C3", "C4", "C5")
N_GENES = 250
SIZES = (4, 16, 0)
"""Target regions; 0 for all of the section."""
LEAST_SPOTS = 6
NEAR_FULL, MOST_TRAINED = 0.01, 0.10
ARMS = ("scratch", "lora", "full", "frozen")
SEEDS = {"scratch": 3, "lora": 3, "full": 1, "frozen": 1}
RATES = (1e-4, 3e-4, 1e-3)
"""Learning rates; each arm of a fold takes the one that its held-out target regions like best."""
RATES_FOUND_AT = {4: 16, 16: 16, 0: 0}
"""For each number of target regions, the one at which rates are compared: 4 are too few for it."""
Rates = dict[tuple[Kind, str, str, int], float]
"""The rate of a source, test section, arm and number of regions at which it was found."""
SOURCE_FIT: dict[str, Any] = {"max_epochs": 30, "patience": 8, "stop_on": "loss"}
TARGET_FIT: dict[str, Any] = {"max_epochs": 60, "patience": 10, "stop_on": "loss"}


@dataclass(frozen=True)
class Job:
    """One fit on target regions.

    Attributes:
        source: Kind of the regions of the source; the target's is the other.
        test: Section that is tested.
        n_regions: Target regions, 0 for all.
        arm: How it is fitted.
        seed: Of the fit and of the choice of the target regions.
        rate: Learning rate.
    """

    source: Kind
    test: str
    n_regions: int
    arm: str
    seed: int
    rate: float = 1e-3

    @property
    def target(self) -> Kind:
        """Kind of the target regions."""
        return "bulk" if self.source == "spot" else "spot"

    def sections(self) -> tuple[tuple[str, str], str]:
        """The two of the source, and the one of the target."""
        at = SECTIONS.index(self.test)
        target, first, second = (SECTIONS[(at + step) % 4] for step in (1, 2, 3))
        return (first, second), target


def as_kind(slide: SlideData, kind: Kind) -> SlideData:
    """All regions of a section as spots, or as pseudo-bulk."""
    if kind == "spot":
        return slide
    patches = cut_patches(lattice_of(slide.regions), 3, LEAST_SPOTS)
    bulk, blocks = sum_regions(slide.regions, patches)
    return replace(slide, regions=bulk, blocks=blocks)


def some_regions(slide: SlideData, rows: np.ndarray) -> SlideData:
    """Some regions of a section; all its spots stay in sight as surroundings."""
    blocks = slide.blocks
    if blocks is None:
        regions = slide.regions
        everything = np.arange(len(regions), dtype=np.int64)
        blocks = Blocks(regions.xy_um, everything, regions.radius_um, "disc")
    new_row = np.full(len(slide.regions) + 1, -1)
    new_row[rows] = np.arange(len(rows))
    region = new_row[blocks.region]
    order = np.argsort(region, kind="stable")
    kept = Blocks(blocks.xy_um[order], region[order], blocks.reach_um, "disc")
    return replace(slide, regions=slide.regions.take(rows), blocks=kept)


class Bench:
    """The sections, and what is finished."""

    def __init__(self, study: Path, out: Path) -> None:
        self.out = out
        self.spots = {name: load_section(study, name) for name in SECTIONS}
        self.panels: dict[tuple[str, ...], GenePanel] = {}

    def panel(self, sections: tuple[str, str]) -> GenePanel:
        """Genes chosen on the sections of a source."""
        if sections not in self.panels:
            tables = [self.spots[name].regions for name in sections]
            self.panels[sections] = choose_panel(tables, PanelConfig("pearson", N_GENES))
        return self.panels[sections]

    def source_checkpoint(self, source: Kind, test: str, seed: int) -> Checkpoint:
        """The fit on the source, made once."""
        names, _ = Job(source, test, 0, "", seed).sections()
        config = FitConfig(seed=seed, cluster_weight=0.0, **SOURCE_FIT)
        folder = self.out / "sources" / f"{source}-{test}-{seed}-{key_of(asdict(config))}"
        if not folder.exists():
            slides = [as_kind(self.spots[name], source) for name in names]
            panel = self.panel(names)
            made = fit(slides, Split(names, (test,), "section"), panel, config=config)
            made.save(folder)
        return Checkpoint.load(folder)

    def target_slide(self, job: Job) -> SlideData:
        """The target section with the regions of a job."""
        _, name = job.sections()
        slide = as_kind(self.spots[name], job.target)
        if not job.n_regions:
            return slide
        generator = np.random.default_rng([job.seed, job.n_regions])
        rows = generator.choice(len(slide.regions), job.n_regions, replace=False)
        return some_regions(slide, np.sort(rows))

    def run(self, job: Job) -> dict[str, Any]:
        """Fit and predict; what it said of the test section, and what it cost."""
        path = self.out / "answers" / f"{key_of([asdict(job), SOURCE_FIT, TARGET_FIT])}.json"
        if path.exists():
            return json.loads(path.read_text())
        names, target_name = job.sections()
        panel = self.panel(names)
        test = as_kind(self.spots[job.test], job.target)
        started = time.monotonic()
        report: list[Any] = []
        if job.arm == "baselines":
            train = [self.target_slide(job)]
            said = predict_baselines(train, [test], panel, "log1p_cp10k", BagConfig())
            answers = {name: of_test[0] for name, of_test in said.items()}
        else:
            if job.arm == "source":
                checkpoint = self.source_checkpoint(job.source, job.test, job.seed)
            else:
                checkpoint = self.fit_target(job, panel, self.target_slide(job), target_name)
            answers = {job.arm: predict_regions(checkpoint, [test]).mean}
            report = [dict(net) for net in checkpoint.report]
        record = {
            "job": asdict(job),
            "report": report,
            "seconds": time.monotonic() - started,
            "answers": {name: one.astype(float).tolist() for name, one in answers.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(record))
        path.with_suffix(".part").replace(path)
        return record

    def fit_target(self, job: Job, panel: GenePanel, target: SlideData, name: str) -> Checkpoint:
        """The fit of an arm."""
        split = Split((name,), (job.test,), "section")
        config = FitConfig(seed=job.seed, cluster_weight=0.0, learning_rate=job.rate, **TARGET_FIT)
        if job.arm == "scratch":
            return fit([target], split, panel, config=config)
        source = self.source_checkpoint(job.source, job.test, job.seed)
        start = Start(source, TransferConfig(mode=job.arm))
        return fit([target], split, panel, config=config, start=start)


def key_of(value: Any) -> str:
    text = json.dumps([value, __version__, N_GENES], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def search_jobs() -> list[Job]:
    """Every arm at every rate, once."""
    return [
        Job(source, test, n_regions, arm, 0, rate)
        for n_regions in sorted(set(RATES_FOUND_AT.values()), reverse=True)
        for source in ("spot", "bulk")
        for test in SECTIONS
        for arm in ARMS
        for rate in RATES
    ]


def jobs_of(source: Kind, test: str, n_regions: int, rates: Rates) -> list[Job]:
    """All fits of a row of the tables, for one test section."""
    jobs = [Job(source, test, n_regions, "source", seed) for seed in range(3)]
    jobs += [Job(source, test, n_regions, "baselines", seed) for seed in range(3)]
    jobs += [
        Job(source, test, n_regions, arm, seed, rates[source, test, arm, RATES_FOUND_AT[n_regions]])
        for arm in ARMS
        for seed in range(SEEDS[arm])
    ]
    return jobs
