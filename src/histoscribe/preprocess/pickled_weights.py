"""Weights in PyTorch's own file format, read without running what is in them."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from histoscribe.errors import DataError

WRAPPERS = ("model", "state_dict")  # keys under which training programs put the tensors


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The named tensors of a `.bin`, `.pt` or `.pth` file.

    Only tensors and plain containers are read (`torch.load(weights_only=True)`); a file of the
    present zip format is mapped, not copied, into memory.

    Args:
        path: A state dict, or one under "model" or "state_dict".

    Raises:
        DataError: The file is not there, cannot be read so, or holds something else.
    """
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except MemoryError:
        raise  # no fault of the file
    except Exception as error:  # a broken file leads the reader to errors of any kind
        reason = str(error).strip().split("\n")[0][:200]
        raise DataError(
            f"{path} cannot be read as weights alone ({reason}); wanted a state dict. Code inside "
            "weights is never run: if it is sound, save its state_dict() as safetensors"
        ) from error
    return named_tensors(content, path)


def named_tensors(content: Any, path: Path) -> dict[str, Tensor]:  # noqa: ANN401 - of a file
    """Peel the wrapper, if there is one."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} holds a {type(content).__name__}; wanted tensors by their names")
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise DataError(
            f"{path} holds {len(others)} entries that are no tensors, e.g. {others[0]!r}; wanted a "
            f"state dict, by itself or under {' or '.join(map(repr, WRAPPERS))}"
        )
    return {str(key): value for key, value in content.items()}
