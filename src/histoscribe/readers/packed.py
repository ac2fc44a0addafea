"""Files as they are published: plain, gzip, a zip of one file, or a block of Snappy."""

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from histoscribe.errors import DataError

GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
HEAD_BYTES = 256


@contextmanager
def open_packed(path: Path) -> Iterator[Any]:
    """The content of a file, unpacked on the way.

    Gzip and zip are told by their content; a raw Snappy block has no mark, so it goes by its
    ending, .snappy.

    Raises:
        DataError: Missing, a broken archive, or a zip of several files.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path (in a manifest, from its folder)")
    try:
        with path.open("rb") as file:
            head = file.read(len(ZIP))
            file.seek(0)
            if head.startswith(GZIP):
                with gzip.open(file) as plain:
                    yield plain
            elif head == ZIP:
                with zipfile.ZipFile(file) as archive, archive.open(_member(archive, path)) as one:
                    yield one
            elif path.suffix == ".snappy":
                yield io.BytesIO(_snappy(file.read()))
            else:
                yield file
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as fault:
        text = " ".join(str(fault).split())
        raise DataError(f"{path}: cannot be unpacked or read ({text}); copy it again") from fault


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOBase]:
    """The same as text in UTF-8.

    Raises:
        DataError: As `open_packed`, or it is no text.
    """
    with open_packed(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as text:
        try:
            yield text
        except UnicodeDecodeError as fault:
            raise DataError(
                f"{path}: no text in UTF-8 ({fault.reason} at byte {fault.start}); copy it again"
            ) from fault


def read_head(path: Path) -> bytes:
    """The first bytes of the content, after a byte order mark and spaces."""
    with open_packed(path) as file:
        return file.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()


def _member(archive: zipfile.ZipFile, path: Path) -> str:
    names = [
        name
        for name in archive.namelist()
        if not name.endswith("/") and not name.startswith("__MACOSX/")
    ]
    if len(names) != 1:
        raise DataError(
            f"{path}: a zip of {len(names)} files ({', '.join(names[:3])}); wanted a zip of one "
            "GeoJSON or JSON: unpack it and give the file"
        )
    return names[0]


def _snappy(block: bytes) -> bytes:
    import imagecodecs

    try:
        return bytes(imagecodecs.snappy_decode(block))
    except imagecodecs.SnappyError as fault:
        raise OSError(f"no Snappy block: {fault}") from fault
