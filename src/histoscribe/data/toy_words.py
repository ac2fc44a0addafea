"""A world of eight kinds of cells, in which words reach images across expression alone.

Images are mixtures of five cells with features that carry their kind; their expression is counts
on one platform; labelled profiles of one kind each are counts on another. No image has a text.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from scipy.sparse import csr_array

from histoscribe.data.bags import BagBatch
from histoscribe.data.genes import GenePanel
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.data.texts import Texts

KINDS = (
    "B cell", "T cell", "plasma cell", "macrophage", "fibroblast", "endothelial cell",
    "epithelial cell", "pericyte",
)  # fmt: skip
WORDINGS = ("{x}", "a tissue sample containing {x}", "a sample of {x}")
N_CELLS = 5
"""Cells of an image."""
N_FEATURES = 24
N_GENES = 120
DEPTH = 10_000.0
"""Expected counts of a profile."""


@dataclass(frozen=True, eq=False)
class ToyWordsWorld:
    """What was drawn.

    Attributes:
        images: Each a bag of five cells.
        of_images: Their expression, row by row.
        profiles: Labelled ones, of another platform.
        texts: Wordings of the kinds, by kind.
        share: How much of each image each kind is: the truth, for scoring, and for what texts of
            images would say.
    """

    images: BagBatch
    of_images: Profiles
    profiles: Profiles
    texts: Texts
    share: Float[np.ndarray, "image kind"]

    @property
    def presence(self) -> Bool[np.ndarray, "image kind"]:
        """Which kinds are in each image."""
        return self.share > 0


def toy_words_world(
    seed: int, n_images: int, n_profiles: int, platform_shift: float = 0.0
) -> ToyWordsWorld:
    """Draw a world.

    Args:
        seed: Draws kinds, mixtures, noise and shifts.
        n_images: Images.
        n_profiles: Labelled profiles.
        platform_shift: Deviation of a gene's log factor on each platform.
    """
    rng = np.random.default_rng(seed)
    rates = np.exp(rng.normal(size=(len(KINDS), N_GENES)) * (rng.random((1, N_GENES)) < 0.6))
    loading = rng.normal(size=(len(KINDS), N_FEATURES))
    kind = rng.integers(len(KINDS), size=(n_images, N_CELLS))
    share = np.stack([(kind == k).mean(axis=1) for k in range(len(KINDS))], axis=1)
    labels = rng.integers(len(KINDS), size=n_profiles)
    factor = np.exp(platform_shift * rng.normal(size=(2, N_GENES)))
    features = loading[kind.ravel()] + 0.8 * rng.normal(size=(kind.size, N_FEATURES))
    names = [KINDS[label] for label in labels]
    return ToyWordsWorld(
        images=_bags(features.astype(np.float32), n_images),
        of_images=_profiles(rng, share @ rates, factor[0], "spots", None),
        profiles=_profiles(rng, rates[labels], factor[1], "cells", names),
        texts=Texts(
            tuple(name for name in KINDS for _ in WORDINGS),
            tuple(words.format(x=name) for name in KINDS for words in WORDINGS),
        ),
        share=share,
    )


def _profiles(
    rng: np.random.Generator,
    rates: Float[np.ndarray, "profile gene"],
    factor: Float[np.ndarray, " gene"],
    platform: str,
    labels: list[str] | None,
) -> Profiles:
    """Counts of profiles, with the platform's factor on each gene and a biological one on all."""
    own = rates * np.exp(0.3 * rng.normal(size=rates.shape)) * factor
    counts = rng.poisson(DEPTH * own / own.sum(axis=1, keepdims=True))
    names = tuple(f"{platform}{number}" for number in range(len(rates)))
    genes = tuple(f"ENSG{number:011d}" for number in range(1, N_GENES + 1))
    return Profiles(
        profile_id=names,
        expression=csr_array(counts.astype(np.float32)),
        expression_unit="counts",
        genes=GenePanel(genes, genes, "ensembl"),
        gene_observed=np.ones(N_GENES, dtype=bool),
        provenance=Provenance("toy_words_world"),
        label=None if labels is None else tuple(labels),
        text=None if labels is None else tuple(labels),
        text_key=None if labels is None else tuple(labels),
        platform=(platform,) * len(rates),
    )


def _bags(features: Float32[np.ndarray, "cell feature"], n_images: int) -> BagBatch:
    """Cells five by five, without a graph and without surroundings."""
    bag: Int64[np.ndarray, " cell"] = np.arange(n_images).repeat(N_CELLS)
    return BagBatch(
        features=torch.from_numpy(features),
        offset_um=torch.zeros(len(features), 2),
        is_inside=torch.ones(len(features), dtype=torch.bool),
        neighbours=torch.arange(len(features))[:, None],
        phenotype=torch.zeros(len(features), dtype=torch.int64),
        block_of_cell=torch.from_numpy(bag),
        bag_of_block=torch.arange(n_images),
        field=torch.zeros(n_images, 1, 1),
        n_bags=n_images,
    )
