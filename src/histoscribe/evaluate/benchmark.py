"""One table: a model beside its baselines on the same slides, with intervals and paired gains."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from histoscribe.data.prediction import Prediction
from histoscribe.data.splits import Split
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.evaluate.baselines import (
    CELL_RIDGE,
    RIDGES,
    STRONG_RIDGE,
    TRAINING_MEAN,
    predict_baselines,
)
from histoscribe.evaluate.bootstrap import (
    BootstrapConfig,
    Interval,
    bootstrap_gene_pcc,
    interval,
)
from histoscribe.evaluate.metrics import Metrics, measure_all
from histoscribe.predict import predict_regions
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import Checkpoint
from histoscribe.train.naming import name_alike
from histoscribe.train.targets import measure

MEAN = "mean"
"""Name of the rows that hold the mean over test slides."""
SAMPLES = "samples"
"""Name of the rows of whole samples, which are scored together."""
MODEL = "model"
METHODS = (MODEL, TRAINING_MEAN, *RIDGES)
"""What `benchmark` scores."""

Answers = Mapping[str, Sequence[Float[np.ndarray, "region gene"]]]


@dataclass(frozen=True)
class ScoreRow:
    """A method on a slide, or its mean over the test slides (slide = "mean")."""

    method: str
    slide: str
    metrics: Metrics
    gene_pcc: Interval


@dataclass(frozen=True)
class GainRow:
    """Paired difference in per-gene PCC of one method over another, same regions in each draw."""

    method: str
    over: str
    slide: str
    gain: Interval


@dataclass(frozen=True)
class ScoreTable:
    """Scores of all methods.

    Attributes:
        rows: One a method and slide, then the means.
        gains: Paired differences asked for.
        protocol: What was trained on and tested on, and how far that is honest.
        unit: Space of the values.
        n_panel: Genes of the panel.
        seed: Seed of the bootstrap.
        n_draws: Its number of draws.
    """

    rows: tuple[ScoreRow, ...]
    gains: tuple[GainRow, ...]
    protocol: str
    unit: str
    n_panel: int
    seed: int
    n_draws: int

    def row(self, method: str, slide: str = MEAN) -> ScoreRow:
        """The row of a method; of one slide, or the mean."""
        for row in self.rows:
            if (row.method, row.slide) == (method, slide):
                return row
        known = ", ".join(dict.fromkeys(row.method for row in self.rows))
        raise DataError(f"no score of {method!r} on {slide!r}; there are {known}")

    def records(self) -> list[dict[str, Any]]:
        """One flat record a row."""
        return [
            {
                "method": row.method,
                "slide": row.slide,
                **asdict(row.metrics),
                "gene_pcc_low": row.gene_pcc.low,
                "gene_pcc_high": row.gene_pcc.high,
                "unit": self.unit,
                "seed": self.seed,
            }
            for row in self.rows
        ]

    def to_json(self) -> str:
        """Everything, as JSON; what is not a number is null."""
        record = {
            "protocol": self.protocol,
            "unit": self.unit,
            "n_panel": self.n_panel,
            "bootstrap": {"seed": self.seed, "n_draws": self.n_draws},
            "rows": self.records(),
            "gains": [{**asdict(g), **asdict(g.gain)} for g in self.gains],
        }
        for gain in record["gains"]:
            del gain["gain"]
        return json.dumps(_without_nan(record), indent=1, sort_keys=True) + "\n"

    def to_csv(self) -> str:
        """The rows as CSV."""
        records = self.records()
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return stream.getvalue()

    def to_text(self) -> str:
        """The means over test slides as a table for people, with the protocol above it."""
        names = [row.method for row in self.rows if row.slide == MEAN]
        wide = max(len(name) for name in names)
        head = f"{'method':{wide}}  gene PCC [95 % interval]  region PCC  flat PCC   RMSE     JS"
        lines = [self.protocol, f"{self.unit}, {self.n_panel} genes", "", head]
        for row in (row for row in self.rows if row.slide == MEAN):
            m, pcc = row.metrics, row.gene_pcc
            lines.append(
                f"{row.method:{wide}}  {pcc.value:6.3f} [{pcc.low:6.3f}, {pcc.high:6.3f}]"
                f"   {m.region_pcc:10.3f}  {m.flat_pcc:8.3f}  {m.rmse:5.3f}  {m.js:5.3f}"
            )
        first = next(row for row in self.rows if row.slide == MEAN).metrics
        lines += [
            "",
            f"{first.n_regions} regions; {first.n_genes} genes count, {first.n_constant} are "
            f"constant (summed over test slides); bootstrap over regions, {self.n_draws} draws, "
            f"seed {self.seed}",
        ]
        for gain in (gain for gain in self.gains if gain.slide == MEAN):
            value = gain.gain
            lines.append(
                f"{gain.method} - {gain.over}: {value.value:+.3f} "
                f"[{value.low:+.3f}, {value.high:+.3f}] paired"
            )
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class ScoreConfig:
    """What is compared with what.

    Attributes:
        bootstrap: How intervals are drawn.
        over: Methods of METHODS that are compared against: the paired gain of each method of `of`
            over each of these is wanted; none wants no gains.
        of: Methods of METHODS that are compared.
    """

    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    over: tuple[str, ...] = (CELL_RIDGE, STRONG_RIDGE)
    of: tuple[str, ...] = (MODEL,)

    def __post_init__(self) -> None:
        if not self.of:
            raise ConfigError("score.of is empty; give a method, 'model' is usual")
        for name in ("over", "of"):
            stranger = next((m for m in getattr(self, name) if m not in METHODS), None)
            if stranger is not None:
                raise ConfigError(
                    f"score.{name} has {stranger!r}, which is no method; give some of "
                    f"{', '.join(METHODS)}"
                )


def benchmark(
    checkpoint: Checkpoint, slides: Sequence[SlideData], config: ScoreConfig | None = None
) -> ScoreTable:
    """Score a checkpoint and all baselines on the test slides of its split.

    Args:
        checkpoint: The fitted model; its split says which slides are for training and testing.
        slides: Training slides (the baselines are fitted on them) and test slides; genes of
            another namespace than the checkpoint's are renamed.
        config: Intervals and comparisons.

    Raises:
        DataError: If a slide of the split is missing.
    """
    split = checkpoint.split
    if not split.test:
        raise DataError(
            "the checkpoint was fitted on all slides and kept none to be scored on; score a fit "
            "that left some out"
        )
    slides = name_alike(_pick(slides, (*split.train, *split.test)), checkpoint.panel)
    train, test = _pick(slides, split.train), _pick(slides, split.test)
    space = checkpoint.scaling.target.space
    answers = {
        MODEL: split_by_slide(predict_regions(checkpoint, test), test),
        **predict_baselines(train, test, checkpoint.panel, space, checkpoint.bags),
    }
    measured = [measure(slide.regions, checkpoint.panel, space)[0] for slide in test]
    names = [slide.slide_id for slide in test]
    if all(slide.regions.kind == "bulk" and len(slide.regions) == 1 for slide in test):
        answers = {name: [gather_samples(parts, test)] for name, parts in answers.items()}
        measured, names = [gather_samples(measured, test)], [SAMPLES]
    protocol = describe_protocol(split, slides)
    return score(answers, measured, names, f"{space}", protocol, config)


def gather_samples(
    parts: Sequence[Float[np.ndarray, "_ gene"]], slides: Sequence[SlideData]
) -> Float[np.ndarray, "sample gene"]:
    """One row for each whole sample, the mean of what stands at its slides.

    Whole samples are compared with each other: a gene varies over patients, not within a slide.
    """
    number: dict[tuple[str, str], int] = {}
    sample = [
        number.setdefault((slide.patient_id, slide.regions.region_id[0]), len(number))
        for slide in slides
    ]
    rows = np.concatenate(list(parts))
    return np.stack([rows[np.array(sample) == n].mean(axis=0) for n in range(len(number))])


def score(
    answers: Answers,
    measured: Sequence[Float[np.ndarray, "region gene"]],
    slide_ids: Sequence[str],
    unit: str,
    protocol: str,
    config: ScoreConfig | None = None,
) -> ScoreTable:
    """Score methods on test slides.

    Args:
        answers: By method, one matrix a slide; NaN rows are not scored.
        measured: One matrix a slide, in the same space.
        slide_ids: Names of the slides.
        unit: Name of the space.
        protocol: One or two sentences on what was trained on and how honest that is.
        config: Intervals and comparisons.

    Raises:
        MismatchError: If shapes differ.
        DataError: If a slide cannot be scored.
    """
    config = config or ScoreConfig()
    measured = _common_rows(answers, measured)
    metrics = {
        name: [measure_all(x, y) for x, y in zip(parts, measured, strict=True)]
        for name, parts in answers.items()
    }
    draws = [
        bootstrap_gene_pcc({n: parts[i] for n, parts in answers.items()}, y, config.bootstrap)
        for i, y in enumerate(measured)
    ]
    rows = [
        ScoreRow(
            n, slide, metrics[n][i], interval(metrics[n][i].gene_pcc, draws[i][n], config.bootstrap)
        )
        for n in answers
        for i, slide in enumerate(slide_ids)
    ]
    over_slides = {n: np.mean([d[n] for d in draws], axis=0) for n in answers}
    for name in answers:
        mean = mean_metrics(metrics[name])
        rows.append(
            ScoreRow(name, MEAN, mean, interval(mean.gene_pcc, over_slides[name], config.bootstrap))
        )
    by_slide = dict(zip((*slide_ids, MEAN), (*draws, over_slides), strict=True))
    return ScoreTable(
        rows=tuple(rows),
        gains=tuple(_gains(rows, by_slide, config)),
        protocol=protocol,
        unit=unit,
        n_panel=measured[0].shape[1],
        seed=config.bootstrap.seed,
        n_draws=config.bootstrap.n_draws,
    )


def mean_metrics(parts: Sequence[Metrics]) -> Metrics:
    """Means over slides of the scores, sums of the counts."""
    values: dict[str, Any] = {}
    for f in fields(Metrics):
        column = [getattr(part, f.name) for part in parts]
        values[f.name] = sum(column) if f.type is int else float(np.mean(column))
    return Metrics(**values)


def split_by_slide(
    prediction: Prediction, slides: Sequence[SlideData]
) -> list[Float[np.ndarray, "region gene"]]:
    """The rows of a prediction in the order of each slide's regions.

    Raises:
        MismatchError: If a region was not predicted.
    """
    names = zip(prediction.slide_id, prediction.region_id, strict=True)
    row_of = {name: row for row, name in enumerate(names)}
    parts = []
    for slide in slides:
        keys = [(slide.slide_id, region) for region in slide.regions.region_id]
        missing = next((key for key in keys if key not in row_of), None)
        if missing:
            raise MismatchError(
                f"region {missing[1]} of {missing[0]} was not predicted; do so first"
            )
        parts.append(prediction.mean[[row_of[key] for key in keys]])
    return parts


def describe_protocol(split: Split, slides: Sequence[SlideData]) -> str:
    """What was trained on and tested on, and how far that is honest."""
    patient_of = {slide.slide_id: slide.patient_id for slide in slides}
    shared = {patient_of[s] for s in split.train} & {patient_of[s] for s in split.test}
    text = f"Trained on {', '.join(split.train)}; tested on {', '.join(split.test)}."
    kinds = [
        sorted({slide.regions.kind for slide in slides if slide.slide_id in side})
        for side in (split.train, split.test)
    ]
    if kinds[0] != kinds[1]:
        text += f" Trained on {' and '.join(kinds[0])} regions, tested on {' and '.join(kinds[1])}."
    if split.unit == "strip":
        return (
            f"{text} Illustration, not evidence: strips of one slide; patient, stain and scan are "
            "the same."
        )
    if shared:
        return (
            f"{text} Optimistic: {', '.join(sorted(shared))} has sections on both sides; this says "
            "nothing of new patients."
        )
    return f"{text} No patient is on both sides."


def _gains(
    rows: Sequence[ScoreRow],
    draws: Mapping[str, Mapping[str, Float64[np.ndarray, " draw"]]],
    config: ScoreConfig,
) -> list[GainRow]:
    value = {(row.method, row.slide): row.gene_pcc.value for row in rows}
    gains = []
    for slide, by_method in draws.items():
        for method in (m for m in config.of if m in by_method):
            for other in (o for o in config.over if o in by_method):
                difference = value[method, slide] - value[other, slide]
                drawn = by_method[method] - by_method[other]
                gain = interval(difference, drawn, config.bootstrap)
                gains.append(GainRow(method, other, slide, gain))
    return gains


def _common_rows(
    answers: Answers, measured: Sequence[Float[np.ndarray, "region gene"]]
) -> list[Float[np.ndarray, "region gene"]]:
    """Measured values with NaN where some method has no answer: all are scored on the same rows."""
    common = []
    for i, values in enumerate(measured):
        is_answered = np.logical_and.reduce(
            [np.isfinite(parts[i]).all(axis=1) for parts in answers.values()]
        )
        common.append(np.where(is_answered[:, None], values, np.nan))
    return common


def _pick(slides: Sequence[SlideData], wanted: Sequence[str]) -> list[SlideData]:
    by_id = {slide.slide_id: slide for slide in slides}
    missing = [slide_id for slide_id in wanted if slide_id not in by_id]
    if missing:
        raise DataError(f"slide {missing[0]} of the split was not given; prepare it first")
    return [by_id[slide_id] for slide_id in wanted]


def _without_nan(value: Any) -> Any:  # noqa: ANN401 - any record
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
