"""The command on follow-up: survival."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from histoscribe.app.commands_machine import Json
from histoscribe.app.commands_study import Run, StudyFolder
from histoscribe.app.console import Voice


def register(app: typer.Typer) -> None:
    """Hang the command into the program."""
    app.command()(survival)


def survival(
    study: StudyFolder,
    clinical: Annotated[
        Path, typer.Option(help="CSV or TSV of follow-up: GDC, cBioPortal, Xena, or your own.")
    ],
    run: Run = "first",
    signatures: Annotated[
        Path | None, typer.Option(help="Gene lists: .gmt, .json, or .csv of signature, gene.")
    ] = None,
    covariate: Annotated[
        list[str] | None,
        typer.Option(help="Column to compare with, e.g. age or stage; may be repeated."),
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of patients.")] = 5,
    seed: Annotated[int, typer.Option(help="What deals patients to folds.")] = 0,
    patient_column: Annotated[
        str | None, typer.Option(help="Column of patients, if its name is not known.")
    ] = None,
    time_column: Annotated[
        str | None, typer.Option(help="Column of follow-up, if no convention is known.")
    ] = None,
    event_column: Annotated[
        str | None, typer.Option(help="Column of death or censoring; with --time-column.")
    ] = None,
    time_unit: Annotated[str, typer.Option(help="days, months or years.")] = "days",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; survival in the run's folder if none.")
    ] = None,
    json: Json = False,
) -> None:
    """Hold what a run says of patients against their follow-up: Cox, C-index, Kaplan-Meier.

        histoscribe survival study/ --clinical clinical.tsv --run first

        histoscribe survival study/ --clinical c.tsv --signatures h.gmt --covariate age

    The pooled representation, and signatures of predicted expression, each through a Cox model in
    folds of patients. Needs the extra "survival" (lifelines).
    """
    from json import loads

    from histoscribe.app.settings import build, merge
    from histoscribe.app.study import open_study
    from histoscribe.app.survival import SurvivalRequest
    from histoscribe.app.survival_report import banner_of
    from histoscribe.app.survival_run import survive_study
    from histoscribe.evaluate.survival import SurvivalConfig
    from histoscribe.readers.clinical import ClinicalConfig

    voice = Voice(json)
    given = {
        "patient": patient_column,
        "time": time_column,
        "event": event_column,
        "time_unit": time_unit,
        "covariates": covariate or [],
    }
    columns = build(ClinicalConfig, merge(ClinicalConfig, given))
    config = SurvivalConfig(n_folds=folds, seed=seed)
    config = replace(config, cox=replace(config.cox, seed=seed))
    opened = open_study(study)
    request = SurvivalRequest(clinical, columns, signatures, config)
    with opened.lock():
        outcome = survive_study(opened, run, request, out, voice)
    table = outcome.table
    voice.table(
        f"{banner_of(table)}\n{table.protocol}".lstrip(),
        ("method", "C-index", "95 % interval", "log-rank p"),
        [
            (
                row.method,
                f"{row.c_index.value:.3f}",
                f"{row.c_index.low:.3f} to {row.c_index.high:.3f}",
                f"{row.logrank_p:.2g}",
            )
            for row in table.rows
        ],
    )
    voice.write(f"report: {outcome.folder / 'survival.html'}")
    voice.result(
        {
            "report": str(outcome.folder / "survival.html"),
            "notes": list(outcome.notes),
            "survival": loads(table.to_json()),
        }
    )
