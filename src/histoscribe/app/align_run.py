"""Runs of objective align or joint: a space of images, genes and words, fitted on a study."""

import csv
import io
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from histoscribe.app.config import RunConfig, values_of
from histoscribe.app.console import Voice
from histoscribe.app.runs import load_sides, name_sides
from histoscribe.app.study import Study, read_json, write_json, write_text
from histoscribe.data.atomic import hash_file, hash_folder
from histoscribe.data.store import write_profiles
from histoscribe.data.texts import key_of
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.image_text import ImageTexts, read_image_texts
from histoscribe.readers.labelled_cells import read_labelled_cells
from histoscribe.readers.marker_lists import read_marker_sets
from histoscribe.readers.profile_features import read_region_features
from histoscribe.readers.text_table import read_texts
from histoscribe.train.align import TextSource, fit_align
from histoscribe.train.align_checkpoint import AlignCheckpoint
from histoscribe.train.align_features import count_vectors, vectors_of_regions
from histoscribe.train.align_genes import Words, name_words
from histoscribe.train.align_text import find_text_tower
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import Checkpoint
from histoscribe.train.fit_config import check_device
from histoscribe.train.gene_panel import choose_panel
from histoscribe.train.net_task import Epoch, FitLog
from histoscribe.train.transfer import Start, check_unseen

DEFAULT_TOWER = "all-minilm-l6-v2"
HISTORY = "history.csv"


@dataclass(frozen=True)
class WordFiles:
    """Where words come from.

    Attributes:
        labelled: AnnData of labelled cells, each "cells.h5ad" or "cells.h5ad:column".
        markers: Marker lists: .gmt, .json, .csv.
        texts: A table of further wordings.
        image_texts: A table of texts of slides or regions.
        text_tower: Fetched weights by name, a folder, or a hub id.
        region_embedding: Vectors that another model made of the regions, beside those that it made
            of the labelled cells.
    """

    labelled: tuple[str, ...] = ()
    markers: tuple[Path, ...] = ()
    texts: Path | None = None
    image_texts: Path | None = None
    text_tower: str = DEFAULT_TOWER
    region_embedding: tuple[Path, ...] = ()

    def check(self, embedding: str | None) -> None:
        """Refuse files that do not go with the vectors that profiles are read by, or with none.

        Raises:
            ConfigError: Nothing is said of any expression, or files and vectors do not go together.
        """
        if not self.labelled and not self.markers and self.image_texts is None:
            raise ConfigError(
                "nothing says what expression means: give labelled cells with --labelled, marker "
                "lists with --markers, or texts of images with --image-texts"
            )
        if embedding is None and self.region_embedding:
            raise ConfigError(
                "--region-embedding gives vectors of regions; name those of the labelled cells "
                "with --profile-embedding KEY, or leave both out"
            )
        if embedding is None:
            return
        if not self.region_embedding:
            raise ConfigError(
                f"--profile-embedding {embedding} reads profiles by vectors of another model; give "
                "its vectors of the regions with --region-embedding"
            )
        if self.markers:
            raise ConfigError(
                f"marker lists have no vector {embedding}: leave --markers out, or fit without "
                "--profile-embedding"
            )

    def to_record(self) -> dict[str, Any]:
        """What of the files makes a run another one."""
        paths = [split_labelled(one)[0] for one in self.labelled]
        paths += [*self.region_embedding]
        paths += [*self.markers, *(p for p in (self.texts, self.image_texts) if p is not None)]
        missing = next((path for path in paths if not path.exists()), None)
        if missing is not None:
            raise DataError(f"there is no file {missing}; check the path")
        hashes = [hash_file(path) if path.is_file() else hash_folder(path) for path in paths]
        columns = [split_labelled(one)[1] for one in self.labelled]
        return {"files": hashes, "columns": columns, "text_tower": self.text_tower}


def split_labelled(text: str) -> tuple[Path, str | None]:
    """Path and column of "cells.h5ad:cell_type"; no column where none is named."""
    if Path(text).exists() or ":" not in text:
        return Path(text), None
    path, _, column = text.rpartition(":")
    return Path(path), column


def fit_words_run(
    study: Study,
    run: str,
    config: RunConfig,
    files: WordFiles,
    voice: Voice,
    *,
    start: Path | None = None,
    is_replacing: bool = False,
) -> AlignCheckpoint:
    """Fit a space on the training side of a study; the checkpoint goes to the run's folder.

    Args:
        study: A prepared study.
        run: Name of the run; the same settings and data give the same checkpoint.
        config: All settings; they are kept in `run.json`.
        files: Where words come from.
        voice: Told what happens.
        start: A checkpoint of expression to go on from, by `config.transfer`.
        is_replacing: Delete a finished run of other settings.

    Raises:
        ConfigError: The run exists with other settings, or files do not go together.
        DataError: Samples are not prepared, or a file does not hold up.
        MissingExtra: No such device, or the text tower is not to be had.
    """
    files.check(config.align.profile_embedding)
    folder = study.run_folder(run)
    source = None if start is None else Checkpoint.load(start)
    record: dict[str, Any] = {"run": run, "config": values_of(config), "words": files.to_record()}
    if source is not None:
        record["from"] = source.model_id
    _make_room(folder, record, is_replacing=is_replacing)
    check_device(replace(config.fit, device=config.align.device))
    sides = name_sides(load_sides(study, config.split), source and source.panel, voice)
    training = [slide.regions for slide in sides.of(sides.split.train)]
    panel = choose_panel(training, config.panel)
    if source is not None:
        check_unseen(source, sides.slides, sides.split)
    words, images = read_words_of(files, config, voice)
    check_own_texts(words, files.texts)
    if config.align.profile_embedding is None:
        words = name_words(words, training, voice.say)
    else:  # by vectors no gene is met
        vectors, n_regions = vectors_of_regions(words, config.align), sum(map(len, training))
        voice.say(
            f"{count_vectors(vectors, training):,} of {n_regions:,} training regions have "
            f"{vectors}; align.loss = {config.align.loss}, align.gene_space = learned"
        )
    slides = sides.slides if images is None else attach_texts(images, sides.slides)
    text = TextSource(find_text_tower(files.text_tower), files.text_tower)
    write_json(folder / "run.json", record)
    for old in folder.glob("profiles*"):  # of a fit that was ended and had other files
        shutil.rmtree(old)
    for number, profiles in enumerate(words.profiles):
        write_profiles(profiles, folder / f"profiles{number}")
    started = time.monotonic()
    with voice.progress("fit") as advance:

        def tell(epoch: Epoch) -> None:
            advance(epoch.net * epoch.max_epochs + epoch.epoch, epoch.n_nets * epoch.max_epochs)

        checkpoint = fit_align(
            slides,
            sides.split,
            panel,
            words,
            text,
            config=config.align,
            fit=config.fit,
            bags=config.bags,
            model_settings=config.model,
            start=None if source is None else Start(source, config.transfer),
            log=FitLog(folder / "training", tell),
        )
    checkpoint.save(folder / "checkpoint")
    if checkpoint.has_expression:
        checkpoint.to_predictor().save(folder / "predictor")
    write_text(folder / HISTORY, history_of(checkpoint))
    seconds = time.monotonic() - started
    study.log("fit", run=run, seconds=round(seconds, 1), model_id=checkpoint.model_id)
    _tell(checkpoint, seconds, voice)
    return checkpoint


def read_words_of(
    files: WordFiles, config: RunConfig, voice: Voice
) -> tuple[Words, ImageTexts | None]:
    """Everything that is said, genes named as in the files."""
    profiles, by = [], config.align.profile_embedding
    for one in files.labelled:
        path, column = split_labelled(one)
        settings = config.labelled if column is None else replace(config.labelled, label=column)
        read = read_labelled_cells(path, settings, embedding=by)
        voice.say(f"{path.name}: {read.report.describe()}")
        profiles.append((read.profiles, read.texts))
    markers = tuple(one for path in files.markers for one in read_marker_sets(path))
    if markers:
        voice.say(f"{len(markers)} marker lists")
    images = None if files.image_texts is None else read_image_texts(files.image_texts)
    texts = [texts for _, texts in profiles]
    texts += [] if images is None else [images.texts]
    texts += [] if files.texts is None else [read_texts(files.texts)]
    vectors = None if by is None else read_region_features(files.region_embedding, by)
    return Words(tuple(own for own, _ in profiles), markers, tuple(texts), vectors), images


def check_own_texts(words: Words, path: Path | None) -> None:
    """Refuse the user's own texts, the last of all, where one is of what nothing is named.

    Raises:
        DataError: The first of them.
    """
    if path is None:
        return
    *others, own = words.texts
    known = {key_of(name) for texts in others for name in (*texts.text_key, *texts.text)}
    known |= {key_of(label) for part in words.profiles for label in part.label or ()}
    known |= {key_of(one.term) for one in words.markers}
    strange = next((key for key in own.keys if key_of(key) not in known), None)
    if strange is not None:
        raise DataError(
            f"{path}: there are texts of {strange!r}, and no label, marker list or key of that "
            f"name; wanted one of {', '.join(sorted(known)[:6])}"
        )


def attach_texts(images: ImageTexts, slides: Sequence[SlideData]) -> list[SlideData]:
    """The slides, those that a text is of with the text keys of their regions."""
    named = {slide for slide, _ in images.key_of_place}
    strange = sorted(named - {slide.slide_id for slide in slides})
    if strange:
        raise DataError(f"a text is of slide {strange[0]}, which the study lacks; check its name")
    return [
        replace(one, regions=images.attach(one.regions)) if one.slide_id in named else one
        for one in slides
    ]


def history_of(checkpoint: AlignCheckpoint) -> str:
    """Scores and losses of all nets on their way, as CSV."""
    rows = [
        {"net": number, **look}
        for number, net in enumerate(checkpoint.report)
        for look in net["history"]
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _make_room(folder: Path, record: dict[str, Any], *, is_replacing: bool) -> None:
    """Refuse, or delete, a finished run of other settings."""
    path = folder / "run.json"
    if not path.exists() or not (folder / "checkpoint").exists():
        return
    stored, wanted = read_json(path), json.loads(json.dumps(record))
    if all(stored.get(name) == wanted.get(name) for name in ("config", "from", "words")):
        return
    if not is_replacing:
        raise ConfigError(
            f"Run '{folder.name}' exists with other settings. Give this one another --run, or "
            "delete the old one with --replace."
        )
    shutil.rmtree(folder)


def _tell(checkpoint: AlignCheckpoint, seconds: float, voice: Voice) -> None:
    """What came of it: held-out scores of the nets, which chose their steps and are no result."""
    scores = [net["best_score"] for net in checkpoint.report]
    steps = ", ".join(str(net["best_step"]) for net in checkpoint.report)
    near = "nothing held out"
    if None not in scores:
        said = ", ".join(f"{score:.3f}" for score in scores)
        near = f"nearer to their own partner than to another {said} of the time (0.5 is chance)"
    voice.say(
        f"{checkpoint.model_id}: {len(checkpoint.nets)} nets, {len(checkpoint.table)} genes, "
        f"{near}, {steps} steps, {seconds:.0f} s"
    )
