"""A Cox head as a folder of safetensors and JSON, whole or not at all."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as unpack_arrays
from safetensors.numpy import save as pack_arrays

from histoscribe import __version__
from histoscribe.data.atomic import replacing
from histoscribe.errors import DataError
from histoscribe.train.cox import CoxHead

FORMAT = 1
ARRAYS, RECORD = "cox.safetensors", "cox.json"
FIELDS = ("mean", "scale", "coefficients", "time_days", "cumulative_hazard")


def write_cox(head: CoxHead, folder: Path) -> None:
    """Write the folder; the same head gives the same bytes."""
    packed = pack_arrays({name: np.ascontiguousarray(getattr(head, name)) for name in FIELDS})
    record = {
        "format": FORMAT,
        "names": head.names,
        "penalty": head.penalty,
        "score_of_penalty": head.score_of_penalty,
        "sha256": hashlib.sha256(packed).hexdigest(),
        "versions": {"histoscribe": __version__},
    }
    text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"
    with replacing(folder) as (beside,):
        beside.mkdir()
        (beside / ARRAYS).write_bytes(packed)
        (beside / RECORD).write_text(text, encoding="utf-8")


def read_cox(folder: Path) -> CoxHead:
    """Read what `write_cox` wrote.

    Raises:
        DataError: If it is missing, broken, changed, or of another format.
    """
    record = _read_record(folder)
    try:
        packed = (folder / ARRAYS).read_bytes()
    except OSError as error:
        raise DataError(f"corrupted Cox head: {folder / ARRAYS} is missing; fit again") from error
    if hashlib.sha256(packed).hexdigest() != record.get("sha256"):
        raise DataError(f"corrupted Cox head: {folder / ARRAYS} was changed; fit again")
    try:
        arrays = unpack_arrays(packed)
        return CoxHead(
            names=tuple(record["names"]),
            penalty=float(record["penalty"]),
            score_of_penalty=tuple((float(p), float(s)) for p, s in record["score_of_penalty"]),
            **{name: arrays[name] for name in FIELDS},
        )
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DataError(f"corrupted Cox head at {folder} ({error!r}); fit again") from error


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise DataError(f"no Cox head at {folder}; run 'histoscribe survival' first")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"corrupted Cox head: {path} cannot be read; fit again") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else record
        raise DataError(f"{path} is of format {found!r}, wanted {FORMAT}; fit again")
    return record
