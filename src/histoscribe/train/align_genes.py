"""The table of genes of an alignment, its expression by row, and the texts of its profiles."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int64

from histoscribe.data.gene_names import map_names, rename_profiles
from histoscribe.data.genes import GenePanel
from histoscribe.data.profiles import Profiles
from histoscribe.data.region_features import RegionFeatures
from histoscribe.data.regions import Regions
from histoscribe.data.texts import Texts, key_of, texts_of
from histoscribe.errors import DataError
from histoscribe.readers.marker_lists import (
    AugmentConfig,
    MarkerSet,
    pseudo_profiles,
    rename_markers,
)
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.align_data import GeneRows, MadeGenes, MeasuredGenes, stack_genes
from histoscribe.train.assemble import AssembledBags, SlideData
from histoscribe.train.draw import mix
from histoscribe.train.feature_standardiser import FeatureStandardiser
from histoscribe.train.gene_panel import PanelConfig, residual_variance
from histoscribe.train.gene_standardiser import GeneStandardiser, fit_gene_standardiser, gene_values
from histoscribe.train.pairs import Pairs, pair_texts, split_by_donor

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Words:
    """What is said, and of what expression. Genes may be named by id or symbol, see `name_words`.

    Attributes:
        profiles: Labelled profiles.
        markers: Marker lists, made into profiles.
        texts: Further wordings, by key or name of what they are of; and those of the regions'
            text keys, for image-text pairs.
        region_features: Vectors that another model made of the regions, where profiles are read by
            such vectors and not by their genes.
    """

    profiles: tuple[Profiles, ...] = ()
    markers: tuple[MarkerSet, ...] = ()
    texts: tuple[Texts, ...] = ()
    region_features: RegionFeatures | None = None


@dataclass(frozen=True, eq=False)
class GeneSide:
    """Expression of all regions, then all profiles, then what was made from marker lists.

    Attributes:
        table: The genes; the panel alone where profiles are read by vectors of another model.
        standardiser: Fitted on regions and on profiles of training donors, by their labels.
        rows: Expression by row, or such vectors.
        n_regions: Rows that are regions, in the order of the bags.
        n_measured: Rows that are regions or profiles; those after them are of marker lists.
        has_values: Rows with any expression on the table, or with a vector.
        text_key: Key of each row, "" for none; regions have none here.
        texts: All wordings.
        alias: New keys of texts whose key became another's.
        train: Rows of profiles and marker lists that are trained on.
        held_out: Profiles of donors that are held out.
    """

    table: GenePanel
    standardiser: GeneStandardiser | FeatureStandardiser
    rows: GeneRows
    n_regions: int
    n_measured: int
    has_values: np.ndarray
    text_key: tuple[str, ...]
    texts: Texts
    alias: Mapping[str, str]
    train: Int64[np.ndarray, " train"]
    held_out: Int64[np.ndarray, " held_out"]

    @property
    def n_features(self) -> int:
        """Width of the vectors that profiles are read by; 0 where they are read by their genes."""
        own = self.standardiser
        return own.width if isinstance(own, FeatureStandardiser) else 0


def leave_out_donors(words: Words, patients: Collection[str]) -> Words:
    """The words without the profiles of some donors, as of the patients that are to be tested.

    A profile whose donor is not known stays: a mean over several donors cannot be taken apart.
    """
    kept = []
    for part in words.profiles:
        rows = np.array([n for n, donor in enumerate(part.donor_id) if donor not in patients])
        if len(rows) < len(part):
            log.info("%d profiles of tested patients are left out", len(part) - len(rows))
        kept.append(part if len(rows) == len(part) else part.take(rows.astype(np.int64)))
    return replace(words, profiles=tuple(part for part in kept if len(part)))


def name_words(
    words: Words, regions: Sequence[Regions], tell: Callable[[str], object] = log.info
) -> Words:
    """The words with genes named as those of the regions, which are named alike.

    Args:
        words: Genes by Ensembl id or symbol, each source in its own way.
        regions: Of training.
        tell: Told in one sentence how many genes were matched of profiles that had to be renamed.

    Raises:
        MismatchError: If genes that would have to be renamed are not human, or none is known.
    """
    panels = [one.genes for one in regions if len(one.genes)]
    if not panels:
        return words
    namespace = panels[0].namespace
    for genes in (one.genes for one in words.profiles if one.genes.namespace != namespace):
        tell(str(map_names(genes.ids, namespace)))
    ids = {gene for genes in panels for gene in genes.ids}
    return replace(
        words,
        profiles=tuple(rename_profiles(one, namespace) for one in words.profiles),
        markers=rename_markers(words.markers, ids, namespace),
    )


def choose_table(
    panel: GenePanel, slides: Sequence[SlideData], words: Words, most: int
) -> GenePanel:
    """The genes that profiles are read by: the panel, then markers, then what varies most.

    It varies by its Pearson residuals, as where a panel is chosen, if it is seen in as many regions
    as are asked for there; in other units than counts by its logarithm.

    A gene that regions and profiles do not have in common says nothing of the way from one to the
    other, and is left out, as are markers that no region has measured.

    Args:
        panel: Genes of the regression.
        slides: Of training; with expression.
        words: Profiles and markers.
        most: Genes at most; the panel is whole in any case.
    """
    symbol_of: dict[str, str] = {}
    for slide in slides:
        genes, seen = slide.regions.genes, slide.regions.gene_observed
        for gene, symbol, is_seen in zip(genes.ids, genes.symbols, seen, strict=True):
            if is_seen:
                symbol_of.setdefault(gene, symbol)
    known = GenePanel(tuple(symbol_of), tuple(symbol_of.values()), panel.namespace)
    marked = {gene for one in words.markers for gene in one.genes}
    shared = {
        gene
        for one in words.profiles
        for gene, is_seen in zip(one.genes.ids, one.gene_observed, strict=True)
        if is_seen
    }
    varies, score = _variability([slide.regions.align(known) for slide in slides])
    names = zip(known.ids, known.symbols, strict=True)
    is_marked = np.array([gene in marked or symbol in marked for gene, symbol in names])
    is_shared = np.array([gene in shared for gene in known.ids])
    is_wanted = varies & (is_marked | (is_shared & (score > 0)))
    order = np.lexsort((-score, ~is_marked))
    rows = {**dict.fromkeys(known.rows_of(panel.ids).tolist())}
    if -1 in rows:
        raise DataError("a gene of the panel is measured on no training slide; choose it anew")
    for row in order.tolist():
        if len(rows) >= max(most, len(panel)):
            break
        if is_wanted[row]:
            rows[row] = None
    return known.take(np.array(list(rows), dtype=np.int64))


def _variability(
    slides: Sequence[Regions],
) -> tuple[Bool[np.ndarray, " gene"], Float[np.ndarray, " gene"]]:
    """Genes that vary at all, and how much; 0 where they are seen too rarely to say.

    Args:
        slides: Of one panel.
    """
    measured = gene_values(slides, slides[0].genes)
    values, n = measured.values.astype(np.float64), max(1, len(measured))
    mean = np.asarray(values.sum(axis=0)).ravel() / n
    variance = np.asarray((values * values).sum(axis=0)).ravel() / n - mean**2
    tables = [one.expression for one in slides if one.expression_unit == "counts"]
    if len(tables) < len(slides):
        return variance > 0, variance
    observed = np.stack([one.gene_observed for one in slides])
    n_measured = np.array([len(one) for one in slides]) @ observed
    n_seen = np.bincount(measured.values.indices, minlength=len(mean))
    often = np.flatnonzero((n_seen > 0) & (n_seen >= PanelConfig.min_detection * n_measured))
    score = np.zeros(len(mean))
    score[often] = residual_variance([one for one in tables if one is not None], observed, often)
    return variance > 0, score


def make_gene_side(
    bags: AssembledBags, panel: GenePanel, words: Words, config: AlignConfig
) -> GeneSide:
    """Fit the standardiser and put all expression on one table.

    Raises:
        DataError: Nothing is said of any profile, or texts contradict each other.
        MismatchError: Profiles or marker lists share no gene with the table.
    """
    table = choose_table(panel, bags.slides, words, config.n_table_genes)
    regions = regions_of_bags(bags)
    measured = gene_values([*regions, *words.profiles], table)
    n_regions = sum(len(part) for part in regions)
    donors = [donor for part in words.profiles for donor in part.donor_id]
    train, held_out = split_profiles(donors, config)
    fitted_on = np.concatenate([np.arange(n_regions), n_regions + train])
    fitted_on = fitted_on[measured.has_values[fitted_on]]
    said = ("",) * n_regions + tuple(one for part in words.profiles for one in _labels_of(part))
    standardiser = fit_gene_standardiser(measured.take(fitted_on), [said[row] for row in fitted_on])
    made, made_keys, made_texts = _markers(words, table, standardiser, config)
    parts = [texts_of(part) for part in words.profiles]
    texts, alias = unify_texts([*parts, *words.texts, made_texts])
    keys = [alias.get(key, key) for part in words.profiles for key in keys_of(part)]
    n_made = len(made)
    has_values = np.concatenate([measured.has_values, np.ones(n_made, dtype=bool)])
    rows = np.concatenate([n_regions + train, len(measured) + np.arange(n_made)]).astype(np.int64)
    text_key = ("",) * n_regions + (*keys, *(alias.get(key, key) for key in made_keys))
    rows, held = rows[has_values[rows]], n_regions + held_out
    held = held[has_values[held] & np.array([text_key[row] != "" for row in held], dtype=bool)]
    return GeneSide(
        table=table,
        standardiser=standardiser,
        rows=stack_genes([MeasuredGenes(measured, standardiser), made]),
        n_regions=n_regions,
        n_measured=len(measured),
        has_values=has_values,
        text_key=text_key,
        texts=texts,
        alias=alias,
        train=rows,
        held_out=held,
    )


def pair_genes(side: GeneSide) -> Pairs:
    """Pairs of genes and texts: in each step half of labelled profiles, half of marker lists.

    Where there is only one of the two, all are of it.
    """
    is_made = (side.train >= side.n_measured).astype(np.int64)
    return pair_texts("gene-text", side.text_key, side.texts, side.train, is_made)


def unify_texts(parts: Sequence[Texts]) -> tuple[Texts, dict[str, str]]:
    """All wordings, those of equal words under one key; and the new key of each that changed.

    One source may key "B cell" by an ontology's id and another by the name: the first key that a
    text is met with counts. A key that is itself the name of a text is taken for that text's key.
    """
    key_of_words: dict[str, str] = {}
    alias: dict[str, str] = {}
    pairs = [pair for part in parts for pair in zip(part.text_key, part.text, strict=True)]
    for key, text in pairs:
        key_of_words.setdefault(key_of(text), key)
    for key, text in pairs:
        other = key_of_words.get(key_of(key)) or key_of_words[key_of(text)]
        if other != key:
            alias.setdefault(key, other)

    def last(key: str) -> str:
        seen = {key}
        while (after := alias.get(key, key)) not in seen:
            seen.add(key := after)
        return key

    resolved = {key: last(key) for key in alias}
    rows: dict[str, str] = {}
    for key, text in pairs:
        rows.setdefault(text, resolved.get(key, key))
    return Texts(tuple(rows.values()), tuple(rows)), resolved


def regions_of_bags(bags: AssembledBags) -> list[Regions]:
    """The regions of the bags, slide by slide, in the order of the bags."""
    if (np.diff(bags.slide_of_bag) < 0).any():
        raise DataError("bags are not in the order of their slides; assemble them anew")
    return [
        slide.regions.take(bags.row_of_bag[bags.slide_of_bag == number])
        for number, slide in enumerate(bags.slides)
        if (bags.slide_of_bag == number).any()
    ]


def split_profiles(donors: Sequence[str], config: AlignConfig) -> tuple[np.ndarray, np.ndarray]:
    """Profiles to train on, and those of donors that are held out, where there are several."""
    everyone = np.arange(len(donors), dtype=np.int64)
    share = config.held_out_donors if config.has_held_out else 0
    if len(set(donors) - {""}) < 2 or not share:
        return everyone, everyone[:0]
    return split_by_donor(donors, share, mix(config.seed, 17), unknown_in_training=True)


def _markers(
    words: Words, table: GenePanel, standardiser: GeneStandardiser, config: AlignConfig
) -> tuple[MadeGenes, tuple[str, ...], Texts]:
    """Profiles of the marker lists, their keys and their texts."""
    known = standardiser.is_known
    if not words.markers:
        return MadeGenes(np.zeros((0, len(table)), np.float32), known), (), Texts((), ())
    augment = AugmentConfig(
        n_copies=config.marker_copies,
        dropout=config.marker_dropout,
        noise=config.marker_noise / config.marker_z,  # all is multiplied by that below
        spread=config.marker_spread,
        seed=config.seed,
    )
    made = pseudo_profiles(words.markers, table, augment, known)
    z = made.z.copy()
    rows: Mapping[str, str] = dict(zip(made.text, made.text_key, strict=True))
    z *= config.marker_z
    return MadeGenes(z, known), made.text_key, Texts(tuple(rows.values()), tuple(rows))


def _labels_of(profiles: Profiles) -> Sequence[str]:
    """What each profile is said to be: its label, else the key of its text; "" without either."""
    return profiles.label or profiles.text_key or ("",) * len(profiles)


def keys_of(profiles: Profiles) -> list[str]:
    """Key of each profile's text, as `texts_of` has it; "" without one."""
    texts = profiles.text or ("",) * len(profiles)
    keys = profiles.text_key or ("",) * len(profiles)
    return [(key or key_of(text)) if text else key for key, text in zip(keys, texts, strict=True)]
