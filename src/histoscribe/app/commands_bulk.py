"""The command on whole samples: match."""

from pathlib import Path
from typing import Annotated

import typer

from histoscribe.app.commands_machine import Json
from histoscribe.app.console import Voice


def register(app: typer.Typer) -> None:
    """Hang the command into the program."""
    app.command()(match)


def match(
    expression: Annotated[
        Path, typer.Argument(help="Genes x samples (CSV, TSV, Parquet), or GDC's folder of files.")
    ],
    slides: Annotated[list[Path], typer.Argument(help="Slides, or folders of slides.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    unit: Annotated[
        str | None, typer.Option(help="tpm, fpkm, rsem or counts; told by the table if it can be.")
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(help="none, log2p1, ln1p, log10p1 or log2p0.001; told if it can be."),
    ] = None,
    sample_type: Annotated[
        list[str] | None,
        typer.Option(help="TCGA's sample types, the preferred first; 01, primary tumour, if none."),
    ] = None,
    slide_type: Annotated[
        list[str] | None,
        typer.Option(help="TCGA's slide types: DX (if none), TS, MS, BS; may be repeated."),
    ] = None,
    sample_sheet: Annotated[
        Path | None, typer.Option(help="GDC's sample sheet: whose each file is.")
    ] = None,
    gdc_manifest: Annotated[
        Path | None, typer.Option(help="GDC's manifest, to check MD5 by.")
    ] = None,
    patients: Annotated[
        Path | None, typer.Option(help="CSV slide,patient[,profile] where names do not say it.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="µm per pixel of all slides, in place of what files say.")
    ] = None,
    json: Json = False,
) -> None:
    """Bring RNA-seq of whole samples and slides together, by patient.

        histoscribe match gdc/ slides/ --sample-sheet gdc_sample_sheet.tsv --out cohort/

        histoscribe match rsem.csv.gz slides/ --unit rsem --slide-type DX,TS --out cohort/

    Writes cohort/expression.parquet, cohort/manifest.csv for `ingest`, and cohort/match.json: what
    was left out, averaged and found. A unit that cannot be told is refused, never guessed.
    """
    from histoscribe.app.match import MatchConfig, match_cohort
    from histoscribe.app.settings import build, merge

    voice = Voice(json)
    given = {
        "unit": unit,
        "log": log,
        "sample_types": _words(sample_type),
        "slide_types": _words(slide_type),
        "sample_sheet": sample_sheet and str(sample_sheet),
        "gdc_manifest": gdc_manifest and str(gdc_manifest),
        "patients": patients and str(patients),
        "mpp": mpp,
    }
    values = {name: value for name, value in given.items() if value not in (None, [])}
    done = match_cohort(expression, slides, out, build(MatchConfig, merge(MatchConfig, values)))
    for line in done.lines():
        voice.say(line)
    voice.say(f"Next: histoscribe ingest {done.manifest} study/")
    voice.result(
        {
            "manifest": str(done.manifest),
            "n_profiles": done.report.n_profiles,
            "n_genes": done.report.n_genes,
            "unit": done.report.unit,
            "log": done.report.log,
            "slides": [one.sample for one in done.slides.matched],
            "left_out": dict(done.slides.left_out),
            "without_slide": list(done.slides.without_slide),
        }
    )


def _words(given: list[str] | None) -> list[str]:
    """Words that were given one by one, by commas, or both."""
    return [word.strip() for text in given or [] for word in text.split(",") if word.strip()]
