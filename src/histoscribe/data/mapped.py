"""Arrays that live in a file: as large as the disk allows, with few pages of them in memory."""

import errno
import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from histoscribe.errors import MissingExtra

FULL = {errno.ENOSPC, errno.EDQUOT}


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
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            else:
                file.truncate(n_bytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno not in FULL:
            raise
        raise MissingExtra(
            f"disk full: {path} wants {n_bytes / 1e9:.1f} GB; free some space and re-run, what is "
            "done is kept"
        ) from error
    return np.asarray(np.memmap(path, dtype, "r+", shape=shape))


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
    owner = array
    while isinstance(owner.base, np.ndarray):  # of a view, also one that is a memmap itself
        owner = owner.base
    if not isinstance(owner, np.memmap) or owner.mode == "c":
        return
    pages = owner.base
    if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)
