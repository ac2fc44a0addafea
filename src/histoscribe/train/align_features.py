"""Profiles by vectors that another model made of them, in place of the gene tower.

    e_G = unit(Head_G(z(x))),   x such a vector (Geneformer's and the like), z its standardisation

Regions and labelled profiles must be embedded by one model: nothing else leads from one to the
other. What it makes of predicted expression, or of a marker list, is not known here; so there is no
route from an image to a text by its predicted expression, and marker lists are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from histoscribe.data.genes import GenePanel
from histoscribe.data.in_file import new_array
from histoscribe.data.profiles import Profiles
from histoscribe.data.region_features import RegionFeatures
from histoscribe.data.regions import Regions
from histoscribe.data.texts import texts_of
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_data import GeneRows, MeasuredGenes, Rows
from histoscribe.train.align_genes import (
    GeneSide,
    Words,
    keys_of,
    make_gene_side,
    regions_of_bags,
    split_profiles,
    unify_texts,
)
from histoscribe.train.assemble import AssembledBags
from histoscribe.train.feature_standardiser import (
    FeatureStandardiser,
    fit_feature_standardiser,
)
from histoscribe.train.gene_standardiser import GeneStandardiser, Standardised, gene_values


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Vectors of profiles, standardised when they are read; a `GeneRows`.

    Attributes:
        features: Of every row; any array that gives rows.
        platform: Of each.
        standardiser: Fitted on training rows.
    """

    features: Float32[np.ndarray, "row feature"]
    platform: tuple[str, ...]
    standardiser: FeatureStandardiser

    def __len__(self) -> int:
        return len(self.platform)

    def read(self, rows: Rows) -> Standardised:
        """See `GeneRows`; every number of a vector counts as observed."""
        platform = [self.platform[row] for row in rows.tolist()]
        z = self.standardiser.apply(self.features[rows], platform)
        return Standardised(z, np.ones(z.shape, dtype=bool))


def make_profile_side(
    bags: AssembledBags, panel: GenePanel, words: Words, config: AlignConfig
) -> GeneSide:
    """What profiles are read by: their expression, or vectors that another model made of it.

    Raises:
        DataError, MismatchError: See `make_gene_side` and `make_feature_side`.
        ConfigError: Vectors are asked for and not given, or the other way round; or marker lists
            stand beside them.
    """
    if config.profile_embedding is None:
        if words.region_features is not None:
            raise ConfigError(
                f"there are vectors {words.region_features.by} of regions; name them in "
                "align.profile_embedding, or leave them out"
            )
        return make_gene_side(bags, panel, words, config)
    return make_feature_side(bags, panel, words, config)


def make_feature_side(
    bags: AssembledBags, panel: GenePanel, words: Words, config: AlignConfig
) -> GeneSide:
    """Fit the standardiser of the vectors and put them all one below the other.

    Raises:
        DataError: Texts contradict each other.
        MismatchError: No region has a vector, or profiles have none, or those of another model.
        ConfigError: No vectors of regions are given, or there are marker lists.
    """
    given = vectors_of_regions(words, config)
    regions = regions_of_bags(bags)
    n_regions = sum(len(part) for part in regions)
    features = _stack(given, regions, words.profiles)
    has_values = np.isfinite(features[:, 0])
    count_vectors(given, regions)
    platform = tuple(part.platform for part in regions for _ in range(len(part)))
    platform += tuple(name for part in words.profiles for name in part.platform)
    donors = [donor for part in words.profiles for donor in part.donor_id]
    train, held_out = (n_regions + rows for rows in split_profiles(donors, config))
    standardiser = fit_feature_standardiser(
        given.by, features, platform, np.concatenate([np.arange(n_regions), train])
    )
    texts, alias = unify_texts([*(texts_of(part) for part in words.profiles), *words.texts])
    keys = [alias.get(key, key) for part in words.profiles for key in keys_of(part)]
    has_text = np.array([False] * n_regions + [key != "" for key in keys], dtype=bool)
    return GeneSide(
        table=panel,
        standardiser=standardiser,
        rows=FeatureRows(features, platform, standardiser),
        n_regions=n_regions,
        n_measured=len(features),
        has_values=has_values,
        text_key=("",) * n_regions + tuple(keys),
        texts=texts,
        alias=alias,
        train=train[has_values[train]],
        held_out=held_out[has_values[held_out] & has_text[held_out]],
    )


def vectors_of_regions(words: Words, config: AlignConfig) -> RegionFeatures:
    """The vectors of regions, if all that is given goes together.

    Raises:
        ConfigError: There are none, or there are marker lists.
        MismatchError: Profiles have none, or those of another model.
    """
    by, given = config.profile_embedding, words.region_features
    if words.markers:
        raise ConfigError(
            f"marker list {words.markers[0].term} has no vector {by}: another model would have to "
            "embed it. Leave marker lists out, or fit without a profile embedding"
        )
    if given is None:
        raise ConfigError(f"align.profile_embedding = {by} wants the vectors of the regions too")
    said = [(given.by, given.width, "regions")]
    for number, part in enumerate(words.profiles):
        width = 0 if part.features is None else part.features.shape[1]
        said.append((part.features_by or "none", width, f"labelled profiles {number}"))
    for name, width, what in said:
        if (name, width) != (by, given.width):
            raise MismatchError(
                f"vectors of the {what} are {name} of width {width}, wanted {by} of width "
                f"{given.width}; embed regions and cells by one model, and call both the same"
            )
    return given


def count_vectors(given: RegionFeatures, slides: Sequence[Regions]) -> int:
    """How many regions have a vector.

    Raises:
        MismatchError: If none has.
    """
    n = sum(int(np.isfinite(given.of(regions)[:, 0]).sum()) for regions in slides)
    if not n:
        own = slides[0]
        raise MismatchError(
            f"none of the regions (e.g. {own.region_id[0]} of slide {own.slide_id[0]}) has a "
            f"vector {given.by} (there is one of {given.region_id[0]} of slide "
            f"{given.slide_id[0]}); name slides and regions as the study does"
        )
    return n


def profile_rows(
    profiles: Profiles, standardiser: GeneStandardiser | FeatureStandardiser, table: GenePanel
) -> tuple[GeneRows, Rows]:
    """What a fitted space reads of new profiles, and the rows of which there is something to read.

    A platform that was not trained on is standardised by itself where it has rows enough, else by
    the mean of the training platforms.

    Args:
        profiles: With genes named as in the table, or with vectors of the model's name.
        standardiser: Of the space.
        table: Its genes.

    Raises:
        MismatchError: Genes are named differently, or none is in the table; or vectors are missing,
            called otherwise, or of another width.
    """
    if isinstance(standardiser, FeatureStandardiser):
        features = standardiser.vectors_of(profiles)
        known = standardiser.know(features, profiles.platform)
        rows = np.flatnonzero(np.isfinite(features[:, 0]))
        return FeatureRows(features, profiles.platform, known), rows
    values = gene_values([profiles], table)
    rows = np.flatnonzero(values.has_values)
    known, _ = standardiser.know(values.take(rows))
    return MeasuredGenes(values, known), rows


def _stack(
    given: RegionFeatures, regions: Sequence[Regions], profiles: Sequence[Profiles]
) -> Float32[np.ndarray, "row feature"]:
    """Vectors of regions, then of profiles; many of them lie in a file."""
    parts = [*regions, *profiles]
    stacked = new_array((sum(len(part) for part in parts), given.width), np.float32)
    first = 0
    for part in parts:
        own = given.of(part) if isinstance(part, Regions) else part.features
        stacked[first : first + len(part)] = own
        first += len(part)
    return stacked
