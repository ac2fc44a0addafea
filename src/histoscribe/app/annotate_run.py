"""Annotate a study: words put to its regions or cells, as AnnData, GeoJSON and a page of maps."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from histoscribe.annotate.label import PhenotypeName, annotate, name_phenotypes
from histoscribe.annotate.queries import WordClass
from histoscribe.annotate.word_model import AnnotateConfig, WordModel
from histoscribe.app.console import Voice
from histoscribe.app.prepare import load_slide
from histoscribe.app.report import Picture, Report, ReportTable, SamplePart, as_text, write_report
from histoscribe.app.study import Sample, Study, write_json
from histoscribe.data.annotation import NO_CELL, UNSURE, Annotation
from histoscribe.data.cells import Cells
from histoscribe.data.export import annotation_to_geojson
from histoscribe.data.grid import grid_regions
from histoscribe.data.regions import Regions
from histoscribe.data.store import write_annotation
from histoscribe.data.texts import ONTOLOGY_ID, read_terms
from histoscribe.errors import ConfigError, DataError
from histoscribe.evaluate.class_map import read_class_map
from histoscribe.plot import Tissue, draw_label_map, to_png
from histoscribe.readers.cell_ontology import installed_cell_ontology, read_ontology
from histoscribe.slides.open import open_slide
from histoscribe.slides.pyramid import PyramidSlide
from histoscribe.train.align_store import RECORD
from histoscribe.train.assemble import SlideData
from histoscribe.types import Box

MODEL = "histoscribe.train.align_checkpoint:AlignCheckpoint"
CELL_RADIUS_UM = 4.0
"""Cells are drawn as discs of about a nucleus."""
MARGIN = 0.08
"""Of a map, in its longer side."""
MAP_PX = 900
"""Pixels of the longer side of the tissue beside a map."""
NOTHING_SAID = ("without a nucleus", "without described surroundings")
"""Why nothing is said of a region, and of a cell."""
TRANSDUCTIVE = (
    "Calibrated on the very units that are shown: a label depends on what else is in the sample."
)


@dataclass(frozen=True)
class Words:
    """What is asked for.

    Attributes:
        classes: The classes.
        templates: Prompt templates, if their file has some.
        composite: How classes of several terms are scored, if their file says.
    """

    classes: tuple[WordClass, ...]
    templates: tuple[str, ...] | None = None
    composite: str | None = None

    def settings(self, config: AnnotateConfig) -> AnnotateConfig:
        """The config with what the file of words says."""
        given: dict[str, Any] = {"templates": self.templates, "composite": self.composite}
        return replace(config, **{name: value for name, value in given.items() if value})


@dataclass(frozen=True)
class PlacesConfig:
    """Which regions of a study are looked at.

    Attributes:
        made: "measured", "grid", or None for measured where there are some and a grid elsewhere.
        radius_um: Of the grid's discs; None takes that of the model.
        pitch_um: Of the grid; None takes that of the model, or touching discs.
    """

    made: str | None = None
    radius_um: float | None = None
    pitch_um: float | None = None

    def __post_init__(self) -> None:
        if self.made not in (None, "measured", "grid"):
            raise ConfigError(f"--regions {self.made}: measured or grid is wanted.")


@dataclass(frozen=True)
class Asked:
    """What is looked at, and how.

    Attributes:
        names: Samples; all if empty.
        config: How words are put to units.
        places: Which regions.
    """

    names: tuple[str, ...] = ()
    config: AnnotateConfig = field(default_factory=AnnotateConfig)
    places: PlacesConfig = field(default_factory=PlacesConfig)


@dataclass(frozen=True)
class Annotated:
    """What became of one sample."""

    sample: str
    annotation: Annotation
    store: Path
    geojson: Path


def load_words_model(folder: Path) -> WordModel:
    """The checkpoint of a fit with objective align or joint."""
    module, _, name = MODEL.partition(":")
    return getattr(import_module(module), name).load(folder)


def choose_run(study: Study) -> str:
    """The one run of a study that knows words.

    Raises:
        ConfigError: None does, or several do.
    """
    names = [path.parent.parent.name for path in study.folder.glob(f"runs/*/checkpoint/{RECORD}")]
    if len(names) == 1:
        return names[0]
    if not names:
        raise ConfigError(
            f"no run of {study.folder} knows words. Fit one with 'histoscribe fit "
            f"{study.folder} --objective joint', or give --run NAME or --checkpoint FOLDER."
        )
    raise ConfigError(f"Several runs know words: {', '.join(sorted(names))}. Give --run NAME.")


def read_words(path: Path, ontology: Path | None = None) -> Words:
    """Words from a file of terms, or classes from a class map (JSON, or the name of one).

    Args:
        path: The file; or pathocell, lizard, pannuke.
        ontology: Cell Ontology; the installed one where a term is an id alone and none is given.
    """
    if path.suffix == ".json" or not (path.suffix or path.exists()):
        known = read_class_map(str(path))
        return Words(known.classes, known.templates, known.composite)
    names_of = None
    if ontology is not None or _has_bare_id(path):
        names_of = read_ontology(ontology or installed_cell_ontology())
    terms = read_terms(path, names_of)
    return Words(tuple(WordClass(term.name, (term,)) for term in terms))


def annotate_study(
    study: Study, model: WordModel, asked: Asked, words: Words, out: Path, voice: Voice
) -> list[Annotated]:
    """Annotate samples, one store and one GeoJSON a sample, and a page that shows all.

    Raises:
        ConfigError: A setting or route that the model cannot give.
        DataError: A sample is not prepared.
    """
    config = words.settings(asked.config)
    done = []
    for sample, slide in load_places(study, model, asked):
        said = annotate(model, [slide], words.classes, config)
        ending = ending_of(sample, asked)
        store = out / f"{sample.sample}{ending}.zarr"
        geojson = out / f"{sample.sample}{ending}.geojson"
        write_annotation(said, store)
        image = image_of(study, sample)
        cells = slide.cells if config.level == "cell" else None
        annotation_to_geojson(said, geojson, image.mpp, cells)
        voice.say(f"{sample.sample}: {describe(said)}")
        done.append(Annotated(sample.sample, said, store, geojson))
    record = {one.sample: one.annotation.count() for one in done}
    ending = ".cells" if config.level == "cell" else ""
    write_json(out / f"annotations{ending}.json", {"level": config.level, "labels": record})
    study.log("annotate", model_id=model.model_id, level=config.level, n_samples=len(done))
    return done


def ending_of(sample: Sample, asked: Asked) -> str:
    """What tells files of a sample's cells, and of a grid, from those of its measured regions."""
    if asked.config.level == "cell":
        return ".cells"
    return ".grid" if _made(sample, asked.places) == "grid" else ""


def load_places(study: Study, model: WordModel, asked: Asked) -> list[tuple[Sample, SlideData]]:
    """The samples asked for, all if none, each with its regions."""
    wanted = {study.find(name).sample for name in asked.names}
    samples = [one for one in study.samples if not wanted or one.sample in wanted]
    places = [(one, load_slide(study, one, _maker(model, one, asked.places))) for one in samples]
    whole = next((one for one, slide in places if slide.regions.kind == "bulk"), None)
    if whole is not None and asked.config.level == "region":
        raise ConfigError(
            f"{whole.sample} was measured as a whole, which has no place on a slide; look at its "
            "discs with --regions grid --radius 50, or at its cells with --level cell"
        )
    return places


def report_annotations(
    study: Study,
    done: Sequence[Annotated],
    path: Path,
    phenotypes: Sequence[PhenotypeName] = (),
) -> None:
    """Write the page: a map of labels a sample, how many have each, and all settings."""
    if not done:
        raise DataError("no sample was annotated; name one that the study has")
    first = done[0].annotation
    is_transductive = any(c.source == "transductive" for c in first.calibration.values())
    parts = [
        SamplePart(one.sample, (describe(one.annotation),), (picture_labels(study, one),))
        for one in done
    ]
    report = Report(
        title=f"histoscribe: words on study {study.folder.resolve().name}",
        protocol=f"{first.model_id} says which of {len(first.terms)} terms fits each "
        f"{'cell' if first.kind == 'cell' else 'region'}; none was trained on here by name.",
        banner=TRANSDUCTIVE if is_transductive else "",
        tables=(_count_table(done), *_phenotype_tables(first.terms, phenotypes)),
        samples=tuple(parts),
        provenance=(
            ("Prompts", as_text(dict(zip(first.terms, first.prompts, strict=True)))),
            ("Made by", first.provenance.to_json()),
        ),
    )
    write_report(report, path)


def name_study_phenotypes(
    study: Study, model: WordModel, asked: Asked, words: Words
) -> list[PhenotypeName]:
    """Names of the model's clusters of cells, over all samples asked for."""
    slides = [slide for _, slide in load_places(study, model, asked)]
    return name_phenotypes(model, slides, words.classes, words.settings(asked.config))


def picture_labels(study: Study, one: Annotated) -> Picture:
    """The map of one sample's labels."""
    said = one.annotation
    image = image_of(study, study.find(one.sample))
    names = [*said.terms, UNSURE]
    radius_um = CELL_RADIUS_UM if said.kind == "cell" else said.radius_um
    tissue = tissue_of(image, said.xy_um, radius_um)
    figure = draw_label_map(list(said.label), names, said.xy_um, radius_um, tissue, one.sample)
    what = "nuclei" if said.kind == "cell" else "regions"
    return Picture(f"Labels of {len(said):,} {what}; grey: no term fits clearly.", to_png(figure))


def image_of(study: Study, sample: Sample) -> PyramidSlide:
    """The slide of a sample."""
    return open_slide(study.path_of(sample.slide), mpp=sample.mpp, slide_id=sample.sample)


def tissue_of(image: PyramidSlide, xy_um: Float[np.ndarray, "unit 2"], radius_um: float) -> Tissue:
    """The part of a slide that some units lie in, with a margin."""
    size_um = np.array(image.size_px) * np.array(image.mpp)
    low, high = xy_um.min(axis=0) - radius_um, xy_um.max(axis=0) + radius_um
    margin_um = MARGIN * (high - low).max()
    low, high = np.clip(low - margin_um, 0, size_um), np.clip(high + margin_um, 0, size_um)
    box = Box(*low.tolist(), *(high - low).tolist())
    mpp = max(*image.mpp, (high - low).max() / MAP_PX)
    return Tissue(box, image.read(box, mpp))


def describe(said: Annotation) -> str:
    """How many units have each label, in a line."""
    counts = said.count()
    n_empty = counts.pop(NO_CELL)
    listed = ", ".join(f"{name} {n:,}" for name, n in counts.items() if n)
    without = f"; {n_empty:,} {NOTHING_SAID[said.kind == 'cell']}" if n_empty else ""
    uncertain = ""
    if np.isfinite(said.uncertainty).any():
        mean = float(np.nanmean(said.uncertainty))
        uncertain = f"; mean disagreement of the two routes {mean:.2f} of 1"
    return f"{listed}{without}{uncertain}"


def _made(sample: Sample, places: PlacesConfig) -> str:
    return places.made or ("measured" if sample.expression else "grid")


def _maker(
    model: WordModel, sample: Sample, places: PlacesConfig
) -> Callable[[Cells], Regions] | None:
    if _made(sample, places) == "measured":
        return None
    radius_um, pitch_um = grid_of(model, places)
    return partial(grid_regions, patient_id=sample.patient, radius_um=radius_um, pitch_um=pitch_um)


def grid_of(model: WordModel, places: PlacesConfig) -> tuple[float, float]:
    """Radius and pitch of a grid, µm.

    Raises:
        ConfigError: The model was trained on whole samples, which have no radius.
    """
    radius_um = places.radius_um or model.region_size.radius_um
    if radius_um is None:
        raise ConfigError(
            f"the model was trained on {model.region_size}; say with --radius how large discs are"
        )
    pitch_um = places.pitch_um or model.region_size.pitch_um or 2 * radius_um
    return radius_um, max(pitch_um, 2 * radius_um)


def _has_bare_id(path: Path) -> bool:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return False  # `read_terms` says what is wrong
    return any(re.fullmatch(ONTOLOGY_ID, line.partition("#")[0].strip()) for line in lines)


def _count_table(done: Sequence[Annotated]) -> ReportTable:
    names = [*done[0].annotation.terms, UNSURE, NO_CELL]
    nothing = NOTHING_SAID[done[0].annotation.kind == "cell"]
    return ReportTable(
        title="Labels",
        columns=("label", *(one.sample for one in done)),
        rows=tuple(
            (name or nothing, *(f"{one.annotation.label.count(name):,}" for one in done))
            for name in names
        ),
    )


def _phenotype_tables(
    terms: Sequence[str], phenotypes: Sequence[PhenotypeName]
) -> tuple[ReportTable, ...]:
    if not phenotypes:
        return ()
    rows = tuple(
        (
            str(one.phenotype),
            f"{one.n_cells:,}",
            one.label or "no cell",
            "" if np.isnan(one.probability) else f"{one.probability:.2f}",
            *(f"{value:+.3f}" for value in one.score or (float("nan"),) * len(terms)),
        )
        for one in phenotypes
    )
    columns = ("phenotype", "cells", "named", "probability", *terms)
    note = "Clusters of cells, named by the text that the mean of their cells is nearest to."
    return (ReportTable("Phenotypes", columns, rows, notes=(note,)),)
