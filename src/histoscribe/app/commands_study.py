"""Commands on a study: demo, ingest, prepare, fit, predict, evaluate."""

from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histoscribe.app.commands_machine import Config, Json, Set
from histoscribe.app.console import Voice
from histoscribe.app.fit_words import (
    BENEATH,
    ImageTexts,
    Labelled,
    Markers,
    ProfileEmbedding,
    RegionEmbedding,
    Texts,
    TextTowerName,
    fit_words,
    refuse_words,
)
from histoscribe.errors import ConfigError

if TYPE_CHECKING:
    from histoscribe.app.runs import Outcome

StudyFolder = Annotated[Path, typer.Argument(metavar="STUDY", help="The study folder.")]
Samples = Annotated[
    list[str] | None, typer.Option("--sample", help="Only this sample; may be repeated.")
]
Run = Annotated[str, typer.Option("--run", help="Name of the run.")]

RIGHT_COLUMNS = ("method", "gene PCC", "95 % interval", "region PCC", "RMSE", "JS")


def register(app: typer.Typer) -> None:
    """Hang the commands into the program, in the order they are used."""
    for command in (demo, ingest, prepare, fit, evaluate, predict):
        app.command()(command)


def demo(
    out: Annotated[Path, typer.Option(help="The study folder to write.")] = Path("demo-study"),
    json: Json = False,
) -> None:
    """Run everything on a small piece of real tissue that comes with the program.

        histoscribe demo

    49 Visium spots of a mouse brain: an illustration of the path, no evidence of quality.
    """
    from histoscribe.app.demo import run_demo

    voice = Voice(json)
    _show(run_demo(out, voice), voice)


def ingest(
    manifest: Annotated[
        Path, typer.Argument(help="CSV: sample, patient, slide, mpp; expression, tissue, nuclei.")
    ],
    study: StudyFolder,
    mpp: Annotated[float | None, typer.Option(help="µm per pixel where no row gives it.")] = None,
    json: Json = False,
) -> None:
    """Check every table against its slide, and make a study of them.

    The manifest has one row a sample; paths are relative to it:

        sample,patient,slide,mpp,expression,spots

        C2,C,imgs/C2.jpg,0.690,counts/C2.tsv.gz,spots/C2_selection.tsv

    Leave mpp empty where the slide file says it. Nothing of yours is moved or changed.
    """
    from histoscribe.app.ingest import ingest_manifest

    voice = Voice(json)
    made = ingest_manifest(manifest, study, mpp, voice.say)
    voice.say(f"Next: histoscribe prepare {study}")
    voice.result({"study": str(study), "samples": [sample.sample for sample in made.samples]})


def prepare(
    study: StudyFolder,
    segmenter: Annotated[
        str | None, typer.Option(help="instanseg (default) or threshold (classical).")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="instanseg (default), vit:FOLDER-OR-HUB-ID, uni2-h:FILE, ...")
    ] = None,
    around_regions: Annotated[
        bool | None, typer.Option("--around-regions", help="Only where there are spots.")
    ] = None,
    sample: Samples = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler of a cluster.")
    ] = None,
    memory: Annotated[float, typer.Option(metavar="GB", help="What one sample may take.")] = 4.0,
    retries: Annotated[int, typer.Option(help="Further attempts after a fault that may pass.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each worker; by default cores / workers.")
    ] = None,
    config: Config = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Find the nuclei of every slide and describe them.

        histoscribe prepare study/ --around-regions

        histoscribe prepare study/ --workers 4

        histoscribe prepare study/ --scheduler tcp://node1:8786

    A sample that fails stops no other; study/prepare-summary.html says what became of each.
    Can be interrupted and started again: what is finished is kept, changed files are refused.
    """
    from histoscribe.app.cohort import CohortConfig, CohortError
    from histoscribe.app.cohort_report import as_records
    from histoscribe.app.config import load_config
    from histoscribe.app.prepare import prepare_study
    from histoscribe.app.study import open_study

    voice = Voice(json)
    cohort = CohortConfig(workers, scheduler, memory, retries, threads)
    opened = open_study(study)
    flags = {"segmenter": segmenter, "encoder": encoder, "around_regions": around_regions}
    settings = load_config(config, set or [], {"prepare": flags})
    try:
        with opened.lock():
            records = prepare_study(opened, settings.prepare, sample or [], voice, cohort)
    except CohortError as error:
        samples = as_records(opened, error.records)
        voice.say(f"summary: {opened.folder / 'prepare-summary.html'}")
        voice.fault("CohortError", str(error), error.exit_code, study=str(study), samples=samples)
        raise typer.Exit(error.exit_code) from None
    is_measured = any(one.expression for one in opened.samples)
    step = f"fit {study}" if is_measured else f"predict {study} --checkpoint FOLDER"
    voice.say(f"Next: histoscribe {step}")
    voice.result({"study": str(study), "samples": as_records(opened, records)})


def fit(
    study: StudyFolder,
    test: Annotated[
        list[str] | None,
        typer.Option(
            "--test",
            help="A sample to test on; may be repeated. none: train on all, score nothing.",
        ),
    ] = None,
    run: Run = "first",
    unit: Annotated[
        str | None, typer.Option(help="Split by patient (default), section or strip.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the fit.")] = None,
    genes: Annotated[int | None, typer.Option(help="Size of the gene panel.")] = None,
    panel: Annotated[
        str | None, typer.Option(help="Panel rule: pearson, dispersion, or variance (for bulk).")
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="A checkpoint folder to go on from.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="With --from: lora (default), full or frozen.")
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search", help="Find learning rate, dropout and cluster weight on the training side."
        ),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Delete a run of this name with other settings, and fit anew."
        ),
    ] = False,
    objective: Annotated[
        str,
        typer.Option(help="expression; align (images, genes and words in one space); joint: both."),
    ] = "expression",
    labelled: Labelled = None,
    markers: Markers = None,
    profile_embedding: ProfileEmbedding = None,
    region_embedding: RegionEmbedding = None,
    texts: Texts = None,
    image_texts: ImageTexts = None,
    text_tower: TextTowerName = None,
    config: Config = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Fit on the training samples, score on the test samples, write the report.

        histoscribe fit study/ --test C2 --run first

        histoscribe fit study/ --test C2 --unit section --genes 500 -s fit.max_epochs=40

        histoscribe fit bulk/ --from study/runs/first/checkpoint --mode lora

        histoscribe fit study/ --objective joint --labelled cells.h5ad:cell_type --markers m.json

        histoscribe fit study/ --search -s search.learning_rates=[0.001,0.0005]

    Split by patient unless told otherwise: sections of a tested patient are not trained on.
    Several GPUs train together: torchrun --nproc-per-node 4 -m -- histoscribe fit study/ ...
    """
    from histoscribe.app.config import load_config
    from histoscribe.app.runs import evaluate_run, fit_run
    from histoscribe.app.study import open_study
    from histoscribe.app.together import find_voice, hold
    from histoscribe.train.processes import find_processes

    voice = find_voice(json)
    opened = open_study(study)
    flags: dict[str, Any] = {
        "split": _split_flags(unit, test or []),
        "fit": {"seed": seed},
        "panel": {"n_genes": genes, "rule": panel},
        "transfer": {"mode": mode},
    }
    if mode is not None and start is None:
        raise ConfigError(
            f"--mode {mode} says how to go on from a checkpoint; name one with --from"
        )
    words = {"labelled": labelled, "markers": markers, "texts": texts, "image_texts": image_texts}
    words |= {"profile_embedding": profile_embedding, "region_embedding": region_embedding}
    words["text_tower"] = text_tower
    if objective != "expression":
        flags["align"] = {"objective": objective, "seed": seed}
        flags["align"]["profile_embedding"] = profile_embedding
        beneath = BENEATH if profile_embedding else {}
        settings = load_config(config, set or [], flags, beneath)
        if search:
            raise ConfigError("--search tries settings of the objective expression alone")
        fit_words(opened, run, settings, words, voice, start, is_replacing=replace)
        return
    refuse_words(words)
    settings = load_config(config, set or [], flags)
    with hold(opened):
        fit_run(
            opened,
            run,
            settings,
            voice,
            start=start,
            is_replacing=replace,
            is_searching=search,
        )
        outcome = evaluate_run(opened, run, voice) if find_processes().is_first else None
    if outcome is not None:
        _show(outcome, voice)


def evaluate(study: StudyFolder, run: Run = "first", json: Json = False) -> None:
    """Score a run and every baseline on its test samples again, and write the report.

    histoscribe evaluate study/ --run first
    """
    from histoscribe.app.runs import evaluate_run
    from histoscribe.app.study import open_study

    voice = Voice(json)
    opened = open_study(study)
    with opened.lock():
        outcome = evaluate_run(opened, run, voice)
    _show(outcome, voice)


def predict(
    study: StudyFolder,
    run: Annotated[str | None, typer.Option("--run", help="A run of this study.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Any checkpoint folder, e.g. of another study.")
    ] = None,
    level: Annotated[str, typer.Option(help="region, or cell (shares of its region).")] = "region",
    regions: Annotated[
        str | None,
        typer.Option(help="measured, grid (where nothing is measured) or sample (whole slides)."),
    ] = None,
    pitch: Annotated[
        float | None, typer.Option(metavar="UM", help="Of the grid; that of the model if left out.")
    ] = None,
    gene: Annotated[
        list[str] | None, typer.Option("--gene", help="Only this gene; may be repeated.")
    ] = None,
    memory: Annotated[
        float, typer.Option(metavar="GB", help="What a table of cells x genes may take.")
    ] = 8.0,
    sample: Samples = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the predictions.")] = None,
    json: Json = False,
) -> None:
    """Predict expression with a fitted model: AnnData on Zarr, one store a sample.

    histoscribe predict study/ --run first

    histoscribe predict other/ --checkpoint study/runs/first/checkpoint --level cell

    histoscribe predict slides/ --checkpoint her2st/ --regions sample --gene ERBB2
    """
    from histoscribe.app.predictions import PredictConfig, predict_study
    from histoscribe.app.runs import config_of
    from histoscribe.app.study import open_study

    voice = Voice(json)
    opened = open_study(study)
    if (run is None) == (checkpoint is None):
        raise ConfigError("Give either --run NAME or --checkpoint FOLDER.")
    config = PredictConfig(level, regions, pitch, tuple(gene or ()), memory)
    home = opened.run_folder(run) if run else opened.folder
    if run:
        config_of(opened, run)  # says which runs there are, if it is none of them
    with opened.lock():
        paths = predict_study(
            opened,
            checkpoint or home / "checkpoint",
            sample or [],
            config,
            out or home / "predictions",
            voice,
        )
    for path in paths:
        voice.say(str(path))
    voice.result({"predictions": [str(path) for path in paths]})


def _split_flags(unit: str | None, test: list[str]) -> dict[str, object]:
    """What --unit and --test say of the split; `--test none` is a unit of its own."""
    if "none" not in test:
        return {"unit": unit, "test": test}
    if len(test) > 1 or unit not in (None, "none"):
        raise ConfigError(
            "--test none trains on all samples and splits nothing; leave out --unit and any other "
            "--test"
        )
    return {"unit": "none"}


def _show(outcome: "Outcome", voice: Voice) -> None:
    """The scores, with their caution and protocol above and the report below."""
    table, report = outcome.table, outcome.report
    if table is None:
        voice.write(f"report: {report}")
        voice.result({"report": str(report), "banner": outcome.banner, "scores": None})
        return
    means = [row for row in table.rows if row.slide == "mean"]
    n_regions = means[0].metrics.n_regions
    voice.table(
        f"{outcome.banner}\n{table.protocol}\nn = {n_regions} regions, {table.n_panel} genes, "
        f"{table.unit}".lstrip(),
        RIGHT_COLUMNS,
        [
            (
                row.method,
                f"{row.gene_pcc.value:.3f}",
                f"{row.gene_pcc.low:.3f} to {row.gene_pcc.high:.3f}",
                f"{row.metrics.region_pcc:.3f}",
                f"{row.metrics.rmse:.3f}",
                f"{row.metrics.js:.3f}",
            )
            for row in means
        ],
    )
    voice.write(f"report: {report}")
    scores = loads(table.to_json())
    voice.result({"report": str(report), "banner": outcome.banner, "scores": scores})
