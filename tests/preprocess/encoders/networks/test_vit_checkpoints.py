import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.preprocess import weights
from histoscribe.preprocess.encoders.networks import vit_presets
from histoscribe.preprocess.encoders.networks.patch_network import PatchNetwork
from histoscribe.preprocess.encoders.networks.token_network import TokenNetwork
from histoscribe.preprocess.encoders.networks.vit_checkpoints import (
    load_named_network,
    published_keys,
)
from histoscribe.preprocess.encoders.networks.vit_network import VitNetwork
from histoscribe.preprocess.encoders.networks.vit_presets import VIT_PRESETS, VitPreset

PUBLISHED = json.loads((Path(__file__).parent / "vit_keys.json").read_text())["presets"]


def published_shapes(name):
    listed = PUBLISHED[name]
    shapes = dict(listed["once"])
    for index in range(listed["depth"]):
        for key, shape in listed["in_each_block"].items():
            shapes[f"blocks.{index}.{key}"] = shape
    assert len(shapes) == listed["n_tensors"]
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == listed["n_values"]
    return {key: tuple(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", VIT_PRESETS)
def test_every_published_key_has_its_place_at_true_size(name):
    preset = VIT_PRESETS[name]
    with torch.device("meta"):
        network = VitNetwork(preset.shape)
    wanted = {key: shape for key, (_, shape) in published_keys(network, preset).items()}
    assert wanted == published_shapes(name)


def test_the_lists_cover_the_presets_and_nothing_else():
    assert set(PUBLISHED) == set(VIT_PRESETS)


@pytest.mark.parametrize("name", VIT_PRESETS)
def test_a_preset_is_whole(name):
    preset = VIT_PRESETS[name]
    assert preset.shape.native_px % preset.shape.patch_px == 0
    assert preset.shape.width % preset.shape.n_heads == 0
    assert preset.licence
    assert preset.timm
    assert all(0 < value < 1 for triple in preset.normalisation for value in triple)
    if "NC" in preset.licence:
        assert "non-commercial" in preset.licence


def test_what_the_shapes_cannot_say_is_as_published():
    """Heads, gates, positions and input: a mistake here loads without a word."""
    shapes = {name: preset.shape for name, preset in VIT_PRESETS.items()}
    assert {name for name in shapes if shapes[name].width // shapes[name].n_heads == 80} == {
        "virchow",
        "virchow2",
    }
    gated = {"uni2-h", "h-optimus-0", "h-optimus-1", "virchow", "virchow2", "gigapath"}
    giant = {"vit_giant_patch14_dinov2", "vit_giant_patch14_reg4_dinov2"}
    assert {name for name in shapes if shapes[name].mlp == "swiglu"} == gated | giant
    assert {name: shapes[name].n_prefix for name in ("uni", "uni2-h", "h-optimus-0")} == {
        "uni": 1,
        "uni2-h": 9,
        "h-optimus-0": 5,
    }
    assert shapes["virchow2"].positions == "table"
    assert shapes["uni2-h"].positions == "patch-table"
    assert VIT_PRESETS["h-optimus-1"].normalisation == vit_presets.H_OPTIMUS
    assert VIT_PRESETS["conch"].normalisation == vit_presets.CLIP
    for name in ("uni", "uni2-h", "virchow", "virchow2", "gigapath"):
        assert VIT_PRESETS[name].normalisation == vit_presets.IMAGENET
    assert {s.eps for n, s in shapes.items() if "dinov3" in n} == {1e-5}
    assert {s.eps for n, s in shapes.items() if "dinov3" not in n} == {1e-6}


def shrunk(name: str) -> VitPreset:
    """A preset with its layout, three blocks deep and few channels wide."""
    preset = VIT_PRESETS[name]
    shape = dataclasses.replace(
        preset.shape, depth=3, width=24, n_heads=3, native_px=3 * preset.shape.patch_px, mlp_rows=20
    )
    return dataclasses.replace(preset, shape=shape)


@pytest.fixture(params=["uni", "uni2-h", "virchow2", "conch", "vit_small_patch16_dinov3_qkvb"])
def small(request, monkeypatch):
    """A small preset, and weights in its published naming (without a prefix)."""
    preset = shrunk(request.param)
    monkeypatch.setitem(VIT_PRESETS, request.param, preset)
    generator = torch.Generator().manual_seed(6)
    state = {
        key: 0.3 * torch.randn(shape, generator=generator)
        for key, (_, shape) in published_keys(VitNetwork(preset.shape), preset).items()
    }
    return request.param, preset, state


def look_of(network: TokenNetwork, preset: VitPreset):
    side = 4 * preset.shape.patch_px
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    return network.look(network.normalise(pixels))


def test_one_content_in_every_wrapping_is_one_network(small, tmp_path):
    name, preset, state = small
    save_file(state, tmp_path / "model.safetensors")
    plain = load_named_network(name, tmp_path, "cpu")
    assert isinstance(plain, PatchNetwork)
    wanted = look_of(plain, preset)
    assert wanted.map.shape == (2, 24, 4, 4)
    assert wanted.cls is not None
    for index, (prefix, wrap) in enumerate(
        [("", None), ("module.", "model"), ("module.", "state_dict")]
    ):
        prefix += preset.prefixes[0] if preset.prefixes else ""
        content = {prefix + key: value for key, value in state.items()}
        content[prefix + "head.weight"] = torch.ones(2, 24)
        folder = tmp_path / str(index)
        folder.mkdir()
        path = folder / "pytorch_model.bin"
        torch.save({wrap: content, "epoch": 3} if wrap else content, path)
        network = load_named_network(name, folder, "cpu", tmp_path / "cache")
        assert network.facts.weights_sha256 == weights.sha256_of(path)
        looked = look_of(network, preset)
        torch.testing.assert_close(looked.map, wanted.map, rtol=0, atol=0)
        torch.testing.assert_close(looked.cls, wanted.cls, rtol=0, atol=0)


def test_a_half_precision_file_is_computed_in_float32(small, tmp_path):
    name, preset, state = small
    half = {key: value.half() for key, value in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    save_file({key: v.float() for key, v in half.items()}, tmp_path / "whole.safetensors")
    one, two = (
        look_of(load_named_network(name, tmp_path / f"{file}.safetensors", "cpu"), preset)
        for file in ("half", "whole")
    )
    assert torch.equal(one.map, two.map)
    assert one.map.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("blocks.1.attn.proj.bias"), r"1 keys missing \(.*blocks\.1\.attn"),
        (lambda state: state.update(extra=torch.ones(1)), r"1 keys not of this model \(extra\)"),
        (
            lambda state: state.update({"norm.weight": torch.ones(25)}),
            r"1 keys of another shape \(norm\.weight \[25\], not \[24\]\)",
        ),
        (
            lambda state: [
                state.pop(f"blocks.{i}.mlp.fc{j}.bias") for i in range(3) for j in (1, 2)
            ],
            r"6 keys missing \(.*, \.\.\.\)",
        ),
    ],
)
def test_every_key_that_does_not_fit_is_named(small, tmp_path, change, said):
    name, _, state = small
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(MismatchError, match=said):
        load_named_network(name, tmp_path, "cpu")


def test_the_weights_of_one_model_are_not_another_s(tmp_path, monkeypatch):
    """The shape of the position table alone tells Virchow2 and UNI2-h's way apart."""
    here, other = shrunk("virchow2"), shrunk("h-optimus-0")
    monkeypatch.setitem(VIT_PRESETS, "virchow2", here)
    state = VitNetwork(dataclasses.replace(other.shape, n_registers=4)).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(MismatchError, match=r"pos_embed \[1, 9, 24\], not \[1, 14, 24\]"):
        load_named_network("virchow2", tmp_path, "cpu")


def test_conch_is_found_among_its_text_half(tmp_path, monkeypatch):
    preset = shrunk("conch")
    monkeypatch.setitem(VIT_PRESETS, "conch", preset)
    state = VitNetwork(preset.shape).state_dict()
    parts = ("text.token_embedding.weight", "visual.attn_pool_contrast.query", "logit_scale")
    published = {f"visual.trunk.{key}": value for key, value in state.items()}
    published |= {key: torch.ones(2) for key in parts}
    save_file(published, tmp_path / "model.safetensors")
    assert load_named_network("conch", tmp_path, "cpu").facts.n_channels == 24
    save_file(published | {"visual.surprise": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(MismatchError, match=r"not of this model \(visual\.surprise\)"):
        load_named_network("conch", tmp_path, "cpu")


def test_the_facts_are_the_preset_s(small, tmp_path):
    name, preset, state = small
    save_file(state, tmp_path / "model.safetensors")
    facts = load_named_network(name, tmp_path, "cpu").facts
    assert (facts.name, facts.licence) == (name, preset.licence)
    assert (facts.mean, facts.std) == preset.normalisation
    assert facts.patch_px == facts.step_px == facts.least_px == preset.shape.patch_px
    assert facts.precision == "float32"


def test_pixels_are_standardised_and_odd_sides_refused(small, tmp_path):
    name, preset, state = small
    save_file(state, tmp_path / "model.safetensors")
    network = load_named_network(name, tmp_path, "cpu")
    pixels = torch.rand(1, 3, 7, 5, generator=torch.Generator().manual_seed(4))
    mean, std = (np.array(triple)[:, None, None] for triple in preset.normalisation)
    wanted = (pixels.numpy() - mean) / std
    np.testing.assert_allclose(network.normalise(pixels).numpy(), wanted, rtol=1e-5, atol=1e-6)
    side = preset.shape.patch_px
    with pytest.raises(ConfigError, match=f"multiples of {side} px"):
        network.look(torch.zeros(1, 3, side, side + 3))


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match="uni2-h"):
        load_named_network("uni3", tmp_path)
    with pytest.raises(DataError, match="holds 0 weights files"):
        load_named_network("uni", tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match="holds 2 weights files"):
        load_named_network("uni", tmp_path)
    with pytest.raises(DataError, match="is no file"):
        load_named_network("uni", tmp_path / "c.pth")
    (tmp_path / "d.onnx").write_bytes(b"")
    with pytest.raises(DataError, match=r"type '\.onnx'"):
        load_named_network("uni", tmp_path / "d.onnx")
    (tmp_path / "e.safetensors").write_bytes(b"not a header")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        load_named_network("uni", tmp_path / "e.safetensors")


def test_in_bfloat16_the_weights_are_kept_in_half_and_the_map_moves_little(small, tmp_path):
    """What a GPU does, on a CPU: autocast, with the products' weights cast once."""
    name, preset, state = small
    save_file(state, tmp_path / "model.safetensors")
    whole = load_named_network(name, tmp_path, "cpu")
    other = load_named_network(name, tmp_path, "cpu").model
    facts = dataclasses.replace(whole.facts, precision="bfloat16")
    half = TokenNetwork(other, other.forward, whole.n_prefix, facts, "cpu")
    assert {p.dtype for p in other.blocks[0].attn.parameters()} >= {torch.bfloat16}
    assert other.norm.weight.dtype == torch.float32
    wanted, got = look_of(whole, preset).map, look_of(half, preset).map
    assert got.dtype == torch.float32
    error = (got - wanted).square().mean().sqrt() / wanted.std()
    assert 0 < error < 0.03
