"""Arrays that live in a file: as large as the disk allows, with few pages of them in memory."""

import ctypes
import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from histoscribe.errors import MissingExtra

FULL = {errno.ENOSPC, errno.EDQUOT}

IN_FILE_BYTES = 4 << 20
"""From this size up, arrays of a slide or of a cohort lie in a file. It is small since each slide
of a cohort has some of them: it is their sum that would fill the memory."""


def is_large(n_bytes: int) -> bool:
    """Whether an array of so many bytes is to lie in a file."""
    return n_bytes >= IN_FILE_BYTES


def new_mapped(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array of a new file, to be filled; of an empty shape, a plain array and no file.

    What stood at the path is unlinked first, so that an array over the old file stays sound.

    Raises:
        MissingExtra: The disk has no room for it; found out now, not by a fault while it is filled.
    """
    path.unlink(missing_ok=True)
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not n_bytes:
        return np.empty(shape, dtype)
    try:
        with path.open("wb") as file:
            reserve(file, n_bytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno not in FULL:
            raise
        raise MissingExtra(
            f"disk full: {path} wants {n_bytes / 1e9:.1f} GB; free some space and re-run, what is "
            "done is kept"
        ) from error
    return np.asarray(np.memmap(path, dtype, "r+", shape=shape))


def reserve(file: Any, n_bytes: int) -> None:  # noqa: ANN401 - an open file, of whatever class
    """Make a new file so long that each of its bytes has a place on the disk; OSError if not."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, n_bytes)
    else:
        file.truncate(n_bytes)


def as_read_only(array: np.ndarray) -> np.ndarray:
    """The same array, which can no longer be written to, its pages given back."""
    release(array)
    view = array.view()
    view.flags.writeable = False
    return view


def release(array: np.ndarray) -> None:
    """Give back the memory of an array's pages, if it lives in a file; they are read anew.

    What was written to it is kept: the pages belong to the file. Plain arrays, private mappings
    and systems that cannot do so are left as they are.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    owner = array
    while isinstance(owner.base, np.ndarray):  # of a view, also one that is a memmap itself
        owner = owner.base
    if isinstance(owner, np.memmap) and owner.mode != "c":
        pages = owner.base
        if isinstance(pages, mmap.mmap):
            pages.madvise(mmap.MADV_DONTNEED)
    storage = getattr(owner.base, "untyped_storage", None)  # of a tensor, without importing it
    if storage is not None:
        _release_storage(storage())


def _release_storage(storage: Any) -> None:  # noqa: ANN401 - of a tensor
    if storage.filename is not None:
        # PyTorch holds the mapping, from the start of a page, and has no call of its own for it.
        start, size = ctypes.c_void_p(storage.data_ptr()), ctypes.c_size_t(storage.nbytes())
        ctypes.CDLL(None).madvise(start, size, mmap.MADV_DONTNEED)
