import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from histoscribe.errors import ConfigError, DataError, MismatchError, MissingExtra
from histoscribe.preprocess.encoders.networks.hub_network import load_hub_network
from histoscribe.preprocess.encoders.networks.patch_network import PatchNetwork
from histoscribe.preprocess.encoders.networks.vit_presets import IMAGENET

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}


def dinov3():
    torch.manual_seed(4)
    model = DINOv3ViTModel(
        DINOv3ViTConfig(**SMALL, intermediate_size=40, num_register_tokens=4, patch_size=16)
    )
    torch.nn.init.normal_(model.embeddings.register_tokens, std=5.0)
    return model.eval()


def dinov2():
    torch.manual_seed(4)
    return Dinov2Model(Dinov2Config(**SMALL, patch_size=14, image_size=70)).eval()


def with_registers():
    torch.manual_seed(4)
    config = Dinov2WithRegistersConfig(**SMALL, patch_size=14, image_size=70, num_register_tokens=4)
    return Dinov2WithRegistersModel(config).eval()


def vit_without_pooler():
    """As Phikon is published."""
    torch.manual_seed(4)
    config = ViTConfig(**SMALL, intermediate_size=40, patch_size=16, image_size=64)
    return ViTModel(config, add_pooling_layer=False).eval()


def classifier():
    torch.manual_seed(4)
    config = ViTConfig(**SMALL, intermediate_size=40, patch_size=16, image_size=64)
    return ViTForImageClassification(config).eval()


def noise(height, width, seed=2):
    return torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("make", "n_prefix", "patch_px"),
    [
        (dinov3, 5, 16),
        (dinov2, 1, 14),
        (with_registers, 5, 14),
        (vit_without_pooler, 1, 16),
        (classifier, 1, 16),
    ],
)
def test_cls_and_patches_are_laid_out_and_registers_dropped(tmp_path, make, n_prefix, patch_px):
    model = make()
    model.save_pretrained(tmp_path)
    network = load_hub_network(str(tmp_path), "cpu")
    assert isinstance(network, PatchNetwork)
    pixels = noise(3 * patch_px, 5 * patch_px)
    looked = network.look(network.normalise(pixels))
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    shown = (pixels - mean) / std
    inner = getattr(model, "vit", model)
    options = {"interpolate_pos_encoding": True} if isinstance(inner, ViTModel) else {}
    with torch.no_grad():
        tokens = inner(pixel_values=shown, **options).last_hidden_state
    assert tokens.shape[1] == n_prefix + 15
    assert looked.cls is not None
    torch.testing.assert_close(looked.cls, tokens[:, 0], rtol=1e-4, atol=1e-5)
    assert looked.map.shape == (3, 24, 3, 5)
    for row in range(3):
        for column in range(5):
            wanted = tokens[:, n_prefix + 5 * row + column]
            torch.testing.assert_close(looked.map[:, :, row, column], wanted, rtol=1e-4, atol=1e-5)


def test_the_facts_are_the_folder_s(tmp_path):
    folder = tmp_path / "some-vit"
    dinov3().save_pretrained(folder)
    facts = load_hub_network(str(folder), "cpu").facts
    assert (facts.name, facts.licence) == ("some-vit", "not stated")
    assert (facts.patch_px, facts.step_px, facts.n_channels) == (16, 16, 24)
    assert len(facts.weights_sha256) == 64
    (folder / "README.md").write_text("---\ntags:\n- x\nlicense: apache-2.0\n---\n# A model\n")
    assert load_hub_network(str(folder), "cpu").facts.licence == "apache-2.0"
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: dinov3\n---\n")
    assert load_hub_network(str(folder), "cpu").facts.licence == "dinov3"


def test_the_hash_knows_weights_and_normalisation(tmp_path):
    model = dinov3()
    model.save_pretrained(tmp_path)
    usual = load_hub_network(str(tmp_path), "cpu").facts
    stated = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    network = load_hub_network(str(tmp_path), "cpu")
    assert network.facts.mean == (0.5, 0.4, 0.3)
    assert network.facts.weights_sha256 != usual.weights_sha256
    pixels = noise(16, 32)
    wanted = (pixels - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / 0.2
    torch.testing.assert_close(network.normalise(pixels), wanted)
    (tmp_path / "preprocessor_config.json").unlink()
    with torch.no_grad():
        model.embeddings.cls_token += 1
    model.save_pretrained(tmp_path)
    assert load_hub_network(str(tmp_path), "cpu").facts.weights_sha256 != usual.weights_sha256


@pytest.mark.parametrize(
    ("key", "value", "is_other"),
    [
        ("num_attention_heads", 1, True),
        ("hidden_act", "relu", True),
        ("rope_theta", 10.0, True),
        ("transformers_version", "0.0.1", False),
        ("architectures", ["AnyName"], False),
    ],
)
def test_the_hash_knows_the_architecture(key, value, is_other, tmp_path):
    """The same weights give other features with other heads, activations or angles."""
    dinov3().save_pretrained(tmp_path)
    usual = load_hub_network(str(tmp_path), "cpu").facts
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    other = load_hub_network(str(tmp_path), "cpu").facts
    assert (other.weights_sha256 != usual.weights_sha256) == is_other


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("vit_giant_patch14_reg4_dinov2", "h-optimus-0:.*or another of h-optimus-1"),
        ("vit_large_patch16_224", "uni:"),
        ("vit_of_nobody", "or another of uni2-h, h-optimus-0"),
    ],
)
def test_a_folder_in_timm_s_naming_names_our_loader(tmp_path, architecture, said):
    """Also where it calls itself "dinov2", as H-optimus-0 does."""
    config = {"architecture": architecture, "model_type": "dinov2", "num_features": 1536}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=said):
        load_hub_network(str(tmp_path))


def add_weights(folder: Path, **extra: torch.Tensor) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(state | extra, folder / "model.safetensors", {"format": "pt"})


def test_weights_without_a_place_are_refused(tmp_path):
    dinov2().save_pretrained(tmp_path)
    add_weights(tmp_path, **{"embeddings.surprise": torch.ones(2)})
    with pytest.raises(MismatchError, match=r"1 weights have no place.*embeddings\.surprise"):
        load_hub_network(str(tmp_path))


def test_a_file_deeper_than_its_config_is_refused(tmp_path):
    vit_without_pooler().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MismatchError, match="16 weights have no place"):
        load_hub_network(str(tmp_path))


def test_dinov2_that_has_registers_keeps_them(tmp_path):
    """As Hibou's folder is: model_type "dinov2", with registers in config and file."""
    model = with_registers()
    torch.nn.init.normal_(model.embeddings.register_tokens, std=5.0)
    model.save_pretrained(tmp_path)
    wanted = load_hub_network(str(tmp_path), "cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "dinov2", "architectures": ["Dinov2ModelWithRegisters"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    got = load_hub_network(str(tmp_path), "cpu")
    pixels = wanted.normalise(noise(42, 70))
    torch.testing.assert_close(got.look(pixels).map, wanted.look(pixels).map, rtol=0, atol=0)
    assert got.n_prefix == 5


def test_broken_folders_are_refused(tmp_path):
    folder = tmp_path / "vit"
    dinov3().save_pretrained(folder)
    network = load_hub_network(str(folder), "cpu")
    with pytest.raises(ConfigError, match="67 x 64 px; wanted sides that are multiples of 16"):
        network.look(torch.zeros(1, 3, 64, 67))
    config = folder / "config.json"
    plain = config.read_text()
    config.write_text(plain.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(MismatchError, match="missing"):
        load_hub_network(str(folder))
    config.write_text(plain.replace('"intermediate_size": 40', '"intermediate_size": 44'))
    with pytest.raises(MismatchError, match="weights"):
        load_hub_network(str(folder))
    config.write_text(plain[:-9])
    with pytest.raises(DataError, match="no JSON"):
        load_hub_network(str(folder))
    config.write_text(plain)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    with pytest.raises(DataError, match="three channels"):
        load_hub_network(str(folder))
    (folder / "preprocessor_config.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="wanted both"):
        load_hub_network(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="wanted both"):
        load_hub_network(str(tmp_path / "empty"))


def test_a_network_without_patches_is_refused(tmp_path):
    torch.manual_seed(4)
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no square patches"):
        load_hub_network(str(tmp_path))


def test_offline_a_hub_id_is_missing(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingExtra, match="without network"):
        load_hub_network("no-such-owner/no-such-model")
