"""A benchmark of labelled nuclei from its published files to scores, in one command."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from histoscribe.annotate.label import annotate
from histoscribe.annotate.word_model import AnnotateConfig, WordModel
from histoscribe.app.annotate_run import Asked, PlacesConfig, grid_of, load_places
from histoscribe.app.console import Voice
from histoscribe.app.ingest import ingest_manifest
from histoscribe.app.prepare import prepare_study
from histoscribe.app.study import Study, open_study, write_text
from histoscribe.data.annotation import Annotation
from histoscribe.data.atomic import replacing
from histoscribe.data.join import assign_cells
from histoscribe.data.labelled_image import LabelledImage
from histoscribe.data.nuclei import GivenNuclei
from histoscribe.errors import ConfigError
from histoscribe.evaluate.bootstrap import BootstrapConfig, Interval
from histoscribe.evaluate.class_map import ClassMap
from histoscribe.evaluate.zero_shot import (
    ZeroShotScores,
    ZeroShotTask,
    dominant_class,
    score_zero_shot,
)
from histoscribe.preprocess.preparation import PrepareConfig
from histoscribe.readers.labelled_pixels import read_split
from histoscribe.readers.lizard import read_lizard
from histoscribe.readers.pannuke import read_pannuke
from histoscribe.readers.pathocell import read_pathocell

HEADER = "sample,patient,slide,mpp,expression\n"


@dataclass(frozen=True)
class Benchmark:
    """Which benchmark lies where.

    Attributes:
        name: pathocell, lizard or pannuke.
        folder: Its files.
        mpp: µm per pixel, which the files do not state.
        split: A CSV of PathoCellBench that says the side of each sample; None for all.
        side: The side of it.
        patients: For PathoCell, whose each region is.
    """

    name: str
    folder: Path
    mpp: float | None
    split: Path | None = None
    side: str = "test"
    patients: Path | None = None

    def read(self) -> Iterable[LabelledImage]:
        """Its images, one at a time.

        Raises:
            ConfigError: No such benchmark.
        """
        only = None if self.split is None else read_split(self.split, self.side)
        if self.name == "pathocell":
            return read_pathocell(self.folder, self.mpp, only, self.patients)
        if self.name == "lizard":
            return read_lizard(self.folder, self.mpp, only)
        if self.name == "pannuke":
            if only is not None:
                raise ConfigError("PanNuke is split by its folds: give the folder of one")
            return read_pannuke(self.folder, self.mpp)
        raise ConfigError(f"no benchmark {self.name!r}; give pathocell, lizard or pannuke")


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of one image."""

    patient_id: str | None
    nuclei: GivenNuclei
    pitch_um: float | None


def make_study(benchmark: Benchmark, folder: Path, voice: Voice) -> tuple[Study, dict[str, Truth]]:
    """Write the images as PNG with a manifest, and make a study of them.

    Their nuclei are not given to the study: what is looked for must be found. From here on images
    are read at the resolution of the encoder, whatever their own.
    """
    images = folder / "images"
    truth: dict[str, Truth] = {}
    lines = [HEADER]
    for image in benchmark.read():
        with replacing(images / f"{image.image_id}.png") as (new,):
            Image.fromarray(image.pixels).save(new, format="PNG", compress_level=1)
        truth[image.image_id] = Truth(image.patient_id, image.nuclei, image.pitch_um)
        patient = image.patient_id or image.image_id
        lines.append(f"{image.image_id},{patient},images/{image.image_id}.png,{image.mpp:g},\n")
    write_text(folder / "manifest.csv", "".join(lines))
    ingest_manifest(folder / "manifest.csv", folder / "study", None, voice.say)
    return open_study(folder / "study"), truth


def run_benchmark(
    benchmark: Benchmark,
    model: WordModel,
    known: ClassMap,
    prepare: PrepareConfig,
    folder: Path,
    voice: Voice,
) -> ZeroShotScores:
    """Read, prepare, annotate and score; writes scores.json and scores.csv.

    A unit is a disc of the model's size; a class is present where a nucleus of it lies inside.
    Departs from the published evaluation, whose units are squares of 224 px.
    """
    study, truth = make_study(benchmark, folder, voice)
    with study.lock():
        prepare_study(study, prepare, [], voice)
    config = AnnotateConfig(templates=known.templates, composite=known.composite)
    pitches = {one.pitch_um for one in truth.values()}
    pitch_um = grid_of(model, PlacesConfig(pitch_um=pitches.pop()))[1]
    places = PlacesConfig("grid", pitch_um=pitch_um)
    parts = []
    for sample, slide in load_places(study, model, Asked((), config, places)):
        said = annotate(model, [slide], known.classes, config)
        parts.append((sample.sample, said, _count(said, truth[sample.sample].nuclei, known)))
    task = task_of(parts, truth, known)
    scores = score_zero_shot(task, BootstrapConfig())
    write_text(folder / "scores.json", scores.to_json())
    write_text(folder / "scores.csv", scores.to_csv())
    return scores


def task_of(
    parts: list[tuple[str, Annotation, np.ndarray]], truth: dict[str, Truth], known: ClassMap
) -> ZeroShotTask:
    """What was said of all images against what is there."""
    has_patients = all(truth[name].patient_id for name, _, _ in parts)
    names = [name for name, said, _ in parts for _ in range(len(said))]
    amount = np.concatenate([counts for _, _, counts in parts])
    classes = tuple(one.name for one in known.classes)
    number = {name: row for row, name in enumerate(classes)}
    labels = [number.get(label, -1) for _, said, _ in parts for label in said.label]
    return ZeroShotTask(
        classes=classes,
        score=np.concatenate([said.score for _, said, _ in parts]),
        is_present=amount > 0,
        image=tuple(names),
        group=tuple(str(truth[n].patient_id) if has_patients else n for n in names),
        group_kind="patient" if has_patients else "image",
        label=np.array(labels, dtype=np.int64),
        dominant=dominant_class(amount),
    )


def score_rows(scores: ZeroShotScores) -> list[tuple[str, ...]]:
    """Rows of the table that people see."""
    rows = [
        (one.name, *_spread(one.auroc), str(one.n_valid_images), f"{one.average_precision:.3f}",
         f"{one.prevalence:.3f}", f"{one.f1:.3f}")
        for one in scores.by_class
    ]  # fmt: skip
    mean = (f"{scores.average_precision.value:.3f}", "", f"{scores.f1.value:.3f}")
    return [*rows, ("mean", *_spread(scores.auroc), str(scores.n_images), *mean)]


def _spread(interval: Interval) -> tuple[str, str]:
    return f"{interval.value:.3f}", f"{interval.low:.3f} to {interval.high:.3f}"


def _count(said: Annotation, nuclei: GivenNuclei, known: ClassMap) -> np.ndarray:
    inside = assign_cells(nuclei.xy_um, said.xy_um, said.radius_um, ring_um=0.0)
    unit_of = np.full(len(nuclei), -1, dtype=np.int64)
    unit_of[inside.cell] = inside.region
    return known.count(nuclei.cell_type or (), unit_of, len(said))
