"""What every encoder owes, by name and by way; those of real weights are skipped without them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from histoscribe.data.toy import ToyWorld
from histoscribe.errors import ConfigError, MissingExtra
from histoscribe.preprocess import weights
from histoscribe.preprocess.encoders.encoder import Encoder
from histoscribe.preprocess.encoders.names import check_encoder, load_encoder
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.run import PrepareConfig, prepare_slide

SMALL = {"tile_um": 12.0, "input_px": 64}
FETCHED = {
    "instanseg": "instanseg-brightfield_nuclei-0.1.1",
    "efficientnet-lite0": "efficientnet-lite0",
}


def save_vit(folder: Path) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = DINOv3ViTConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_register_tokens=4,
            patch_size=16,
        )
        DINOv3ViTModel(config).save_pretrained(folder)
    return f"vit:{folder}"


def asked_for(name: str, folder: Path) -> str:
    if name in FETCHED:
        try:
            weights.verify(FETCHED[name])
        except MissingExtra:
            pytest.skip(f"no weights of {name}")
    return save_vit(folder) if name == "vit" else name


def separation(features: np.ndarray, is_one: np.ndarray) -> float:
    """Area under the ROC curve, along the line between the two means."""
    along = features @ (features[is_one].mean(axis=0) - features[~is_one].mean(axis=0))
    n = is_one.sum()
    rank = rankdata(along)[is_one].sum()
    return float((rank - n * (n + 1) / 2) / n / (len(is_one) - n))


@pytest.mark.parametrize("way", ["dense", "tile"])
@pytest.mark.parametrize(
    "name", ["toy", "vit", *(pytest.param(name, marks=pytest.mark.weights) for name in FETCHED)]
)
def test_a_planted_difference_of_colour_shows(
    describe: Callable[..., tuple[dict, dict]],
    world: ToyWorld,
    tmp_path: Path,
    name: str,
    way: str,
) -> None:
    view = ViewConfig(way=way, **SMALL)  # type: ignore[arg-type]
    encoder = load_encoder(asked_for(name, tmp_path), view)
    assert isinstance(encoder, Encoder)
    nuclei, squares = describe(encoder, 512, within_um=192.0)
    xy, features = np.array(list(nuclei)), np.stack(list(nuclei.values()))
    assert features.shape[1] == encoder.identity.n_features
    assert np.isfinite(features).all()
    nearest = np.linalg.norm(xy[:, None] - world.cells.xy_um[None], axis=2).argmin(axis=1)
    assert separation(features, world.kind_of_cell[nearest] == 1) > 0.95
    described = np.stack(list(squares.values()))
    assert described.shape[1] % 2 == 0
    assert (described[:, described.shape[1] // 2 :] >= 0).all()
    assert described.std(axis=0).max() > 0


@pytest.mark.parametrize("way", ["dense", "tile"])
def test_a_slide_is_prepared_in_both_ways(world: ToyWorld, tmp_path: Path, way: str) -> None:
    chosen = PrepareConfig(
        segmenter="toy",
        encoder=save_vit(tmp_path),
        view=ViewConfig(way=way, tile_um=12.0, input_px=16),  # type: ignore[arg-type]
        calibration_pixels=9999,
    )
    cells, tiles = prepare_slide(world.slide, None, chosen)
    assert len(cells) == len(world.cells)
    assert cells.features.shape[1] == 24
    assert tiles.features.shape[1] == 48
    assert cells.encoder_id == tiles.encoder_id
    assert cells.encoder_id.startswith(f"vit:{tmp_path.name}-")
    assert cells.provenance.settings["encoder_licence"] == "not stated"


def test_an_encoder_finer_than_the_slide_is_refused(world: ToyWorld, tmp_path: Path) -> None:
    chosen = PrepareConfig(segmenter="toy", encoder=save_vit(tmp_path), view=ViewConfig(mpp=0.2))
    with pytest.raises(ConfigError, match=r"sees 0\.2 µm/px.*prepare\.view\.mpp to 0\.25 or more"):
        prepare_slide(world.slide, None, chosen)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("uni3", "there are instanseg, efficientnet-lite0, toy, vit:FOLDER-OR-HUB-ID, uni:FILE"),
        ("vit", "'vit:FOLDER' or 'vit:HUB-ID'"),
        ("vit:", "'vit:FOLDER' or 'vit:HUB-ID'"),
        ("uni2-h", "'uni2-h:FILE'"),
        ("instanseg:file.pt", "takes nothing after a colon"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused_before_anything_is_loaded(
    asked: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_encoder(asked)
    assert words in str(caught.value)
    with pytest.raises(ConfigError):
        PrepareConfig(encoder=asked)
