"""Diagnose a model of words on a study: each link of its chain, and what to do about it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from histoscribe.annotate.label import embed_units
from histoscribe.annotate.queries import WordClass, embed_classes
from histoscribe.annotate.scores import score_units
from histoscribe.annotate.word_model import AnnotateConfig, WordModel
from histoscribe.app.annotate_run import Asked, Words, load_places
from histoscribe.app.study import Study
from histoscribe.data.profiles import Profiles
from histoscribe.data.region_features import RegionFeatures
from histoscribe.data.regions import Regions
from histoscribe.data.store import read_profiles
from histoscribe.data.texts import key_of
from histoscribe.errors import ConfigError, DataError
from histoscribe.evaluate.diagnose import Chain, Finding, diagnose
from histoscribe.train.align_features import count_vectors
from histoscribe.train.assemble import SlideData


def diagnose_study(
    study: Study,
    model: WordModel,
    asked: Asked,
    profiles: Sequence[Path],
    words: Words | None,
    vectors: RegionFeatures | None = None,
) -> list[Finding]:
    """Look at the chain from the measured regions of a study to labelled profiles and their texts.

    Args:
        study: A prepared study with measured regions.
        model: The checkpoint.
        asked: Which samples.
        profiles: Folders of stored profiles whose texts are looked at.
        words: Classes whose bias is looked at; None for none.
        vectors: Of the regions, where the model reads profiles by vectors of another model.

    Raises:
        DataError: Nothing is measured, or no profile has a text.
        MismatchError: The model reads profiles by other vectors, or these regions have none.
    """
    measured = [one.sample for one in study.samples if one.expression is not None]
    names = tuple(name for name in asked.names or measured if name in measured)
    if not names:
        raise DataError(
            "no sample has measured regions; the chain begins at images with expression"
        )
    slides = [slide for _, slide in load_places(study, model, replace(asked, names=names))]
    if vectors is not None:
        count_vectors(vectors, [slide.regions for slide in slides])
    stored = [read_profiles(folder) for folder in profiles]
    return diagnose(chain_of(model, slides, stored, words, asked.config, vectors))


def find_profiles(checkpoint: Path) -> list[Path]:
    """Folders of the labelled profiles that a run's checkpoint was trained on.

    Raises:
        ConfigError: There are none: it was trained on marker lists alone, or moved elsewhere.
    """
    folders = sorted(checkpoint.absolute().parent.glob("profiles*"))
    if not folders:
        raise ConfigError(
            f"there are no labelled profiles beside {checkpoint}; name a folder of some with "
            "--profiles, as 'histoscribe fit --labelled' keeps them in its run"
        )
    return folders


def chain_of(
    model: WordModel,
    slides: Sequence[SlideData],
    profiles: Sequence[Profiles],
    words: Words | None,
    config: AnnotateConfig,
    vectors: RegionFeatures | None = None,
) -> Chain:
    """Everything that `diagnose` looks at, embedded."""
    image, gene = [], []
    for slide in slides:
        if slide.regions.expression is None:
            continue
        rows = model.embed_regions([slide])
        measured = model.embed_profiles(profiles_of(slide.regions, vectors))
        is_known = np.isfinite(rows).all(axis=1) & np.isfinite(measured).all(axis=1)
        image.append(rows[is_known])
        gene.append(measured[is_known])
    if not image:
        raise DataError(
            "no sample has measured regions; the chain begins at images with expression"
        )
    profile, said = _embed_labelled(model, profiles)
    texts, keys, platforms = zip(*said, strict=True)
    distinct = list(dict.fromkeys(texts))
    row_of = {text: row for row, text in enumerate(distinct)}
    embedded = model.embed_texts(distinct)
    score, classes = np.zeros((0, 0), np.float32), ()
    if words is not None:
        score = _class_scores(model, slides, words.classes, words.settings(config))
        classes = tuple(one.name for one in words.classes)
    return Chain(
        image=np.concatenate(image),
        gene=np.concatenate(gene),
        profile=profile,
        text=embedded[[row_of[text] for text in texts]],
        text_key=keys,
        platform=platforms,
        class_score=score,
        classes=classes,
    )


def profiles_of(regions: Regions, vectors: RegionFeatures | None = None) -> Profiles:
    """Measured regions as profiles: what was measured, without where; and their vectors, if any.

    Raises:
        DataError: Nothing was measured.
    """
    if regions.expression is None:
        raise DataError("these regions have no expression; give measured ones")
    names = zip(regions.slide_id, regions.region_id, strict=True)
    return Profiles(
        profile_id=tuple(f"{slide}/{region}" for slide, region in names),
        expression=regions.expression,
        expression_unit=regions.expression_unit,
        genes=regions.genes,
        gene_observed=regions.gene_observed,
        provenance=regions.provenance,
        platform=(regions.platform,) * len(regions),
        donor_id=regions.patient_id,
        features=None if vectors is None else vectors.of(regions),
        features_by=None if vectors is None else vectors.by,
    )


def _embed_labelled(
    model: WordModel, parts: Sequence[Profiles]
) -> tuple[np.ndarray, list[tuple[str, str, str]]]:
    """Profiles that have a text and a value of some gene; text, key and platform of each."""
    rows, said = [], []
    for part in parts:
        texts, keys = part.text or ("",) * len(part), part.text_key or ("",) * len(part)
        embedded = model.embed_profiles(part)
        kept = np.isfinite(embedded).all(axis=1) & np.array([text != "" for text in texts])
        rows.append(embedded[kept])
        said += [
            (texts[row], keys[row] or key_of(texts[row]), part.platform[row])
            for row in np.flatnonzero(kept)
        ]
    if not said:
        n = sum(map(len, parts))
        raise DataError(f"none of the {n} profiles has a text; give labelled ones")
    return np.concatenate(rows), said


def _class_scores(
    model: WordModel,
    slides: Sequence[SlideData],
    classes: Sequence[WordClass],
    config: AnnotateConfig,
) -> np.ndarray:
    queries = embed_classes(model, classes, config.templates)
    rows = next(iter(embed_units(model, slides, config).embedding.values()))
    return score_units(rows, queries, config.composite, model.scale)
