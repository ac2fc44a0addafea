"""Runs: fit on a study, predict with what was fitted, score it, report it."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from histoscribe.app.config import RunConfig, SplitConfig, make_config, values_of
from histoscribe.app.console import Voice
from histoscribe.app.prepare import load_slide
from histoscribe.app.search_run import search_run
from histoscribe.app.settings import overlay
from histoscribe.app.study import Sample, Study, read_json, write_json, write_text
from histoscribe.app.together import after_first
from histoscribe.data.genes import GenePanel
from histoscribe.data.regions import Regions
from histoscribe.data.splits import Split, strips
from histoscribe.data.store import write_prediction
from histoscribe.errors import ConfigError, DataError
from histoscribe.evaluate.benchmark import ScoreTable, benchmark
from histoscribe.predict import predict_regions
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import Checkpoint
from histoscribe.train.fit import fit
from histoscribe.train.fit_config import check_device
from histoscribe.train.gene_panel import choose_panel, noise_ceiling
from histoscribe.train.naming import name_alike
from histoscribe.train.net_task import Epoch, FitLog
from histoscribe.train.processes import find_processes
from histoscribe.train.transfer import Start, check_start, check_unseen

NOTHING_MEASURED = "The study has no sample with expression; nothing can be fitted on it."


@dataclass(frozen=True, eq=False)
class Sides:
    """The slides of a run, and which side each is on.

    Attributes:
        slides: One a slide; two a section that was cut into strips.
        split: Which of them are for training, which for testing.
        sample_of: The sample that a slide is (a part of).
    """

    slides: list[SlideData]
    split: Split
    sample_of: dict[str, Sample]

    def of(self, slide_ids: Sequence[str]) -> list[SlideData]:
        """The slides of one side, in its order."""
        by_id = {slide.slide_id: slide for slide in self.slides}
        return [by_id[slide_id] for slide_id in slide_ids]


@dataclass(frozen=True)
class Outcome:
    """What scoring a run gives.

    Attributes:
        table: Scores of model and baselines; None where nothing was kept apart to score on.
        report: Path of the report.
        banner: The caution that stands above the scores, or "".
    """

    table: ScoreTable | None
    report: Path
    banner: str


def fit_run(
    study: Study,
    run: str,
    config: RunConfig,
    voice: Voice,
    *,
    start: Path | None = None,
    is_replacing: bool = False,
    is_searching: bool = False,
) -> Checkpoint:
    """Choose genes and fit on the training side; the checkpoint goes to the run's folder.

    Of several processes (`torchrun`), each calls this and trains; the first writes the folder.

    Args:
        study: A prepared study.
        run: Name of the run; the same settings and data give the same checkpoint.
        config: All settings; they are kept in `run.json`.
        voice: Told what happens.
        start: A checkpoint to go on from, by `config.transfer`.
        is_replacing: Delete a finished run of other settings, once this one is known to be
            possible; without it, such a run is refused.
        is_searching: Find learning rate, dropout and cluster weight first, by `config.search`;
            `run.json` says what was asked and what was found.

    Raises:
        ConfigError: The run exists with other settings, or is to be replaced and holds `start`;
            the split cannot be made; or the processes cannot share the device.
        DataError: Samples are not prepared, or fewer genes qualify than were asked for.
        MissingExtra: The machine has no such device.
    """
    folder = study.run_folder(run)
    source = None if start is None else Checkpoint.load(start)
    record: dict[str, Any] = {"run": run, "config": values_of(config)}
    if source is not None:
        record["from"] = source.model_id
    if is_searching:
        record["is_searched"] = True
    is_other = find_processes().is_first and not _is_same(folder, record)
    if is_other and not is_replacing:
        raise ConfigError(
            f"Run '{run}' exists with other settings. Give this one another --run, or delete the "
            "old one with --replace."
        )
    if is_other and start is not None and start.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--replace would delete run '{run}', in which the checkpoint of --from lies. Give the "
            "new run another --run."
        )
    check_device(config.fit)
    sides = name_sides(load_sides(study, config.split), source and source.panel, voice)
    training = [slide.regions for slide in sides.of(sides.split.train)]
    panel = choose_panel(training, config.panel)
    ceiling = _ceiling_of(training, panel, config)
    at_best = "" if ceiling is None else f"; noise ceiling of their per-gene PCC {ceiling:.2f}"
    voice.say(f"{len(panel)} genes{at_best}")
    if source is not None:
        _check_source(source, config, sides, panel, voice)
    after_first("run begun", lambda: _begin_run(folder, record, is_other))
    started = time.monotonic()
    going_on = None if source is None else Start(source, config.transfer)
    if is_searching:
        config, record["found"] = search_run(
            sides.slides, sides.split, panel, config, start=going_on, folder=folder, voice=voice
        )
        after_first("search", lambda: write_json(folder / "run.json", record))
    with voice.progress("fit") as advance:

        def tell(epoch: Epoch) -> None:
            advance(epoch.net * epoch.max_epochs + epoch.epoch, epoch.n_nets * epoch.max_epochs)

        checkpoint = fit(
            sides.slides,
            sides.split,
            panel,
            config=config.fit,
            bags=config.bags,
            model_settings=config.model,
            start=going_on,
            log=FitLog(folder / "training", tell),
        )
    known = {} if ceiling is None else {"noise_ceiling": round(ceiling, 4)}
    after_first("checkpoint", lambda: _keep_fit(study, {**record, **known}, checkpoint, started))
    voice.say(
        f"{checkpoint.model_id}: {len(checkpoint.nets)} nets, {time.monotonic() - started:.0f} s"
    )
    return checkpoint


def _keep_fit(study: Study, record: dict[str, Any], made: Checkpoint, started: float) -> None:
    """Write the checkpoint of a run, and then what is known of it."""
    folder = study.run_folder(record["run"])
    made.save(folder / "checkpoint")
    write_json(folder / "run.json", record)
    seconds = round(time.monotonic() - started, 1)
    study.log("fit", run=record["run"], seconds=seconds, model_id=made.model_id)


def _begin_run(folder: Path, record: dict[str, Any], is_other: bool) -> None:
    """Delete the run of other settings that is to be replaced, and say what this one is."""
    if is_other:
        shutil.rmtree(folder)
    write_json(folder / "run.json", record)


def name_sides(sides: Sides, panel: GenePanel | None, voice: Voice) -> Sides:
    """The sides with genes named as in a panel; without one, as the training side has it alone."""
    if panel is None:
        training = name_alike(sides.of(sides.split.train))
        panel = next((s.regions.genes for s in training if len(s.regions.genes)), None)
    return replace(sides, slides=name_alike(sides.slides, panel, voice.say))


def _check_source(
    source: Checkpoint, config: RunConfig, sides: Sides, panel: GenePanel, voice: Voice
) -> None:
    """Refuse a checkpoint from which this run cannot start, before anything is written."""
    encoder_id = sides.slides[0].cells.encoder_id
    check_start(source, config.fit.model, config.model, encoder_id, panel)
    check_unseen(source, sides.slides, sides.split)
    n_known = int((source.panel.rows_of(panel.ids) >= 0).sum())
    voice.say(f"{config.transfer.mode} from {source.model_id}, which knows {n_known} of them")


def _ceiling_of(training: Sequence[Regions], panel: GenePanel, config: RunConfig) -> float | None:
    """What a perfect predictor would reach against the counts of spots; None for other regions."""
    if any(regions.kind == "bulk" or regions.expression_unit != "counts" for regions in training):
        return None
    ceilings = [
        noise_ceiling(
            regions,
            panel,
            np.random.default_rng(config.fit.seed),
            is_normalised=config.fit.target_space == "log1p_cp10k",
        )
        for regions in training
    ]
    return float(np.mean(ceilings))


def evaluate_run(study: Study, run: str, voice: Voice) -> Outcome:
    """Score a run and all baselines on its test side; write scores, predictions and the report.

    A run on all samples has no test side: its report says so, and there are no scores.
    """
    from histoscribe.app.run_report import UNSCORED, banner_of, report_run, report_unscored

    folder = study.run_folder(run)
    config = config_of(study, run)
    checkpoint = Checkpoint.load(folder / "checkpoint")
    sides = load_sides(study, config.split)
    if sides.split != checkpoint.split:
        raise DataError(
            f"run {run} was fitted on other samples than the study has now. Fit a new run."
        )
    sides = replace(sides, slides=name_alike(sides.slides, checkpoint.panel))  # the fit told of it
    started = time.monotonic()
    if sides.split.unit == "none":
        voice.warn(UNSCORED)
        return Outcome(None, report_unscored(study, run, sides, checkpoint), UNSCORED)
    table = benchmark(checkpoint, sides.slides, config.score)
    write_text(folder / "scores.json", table.to_json())
    write_text(folder / "scores.csv", table.to_csv())
    test = sides.of(sides.split.test)
    prediction = predict_regions(checkpoint, test)
    for slide in test:
        part = prediction.of_slide(slide.slide_id)
        write_prediction(part, folder / "predictions" / f"{slide.slide_id}.zarr")
    report = report_run(study, run, sides, checkpoint, table)
    study.log("evaluate", run=run, seconds=round(time.monotonic() - started, 1))
    voice.say(f"scores of {len(test)} slide(s) against {len(_methods(table)) - 1} baselines")
    return Outcome(table, report, banner_of(sides, table))


def load_sides(study: Study, config: SplitConfig) -> Sides:
    """The slides of a study, split as asked.

    Raises:
        ConfigError: One side would be empty, or a name is not in the study.
    """
    measured = [sample for sample in study.samples if sample.expression]
    if config.unit == "strip":
        return _cut_into_strips(study, measured, config)
    if config.unit == "none":
        return _take_all(study, measured)
    test = [study.find(name).sample for name in config.test] or _last(measured, config)
    train = [sample.sample for sample in measured if sample.sample not in test]
    if config.unit == "patient":
        patients = {study.find(name).patient for name in test}
        train = [name for name in train if study.find(name).patient not in patients]
    if not train:
        raise ConfigError(
            f"No sample is left to train on when {', '.join(test)} is tested and split by "
            f"{config.unit}. Add samples of other patients; or, knowing that the score will be "
            "optimistic, split with --unit section, or --unit strip within one section."
        )
    samples = {name: study.find(name) for name in (*train, *test)}
    slides = [load_slide(study, sample) for sample in samples.values()]
    return Sides(slides, Split(tuple(train), tuple(test), config.unit), samples)


def config_of(study: Study, run: str) -> RunConfig:
    """The settings a run was fitted with."""
    path = study.run_folder(run) / "run.json"
    if not path.exists():
        known = sorted(entry.name for entry in (study.folder / "runs").glob("*"))
        raise DataError(
            f"Study {study.folder} has no run '{run}'. It has: {', '.join(known) or 'none yet'}. "
            "Make one with 'histoscribe fit'."
        )
    record = read_json(path)
    return make_config(overlay(record["config"], record.get("found", {})))


def _take_all(study: Study, measured: list[Sample]) -> Sides:
    if not measured:
        raise DataError(NOTHING_MEASURED)
    slides = [load_slide(study, sample) for sample in measured]
    names = tuple(sample.sample for sample in measured)
    return Sides(slides, Split(names, (), "none"), dict(zip(names, measured, strict=True)))


def _cut_into_strips(study: Study, measured: list[Sample], config: SplitConfig) -> Sides:
    names = config.test or tuple(sample.sample for sample in measured)
    if len(names) != 1:
        raise ConfigError(
            f"--unit strip cuts one section, {len(names)} came. Name it with --test, or split by "
            "patient or section."
        )
    sample = study.find(names[0])
    whole = load_slide(study, sample)
    strip_of = strips(whole.regions.xy_um, config.n_strips, 0.0)
    x_um = whole.regions.xy_um[:, 0]
    is_test = strip_of == config.n_strips - 1
    is_train = ~is_test & (x_um <= x_um[is_test].min() - config.buffer_um)
    if not is_train.any():
        raise ConfigError(
            f"No region is left to train on {config.buffer_um:g} µm from the tested strip. Take "
            "more strips or a smaller split.buffer_um."
        )
    parts = {
        f"{sample.sample}-train": np.flatnonzero(is_train),
        f"{sample.sample}-test": np.flatnonzero(is_test),
    }
    slides = [_rename(whole, name, rows) for name, rows in parts.items()]
    train, test = parts
    return Sides(slides, Split((train,), (test,), "strip"), dict.fromkeys(parts, sample))


def _rename(whole: SlideData, name: str, rows: np.ndarray) -> SlideData:
    """Some regions of a slide, as a slide of its own."""
    regions = whole.regions.take(rows)
    return SlideData(
        replace(whole.cells, slide_id=name),
        replace(whole.tiles, slide_id=name),
        replace(regions, slide_id=(name,) * len(regions)),
    )


def _last(measured: list[Sample], config: SplitConfig) -> list[str]:
    if not measured:
        raise DataError(NOTHING_MEASURED)
    last = measured[-1]
    if config.unit == "section":
        return [last.sample]
    return [sample.sample for sample in measured if sample.patient == last.patient]


def _is_same(folder: Path, record: dict[str, Any]) -> bool:
    """Whether a finished run has these settings; an unfinished one does not stand in the way."""
    path = folder / "run.json"
    if not path.exists() or not (folder / "checkpoint").exists():
        return True
    stored = read_json(path)
    wanted = json.loads(json.dumps(record))
    return all(stored.get(name) == wanted.get(name) for name in ("config", "from", "is_searched"))


def _methods(table: ScoreTable) -> list[str]:
    return list(dict.fromkeys(row.method for row in table.rows))
