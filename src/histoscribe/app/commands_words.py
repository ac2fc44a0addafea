"""Commands on words: annotate, search, diagnose, zero-shot."""

from json import loads
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from histoscribe.app.commands_machine import Config, Json, Set
from histoscribe.app.commands_study import Samples, StudyFolder
from histoscribe.app.console import Voice
from histoscribe.app.fit_words import ProfileEmbedding, RegionEmbedding
from histoscribe.errors import ConfigError

if TYPE_CHECKING:
    from histoscribe.app.annotate_run import Asked
    from histoscribe.app.study import Study

RunName = Annotated[
    str | None,
    typer.Option("--run", help="A run of this study; the one that knows words if left out."),
]
CheckpointFolder = Annotated[
    Path | None, typer.Option("--checkpoint", help="Any checkpoint folder, e.g. of another study.")
]
LevelName = Annotated[str, typer.Option("--level", help="region, or cell.")]
RegionsMade = Annotated[
    str | None, typer.Option("--regions", help="measured, or grid (where nothing is measured).")
]
Radius = Annotated[
    float | None, typer.Option("--radius", metavar="UM", help="Of the grid's discs.")
]
Pitch = Annotated[float | None, typer.Option("--pitch", metavar="UM", help="Of the grid.")]
Calibrate = Annotated[
    str,
    typer.Option(
        "--calibrate",
        help="reference (the model's training side), transductive (what is annotated) or none.",
    ),
]
RouteName = Annotated[
    str | None,
    typer.Option(
        "--route",
        help="image, expression or both; by default all that the model has, in a search image.",
    ),
]
Ontology = Annotated[
    Path | None, typer.Option("--ontology", help="Cell Ontology (.obo or .json), for its ids.")
]
Terms = Annotated[
    Path,
    typer.Option("--terms", help="One term a line: name | synonym, or CL:0000236; or a class map."),
]
Out = Annotated[Path | None, typer.Option("--out", help="The folder to write.")]


def register(app: typer.Typer) -> None:
    """Hang the commands into the program."""
    app.command()(annotate)
    app.command()(search)
    app.command()(diagnose)
    app.command("zero-shot")(zero_shot)


def annotate(
    study: StudyFolder,
    terms: Terms,
    run: RunName = None,
    checkpoint: CheckpointFolder = None,
    level: LevelName = "region",
    regions: RegionsMade = None,
    radius: Radius = None,
    pitch: Pitch = None,
    calibrate: Calibrate = "reference",
    route: RouteName = None,
    unsure_below: Annotated[
        float,
        typer.Option(
            help="Unsure where the best term leads the next by less probability; 0: never."
        ),
    ] = 0.1,
    phenotypes: Annotated[
        bool, typer.Option("--phenotypes", help="Name the model's clusters of cells too.")
    ] = False,
    ontology: Ontology = None,
    sample: Samples = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Say which of your terms fits every region, or every cell, of a study.

        histoscribe annotate study/ --terms terms.txt

        histoscribe annotate study/ --checkpoint words/ --terms terms.txt --level cell

    Writes for each sample AnnData on Zarr (labels in obs, scores in obsm), GeoJSON for QuPath, and
    one page of maps.
    """
    from histoscribe.app.annotate_run import (
        annotate_study,
        load_words_model,
        name_study_phenotypes,
        read_words,
        report_annotations,
    )
    from histoscribe.app.study import open_study

    voice = Voice(json)
    opened = open_study(study)
    words = read_words(terms, ontology)
    asked = _asked(level, calibrate, route, (regions, radius, pitch), sample, unsure_below)
    home = _checkpoint(opened, run, checkpoint)
    model = load_words_model(home)
    folder = out or (opened.folder if checkpoint else home.parent) / "annotations"
    with opened.lock():
        done = annotate_study(opened, model, asked, words, folder, voice)
        named = name_study_phenotypes(opened, model, asked, words) if phenotypes else []
        page = folder / f"annotations{'.cells' if level == 'cell' else ''}.html"
        report_annotations(opened, done, page, named)
    voice.write(f"report: {page}")
    voice.result(
        {
            "report": str(page),
            "samples": {
                one.sample: {
                    "labels": one.annotation.count(),
                    "store": str(one.store),
                    "geojson": str(one.geojson),
                }
                for one in done
            },
            "phenotypes": [{"phenotype": one.phenotype, "label": one.label} for one in named],
        }
    )


def search(
    study: StudyFolder,
    text: Annotated[str, typer.Argument(help='What to look for, e.g. "plasma cells".')],
    run: RunName = None,
    checkpoint: CheckpointFolder = None,
    level: LevelName = "region",
    regions: RegionsMade = None,
    radius: Radius = None,
    pitch: Pitch = None,
    calibrate: Calibrate = "reference",
    route: RouteName = None,
    sample: Samples = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Show where in a study a text fits best: a heat map and a table for each sample.

    histoscribe search study/ "plasma cells"

    histoscribe search study/ "plasma cells | plasmablasts" --run words --level cell
    """
    from histoscribe.app.annotate_run import load_words_model
    from histoscribe.app.find_words import search_study
    from histoscribe.app.study import open_study

    voice = Voice(json)
    opened = open_study(study)
    asked = _asked(level, calibrate, route, (regions, radius, pitch), sample)
    home = _checkpoint(opened, run, checkpoint)
    model = load_words_model(home)
    with opened.lock():
        folder = out or (opened.folder if checkpoint else home.parent) / "search"
        found = search_study(opened, model, asked, text, folder, voice)
    best = [
        (one.sample, one.finding.units.unit_id[row], f"{one.finding.standard[row]:+.2f}")
        for one in found
        for row in one.finding.ranking()[:3]
    ]
    voice.table(text, ("sample", "unit", "sd above the mean"), best)
    voice.result(
        {"found": {o.sample: {"map": str(o.picture), "table": str(o.table)} for o in found}}
    )


def diagnose(
    study: StudyFolder,
    run: RunName = None,
    checkpoint: CheckpointFolder = None,
    profiles: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of stored labelled profiles; those the model was trained on if left out. "
            "May be repeated."
        ),
    ] = None,
    terms: Annotated[
        Path | None, typer.Option("--terms", help="Terms whose bias is looked at too.")
    ] = None,
    ontology: Ontology = None,
    profile_embedding: ProfileEmbedding = None,
    region_embedding: RegionEmbedding = None,
    sample: Samples = None,
    json: Json = False,
) -> None:
    """Look at the chain from image to gene to text, and say what to do about each link.

    histoscribe diagnose study/ --terms terms.txt
    """
    from dataclasses import asdict

    from histoscribe.app.annotate_run import load_words_model, read_words
    from histoscribe.app.diagnose_run import diagnose_study, find_profiles
    from histoscribe.app.study import open_study
    from histoscribe.readers.profile_features import read_region_features

    voice = Voice(json)
    opened = open_study(study)
    words = None if terms is None else read_words(terms, ontology)
    asked = _asked("region", "none", "image", ("measured", None, None), sample)
    home = _checkpoint(opened, run, checkpoint)
    model = load_words_model(home)
    if (profile_embedding is None) != (not region_embedding):
        raise ConfigError("Give --profile-embedding and --region-embedding together, or neither.")
    by, files = profile_embedding, region_embedding or []
    vectors = None if by is None else read_region_features(files, by)
    stored = profiles or find_profiles(home)
    findings = diagnose_study(opened, model, asked, stored, words, vectors)
    for one in findings:
        verdict = "good" if one.is_fine else "look"
        voice.write(
            f"{verdict}  {one.name}: {one.value:.2f} {one.unit} (held against {one.threshold})"
        )
        voice.write(f"      {one.advice}")
    rows = [{**asdict(one), "value": None if isnan(one.value) else one.value} for one in findings]
    voice.result({"findings": rows})


def zero_shot(
    benchmark: Annotated[str, typer.Argument(help="pathocell, lizard or pannuke.")],
    folder: Annotated[Path, typer.Argument(help="Where its published files were unpacked.")],
    checkpoint: Annotated[Path, typer.Option(help="The checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="The folder to write: study, scores.json, scores.csv.")],
    mpp: Annotated[
        float | None, typer.Option(help="µm per pixel of its images, which they do not state.")
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="CSV of sample_name, train_test_val_split.")
    ] = None,
    side: Annotated[str, typer.Option(help="The side of the split.")] = "test",
    patients: Annotated[
        Path | None, typer.Option(help="CSV of region, patient, for PathoCell.")
    ] = None,
    config: Config = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Score a model on a benchmark of labelled nuclei, with its frozen classes and prompts.

    histoscribe zero-shot lizard lizard/ --mpp 0.5 --checkpoint words/ --out lizard-scores/
    """
    from histoscribe.app.annotate_run import load_words_model
    from histoscribe.app.config import load_config
    from histoscribe.app.words_benchmark import Benchmark, run_benchmark, score_rows
    from histoscribe.evaluate.class_map import read_class_map

    voice = Voice(json)
    known = read_class_map(benchmark)
    settings = load_config(config, set or [], {})
    asked = Benchmark(benchmark, folder, mpp, split, side, patients)
    model = load_words_model(checkpoint)
    scores = run_benchmark(asked, model, known, settings.prepare, out, voice)
    columns = ("class", "AUROC", "95 % interval", "images", "AP", "prevalence", "F1")
    voice.table(
        f"{benchmark}: {scores.n_units:,} regions of {scores.n_images} images; intervals over "
        f"{scores.n_groups} {scores.group_kind}s",
        columns,
        score_rows(scores),
    )
    voice.result({"scores": loads(scores.to_json()), "folder": str(out)})


def _asked(
    level: str,
    calibrate: str,
    route: str | None,
    places: tuple[str | None, float | None, float | None],
    sample: list[str] | None,
    unsure_below: float = 0.1,
) -> "Asked":
    from histoscribe.annotate.word_model import AnnotateConfig
    from histoscribe.app.annotate_run import Asked, PlacesConfig

    config = AnnotateConfig(level=level, calibration=calibrate, route=route, below=unsure_below)
    return Asked(tuple(sample or ()), config, PlacesConfig(*places))


def _checkpoint(study: "Study", run: str | None, checkpoint: Path | None) -> Path:
    """The checkpoint that was named, or that of the one run that knows words."""
    from histoscribe.app.annotate_run import choose_run

    if run is not None and checkpoint is not None:
        raise ConfigError("Give either --run NAME or --checkpoint FOLDER, not both.")
    return checkpoint or study.run_folder(choose_run(study) if run is None else run) / "checkpoint"
