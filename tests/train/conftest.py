"""A small study and quick settings for the tests of fitting."""

import pytest

from histoscribe.data.splits import Split
from histoscribe.data.toy import toy_study
from histoscribe.train.assemble import SlideData
from histoscribe.train.fit import FitConfig
from histoscribe.train.gene_panel import PanelConfig, choose_panel


@pytest.fixture(scope="session")
def slides():
    worlds = toy_study(3, n_slides=4)
    return [SlideData(world.cells, world.tiles, world.regions) for world in worlds]


@pytest.fixture(scope="session")
def split():
    return Split(("toy-0", "toy-1", "toy-2"), ("toy-3",), "patient")


@pytest.fixture(scope="session")
def panel(slides):
    return choose_panel([slide.regions for slide in slides[:3]], PanelConfig(n_genes=7))


@pytest.fixture(scope="session")
def quick():
    return FitConfig(
        seed=5,
        n_components=9,
        n_field_components=6,
        n_phenotypes=3,
        batch_regions=31,
        max_epochs=3,
        learning_rate=3e-3,
    )


@pytest.fixture(scope="session")
def small():
    """Settings of a model that trains in no time; dropout is on."""
    return {
        "width": 6,
        "gat_layers": 1,
        "gat_width": 10,
        "gat_heads": 2,
        "transformer_layers": 1,
        "transformer_heads": 3,
        "context_width": 14,
        "dropout": 0.2,
        "context_dropout": 0.2,
    }
