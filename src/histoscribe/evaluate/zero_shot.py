"""Zero-shot scores: classes that were named only, against what is there; with intervals."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from histoscribe.errors import DataError, MismatchError
from histoscribe.evaluate.bootstrap import BootstrapConfig, Interval
from histoscribe.evaluate.ranking import auroc, average_precision, class_f1, recall_at

AT_ONCE = 100
"""Draws handled at once; bounds memory at draws x units x 5 numbers."""

UNSURE_LABEL = -1


@dataclass(frozen=True, eq=False)
class ZeroShotTask:
    """Units that were scored, and what is there.

    Attributes:
        classes: Names.
        score: Of each unit and class, any scale; NaN rows for units of which nothing was said.
        is_present: Whether the class is in the unit.
        image: The image (or section) of each unit: what AUROC is taken within.
        group: What intervals are drawn over: the patient, else the image.
        group_kind: What the groups are, in words: "patient", "section", "image".
        label: The class that was said of each unit, -1 where unsure; or None.
        dominant: The class that most of the unit is, -1 for none; or None.
    """

    classes: tuple[str, ...]
    score: Float[np.ndarray, "unit class"]
    is_present: Bool[np.ndarray, "unit class"]
    image: tuple[str, ...]
    group: tuple[str, ...]
    group_kind: str = "image"
    label: Int64[np.ndarray, " unit"] | None = None
    dominant: Int64[np.ndarray, " unit"] | None = None

    def __post_init__(self) -> None:
        shape = (len(self.image), len(self.classes))
        for name in ("score", "is_present"):
            if getattr(self, name).shape != shape:
                raise MismatchError(f"{name} is {getattr(self, name).shape}; wanted {shape}")
        for name in ("group", "label", "dominant"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.image):
                raise MismatchError(f"{len(value)} entries of {name} for {len(self.image)} units")
        group_of: dict[str, str] = {}
        for image, group in zip(self.image, self.group, strict=True):
            if group_of.setdefault(image, group) != group:
                raise DataError(f"image {image} is of {group_of[image]} and of {group}")

    def said(self) -> "ZeroShotTask":
        """The units of which something was said."""
        rows = np.flatnonzero(np.isfinite(self.score).all(axis=1))
        if not len(rows):
            raise DataError("no unit has a score; check that the images have nuclei")
        return ZeroShotTask(
            self.classes,
            self.score[rows],
            self.is_present[rows],
            tuple(self.image[row] for row in rows),
            tuple(self.group[row] for row in rows),
            self.group_kind,
            None if self.label is None else self.label[rows],
            None if self.dominant is None else self.dominant[rows],
        )


@dataclass(frozen=True)
class ClassScore:
    """How well one class was found.

    Attributes:
        name: The class.
        auroc: Mean over images of the AUROC within the image, with its interval.
        n_valid_images: Images that have units with and without it; the others cannot be ranked.
        pooled_auroc: Over the units of all images at once.
        average_precision: Area under the precision-recall curve, pooled; chance is `prevalence`.
        prevalence: Share of units that have it.
        f1: Of the labels.
    """

    name: str
    auroc: Interval
    n_valid_images: int
    pooled_auroc: float
    average_precision: float
    prevalence: float
    f1: float


@dataclass(frozen=True)
class ZeroShotScores:
    """All scores of a task. NaN is a score that is not defined; how many, is said beside it.

    Attributes:
        by_class: One a class.
        auroc: Mean over classes of the mean over images; classes without a valid image left out.
        pooled_auroc: Mean over classes.
        average_precision: Mean over classes.
        f1: Macro F1 of the labels; NaN without labels.
        recall: By k, the share of units whose dominant class is among their k best.
        n_without_image: Classes without a valid image.
        n_units: Units with a score.
        n_unscored: Units without.
        n_images: Images.
        n_groups: What was drawn over.
        group_kind: And what that is.
        draws: Of `auroc`, for paired gains.
    """

    by_class: tuple[ClassScore, ...]
    auroc: Interval
    pooled_auroc: Interval
    average_precision: Interval
    f1: Interval
    recall: Mapping[int, float]
    n_without_image: int
    n_units: int
    n_unscored: int
    n_images: int
    n_groups: int
    group_kind: str
    draws: Float64[np.ndarray, " draw"] = field(repr=False, compare=False)

    def to_json(self) -> str:
        """Everything but the draws; NaN becomes null."""
        record = {name: value for name, value in asdict(self).items() if name != "draws"}
        return json.dumps(_without_nan(record), indent=1, sort_keys=True, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """One row a class, and the mean."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            ("class", "auroc", "low", "high", "valid_images", "pooled_auroc", "average_precision",
             "prevalence", "f1")
        )  # fmt: skip
        for one in self.by_class:
            tail = (one.pooled_auroc, one.average_precision, one.prevalence, one.f1)
            writer.writerow((one.name, *_row(one.auroc), one.n_valid_images, *map(_text, tail)))
        means = (self.pooled_auroc.value, self.average_precision.value, float("nan"), self.f1.value)
        writer.writerow(("mean", *_row(self.auroc), self.n_images, *map(_text, means)))
        return stream.getvalue()


def score_zero_shot(
    task: ZeroShotTask,
    config: BootstrapConfig = BootstrapConfig(),  # noqa: B008 - frozen
    recall_at_k: Sequence[int] = (1, 3, 5),
) -> ZeroShotScores:
    """Score a task.

    Intervals are percentiles over draws of whole groups with replacement; within a draw, an
    image's own AUROC does not change, so drawing images is weighing them. A draw in which a class
    has no valid image leaves that class out of its mean.

    Raises:
        DataError: No unit has a score.
    """
    n_all, task = len(task.image), task.said()
    images, image_of_unit = np.unique(task.image, return_inverse=True)
    groups, group_of_unit = np.unique(task.group, return_inverse=True)
    by_image = auroc_by_image(task.score, task.is_present, image_of_unit, len(images))
    weight_of_group = _draw(len(groups), config)
    group_of_image = np.zeros(len(images), dtype=np.int64)
    group_of_image[image_of_unit] = group_of_unit
    of_class = _weighted_mean(by_image, weight_of_group[:, group_of_image])
    exact = _weighted_mean(by_image, np.ones((1, len(images))))[0]
    draws = _nanmean(of_class)
    pooled, at_once = _pooled(task, np.ones((1, len(task.image)))), []
    for start in range(0, config.n_draws, AT_ONCE):
        some = weight_of_group[start : start + AT_ONCE][:, group_of_unit]
        at_once.append(_pooled(task, some))
    drawn = {name: np.concatenate([part[name] for part in at_once]) for name in pooled}
    by_class = tuple(
        ClassScore(
            name=name,
            auroc=_interval(exact[number], of_class[:, number], config),
            n_valid_images=int(np.isfinite(by_image[:, number]).sum()),
            pooled_auroc=float(pooled["auroc"][0, number]),
            average_precision=float(pooled["precision"][0, number]),
            prevalence=float(task.is_present[:, number].mean()),
            f1=float(pooled["f1"][0, number]),
        )
        for number, name in enumerate(task.classes)
    )

    def macro(name: str) -> Interval:
        value = float(_nanmean(pooled[name])[0])
        return _interval(value, _nanmean(drawn[name]), config)

    return ZeroShotScores(
        by_class=by_class,
        auroc=_interval(float(_nanmean(exact[None])[0]), draws, config),
        pooled_auroc=macro("auroc"),
        average_precision=macro("precision"),
        f1=macro("f1"),
        recall={k: _recall(task, k) for k in recall_at_k if k < len(task.classes)},
        n_without_image=int(np.isnan(exact).sum()),
        n_units=len(task.image),
        n_unscored=n_all - len(task.image),
        n_images=len(images),
        n_groups=len(groups),
        group_kind=task.group_kind,
        draws=draws,
    )


def gain(of: ZeroShotScores, over: ZeroShotScores, config: BootstrapConfig) -> Interval:
    """Paired gain in AUROC: of two scores of the same units, drawn alike.

    Raises:
        MismatchError: The two were drawn over other groups, or otherwise.
    """
    if (of.n_groups, of.n_units, len(of.draws)) != (over.n_groups, over.n_units, len(over.draws)):
        raise MismatchError(
            f"scores over {of.n_units} units of {of.n_groups} {of.group_kind}s cannot be paired "
            f"with scores over {over.n_units} of {over.n_groups}; score the same units"
        )
    return _interval(of.auroc.value - over.auroc.value, of.draws - over.draws, config)


def auroc_by_image(
    score: Float[np.ndarray, "unit class"],
    is_present: Bool[np.ndarray, "unit class"],
    image: Int64[np.ndarray, " unit"],
    n_images: int,
) -> Float64[np.ndarray, "image class"]:
    """AUROC of each class within each image; NaN where all units or none have it."""
    scores = np.full((n_images, score.shape[1]), np.nan)
    for number in range(n_images):
        rows = np.flatnonzero(image == number)
        for column in range(score.shape[1]):
            scores[number, column] = auroc(score[rows, column], is_present[rows, column])[0]
    return scores


def above_median(
    amount: Float[np.ndarray, "unit class"], image: Sequence[str]
) -> Bool[np.ndarray, "unit class"]:
    """Whether a unit has more of a class than the median unit of its image."""
    _, number = np.unique(image, return_inverse=True)
    is_above = np.zeros(amount.shape, dtype=bool)
    for one in range(int(number.max(initial=-1)) + 1):
        rows = number == one
        is_above[rows] = amount[rows] > np.median(amount[rows], axis=0)
    return is_above


def dominant_class(amount: Float[np.ndarray, "unit class"]) -> Int64[np.ndarray, " unit"]:
    """The class that most of a unit is, the first of those that tie; -1 where there is none."""
    return np.where(amount.max(axis=1) > 0, amount.argmax(axis=1), UNSURE_LABEL)


def _pooled(
    task: ZeroShotTask, weights: Float64[np.ndarray, "draw unit"]
) -> dict[str, Float64[np.ndarray, "draw class"]]:
    columns = range(len(task.classes))
    pairs = [(task.score[:, one], task.is_present[:, one]) for one in columns]
    f1 = np.full((len(weights), len(task.classes)), np.nan)
    if task.label is not None and task.dominant is not None:
        rows = task.dominant >= 0
        f1 = class_f1(task.label[rows], task.dominant[rows], len(columns), weights[:, rows])
    return {
        "auroc": np.stack([auroc(*pair, weights) for pair in pairs], axis=1),
        "precision": np.stack([average_precision(*pair, weights) for pair in pairs], axis=1),
        "f1": f1,
    }


def _recall(task: ZeroShotTask, k: int) -> float:
    if task.dominant is None:
        return float("nan")
    return recall_at(task.score, task.dominant[:, None] == np.arange(len(task.classes)), k)


def _draw(n_groups: int, config: BootstrapConfig) -> Float64[np.ndarray, "draw group"]:
    """How often each group is in each draw."""
    generator = np.random.default_rng(config.seed)
    share = np.full(n_groups, 1 / n_groups)
    return generator.multinomial(n_groups, share, size=config.n_draws).astype(np.float64)


def _weighted_mean(
    values: Float64[np.ndarray, "image class"], weights: Float64[np.ndarray, "draw image"]
) -> Float64[np.ndarray, "draw class"]:
    """Mean over images that have a value; NaN where none has."""
    total = weights @ np.nan_to_num(values)
    n = weights @ np.isfinite(values).astype(np.float64)
    return np.where(n > 0, total / np.where(n > 0, n, 1), np.nan)


def _nanmean(values: Float64[np.ndarray, "row column"]) -> Float64[np.ndarray, " row"]:
    return _weighted_mean(values.T, np.ones((1, values.shape[1])))[0]


def _interval(
    value: float, draws: Float64[np.ndarray, " draw"], config: BootstrapConfig
) -> Interval:
    """Percentiles of the draws that are defined."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return Interval(float(value), float("nan"), float("nan"))
    tail = (1 - config.level) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def _row(interval: Interval) -> tuple[str, str, str]:
    return _text(interval.value), _text(interval.low), _text(interval.high)


def _text(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
