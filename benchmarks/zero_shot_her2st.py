"""Cell types in her2st named from H&E, with no image-text pair anywhere.

    python benchmarks/zero_shot_her2st.py --data ../shared/data/her2st --study /tmp/her2st
        --cells CELLS --out /tmp/zero --workers 2
    python benchmarks/zero_shot_her2st.py ... --arms "markers only,labelled cells only"
    python benchmarks/zero_shot_her2st.py ... --all-sections

Wants the sections C2 to C5 that `her2st.py` has prepared in the study, and the labelled cells of
`zero_shot_words.py`. Leaves one section out, fits the space on the other three, and scores every
spot of it on the eight frozen terms: AUROC against whether ST-deconv's proportion of the class is
above the section's median, mean over classes of the mean over sections. Serial sections of one
patient: optimistic, and labelled so.

Beside it: count of nuclei and colour (ridge to the proportions of the training sections: fitted
to what is asked, class by class), the two-stage route (ridge to measured marker scores), the
supervised upper bound (ridge to the proportions), and measured expression to text.

--all-sections fits on all four, for `zero_shot_nucls.py`, and tests nothing.
What is finished is kept in --out by the names of arm and section; the same command goes on from
there. After a change of code or data give another --out.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from her2st import load_section
from histoscribe.annotate.queries import embed_classes
from histoscribe.data.splits import Split
from histoscribe.evaluate.zero_shot import above_median, auroc_by_image
from histoscribe.train.align import TextSource, fit_align
from histoscribe.train.align_checkpoint import AlignCheckpoint
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_genes import Words
from histoscribe.train.align_text import find_text_tower
from histoscribe.train.assemble import SlideData
from histoscribe.train.gene_panel import PanelConfig, choose_panel
from histoscribe.train.gene_standardiser import gene_values
from zero_shot_baselines import baseline_scores
from zero_shot_tables import print_table
from zero_shot_words import read_asked, read_words, shuffle_markers

SECTIONS = ("C2", "C3", "C4", "C5")
TOWER = "all-minilm-l6-v2"
OURS = "ours"
PROPORTION = {
    "b_cells": "B-cells", "t_cells": "T-cells", "plasma_cells": "Plasma Cells",
    "myeloid_cells": "Myeloid", "cafs": "CAFs", "endothelial_cells": "Endothelial",
    "epithelial_cells": "Epithelial", "pvl_cells": "PVL",
}  # fmt: skip
"""Column of ST-deconv of each term."""


@dataclass(frozen=True)
class Arm:
    """A way to fit.

    Attributes:
        name: Of its row.
        settings: Of the alignment, that are not its defaults.
        has_cells: Whether labelled cells are there.
        has_markers: Whether marker lists are there.
        control: "genes": markers are other genes; "pairs": regions have another's expression.
        share: Of the training spots that are there.
        n_nets: Seeds.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    has_cells: bool = True
    has_markers: bool = True
    control: str = ""
    share: float = 1.0
    n_nets: int = 5


ARMS = (
    Arm(OURS),
    Arm("markers only", has_cells=False, n_nets=2),
    Arm("labelled cells only", has_markers=False, n_nets=2),
    Arm("without regression", {"objective": "align"}, n_nets=2),
    Arm(
        "all InfoNCE, learned gene tower (as published)",
        {"loss": "softmax", "gene_space": "learned", "objective": "align"},
        n_nets=2,
    ),
    Arm("control: genes of markers permuted", has_cells=False, control="genes", n_nets=2),
    Arm("control: image-gene pairs shuffled", control="pairs", n_nets=2),
    Arm("1/8 of the image-gene pairs", share=1 / 8, n_nets=2),
    Arm("1/64 of the image-gene pairs", share=1 / 64, n_nets=2),
)


class Bench:
    """The sections, what is asked of them, and the fits that are kept."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.asked = arguments, read_asked()
        self.slides = {name: load_section(arguments.study, name) for name in SECTIONS}
        self.out: Path = arguments.out
        self.out.mkdir(parents=True, exist_ok=True)

    def words(self, arm: Arm) -> Words:
        """What the gene-text pairs of an arm are made of."""
        cells = self.arguments.cells if arm.has_cells else None
        words = read_words(cells, has_markers=arm.has_markers)
        if arm.control != "genes":
            return words
        common = set.intersection(*(_seen(slide) for slide in self.slides.values()))
        return shuffle_markers(words, tuple(sorted(common)), seed=0)

    def train(self, arm: Arm, test: str) -> list[SlideData]:
        """The training sections of an arm, "" tests none."""
        slides = [slide for name, slide in self.slides.items() if name != test]
        if arm.control == "pairs":
            return [shuffle_pairs(slide, number) for number, slide in enumerate(slides)]
        return slides if arm.share == 1 else keep_some(slides, arm.share)

    def fit(self, arm: Arm, test: str) -> AlignCheckpoint:
        """The checkpoint of an arm without a section, made or taken up."""
        name = f"{arm.name}-{test or 'all'}".replace(" ", "-").replace("/", "_").replace(":", "")
        folder = self.out / name
        if (folder / "facts.json").exists():
            return AlignCheckpoint.load(folder / "checkpoint")
        started = time.monotonic()
        train = self.train(arm, test)
        names = tuple(slide.slide_id for slide in train)
        split = Split(names, (test,), "section") if test else Split(names, (), "none")
        checkpoint = fit_align(
            train,
            split,
            choose_panel([slide.regions for slide in self.train(ARMS[0], test)], PanelConfig()),
            self.words(arm),
            TextSource(find_text_tower(TOWER), TOWER),
            config=AlignConfig(**{"n_nets": arm.n_nets, **arm.settings}),
        )
        checkpoint.save(folder / "checkpoint")
        facts = {"arm": asdict(arm), "seconds": time.monotonic() - started, "train": names}
        (folder / "facts.json").write_text(json.dumps(facts, indent=1))
        return checkpoint

    def scores(self, arm: Arm, test: str) -> dict[str, np.ndarray]:
        """Cosine of each spot to each class, by route; and of each net by itself."""
        checkpoint, slide = self.fit(arm, test), self.slides[test]
        queries = embed_classes(checkpoint, self.asked.classes, self.asked.templates).embedding
        image = checkpoint.embed_regions([slide])
        said = {"image to text": image @ queries.T}
        parts = zip(*(np.split(part, arm.n_nets, axis=1) for part in (image, queries)), strict=True)
        for net, (own, asked) in enumerate(parts):
            said[f"net {net}"] = own @ asked.T
        predicted = checkpoint.embed_by_expression([slide], "region")
        if predicted is not None:
            said["image to predicted expression to text"] = predicted @ queries.T
        said["measured expression to text (no image)"] = (
            self.embed_measured(checkpoint, slide) @ queries.T
        )
        return said

    def embed_measured(self, checkpoint: AlignCheckpoint, slide: SlideData) -> np.ndarray:
        """Embeddings of what was measured: the bridge without an image."""
        values = gene_values([slide.regions], checkpoint.table)
        z, seen = checkpoint.standardiser.know(values)[0].apply(values)
        with torch.inference_mode():
            parts = torch.from_numpy(z), torch.from_numpy(seen)
            return checkpoint.join([net.embed_profiles(*parts) for net in checkpoint.build()])

    def proportions(self, section: str) -> np.ndarray:
        """Of each spot and class; NaN for a spot that ST-deconv lacks."""
        path = self.arguments.data / "ST-deconv" / f"major-{section}-proportion.tsv"
        table = pd.read_csv(path, sep="\t", index_col=0)
        columns = [PROPORTION[key] for key in self.asked.keys]
        return table.reindex(self.slides[section].regions.region_id)[columns].to_numpy(float)

    def truth(self, section: str, rows: np.ndarray) -> np.ndarray:
        """Whether each of these spots has more of each class than the section's median spot."""
        return above_median(self.proportions(section)[rows], [section] * len(rows))


def _seen(slide: SlideData) -> set[str]:
    pairs = zip(slide.regions.genes.ids, slide.regions.gene_observed, strict=True)
    return {gene for gene, is_seen in pairs if is_seen}


def shuffle_pairs(slide: SlideData, seed: int) -> SlideData:
    """A control: each region has the expression of another one of its slide."""
    regions = slide.regions
    order = np.random.default_rng([seed, 1]).permutation(len(regions))
    assert regions.expression is not None
    return replace(slide, regions=replace(regions, expression=regions.expression[order]))


def keep_some(slides: Sequence[SlideData], share: float) -> list[SlideData]:
    """A share of the regions of each slide, one at least, drawn by chance."""
    kept = []
    for number, slide in enumerate(slides):
        n = max(1, round(share * len(slide.regions)))
        rows = np.random.default_rng([number, 2]).permutation(len(slide.regions))[:n]
        kept.append(replace(slide, regions=slide.regions.take(np.sort(rows))))
    return kept


BENCH: Bench | None = None


def start_worker(arguments: argparse.Namespace) -> None:
    global BENCH
    torch.set_num_threads(1)
    BENCH = Bench(arguments)


def work(job: tuple[Arm, str]) -> tuple[str, str]:
    assert BENCH is not None
    BENCH.fit(*job)
    return job[0].name, job[1]


def gather(bench: Bench, arms: Sequence[Arm]) -> dict[str, dict[str, np.ndarray]]:
    """AUROC of every method by section: section -> class."""
    found: dict[str, dict[str, np.ndarray]] = {}

    def put(name: str, section: str, score: np.ndarray) -> None:
        known = np.isfinite(bench.proportions(section)).all(axis=1) & np.isfinite(score).all(axis=1)
        rows = np.flatnonzero(known)
        truth = bench.truth(section, rows)
        at = auroc_by_image(score[rows], truth, np.zeros(len(rows), np.int64), 1)
        found.setdefault(name, {})[section] = at[0]

    for section in SECTIONS:
        train = [slide for name, slide in bench.slides.items() if name != section]
        amounts = [bench.proportions(slide.slide_id) for slide in train]
        test = bench.slides[section]
        for name, score in baseline_scores(train, test, amounts, bench.asked.keys).items():
            put(name, section, score)
        for arm in arms:
            for name, score in bench.scores(arm, section).items():
                put(f"{arm.name}: {name}", section, score)
    return found


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="her2st, for ST-deconv")
    parser.add_argument("--study", type=Path, required=True, help="prepared by her2st.py")
    parser.add_argument("--cells", type=Path, required=True, help="unpacked packages")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--arms", default=OURS, help="names by commas, or 'all'")
    parser.add_argument("--all-sections", action="store_true")
    return parser.parse_args()


def main() -> int:
    arguments = read_arguments()
    wanted = [one.strip() for one in arguments.arms.split(",")]
    arms = [arm for arm in ARMS if arm.name in wanted or wanted == ["all"]]
    if not arms or (len(arms) < len(wanted)):
        print(f"no such arm among {wanted}; there are: {', '.join(arm.name for arm in ARMS)}")
        return 2
    tested: tuple[str, ...] = ("",) if arguments.all_sections else SECTIONS
    jobs = [(arm, section) for arm in arms for section in tested]
    with ProcessPoolExecutor(
        arguments.workers, get_context("spawn"), start_worker, (arguments,)
    ) as pool:
        for arm, section in pool.map(work, jobs):
            print(f"fitted {arm} without {section or 'none'}", flush=True)
    if not arguments.all_sections:
        bench = Bench(arguments)
        print_table(gather(bench, arms), arms, arguments.out, bench.asked.keys)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
