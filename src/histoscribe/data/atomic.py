"""Whole or not at all: folders on disk that appear finished, or do not appear.

A stored folder is filled beside its place, sealed with the hash of its content, flushed, and
renamed. A fault on the way leaves what stood there before, and no debris; a kill on the way leaves
the old, the new, or (between two renames) nothing, and at most a hidden `.name.new` or `.name.old`,
which the next writing removes.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from histoscribe.errors import DataError, MissingExtra

BLOCK_BYTES = 1 << 20
FULL = {errno.ENOSPC, errno.EDQUOT}
ROOT = "zarr.json"
SEAL = "histoscribe"
"""The attribute of the root group that says the folder is complete, and with what content."""


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read block by block.

    Raises:
        DataError: If it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def hash_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below a folder, its seal left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        content = _unsealed(path) if name == ROOT else hash_file(path)
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


@contextmanager
def replacing(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Give a place beside each path to fill; when all went well, put them where they belong.

    A place that was not filled removes what stood at its path.

    Raises:
        MissingExtra: If the disk is full; what stood there before still stands.
    """
    fresh = tuple(path.with_name(f".{path.name}.new") for path in paths)
    try:
        for path, new in zip(paths, fresh, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(new)
        yield fresh
        for new in fresh:
            _flush(new)
        _swap(list(zip(fresh, paths, strict=True)))
        _flush_folder(paths[0].parent)
    except OSError as error:
        if error.errno in FULL or "No space left" in str(error):
            raise MissingExtra(
                f"disk full while writing {paths[0]}; nothing was changed: free some space "
                f"({shutil.disk_usage(_existing(paths[0])).free / 1e9:.1f} GB are left) and re-run"
            ) from error
        raise
    finally:
        for new in fresh:
            _remove(new)


def put_in_place(source: Path, folder: Path) -> None:
    """Move what a folder holds into another, each entry over its namesake, all or none."""
    if not source.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _swap([(entry, folder / entry.name) for entry in sorted(source.iterdir())])
    _flush_folder(folder)


def seal(folder: Path, **facts: str | None) -> None:
    """Mark a filled zarr folder as complete: write the hash of its content into its root."""
    root = json.loads((folder / ROOT).read_text())
    root["attributes"][SEAL] = {"content": _sealed_hash(folder, facts), **facts}
    (folder / ROOT).write_text(json.dumps(root, indent=2, sort_keys=True))


def read_seal(folder: Path) -> dict[str, Any]:
    """The facts a folder was sealed with.

    Raises:
        DataError: If it is missing, unfinished, or was changed after it was sealed.
    """
    if not folder.is_dir():
        raise DataError(f"no stored data at {folder}; run the step that makes it first")
    try:
        facts = dict(json.loads((folder / ROOT).read_text())["attributes"][SEAL])
        content = facts.pop("content")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"corrupted store {folder}: its writing was interrupted, or its root was changed; "
            "re-run the step that makes it"
        ) from error
    if content != _sealed_hash(folder, facts):
        raise DataError(
            f"corrupted store {folder}: a file was truncated, edited or lost after it was written; "
            "re-run the step that makes it"
        )
    return facts


def _sealed_hash(folder: Path, facts: dict[str, Any]) -> str:
    record = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(f"{hash_folder(folder)}\n{record}".encode()).hexdigest()


def _unsealed(root: Path) -> str:
    """Hash of the root's record as it is without a seal."""
    record = json.loads(root.read_text())
    record["attributes"].pop(SEAL, None)
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _swap(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Put each new in the place of the old, all or none; the old ones stand aside meanwhile."""
    aside: list[tuple[Path, Path]] = []
    try:
        for new, path in pairs:
            old = path.with_name(f".{path.name}.old")
            _remove(old)
            aside.append((old, path))
            if path.exists():
                _rename(path, old)
            if new.exists():
                _rename(new, path)
    except OSError:
        for old, path in aside:
            if old.exists():
                _remove(path)
                _rename(old, path)
        raise
    for old, _ in aside:
        _remove(old)


def _rename(source: Path, target: Path) -> None:
    source.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())


def _flush_folder(folder: Path) -> None:
    """Make renames lasting; systems that cannot open a folder do so by themselves."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _existing(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())
