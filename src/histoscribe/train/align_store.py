"""An alignment's checkpoint on disk: safetensors, JSON, and adapters as peft writes them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

from histoscribe.data.bags import BagConfig
from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import RegionSize
from histoscribe.data.splits import Split
from histoscribe.errors import DataError, MismatchError
from histoscribe.models.bitro_config import BitroConfig
from histoscribe.models.trimodal import Trimodal
from histoscribe.models.trimodal_config import TrimodalConfig
from histoscribe.train.align_text import TextPart
from histoscribe.train.checkpoint import Adapters
from histoscribe.train.feature_standardiser import FeatureStandardiser
from histoscribe.train.gene_standardiser import GeneStandardiser
from histoscribe.train.lora import LoraSettings, write_config
from histoscribe.train.scaling import Scaling

FORMAT = 1
RECORD, WEIGHTS, SCALING = "align.json", "model.safetensors", "scaling.safetensors"
REFERENCE, TEXT, ADAPTERS = "reference.safetensors", "text.safetensors", "adapters"


def pack_nets(nets: Sequence[Mapping[str, Tensor]]) -> bytes:
    """Tensors of all nets in one file."""
    return pack_tensors(
        {
            f"net{number}.{name}": tensor.detach().cpu().contiguous()
            for number, net in enumerate(nets)
            for name, tensor in net.items()
        }
    )


def _unpack_nets(path: Path, n_nets: int) -> tuple[dict[str, Tensor], ...]:
    nets: list[dict[str, Tensor]] = [{} for _ in range(n_nets)]
    for name, tensor in load_tensors(path).items():
        net, _, rest = name.partition(".")
        nets[int(net.removeprefix("net"))][rest] = tensor
    return tuple(nets)


def pack_adapters(net: Trimodal, adapters: Adapters | None) -> dict[str, bytes]:
    """For each net a folder as peft writes it; nothing without adapters."""
    if adapters is None:
        return {}
    config = write_config(net, adapters.settings, adapters.base_id).encode()
    packed = {}
    for number, own in enumerate(adapters.nets):
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
        packed[_adapter_file(number)] = pack_tensors(tensors)
        packed[f"{ADAPTERS}/net{number}/adapter_config.json"] = config
    return packed


def _adapter_file(net: int) -> str:
    return f"{ADAPTERS}/net{net}/adapter_model.safetensors"


def read_parts(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a checkpoint, but for its home.

    Raises:
        DataError: If a file is missing or changed.
        KeyError, TypeError, ValueError, IndexError, OSError, SafetensorError: If it is broken.
    """
    for name, wanted in record["sha256"].items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            raise DataError(f"corrupted checkpoint: {path} is missing or changed; fit again")
    n_nets, arrays = len(record["report"]), load_arrays(folder / SCALING)
    panel, table = (_panel(record[name]) for name in ("panel", "table"))
    split, said, adapters = record["split"], dict(record["text"]), record["adapters"]
    text = {
        **said,
        "lora": LoraSettings(**said["lora"]),
        "nets": _unpack_nets(folder / TEXT, n_nets),
    }
    bags = {**record["bags"], "rings_um": tuple(record["bags"]["rings_um"])}
    return {
        "model_settings": record["model_settings"],
        "nets": _unpack_nets(folder / WEIGHTS, n_nets),
        "scaling": Scaling.from_arrays(arrays, record["target_space"]),
        "panel": panel,
        "table": table,
        "standardiser": _standardiser(arrays, table, record),
        "text": TextPart(**text),
        "bags": BagConfig(**bags),
        "encoder_id": record["encoder_id"],
        "region_size": RegionSize(**record["regions"]),
        "split": Split(tuple(split["train"]), tuple(split["test"]), split["unit"], split["seed"]),
        "settings": record["settings"],
        "report": tuple(record["report"]),
        "provenance": Provenance.from_json(json.dumps(record["provenance"])),
        "references": load_arrays(folder / REFERENCE),
        "adapters": None
        if adapters is None
        else Adapters(
            tuple(load_tensors(folder / _adapter_file(n)) for n in range(n_nets)),
            LoraSettings(**adapters["settings"]),
            adapters["base_id"],
        ),
    }


def _standardiser(
    arrays: Mapping[str, np.ndarray], table: GenePanel, record: Mapping[str, Any]
) -> GeneStandardiser | FeatureStandardiser:
    """Of genes, or of the vectors that the record names."""
    by, platforms = record.get("profile_embedding"), record["platforms"]
    if by is None:
        return GeneStandardiser.from_arrays(arrays, table, platforms)
    return FeatureStandardiser.from_arrays(arrays, by, platforms)


def _panel(record: Mapping[str, Any]) -> GenePanel:
    return GenePanel(tuple(record["ids"]), tuple(record["symbols"]), record["namespace"])


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint.

    Raises:
        DataError: If it is missing, broken, or of something else.
    """
    path = folder / RECORD
    if not path.is_file():
        if (folder / "checkpoint.json").is_file():
            raise DataError(
                f"the checkpoint at {folder} predicts expression and knows no words; fit one with "
                "'histoscribe fit --objective joint'"
            )
        raise DataError(f"no checkpoint at {folder}; run 'histoscribe fit --objective joint' first")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        is_ours = record["format"] == FORMAT and isinstance(record["sha256"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"corrupted checkpoint: {path} cannot be read; fit again") from error
    if not is_ours:
        raise DataError(f"{path} is of format {record['format']!r}, wanted {FORMAT}; fit again")
    return record


def config_of(settings: Mapping[str, Any]) -> TrimodalConfig:
    """The config of the nets, of every field of it."""
    return TrimodalConfig(**{**settings, "bitro": BitroConfig(**settings["bitro"])})


def build_net(config: TrimodalConfig, weights: Mapping[str, Tensor]) -> Trimodal:
    """A net with these weights, in eval mode.

    Raises:
        MismatchError: If they are those of another model.
    """
    with torch.random.fork_rng(devices=[]):
        net = Trimodal(config)
    try:
        net.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise MismatchError(
            f"the weights are not those of this version's model ({error}); fit again"
        ) from error
    return net.eval()
