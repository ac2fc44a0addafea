"""What a frozen tower makes of its inputs: once, in one file, read without loading it.

A file is safetensors with one float16 array "features", row by input row, filled in place and
named after what made it. A stopped run is taken up where it stopped.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Float16, Int64

from histoscribe.data.atomic import FULL
from histoscribe.data.checks import check_array
from histoscribe.data.mapped import release, reserve
from histoscribe.errors import DataError, MissingExtra

ALIGNMENT = 64  # bytes; where the numbers begin
PORTION_BYTES = 64 << 20
"""So many bytes are written between two notes of how far a file is filled."""

Maker = Callable[[Int64[np.ndarray, " row"]], Float[np.ndarray, "row feature"]]


def identity_of(tower: str, inputs: Iterable[str]) -> str:
    """What features are known by: the tower (name, weights, pooling) and all inputs in order."""
    digest = hashlib.sha256()
    for one in inputs:
        digest.update(hashlib.sha256(one.encode()).digest())
    return f"{tower}|{digest.hexdigest()}"


def cache_path(folder: Path, name: str, identity: str) -> Path:
    """Where features of that identity lie."""
    return folder / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"


def cached_features(
    path: Path, shape: tuple[int, int], make: Maker, batch_rows: int = 256
) -> Float16[np.ndarray, "row feature"]:
    """The features in a file, made first if they are not there; never all in memory.

    Args:
        path: As of `cache_path`: what is there under this name is taken for the same.
        shape: Rows and features.
        make: Makes the features of some rows; it is asked for each row once, in order.
        batch_rows: Rows it is asked for at once.

    Returns:
        A mapping of the file, read-only.

    Raises:
        DataError: If what is there, or what was made, has another shape, or a feature is not
            finite in float16.
        MissingExtra: If the disk is full; what was made is kept.
    """
    if path.is_file():
        return _map(path, shape, "r")
    part = path.with_name(f".{path.name}.part")
    progress = path.with_name(f".{path.name}.part.json")
    n_done = _read_progress(part, progress, shape)
    if n_done is None:
        _reserve(part, shape)
        n_done = 0
    features = _map(part, shape, "r+")
    n_portion = max(batch_rows, PORTION_BYTES // max(1, 2 * shape[1]))
    n_noted = n_done
    for first in range(n_done, shape[0], batch_rows):
        rows = np.arange(first, min(first + batch_rows, shape[0]), dtype=np.int64)
        features[rows[0] : rows[-1] + 1] = _checked(make(rows), first, (len(rows), shape[1]))
        if rows[-1] + 1 - n_noted >= n_portion:
            n_noted = int(rows[-1]) + 1
            features.flush()
            release(features)
            _note(progress, n_noted)
    features.flush()
    del features
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    progress.unlink(missing_ok=True)
    return _map(path, shape, "r")


def _header(shape: tuple[int, int]) -> bytes:
    """As the format has it: the length of a JSON record in 8 bytes, then the record."""
    n_bytes = 2 * shape[0] * shape[1]
    record = {"features": {"dtype": "F16", "shape": list(shape), "data_offsets": [0, n_bytes]}}
    text = json.dumps(record, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _reserve(path: Path, shape: tuple[int, int]) -> None:
    header = _header(shape)
    n_bytes = len(header) + 2 * shape[0] * shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            reserve(file, n_bytes)
            file.write(header)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno not in FULL | {errno.EFBIG}:
            raise
        raise MissingExtra(
            f"disk full: {path} wants {n_bytes / 1e9:.1f} GB; free some space and re-run"
        ) from error


def _map(path: Path, shape: tuple[int, int], mode: Literal["r", "r+"]) -> np.memmap:
    header = _header(shape)
    n_bytes = 2 * shape[0] * shape[1]
    with path.open("rb") as file:
        is_same = file.read(len(header)) == header
    if not is_same or path.stat().st_size != len(header) + n_bytes:
        raise DataError(
            f"{path} does not hold {shape[0]} x {shape[1]} features; delete it and re-run"
        )
    if not n_bytes:
        raise DataError(f"features of shape {shape} were asked for; wanted rows and features")
    return np.memmap(path, np.float16, mode, offset=len(header), shape=shape)


def _checked(
    made: Float[np.ndarray, "row feature"], first: int, shape: tuple[int, int]
) -> Float16[np.ndarray, "row feature"]:
    with np.errstate(over="ignore"):
        half = np.asarray(made).astype(np.float16)
    check_array("what the tower made", half, np.float16, shape)
    bad = np.flatnonzero(~np.isfinite(half).all(axis=1))
    if len(bad):
        raise DataError(
            f"features of row {first + bad[0]} are not finite in float16; check the input, or "
            "normalise what the tower gives"
        )
    return half


def _note(progress: Path, n_done: int) -> None:
    fresh = progress.with_suffix(".new")
    fresh.write_text(json.dumps({"n_done": n_done}))
    fresh.replace(progress)


def _read_progress(part: Path, progress: Path, shape: tuple[int, int]) -> int | None:
    """Rows that are made already; None if there is nothing to go on with."""
    try:
        n_done = int(json.loads(progress.read_text())["n_done"])
        _map(part, shape, "r")
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None
    return n_done if 0 <= n_done <= shape[0] else None
