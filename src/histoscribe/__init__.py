"""histoscribe reads gene expression from routine H&E slides."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histoscribe.data.bags import BagConfig as BagConfig
    from histoscribe.data.cells import Cells as Cells
    from histoscribe.data.genes import GenePanel as GenePanel
    from histoscribe.data.prediction import Prediction as Prediction
    from histoscribe.data.profiles import Profiles as Profiles
    from histoscribe.data.regions import Regions as Regions
    from histoscribe.data.splits import Split as Split
    from histoscribe.data.tiles import Tiles as Tiles
    from histoscribe.errors import HistoscribeError as HistoscribeError
    from histoscribe.evaluate.benchmark import benchmark as benchmark
    from histoscribe.predict import predict_cells as predict_cells
    from histoscribe.predict import predict_regions as predict_regions
    from histoscribe.preprocess.preparation import PrepareConfig as PrepareConfig
    from histoscribe.preprocess.run import prepare_slide as prepare_slide
    from histoscribe.readers.manifest import read_manifest as read_manifest
    from histoscribe.readers.sample import read_sample as read_sample
    from histoscribe.slides.open import open_slide as open_slide
    from histoscribe.train.assemble import SlideData as SlideData
    from histoscribe.train.checkpoint import Checkpoint as Checkpoint
    from histoscribe.train.fit import FitConfig as FitConfig
    from histoscribe.train.fit import fit as fit
    from histoscribe.train.gene_panel import choose_panel as choose_panel

__version__ = "0.1.0"

# Imported when asked for: torch and anndata take seconds that `histoscribe --help` has not got.
HOMES = {
    "BagConfig": "data.bags",
    "Cells": "data.cells",
    "Checkpoint": "train.checkpoint",
    "FitConfig": "train.fit",
    "GenePanel": "data.genes",
    "HistoscribeError": "errors",
    "Prediction": "data.prediction",
    "PrepareConfig": "preprocess.preparation",
    "Profiles": "data.profiles",
    "Regions": "data.regions",
    "SlideData": "train.assemble",
    "Split": "data.splits",
    "Tiles": "data.tiles",
    "benchmark": "evaluate.benchmark",
    "choose_panel": "train.gene_panel",
    "fit": "train.fit",
    "open_slide": "slides.open",
    "predict_cells": "predict",
    "predict_regions": "predict",
    "prepare_slide": "preprocess.run",
    "read_manifest": "readers.manifest",
    "read_sample": "readers.sample",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - one of the names above
    """Find a public name at its home."""
    if name not in HOMES:
        raise AttributeError(f"module 'histoscribe' has no attribute {name!r}")
    return getattr(import_module(f"histoscribe.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return [*HOMES, "__version__"]
