"""Options of `fit` that say where words come from, and the fit of a space from them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histoscribe.app.console import Voice
from histoscribe.errors import ConfigError

if TYPE_CHECKING:
    from histoscribe.app.config import RunConfig
    from histoscribe.app.study import Study

Labelled = Annotated[
    list[str] | None,
    typer.Option(metavar="H5AD[:COLUMN]", help="Labelled cells; may be repeated."),
]
Markers = Annotated[
    list[Path] | None, typer.Option(help="Marker lists: .gmt, .json or .csv; may be repeated.")
]
Texts = Annotated[Path | None, typer.Option(help="Your own wordings: label, text.")]
ImageTexts = Annotated[
    Path | None, typer.Option(help="Texts of slides or regions: slide_id, region_id, text.")
]
TextTowerName = Annotated[
    str | None, typer.Option(metavar="NAME|FOLDER|HUB-ID", help="By default all-minilm-l6-v2.")
]
ProfileEmbedding = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Vectors of another model in place of genes: an obsm, e.g. X_geneformer.",
    ),
]
RegionEmbedding = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", help="Its vectors of the regions: .h5ad, .zarr or .parquet; repeatable."
    ),
]

BENEATH = {"align": {"loss": "softmax", "gene_space": "learned"}}
"""Defaults where profiles are read by vectors of another model; what a user sets goes before."""


def fit_words(
    opened: "Study",
    run: str,
    settings: "RunConfig",
    words: dict[str, Any],
    voice: Voice,
    start: Path | None,
    *,
    is_replacing: bool,
) -> None:
    """Fit a space of images, genes and words, and say where it is.

    Args:
        opened: The study.
        run: Name of the run.
        settings: All of them.
        words: What the options above gave, by their names.
        voice: Told what happens.
        start: A checkpoint to go on from.
        is_replacing: Delete a finished run of other settings.
    """
    from histoscribe.app.align_run import WordFiles, fit_words_run
    from histoscribe.train.processes import find_processes

    if find_processes().n > 1:
        raise ConfigError(
            "images, genes and words are brought together in one process; run it without torchrun"
        )

    given = {name: value for name, value in words.items() if value and name != "profile_embedding"}
    for name in ("labelled", "markers", "region_embedding"):
        given[name] = tuple(given.get(name, ()))
    files = WordFiles(**given)
    with opened.lock():
        checkpoint = fit_words_run(
            opened, run, settings, files, voice, start=start, is_replacing=is_replacing
        )
    folder = opened.run_folder(run) / "checkpoint"
    voice.say(f"Next: histoscribe annotate {opened.folder} --run {run} --terms terms.txt")
    scores = [net["best_score"] for net in checkpoint.report]
    voice.result({"checkpoint": str(folder), "model_id": checkpoint.model_id, "held_out": scores})


def refuse_words(words: dict[str, Any]) -> None:
    """Refuse options of words with an objective that knows none."""
    strange = next((name for name, value in words.items() if value), None)
    if strange is not None:
        raise ConfigError(
            f"--{strange.replace('_', '-')} goes with --objective align or joint; add one of them"
        )
