"""Any Vision Transformer that `transformers` loads: DINOv3, DINOv2, ViT; a folder or a hub id."""

import hashlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from histoscribe.errors import ConfigError, DataError, MismatchError, MissingExtra
from histoscribe.preprocess.encoders.networks.patch_network import NetworkFacts, Triple
from histoscribe.preprocess.encoders.networks.token_network import TokenNetwork
from histoscribe.preprocess.encoders.networks.vit_checkpoints import names_for
from histoscribe.preprocess.encoders.networks.vit_presets import IMAGENET
from histoscribe.preprocess.weights import sha256_of

NATIVE_MPP = 0.5  # where tissue encoders are trained most; no folder states it
NATIVE_PX = 224  # where the folder states none
UNUSED = ("pooler.", "classifier.", "head.")  # no patch token passes through them
UNUSED_END = "mask_token"  # of the training task alone
SAYS_NOTHING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Entries of `config.json` that change no feature: what wrote it, and for which task."""


def load_hub_network(source: str, device: str | None = None) -> TokenNetwork:
    """Load a Vision Transformer from a folder, or from the hub by its id.

    Only safetensors are read and no code of the model's repository is run.

    Args:
        source: A folder with `config.json` and `*.safetensors`, or a hub id.
        device: PyTorch device; by default the GPU if PyTorch sees one, else the CPU.

    Raises:
        ConfigError: A checkpoint in timm's naming, which is loaded by its own name; or a model
            without square patches.
        MissingExtra: Neither a folder nor to be had from the hub (offline, gated, misspelt).
        DataError: The folder lacks a file.
        MismatchError: The weights do not fill the model that `config.json` describes.
    """
    folder = Path(source) if Path(source).is_dir() else fetch(source)
    config = read_config(folder, source)
    name = folder.resolve().name if Path(source).is_dir() else source.split("/")[-1]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(
            f"{folder} holds a config.json and 0 *.safetensors; wanted both, as save_pretrained "
            "writes them"
        )
    normalisation = read_normalisation(folder)
    digest = hash_weights(files, normalisation, config)
    model = load_model(folder, config)
    shape: Any = model.config
    patch_px = getattr(shape, "patch_size", None)
    if not isinstance(patch_px, int):
        raise ConfigError(
            f"{name} has no square patches: wanted a Vision Transformer such as DINOv2, DINOv3"
        )
    facts = NetworkFacts(
        name=name,
        weights_sha256=digest,
        licence=read_licence(folder),
        mean=normalisation[0],
        std=normalisation[1],
        patch_px=patch_px,
        step_px=patch_px,
        n_channels=int(shape.hidden_size),
        native_mpp=NATIVE_MPP,
        native_px=NATIVE_PX // patch_px * patch_px,
        least_px=patch_px,
    )
    # CLS first, then the registers, then the patches: so in DINOv2, with registers, DINOv3.
    n_prefix = 1 + int(getattr(shape, "num_register_tokens", 0) or 0)
    takes = inspect.signature(model.forward).parameters
    # DINOv2 and DINOv3 take any size by themselves, the first ViT only if it is asked to.
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def tokens_of(pixels: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b token d"]:
        return model(pixel_values=pixels, **options).last_hidden_state

    return TokenNetwork(model, tokens_of, n_prefix, facts, device)


def fetch(hub_id: str) -> Path:
    """The folder of the hub's cache that holds a model, filled from the hub where need be."""
    from huggingface_hub import snapshot_download  # only here: the hub is an outside service

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "README.md"])
        )
    except (OSError, ValueError) as error:
        raise MissingExtra(
            f"no folder {hub_id!r}, and the hub does not give a model of that name "
            f"({type(error).__name__}). On a machine without network copy the model's folder here "
            "and give its path; for a gated model accept its terms and log in first"
        ) from error


def read_config(folder: Path, source: str) -> dict[str, Any]:
    """`config.json`, if it is one of `transformers`."""
    path = folder / "config.json"
    if not path.is_file():
        n_files = len(list(folder.glob("*.safetensors")))
        raise DataError(
            f"{folder} holds {n_files} *.safetensors and no config.json; wanted both, as "
            f"save_pretrained writes them. A published checkpoint without one is loaded by its "
            f"name, NAME:{source} with {', '.join(names_for(''))}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}. Bring the file again") from error
    # H-optimus-0 says "model_type" too, so that this key alone tells them apart.
    if isinstance(config, dict) and isinstance(architecture := config.get("architecture"), str):
        names = names_for(architecture)
        raise ConfigError(
            f"{source} is a checkpoint in timm's naming (architecture {architecture}), not a model "
            f"of transformers; give it by its name, {names[0]}:{source}"
            + (f", or another of {', '.join(names[1:])}" if len(names) > 1 else "")
        )
    return config


def hash_weights(
    files: list[Path], normalisation: tuple[Triple, Triple], config: dict[str, Any]
) -> str:
    """SHA-256 over the SHA-256 of every file, and what `config.json` says of the network.

    The same weights in another architecture (heads, activation, angles), or that see their input
    otherwise, are another network's.
    """
    digest = hashlib.sha256()
    for path in files:
        digest.update(bytes.fromhex(sha256_of(path)))
    shape = {key: value for key, value in config.items() if key not in SAYS_NOTHING}
    digest.update(json.dumps(shape, sort_keys=True).encode())
    if normalisation != IMAGENET:
        digest.update(json.dumps(normalisation).encode())
    return digest.hexdigest()


def load_model(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The model with all its weights, or an error."""
    import transformers  # slow to import, and needed by this backend alone

    options: dict[str, Any] = {
        "dtype": torch.float32,
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    load: Any = transformers.AutoModel
    if config.get("model_type") == "dinov2" and config.get("num_register_tokens"):
        # Hibou calls its DINOv2 with registers "dinov2", and AutoModel would drop them.
        said = {key: value for key, value in config.items() if key != "model_type"}
        options["config"] = transformers.Dinov2WithRegistersConfig.from_dict(said)
        load = transformers.Dinov2WithRegistersModel
    try:
        model, report = load.from_pretrained(folder, **options)
    except (RuntimeError, ValueError, OSError, ImportError) as error:
        raise MismatchError(
            f"{folder}: the weights do not load into the model of config.json: {error}"
        ) from error
    check_report(folder, report)
    return model


def check_report(folder: Path, report: dict[str, Any]) -> None:
    """MismatchError if a weight of the model, or of the files, found no place."""
    unfilled = needed(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if unfilled:
        raise MismatchError(
            f"{folder}: {len(unfilled)} weights of the model are missing or of another shape, e.g. "
            f"{unfilled[0]}; config.json and the safetensors do not belong together"
        )
    left = needed(report["unexpected_keys"])
    if left:
        raise MismatchError(
            f"{folder}: {len(left)} weights have no place in the model of config.json, e.g. "
            f"{left[0]}; it describes another model than the one that was trained"
        )


def needed(keys: set[str] | list[str]) -> list[str]:
    """Without what no patch token depends on."""
    return sorted(
        key for key in keys if not key.startswith(UNUSED) and not key.endswith(UNUSED_END)
    )


def read_normalisation(folder: Path) -> tuple[Triple, Triple]:
    """Mean and deviation from `preprocessor_config.json`, ImageNet's where there is none."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return IMAGENET
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        red, green, blue = map(float, stated.get("image_mean", IMAGENET[0]))
        of_red, of_green, of_blue = map(float, stated.get("image_std", IMAGENET[1]))
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} states no mean and deviation of three channels: {error}. Bring the file again"
        ) from error
    return (red, green, blue), (of_red, of_green, of_blue)


def read_licence(folder: Path) -> str:
    """What the head of the folder's model card says, else "not stated"."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    stated = dict(
        re.findall(r"^(license(?:_name)?): *(\S.*?) *$", head[1], re.MULTILINE) if head else []
    )
    return stated.get("license_name") or stated.get("license") or "not stated"
