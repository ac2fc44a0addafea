"""Published Vision Transformers by name, from a file the user has."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.preprocess.encoders.networks.patch_network import NetworkFacts
from histoscribe.preprocess.encoders.networks.token_network import TokenNetwork
from histoscribe.preprocess.encoders.networks.vit_network import VitNetwork
from histoscribe.preprocess.encoders.networks.vit_presets import VIT_PRESETS, VitPreset
from histoscribe.preprocess.weights import convert_foreign, sha256_of

FILES = ("model.safetensors", "pytorch_model.bin")  # in a folder, the first that is there
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
SHOWN = 3  # keys that an error names


def load_named_network(
    name: str, path: Path, device: str | None = None, cache_dir: Path | None = None
) -> TokenNetwork:
    """Load a published checkpoint, in the naming its authors publish it in.

    Args:
        name: One of `VIT_PRESETS`, e.g. "uni2-h".
        path: A `.safetensors`, `.bin`, `.pth` or `.pt` file, or a folder that holds one. Files of
            PyTorch's own format are turned into safetensors once, in the weights cache.
        device: PyTorch device; by default the GPU if PyTorch sees one, else the CPU.
        cache_dir: The weights cache; the default is `weights.default_cache()`.

    Raises:
        ConfigError: No such name.
        DataError: No such file, or none that can be read.
        MismatchError: A key is missing, is not of this model, or has another shape.
    """
    preset = find_preset(name)
    file = find_file(path)
    if file.suffix == ".safetensors":
        tensors, digest = read_safetensors(file), sha256_of(file)
    else:
        converted, digest = convert_foreign(file, cache_dir)
        tensors = read_safetensors(converted)
    model = fill(name, preset, tensors, file)
    return TokenNetwork(
        model, model.forward, preset.shape.n_prefix, facts_of(name, preset, digest), device
    )


def find_preset(name: str) -> VitPreset:
    """Look a name up."""
    if name not in VIT_PRESETS:
        raise ConfigError(f"no checkpoint is called {name!r}; there are {', '.join(VIT_PRESETS)}")
    return VIT_PRESETS[name]


def facts_of(name: str, preset: VitPreset, weights_sha256: str) -> NetworkFacts:
    """What identifies the network."""
    shape = preset.shape
    return NetworkFacts(
        name=name,
        weights_sha256=weights_sha256,
        licence=preset.licence,
        mean=preset.normalisation[0],
        std=preset.normalisation[1],
        patch_px=shape.patch_px,
        step_px=shape.patch_px,
        n_channels=shape.width,
        native_mpp=preset.mpp,
        native_px=shape.native_px,
        least_px=shape.patch_px,
    )


def find_file(path: Path) -> Path:
    """The one weights file that a path stands for."""
    if path.is_dir():
        for name in FILES:
            if (path / name).is_file():
                return path / name
        found = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES)
        if len(found) == 1:
            return found[0]
        raise DataError(
            f"{path} holds {len(found)} weights files; wanted {' or '.join(FILES)}, or one file of "
            f"{', '.join(SUFFIXES)}. Give the file itself"
        )
    if not path.is_file() or path.suffix not in SUFFIXES:
        what = f"a file of type {path.suffix!r}" if path.is_file() else "no file"
        raise DataError(f"{path} is {what}; wanted weights: {', '.join(SUFFIXES)}, or their folder")
    return path


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as safetensors: {error}. Bring the file again"
        ) from error


def fill(name: str, preset: VitPreset, tensors: Mapping[str, Tensor], path: Path) -> VitNetwork:
    """The network with the file's weights, every one of which has its place.

    Raises:
        MismatchError: A key is missing, is not of this model, or has another shape.
    """
    with torch.device("meta"):
        model = VitNetwork(preset.shape)
    wanted = published_keys(model, preset)
    peeled, prefix = peel(tensors, preset)
    came = {key: value for key, value in peeled.items() if not key.startswith(preset.ignored)}
    faults = {
        "missing": [prefix + key for key in wanted if key not in came],
        "not of this model": [key for key in came if key not in wanted],
        "of another shape": [
            f"{prefix}{key} {list(came[key].shape)}, not {list(shape)}"
            for key, (_, shape) in wanted.items()
            if key in came and tuple(came[key].shape) != shape
        ],
    }
    if any(faults.values()):
        raise MismatchError(
            f"{path} is no {name} as {preset.source} publishes it: "
            + "; ".join(f"{len(keys)} keys {what}{shown(keys)}" for what, keys in faults.items())
            + ". Give the name that belongs to the file, or the file that belongs to the name"
        )
    state = {wanted[key][0]: value.float() for key, value in came.items()}
    model.load_state_dict(state, assign=True)
    return model


def published_keys(model: VitNetwork, preset: VitPreset) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The file's name of every parameter -> ours, and its shape."""
    keys = {}
    for ours, value in model.state_dict().items():
        theirs = ours
        for our_part, their_part in preset.renamed:
            theirs = theirs.replace(our_part, their_part)
        keys[theirs] = (ours, tuple(value.shape))
    return keys


def peel(tensors: Mapping[str, Tensor], preset: VitPreset) -> tuple[dict[str, Tensor], str]:
    """Take off what stands before the transformer's keys; other keys stay as they are."""
    peeled = {key.removeprefix("module."): value for key, value in tensors.items()}
    for prefix in preset.prefixes:
        if any(key.startswith(prefix) for key in peeled):
            return {key.removeprefix(prefix): value for key, value in peeled.items()}, prefix
    return peeled, ""


def shown(keys: list[str]) -> str:
    """The first few in brackets, nothing for none."""
    more = ", ..." if len(keys) > SHOWN else ""
    return f" ({', '.join(keys[:SHOWN])}{more})" if keys else ""


def names_for(architecture: str) -> list[str]:
    """Names whose folders say this architecture, in timm's naming; all names if none does."""
    same = [name for name, preset in VIT_PRESETS.items() if preset.timm == architecture]
    return same or list(VIT_PRESETS)
