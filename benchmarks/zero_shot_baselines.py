"""What zero-shot scores of spots stand beside, from the same prepared sections."""

from collections.abc import Sequence

import numpy as np

from histoscribe.data.bags import BagConfig
from histoscribe.data.genes import GenePanel
from histoscribe.evaluate.baselines import ALPHAS, RIDGES, STRONG_RIDGE
from histoscribe.models.baselines.ridge import fit_ridge
from histoscribe.readers.marker_lists import read_marker_sets
from histoscribe.train.assemble import SlideBags, SlideData, cut_bags
from histoscribe.train.gene_standardiser import fit_gene_standardiser, gene_values
from zero_shot_words import FROZEN

COUNT = "nuclei count, ridge to proportions"
COLOUR = "colour, ridge to proportions"
TWO_STAGE = "two-stage: ridge to measured marker scores"
UPPER = "supervised upper bound: ridge to proportions"
NON_TEXT = (COUNT, COLOUR)


def baseline_scores(
    train: Sequence[SlideData],
    test: SlideData,
    amounts: Sequence[np.ndarray],
    keys: Sequence[str],
) -> dict[str, np.ndarray]:
    """Score of each region of the test section on each class, NaN for one without nuclei.

    Args:
        train: Training sections.
        test: Nothing of its expression or proportions is looked at.
        amounts: Proportions of the training sections, region x class; NaN rows are left out.
        keys: Classes, as the marker lists name them.
    """
    config = BagConfig()
    cut, cut_test = [cut_bags(slide, config) for slide in train], cut_bags(test, config)
    markers = marker_scores(train, keys)
    said = {}
    for name, see, targets in (
        (COUNT, lambda bags: [bags.average(bags.descriptors[:, 0, -1:])], amounts),
        (COLOUR, lambda bags: RIDGES["colour + ridge"].see(bags, config), amounts),
        (TWO_STAGE, lambda bags: RIDGES[STRONG_RIDGE].see(bags, config), markers),
        (UPPER, lambda bags: RIDGES[STRONG_RIDGE].see(bags, config), amounts),
    ):

        def features(bags: SlideBags, see=see) -> np.ndarray:
            return np.concatenate(see(bags), axis=1).astype(np.float64)

        x = np.concatenate([features(part) for part in cut])
        y = np.concatenate([own[part.row_of_bag] for own, part in zip(targets, cut, strict=True)])
        section = np.repeat(np.arange(len(cut)), [len(part) for part in cut])
        known = np.isfinite(y).all(axis=1)
        ridge = fit_ridge(x[known], y[known], section[known], ALPHAS)
        score = np.full((len(test.regions), len(keys)), np.nan)
        score[cut_test.row_of_bag] = ridge.predict(features(cut_test))
        said[name] = score
    return said


def marker_scores(slides: Sequence[SlideData], keys: Sequence[str]) -> list[np.ndarray]:
    """Mean z of the markers of each class in each region, z over all these slides."""
    lists = {one.term: one.genes for one in read_marker_sets(FROZEN / "markers.json")}
    first = slides[0].regions.genes
    known = set.intersection(*(set(slide.regions.genes.ids) for slide in slides))
    genes = tuple(sorted({gene for key in keys for gene in lists[key]} & known))
    panel = GenePanel(genes, genes, first.namespace)
    parts = [gene_values([slide.regions], panel) for slide in slides]
    standardiser = fit_gene_standardiser(gene_values([slide.regions for slide in slides], panel))
    scores = []
    for part in parts:
        z = standardiser.apply(part).z
        of_class = [panel.rows_of([g for g in lists[key] if g in known]) for key in keys]
        scores.append(np.stack([z[:, rows].mean(axis=1) for rows in of_class], axis=1))
    return scores
