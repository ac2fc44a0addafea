from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel

from histoscribe.data.toy import toy_world
from histoscribe.errors import ConfigError, DataError, MismatchError, MissingExtra
from histoscribe.preprocess.encoders.transformers import IMAGENET, VitConfig, load_vit
from histoscribe.preprocess.run import PrepareConfig, prepare_slide

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}


def save_dinov3(folder: Path, n_registers: int = 4) -> DINOv3ViTModel:
    torch.manual_seed(4)
    config = DINOv3ViTConfig(
        **SMALL, intermediate_size=40, num_register_tokens=n_registers, patch_size=16
    )
    model = DINOv3ViTModel(config).eval()
    torch.nn.init.normal_(model.embeddings.register_tokens, std=5.0)
    model.save_pretrained(folder)
    return model


def save_dinov2(folder: Path) -> Dinov2Model:
    torch.manual_seed(4)
    model = Dinov2Model(Dinov2Config(**SMALL, patch_size=14, image_size=70)).eval()
    model.save_pretrained(folder)
    return model


def tiles(n: int, side: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def last_layer(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        return model(pixel_values=pixels).last_hidden_state.numpy()


@pytest.mark.parametrize(("save", "side", "n_prefix"), [(save_dinov3, 48, 5), (save_dinov2, 42, 1)])
def test_patch_mean_is_the_mean_of_the_patches_alone(
    tmp_path: Path, save: object, side: int, n_prefix: int
) -> None:
    model = save(tmp_path)  # type: ignore[operator]
    encoder = load_vit(str(tmp_path), VitConfig(input_px=side, tile_um=side / 2))
    assert encoder.tile_px == side
    images = tiles(37, side)  # more than one batch
    tokens = last_layer(model, images)
    assert tokens.shape[1] == n_prefix + 9
    got = encoder.encode(images)
    np.testing.assert_allclose(got, tokens[:, n_prefix:].mean(axis=1), atol=1e-5)
    both = load_vit(
        str(tmp_path), VitConfig(pooling="cls+patch-mean", input_px=side, tile_um=side / 2)
    )
    wanted = np.concatenate([tokens[:, 0], tokens[:, n_prefix:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(both.encode(images), wanted, atol=1e-5)
    assert both.identity.n_features == 2 * encoder.identity.n_features == 48
    assert str(both.identity) != str(encoder.identity)


def test_squares_have_the_mean_and_the_deviation_of_their_patches(tmp_path: Path) -> None:
    model = save_dinov3(tmp_path)
    encoder = load_vit(str(tmp_path), VitConfig(input_px=48, tile_um=24.0))
    squares = tiles(3, 64)
    patches = last_layer(model, squares)[:, 5:]
    assert patches.shape[1] == 16  # 64 px at the scale of a tile, 48 px on 48
    wanted = np.concatenate([patches.mean(axis=1), patches.std(axis=1)], axis=1)
    np.testing.assert_allclose(encoder.encode_squares(squares), wanted, atol=1e-5)


def test_tiles_are_brought_to_the_input_size_and_none_give_none(tmp_path: Path) -> None:
    save_dinov3(tmp_path)
    encoder = load_vit(str(tmp_path), VitConfig(input_px=32))
    assert encoder.encode(tiles(5, 48)).shape == (5, 24)
    assert encoder.encode(tiles(0, 48)).shape == (0, 24)
    assert encoder.encode_squares(tiles(0, 64)).shape == (0, 48)


def test_the_identity_says_what_changes_the_features(tmp_path: Path) -> None:
    save_dinov3(tmp_path / "a")
    one = load_vit(str(tmp_path / "a"), VitConfig(input_px=32))
    assert one.identity.name == "vit:a-32px"
    other = save_dinov3(tmp_path / "b")
    with torch.no_grad():
        other.embeddings.cls_token += 1
    (tmp_path / "c").mkdir()
    other.save_pretrained(tmp_path / "c")
    two = load_vit(str(tmp_path / "c"), VitConfig(input_px=32))
    assert one.identity.weights_sha256 != two.identity.weights_sha256
    assert load_vit(str(tmp_path / "a"), VitConfig(input_px=48)).identity != one.identity


def test_the_normalisation_is_the_model_s_own(tmp_path: Path) -> None:
    save_dinov3(tmp_path)
    usual = load_vit(str(tmp_path), VitConfig(input_px=32))
    plain = usual.encode(tiles(2, 48))
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}'
    )
    other = load_vit(str(tmp_path), VitConfig(input_px=32))
    assert np.abs(other.encode(tiles(2, 48)) - plain).max() > 1e-3
    assert other.identity != usual.identity


def test_broken_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_dinov3(tmp_path / "vit")
    with pytest.raises(ConfigError, match="multiple"):
        load_vit(str(tmp_path / "vit"), VitConfig(input_px=50))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="wanted both"):
        load_vit(str(tmp_path / "empty"))
    config = tmp_path / "vit" / "config.json"
    plain = config.read_text()
    config.write_text(plain.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(MismatchError, match="missing"):
        load_vit(str(tmp_path / "vit"))
    config.write_text(plain.replace('"intermediate_size": 40', '"intermediate_size": 44'))
    with pytest.raises(MismatchError, match="weights"):
        load_vit(str(tmp_path / "vit"))


def test_offline_a_hub_id_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingExtra, match="without network"):
        load_vit("no-such-owner/no-such-model")


def test_a_toy_slide_is_described_by_a_vision_transformer(tmp_path: Path) -> None:
    save_dinov3(tmp_path)
    world = toy_world(11)
    chosen = PrepareConfig(
        segmenter="toy",
        encoder=f"vit:{tmp_path}",
        vit=VitConfig(input_px=16, tile_um=12.0),
        calibration_pixels=9999,
    )
    cells, tiles_ = prepare_slide(world.slide, None, chosen)
    assert len(cells) == len(world.cells)
    assert cells.features.shape[1] == 24
    assert tiles_.features.shape[1] == 48
    assert cells.encoder_id == tiles_.encoder_id
    too_fine = replace(chosen, vit=replace(chosen.vit, mpp=0.2))
    with pytest.raises(ConfigError, match=r"at 0\.2 µm/px.*prepare\.vit\.mpp to 0\.25 or more"):
        prepare_slide(world.slide, None, too_fine)
