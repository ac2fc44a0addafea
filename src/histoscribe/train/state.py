"""The state of an unfinished fit on disk: tensors and JSON in one safetensors file, no pickle."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as pack_tensors
from torch import Tensor

from histoscribe.data.atomic import replacing
from histoscribe.errors import DataError

STRUCTURE = "structure"
PLAIN = (str, int, float, bool, type(None))


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning's checkpoints (weights, optimiser, loops, callbacks) without pickle.

    The nested structure goes as JSON into the header of a safetensors file, its tensors beside
    it, bit for bit. The file is replaced in one step, so that a kill leaves the old one or the
    new one.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401, ARG002 - Lightning's signature
    ) -> None:
        """Write the state."""
        write_state(checkpoint, Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,  # noqa: ANN401, ARG002 - Lightning's signature
        weights_only: bool | None = None,  # noqa: ARG002 - there is nothing else here
    ) -> dict[str, Any]:
        """Read the state, on the CPU."""
        return read_state(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the state."""
        target = Path(path)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Write nested dicts, lists, numbers, strings and tensors.

    Raises:
        TypeError: If something else is in it.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_encode(state, tensors))
    with replacing(path) as (beside,):
        beside.write_bytes(pack_tensors(tensors, metadata={STRUCTURE: structure}))


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote.

    Raises:
        DataError: If the file is broken.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            structure = json.loads((stored.metadata() or {})[STRUCTURE])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return _decode(structure, tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(
            f"the state of a fit at {path} is broken ({error}); delete it and fit again"
        ) from error


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:  # noqa: ANN401 - any state
    if isinstance(value, Tensor):
        name = f"t{len(tensors):05d}"
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Size):
        return {"tuple": list(value)}
    if type(value) in PLAIN:
        return value
    raise TypeError(f"a {type(value).__name__} cannot be kept in the state of a fit")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401 - any state
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
