"""Tensors and arrays that lie in a nameless file where they are large, and in memory otherwise."""

import math
from tempfile import NamedTemporaryFile, gettempdir

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from histoscribe.data.mapped import FULL, is_large, release, reserve
from histoscribe.errors import MissingExtra


def new_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor to be filled; a large one (`is_large`) lies in a file of the temporary folder.

    The file has no name: it ends with the tensor, and with the process, however that ends. Nor is
    it kept open, so that there may be thousands. `.numpy()` gives an array in the same file.

    Raises:
        MissingExtra: The disk has no room for it.
    """
    n_values = math.prod(shape)
    n_bytes = n_values * dtype.itemsize
    if not is_large(n_bytes):
        return torch.empty(shape, dtype=dtype)
    try:
        with NamedTemporaryFile(prefix="histoscribe-") as file:
            reserve(file, n_bytes)
            flat = torch.from_file(file.name, shared=True, size=n_values, dtype=dtype)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise MissingExtra(
            f"disk full: {gettempdir()} has no room for {n_bytes / 1e9:.1f} GB; free some space, "
            "or name a folder with room in the environment variable TMPDIR"
        ) from error
    return flat.view(shape)


def new_array(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array to be filled, in a file if it is large (see `new_tensor`)."""
    return new_tensor(shape, torch.from_numpy(np.empty(0, dtype)).dtype).numpy()


def move_to_file(array: np.ndarray) -> np.ndarray:
    """The same values, in a file if they are many (see `new_tensor`)."""
    if not is_large(array.nbytes):
        return array
    moved = new_array(array.shape, array.dtype)
    moved[...] = array
    release(moved)
    return moved
