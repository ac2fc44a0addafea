"""Any Vision Transformer that `transformers` loads: DINOv3, DINOv2, from a folder or hub id."""

import hashlib
import inspect
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from histoscribe.errors import ConfigError, DataError, MismatchError, MissingExtra
from histoscribe.preprocess.encoders.encoder import EncoderIdentity

VitPooling = Literal["patch-mean", "cls+patch-mean"]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # where the model states none
AT_ONCE = {"cpu": 32, "cuda": 256}


@dataclass(frozen=True)
class VitConfig:
    """How tiles are shown to a Vision Transformer.

    Attributes:
        pooling: "patch-mean" is the mean over the last layer's patch tokens, without CLS and
            registers, as the BiTro paper has it; "cls+patch-mean" puts the CLS token before it.
        tile_um: Side of a cell's tile.
        input_px: Side of what the network sees, a multiple of its patch (224 is one of 14 and
            of 16); smaller is faster and shows the same tile.
        mpp: Resolution the tile is read at before it is brought to `input_px`, µm per pixel.
    """

    pooling: VitPooling = "patch-mean"
    tile_um: float = 24.0
    input_px: int = 224
    mpp: float = 0.5

    def __post_init__(self) -> None:
        if self.pooling not in get_args(VitPooling):
            known = " or ".join(get_args(VitPooling))
            raise ConfigError(f"prepare.vit.pooling = {self.pooling!r}; give {known}")
        for name in ("tile_um", "mpp"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"prepare.vit.{name} = {getattr(self, name)}; give a finite number above 0"
                )
        if self.input_px < 1:
            raise ConfigError(f"prepare.vit.input_px = {self.input_px}; give 1 or more")
        if round(self.tile_um / self.mpp) < 1:
            raise ConfigError(
                f"prepare.vit.tile_um = {self.tile_um:g} is less than a pixel of "
                f"prepare.vit.mpp = {self.mpp:g}; give a larger tile or a smaller mpp"
            )


class VitEncoder:
    """Describes tiles by the patch tokens of a Vision Transformer's last layer.

    Tiles are resized with area filtering (bilinear, antialiased) and normalised as the model's
    `preprocessor_config.json` says.

    Attributes:
        identity: Model, input size, weights hash, pooling, tile and mpp.
        tile_px: Side of a cell's tile as it is read.
        input_px: Side of what the network sees.
    """

    kind: ClassVar[Literal["tile"]] = "tile"

    def __init__(
        self,
        model: nn.Module,
        name: str,
        weights_sha256: str,
        config: VitConfig,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: From `AutoModel`; its output has `last_hidden_state`.
            name: What the identity calls it.
            weights_sha256: Hash of the weights.
            config: How tiles are shown to it.
            normalisation: Mean and standard deviation of each channel, of values in 0 to 1.

        Raises:
            ConfigError: Not a Vision Transformer with patches, or an input it cannot take.
        """
        shape: Any = model.config
        if not hasattr(shape, "patch_size") or not isinstance(shape.patch_size, int):
            raise ConfigError(
                f"{name} has no square patches: wanted a Vision Transformer such as DINOv2, DINOv3"
            )
        self.patch_px = shape.patch_size
        # CLS first, then the registers, then the patches: so in DINOv2, with registers, DINOv3.
        self.n_prefix = 1 + int(getattr(shape, "num_register_tokens", 0) or 0)
        self.input_px = config.input_px
        self.tile_px = round(config.tile_um / config.mpp)
        if self.input_px % self.patch_px:
            raise ConfigError(
                f"{name} sees patches of {self.patch_px} px, of which prepare.vit.input_px = "
                f"{self.input_px} is no multiple; give one, such as {16 * self.patch_px}"
            )
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.eval().to(self.device)
        self.mean, self.std = (
            torch.tensor(values, device=self.device)[:, None, None] for values in normalisation
        )
        takes = inspect.signature(model.forward).parameters
        # DINOv2 and DINOv3 take any size by themselves, the first ViT only if it is asked to.
        asked = "interpolate_pos_encoding" in takes
        self.options = {"interpolate_pos_encoding": True} if asked else {}
        self.hidden_size = int(shape.hidden_size)
        n_features = self.hidden_size * (2 if config.pooling == "cls+patch-mean" else 1)
        self.identity = EncoderIdentity(
            f"vit:{name}-{self.input_px}px",
            weights_sha256[:12],
            config.pooling,
            config.tile_um,
            config.mpp,
            n_features,
        )

    def encode(self, tiles: UInt8[np.ndarray, "tile y x 3"]) -> Float32[np.ndarray, "tile feature"]:
        """Features of tiles of `tile_px` pixels that were read at `identity.mpp`."""
        found = [self.pool(tokens) for tokens in self.tokens(tiles, self.input_px)]
        if not found:
            return np.zeros((0, self.identity.n_features), np.float32)
        return torch.cat(found).cpu().numpy()

    def encode_squares(
        self, squares: UInt8[np.ndarray, "tile y x 3"]
    ) -> Float32[np.ndarray, "tile feature"]:
        """Mean patch token of squares of any size, then the patch tokens' standard deviation.

        They are enlarged as much as a cell's tile is, up to a whole number of patches.
        """
        scale = self.input_px / self.tile_px
        n_patches = max(1, round(squares.shape[1] * scale / self.patch_px))
        found: list[Tensor] = []
        for tokens in self.tokens(squares, n_patches * self.patch_px):
            patches = tokens[:, self.n_prefix :]
            found.append(torch.cat([patches.mean(dim=1), patches.std(dim=1, correction=0)], dim=1))
        if not found:
            return np.zeros((0, 2 * self.hidden_size), np.float32)
        return torch.cat(found).cpu().numpy()

    def pool(self, tokens: Float[Tensor, "tile token d"]) -> Float[Tensor, "tile feature"]:
        """The last layer's tokens to one vector a tile."""
        patch_mean = tokens[:, self.n_prefix :].mean(dim=1)
        if self.config.pooling == "patch-mean":
            return patch_mean
        return torch.cat([tokens[:, 0], patch_mean], dim=1)

    def tokens(
        self, tiles: UInt8[np.ndarray, "tile y x 3"], input_px: int
    ) -> Iterator[Float[Tensor, "batch token d"]]:
        """The last layer's tokens, batch by batch."""
        at_once = AT_ONCE[self.device.type]
        for start in range(0, len(tiles), at_once):
            yield self.look(torch.from_numpy(tiles[start : start + at_once]), input_px)

    @torch.inference_mode()
    def look(
        self, tiles: UInt8[Tensor, "tile y x 3"], input_px: int
    ) -> Float[Tensor, "tile token d"]:
        """One pass of the network: CLS, registers, then the patches of the last layer."""
        pixels = tiles.to(self.device).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, size=(input_px, input_px), mode="bilinear", antialias=True)
        shown = (pixels - self.mean) / self.std
        tokens = self.model(pixel_values=shown, **self.options).last_hidden_state
        n_tokens = self.n_prefix + (input_px // self.patch_px) ** 2
        if tokens.shape[1] != n_tokens:
            raise MismatchError(
                f"{self.identity.name} answers with {tokens.shape[1]} tokens where CLS, registers "
                f"and patches are {n_tokens}: its tokens are laid out in another way"
            )
        return tokens


def load_vit(source: str, config: VitConfig | None = None) -> VitEncoder:
    """Load a Vision Transformer from a folder, or from the hub by its id.

    Only safetensors are read and no code of the model's repository is run.

    Args:
        source: A folder with `config.json` and `*.safetensors`, or a hub id.
        config: How tiles are shown to it.

    Raises:
        MissingExtra: Neither a folder nor to be had from the hub (offline, gated, misspelt).
        DataError: The folder lacks a file.
        MismatchError: The weights do not fill the model that `config.json` describes.
    """
    folder = Path(source) if Path(source).is_dir() else fetch(source)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise DataError(
            f"{folder} holds {len(weights)} *.safetensors and "
            f"{'a' if (folder / 'config.json').is_file() else 'no'} config.json; wanted both, as "
            "save_pretrained writes them"
        )
    name = folder.resolve().name if Path(source).is_dir() else source.split("/")[-1]
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    normalisation = read_normalisation(folder)
    if normalisation != IMAGENET:  # the same weights that see other numbers are another encoder
        digest.update(json.dumps(normalisation).encode())
    return VitEncoder(
        load_model(folder), name, digest.hexdigest(), config or VitConfig(), normalisation
    )


def fetch(hub_id: str) -> Path:
    """The folder of the hub's cache that holds a model, filled from the hub where need be."""
    from huggingface_hub import snapshot_download  # only here: the hub is an outside service

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise MissingExtra(
            f"no folder {hub_id!r}, and the hub does not give a model of that name "
            f"({type(error).__name__}). On a machine without network copy the model's folder here "
            "and give its path; for a gated model accept its terms and log in first"
        ) from error


def load_model(folder: Path) -> nn.Module:
    """The model with all its weights, or an error."""
    from transformers import AutoModel  # slow to import, and needed by this backend alone

    try:
        model, report = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise MismatchError(
            f"{folder}: the weights do not load into the model of config.json: {error}"
        ) from error
    wrong = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if wrong:
        raise MismatchError(
            f"{folder}: {len(wrong)} weights of the model are missing or of another shape, e.g. "
            f"{wrong[0]}; config.json and the safetensors do not belong together"
        )
    return model


def read_normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation from `preprocessor_config.json`, ImageNet's where there is none."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return IMAGENET
    stated = json.loads(path.read_text())
    mean = tuple(map(float, stated.get("image_mean", IMAGENET[0])))
    std = tuple(map(float, stated.get("image_std", IMAGENET[1])))
    return mean, std
