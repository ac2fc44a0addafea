"""Scores and Markdown tables of `her2st.py`: what was answered goes in, nothing is fitted here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from histoscribe.data.genes import GenePanel
from histoscribe.data.regions import Regions
from histoscribe.evaluate import baselines
from histoscribe.evaluate.bootstrap import BootstrapConfig, bootstrap_gene_pcc, interval
from histoscribe.evaluate.metrics import measure_all
from histoscribe.train.gene_panel import noise_ceiling
from histoscribe.train.targets import TargetSpace, measure

MODEL = "model"
BAR_CELL_RIDGE, BAR_STRONG_RIDGE = 0.02, 0.01
RIDGES = (baselines.CELL_RIDGE, baselines.STRONG_RIDGE, baselines.STRONG_RIDGE_BY_SLIDE)
GAINS_OVER = (baselines.CELL_RIDGE, baselines.STRONG_RIDGE, MODEL)
BOOTSTRAP = BootstrapConfig()
WHAT_BASELINES_SEE = f"""\
What the baselines see (alphas chosen by leaving one training section out, then refitted on all;
no baseline sees the expression of the left-out section):

- {baselines.TRAINING_MEAN}: no image;
- colour + ridge: mean and deviation of red, green and blue over the field of a spot;
- coordinates + ridge: place on the section from the middle of its spots, and its squares;
- {baselines.CELL_RIDGE}: mean over the nuclei of a spot of the same encoder's features;
- {baselines.STRONG_RIDGE}: whole field, mean over nuclei, and the fields of the other spots in
  rings up to 1 mm, z-scored by the training sections: all that the model's context sees but the
  number of nuclei;
- {baselines.STRONG_RIDGE_BY_SLIDE}: the same, but z-scored section by section; of the left-out
  section it so looks at all images at once, which the model does not."""


@dataclass(frozen=True)
class Section:
    """A left-out section.

    Attributes:
        name: Its name.
        train: Regions of the training sections.
        test: Its own regions.
        panel: Genes chosen inside the training sections.
        answers: By method one matrix a seed; baselines have one.
    """

    name: str
    train: list[Regions]
    test: Regions
    panel: GenePanel
    answers: dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Setting:
    """All left-out sections with one rule for the panel and one space."""

    rule: str
    space: TargetSpace
    sections: tuple[Section, ...]

    @property
    def names(self) -> list[str]:
        """Names of the sections."""
        return [section.name for section in self.sections]


@dataclass(frozen=True)
class Scored:
    """Values and draws of each method, one a section, each the mean over seeds.

    Attributes:
        value: Mean per-gene PCC.
        draws: The same in each draw of the spots; all methods share the draws of a section.
        seed_sd: Deviation over seeds of the mean over sections.
        n_seeds: Scores, one a seed, that a value is the mean of.
        n_spots: Spots that were scored: those that every method answers.
        n_genes: Genes that vary in the section.
    """

    value: dict[str, list[float]]
    draws: dict[str, list[np.ndarray]]
    seed_sd: dict[str, float]
    n_seeds: dict[str, int]
    n_spots: list[int]
    n_genes: list[int]

    def interval(self, method: str) -> str:
        """The mean over sections with its interval."""
        drawn = np.mean(self.draws[method], axis=0)
        found = interval(float(np.mean(self.value[method])), drawn, BOOTSTRAP)
        return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"

    def gain(self, method: str, over: str, at: int | None = None) -> tuple[float, float, float]:
        """Paired gain with its interval, on one section or on the mean."""
        where = slice(None) if at is None else slice(at, at + 1)
        value = np.mean(self.value[method][where]) - np.mean(self.value[over][where])
        drawn = np.mean(self.draws[method][where], axis=0)
        drawn = drawn - np.mean(self.draws[over][where], axis=0)
        found = interval(float(value), drawn, BOOTSTRAP)
        return found.value, found.low, found.high


def combine(answers: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """The answers, and the combinations that have rows of their own."""
    seeds, ridge = answers[MODEL], answers[baselines.STRONG_RIDGE][0]
    combined = dict(answers)
    if len(seeds) > 1:
        combined[f"{MODEL}, all {len(seeds)} seeds averaged"] = [np.mean(seeds, axis=0)]
    combined[f"{MODEL} + strong ridge, mean of both"] = [(one + ridge) / 2 for one in seeds]
    return combined


def score_setting(setting: Setting) -> Scored:
    """Every method on every section, all on the spots that every method answers."""
    value: dict[str, list[float]] = {}
    draws: dict[str, list[np.ndarray]] = {}
    by_seed: dict[str, list[list[float]]] = {}
    n_spots, n_genes = [], []
    for section in setting.sections:
        measured, _ = measure(section.test, section.panel, setting.space)
        answers = combine(section.answers)
        flat = {f"{name}#{i}": x for name, xs in answers.items() for i, x in enumerate(xs)}
        is_answered = np.logical_and.reduce([np.isfinite(x).all(axis=1) for x in flat.values()])
        measured = np.where(is_answered[:, None], measured, np.nan)
        drawn = bootstrap_gene_pcc(flat, measured, BOOTSTRAP)
        metrics = {name: measure_all(x, measured) for name, x in flat.items()}
        n_spots.append(metrics[f"{MODEL}#0"].n_regions)
        n_genes.append(metrics[f"{MODEL}#0"].n_genes)
        for name, xs in answers.items():
            of_seeds = [f"{name}#{i}" for i in range(len(xs))]
            scores = [metrics[one].gene_pcc for one in of_seeds]
            value.setdefault(name, []).append(float(np.mean(scores)))
            by_seed.setdefault(name, []).append(scores)
            draws.setdefault(name, []).append(np.mean([drawn[one] for one in of_seeds], axis=0))
    spread = {n: float(np.std(np.mean(s, axis=0))) for n, s in by_seed.items()}
    n_seeds = {name: len(scores[0]) for name, scores in by_seed.items()}
    return Scored(value, draws, spread, n_seeds, n_spots, n_genes)


def print_setting(setting: Setting, scored: Scored) -> None:
    """One Markdown table, with the protocol above it."""
    print(f"\n### Per-gene PCC: panel {setting.rule}, {setting.space}\n")
    facts = np.array([_panel_facts(section, setting.space) for section in setting.sections])
    ceiling, detection = facts.mean(axis=0)
    names, sizes = setting.names, {len(section.panel) for section in setting.sections}
    print(
        f"{_listed(sorted(sizes))} genes chosen inside the training sections; noise ceiling "
        f"{ceiling:.3f} (by left-out section {', '.join(f'{c:.3f}' for c in facts[:, 0])}), "
        f"detected in {100 * detection:.0f} % of training spots.\n\n"
        f"Protocol: one section left out, trained on the others of {_patients(setting)}. Sections "
        f"of one patient: optimistic. Scored spots {_by_name(names, scored.n_spots)}; genes that "
        f"vary there {_by_name(names, scored.n_genes)}. Intervals: {BOOTSTRAP.n_draws} paired "
        f"draws of the spots of each section (seed {BOOTSTRAP.seed}), 95 %; values and draws are "
        "means over the seeds of the fit, whose own spread is the seed sd.\n"
    )
    gains = " | ".join(f"over {over}" for over in GAINS_OVER)
    print(f"| method | scores averaged | {' | '.join(names)} | mean [95 %] | {gains} |")
    print("|---|" + "---|" * (len(names) + 2 + len(GAINS_OVER)))
    for name in scored.value:
        values = " | ".join(f"{v:.3f}" for v in scored.value[name])
        told = " | ".join(
            "" if over == name else _signed(*scored.gain(name, over)) for over in GAINS_OVER
        )
        sd = f" (seed sd {scored.seed_sd[name]:.4f})" if scored.n_seeds[name] > 1 else ""
        interval_ = scored.interval(name)
        print(f"| {name}{sd} | {scored.n_seeds[name]} | {values} | {interval_} | {told} |")


def print_bars(setting: Setting, scored: Scored) -> bool:
    """The bars of the task on the main panel; true if all are passed."""
    names = setting.names
    print(
        f"\n### Bars ({scored.n_seeds[MODEL]} seeds averaged, paired bootstrap over "
        f"{sum(scored.n_spots)} spots)\n"
    )
    print(f"| {MODEL} over | {' | '.join(names)} | mean | bar | verdict |")
    print("|---|" + "---|" * (len(names) + 3))
    passed = True
    for over in RIDGES:
        by_section = [scored.gain(MODEL, over, at) for at in range(len(names))]
        mean = scored.gain(MODEL, over)
        if over == baselines.CELL_RIDGE:
            is_good = all(value >= BAR_CELL_RIDGE for value, _, _ in by_section)
            bar = f">= {BAR_CELL_RIDGE} in every section"
        else:
            is_good = mean[0] >= BAR_STRONG_RIDGE and all(value > 0 for value, _, _ in by_section)
            bar = f">= {BAR_STRONG_RIDGE} on average, > 0 in every section"
        passed &= is_good
        told = " | ".join(_signed(*gain) for gain in (*by_section, mean))
        print(f"| {over} | {told} | {bar} | {'PASS' if is_good else 'FALLS SHORT'} |")
    print(f"\n{'PASS' if passed else 'FALLS SHORT'}")
    return passed


def _panel_facts(section: Section, space: TargetSpace) -> tuple[float, float]:
    """Noise ceiling of a panel on its training sections, and how often its genes are seen there."""
    ceilings, detected = [], []
    for regions in section.train:
        counts = regions.align(section.panel).expression
        assert counts is not None
        detected.append(float((counts > 0).sum()) / (counts.shape[0] * counts.shape[1]))
        generator = np.random.default_rng(0)
        is_normalised = space == "log1p_cp10k"
        ceilings.append(
            noise_ceiling(regions, section.panel, generator, is_normalised=is_normalised)
        )
    return float(np.mean(ceilings)), float(np.mean(detected))


def _patients(setting: Setting) -> str:
    found = sorted({p for section in setting.sections for p in section.test.patient_id})
    return f"patient {found[0]}" if len(found) == 1 else f"patients {', '.join(found)}"


def _signed(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _by_name(names: Sequence[str], numbers: Sequence[int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in zip(names, numbers, strict=True))


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(str(number) for number in numbers)
