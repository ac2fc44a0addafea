"""What cannot be merged is refused, and nothing is written."""

import pytest

from histoscribe.app.merge import merge_checkpoint
from histoscribe.data.splits import Split
from histoscribe.data.toy import toy_study
from histoscribe.errors import ConfigError, DataError
from histoscribe.train.assemble import SlideData
from histoscribe.train.fit import fit
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.gene_panel import PanelConfig, choose_panel


@pytest.fixture(scope="module")
def without_adapters(tmp_path_factory):
    """A checkpoint of a fit that goes on from no other, as small as can be."""
    worlds = toy_study(3, n_slides=2)
    slides = [SlideData(world.cells, world.tiles, world.regions) for world in worlds]
    panel = choose_panel([slides[0].regions], PanelConfig(n_genes=7))
    split = Split((slides[0].slide_id,), (slides[1].slide_id,), "patient")
    config = FitConfig(n_components=5, n_field_components=3, n_phenotypes=3, max_epochs=1)
    folder = tmp_path_factory.mktemp("fitted") / "checkpoint"
    fit(slides, split, panel, config=config, model_settings={"width": 16}).save(folder)
    return folder


def test_a_checkpoint_without_adapters_is_refused(without_adapters, tmp_path):
    out = tmp_path / "merged"
    with pytest.raises(ConfigError, match="no adapters to merge") as refused:
        merge_checkpoint(without_adapters, out)
    assert f"{without_adapters} has" in str(refused.value)
    assert not out.exists()


def test_a_folder_that_exists_is_refused_and_left_as_it_is(without_adapters, tmp_path):
    out = tmp_path / "merged"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for folder in (without_adapters, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="exists; give --out a folder that does not"):
            merge_checkpoint(folder, out)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("mine.txt", "mine")]


def test_what_is_no_checkpoint_is_told(tmp_path):
    with pytest.raises(DataError, match="no checkpoint at"):
        merge_checkpoint(tmp_path / "nowhere", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
