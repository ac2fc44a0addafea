"""What every score stands beside: what ridge makes of the same slides, and the training mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32

from histoscribe.data.bags import BagConfig
from histoscribe.data.context import colour_of_blocks
from histoscribe.data.genes import GenePanel
from histoscribe.models.baselines.ridge import fit_ridge
from histoscribe.train.assemble import SlideBags, SlideData, cut_bags, first_parts, measure_bags
from histoscribe.train.targets import TargetSpace

ALPHAS = tuple(float(a) for a in 10.0 ** np.arange(-1.0, 7.01, 0.25))
"""Penalties tried; features have unit variance, so they count in rows."""

TRAINING_MEAN = "training mean"
CELL_RIDGE = "cell features + ridge"
STRONG_RIDGE = "strong ridge"
FEW = 3
"""Regions of a left-out group below which a penalty is chosen by the squared error."""
STRONG_RIDGE_BY_SLIDE = "strong ridge, z-scored by slide"

Views = list[Float[np.ndarray, "bag feature"]]


@dataclass(frozen=True)
class Recipe:
    """A ridge baseline: what it sees of the bags of a slide.

    Attributes:
        see: What is seen of the bags, in parts.
        is_by_slide: Z-score each slide by itself (which looks at all images of a test slide, at
            no expression), else by the training slides.
        is_within_slides: Compares the regions of a slide, of which a whole sample has but one.
    """

    see: Callable[[SlideBags, BagConfig], Views]
    is_by_slide: bool = False
    is_within_slides: bool = False


def _colour(bags: SlideBags, config: BagConfig) -> Views:
    colour = colour_of_blocks(bags.slide.tiles, bags.blocks, config.field_side_um)
    return [bags.average(colour)]


def _place(bags: SlideBags, config: BagConfig) -> Views:  # noqa: ARG001 - one signature for all
    """Place on the slide, from the middle of its spots: a plane and a bowl."""
    xy = bags.slide.regions.xy_um.astype(np.float64)
    x, y = ((xy - xy.mean(axis=0)) / 1000.0)[bags.row_of_bag].T
    return [np.stack([x, y, x * x, x * y, y * y], axis=1)]


def _cells(bags: SlideBags, config: BagConfig) -> Views:  # noqa: ARG001
    """Mean features of the nuclei inside: the last block of ring 0, without its count."""
    n_tile = bags.slide.tiles.features.shape[1]
    return [bags.average(bags.descriptors[:, 0, n_tile:-1])]


def _everything(bags: SlideBags, config: BagConfig) -> Views:
    """Whole field, nuclei, and the field of the neighbours in each ring."""
    n_tile = bags.slide.tiles.features.shape[1]
    n_rings = bags.descriptors.shape[1]
    rings = [bags.average(bags.descriptors[:, ring, :n_tile]) for ring in range(n_rings)]
    return [rings[0], *_cells(bags, config), *rings[1:]]


RIDGES = {
    "colour + ridge": Recipe(_colour),
    "coordinates + ridge": Recipe(_place, is_within_slides=True),
    CELL_RIDGE: Recipe(_cells),
    STRONG_RIDGE: Recipe(_everything),
    STRONG_RIDGE_BY_SLIDE: Recipe(_everything, is_by_slide=True, is_within_slides=True),
}
"""Baselines by name. The strong ridge sees what the model sees, context to 1 mm included."""


def predict_baselines(
    train: Sequence[SlideData],
    test: Sequence[SlideData],
    panel: GenePanel,
    space: TargetSpace,
    bags: BagConfig,
) -> dict[str, list[Float32[np.ndarray, "region gene"]]]:
    """Fit every baseline on the training slides and predict the test slides.

    A sample of several slides is a row for each of them to a ridge, and one to the training mean.
    Penalties are chosen by leaving one training slide out (five folds of regions where there is
    one training slide), then the ridge is fitted on all of them.

    Args:
        train: Training slides.
        test: Test slides; their expression is not looked at.
        panel: Genes.
        space: Space of the targets.
        bags: How bags are cut: radii of field and rings.

    Returns:
        By name, one matrix a test slide; NaN for regions without nuclei.
    """
    cut_train = [cut_bags(slide, bags) for slide in train]
    cut_test = [cut_bags(slide, bags) for slide in test]
    measured = [measure_bags(part, panel, space) for part in cut_train]
    y, is_whole = _complete(measured)
    groups = _groups(cut_train)[is_whole]
    # A correlation over one or two regions that are left out says nothing of a penalty.
    by = "mse" if np.unique(groups, return_counts=True)[1].min() < FEW else "pcc"
    is_first = np.concatenate(
        [
            np.isin(np.arange(len(part)), rows)
            for part, rows in zip(cut_train, first_parts(cut_train), strict=True)
        ]
    )
    mean = y[is_whole & is_first].mean(axis=0)
    answers = {TRAINING_MEAN: [_spread(part, np.tile(mean, (len(part), 1))) for part in cut_test]}
    has_places = all(np.isfinite(slide.regions.xy_um).all() for slide in (*train, *test))
    for name, recipe in RIDGES.items():
        if recipe.is_within_slides and not has_places:
            continue
        x_train = np.concatenate(_see(recipe, cut_train, bags))
        x_test = _see(recipe, cut_test, bags)
        ridge = fit_ridge(x_train[is_whole], y[is_whole], groups, ALPHAS, choose_by=by)
        answers[name] = [
            _spread(part, ridge.predict(x)) for part, x in zip(cut_test, x_test, strict=True)
        ]
    return answers


def _complete(
    measured: Sequence[tuple[Float32[np.ndarray, "_ gene"], Bool[np.ndarray, "_ gene"]]],
) -> tuple[Float[np.ndarray, "bag gene"], Bool[np.ndarray, " bag"]]:
    """Targets; a gene that one slide lacks gets its mean, a bag without any is not used."""
    y = np.concatenate([values for values, _ in measured]).astype(np.float64)
    is_observed = np.concatenate([observed for _, observed in measured])
    mean = np.where(is_observed, y, 0).sum(axis=0) / is_observed.sum(axis=0).clip(min=1)
    return np.where(is_observed, y, mean), np.asarray(is_observed.any(axis=1))


def _groups(bags: Sequence[SlideBags]) -> np.ndarray:
    """Patients are left out where there are several, else slides, else strips of the one slide."""
    patients = [part.slide.patient_id for part in bags]
    names = patients if len(set(patients)) > 1 else [part.slide.slide_id for part in bags]
    if len(set(names)) == 1 and len(bags) == 1:
        x = bags[0].slide.regions.xy_um[bags[0].row_of_bag, 0]
        return np.searchsorted(np.quantile(x, [0.2, 0.4, 0.6, 0.8]), x, side="right")
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.repeat([number[name] for name in names], [len(part) for part in bags])


def _see(
    recipe: Recipe, cut: Sequence[SlideBags], bags: BagConfig
) -> list[Float[np.ndarray, "_ feature"]]:
    """What a baseline sees of each slide; the ridge itself standardises by the training rows."""
    parts = []
    for part in cut:
        features = np.concatenate(recipe.see(part, bags), axis=1).astype(np.float64)
        if recipe.is_by_slide:
            deviation = features.std(axis=0)
            features = (features - features.mean(axis=0)) / np.where(deviation < 1e-6, 1, deviation)
        parts.append(features)
    return parts


def _spread(
    bags: SlideBags, answer: Float[np.ndarray, "bag gene"]
) -> Float32[np.ndarray, "region gene"]:
    """From bags to all regions of the slide."""
    whole = np.full((len(bags.slide.regions), answer.shape[1]), np.nan, dtype=np.float32)
    whole[bags.row_of_bag] = answer
    return whole
