"""Where the frames of a DICOM file lie, and their bytes (DICOM PS3.5, annex A.4)."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64
from pydicom import Dataset

from histoscribe.errors import DataError

ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
LONG_HEADER, SHORT_HEADER = 12, 8  # of an element whose length takes four bytes, with VR or not


def frame_starts(
    path: Path, header: Dataset, at: int, n_frames: int, n_bytes: int | None
) -> Int64[np.ndarray, " edge"]:
    """Byte at which each frame starts, and one past the last.

    Encapsulated frames are found by the extended or the basic offset table, else by walking
    from item to item.

    Args:
        path: The file.
        header: Its header.
        at: Byte at which the element of the pixels starts.
        n_frames: Number of frames.
        n_bytes: Size of a frame of bare pixels; None where frames are encapsulated.

    Raises:
        DataError: Frames and items do not match, or the file ends before the last frame.
    """
    is_implicit = header.file_meta.TransferSyntaxUID.is_implicit_VR
    first = at + (SHORT_HEADER if is_implicit else LONG_HEADER)
    if n_bytes is not None:
        starts = first + np.arange(n_frames + 1, dtype=np.int64) * n_bytes
    else:
        with path.open("rb", buffering=0) as file:
            starts = _encapsulated(path, file, first, header)
    size = path.stat().st_size
    if len(starts) != n_frames + 1 or (np.diff(starts) <= 0).any() or starts[-1] > size:
        msg = (
            f"{path}: {n_frames} frames are announced, {max(len(starts) - 1, 0)} lie in its "
            f"{size} bytes. Copy it again from its source."
        )
        raise DataError(msg)
    return starts


def frame_bytes(file: BinaryIO, start: int, stop: int, *, is_native: bool) -> bytes:
    """The bytes of one frame, the fragments of an encapsulated one joined.

    Raises:
        ValueError: The file ends early, or no item stands where one should.
    """
    file.seek(start)
    content = file.read(stop - start)
    if len(content) < stop - start:
        msg = "the file ends within a frame"
        raise ValueError(msg)
    if is_native:
        return content
    fragments, at = [], 0
    while at < len(content) and content[at : at + 4] == ITEM:
        n = int.from_bytes(content[at + 4 : at + 8], "little")
        fragments.append(content[at + 8 : at + 8 + n])
        at += 8 + n
    if not fragments:
        msg = f"no frame at byte {start}"
        raise ValueError(msg)
    return b"".join(fragments)


def _encapsulated(
    path: Path, file: BinaryIO, first: int, header: Dataset
) -> Int64[np.ndarray, " edge"]:
    table, n_table = _item(path, file, first)
    data = first + SHORT_HEADER + n_table
    if table != ITEM:
        msg = f"{path}: no offset table at the head of its frames. Copy it again from its source."
        raise DataError(msg)
    if "ExtendedOffsetTable" in header:
        offsets = np.frombuffer(header.ExtendedOffsetTable, dtype="<u8").astype(np.int64)
        lengths = np.frombuffer(header.ExtendedOffsetTableLengths, dtype="<u8").astype(np.int64)
        return data + np.append(offsets, offsets[-1] + SHORT_HEADER + lengths[-1])
    if n_table:
        file.seek(first + SHORT_HEADER)
        offsets = np.frombuffer(file.read(n_table), dtype="<u4").astype(np.int64)
        if (np.diff(offsets) > 0).all():  # 32 bits run over in files beyond 4 GiB
            return np.append(data + offsets, _walk(path, file, data + int(offsets[-1]))[-1])
    return np.array(_walk(path, file, data), dtype=np.int64)


def _walk(path: Path, file: BinaryIO, at: int) -> list[int]:
    """The first byte of every item from `at` on, and one past the last."""
    edges = [at]
    while True:
        tag, n = _item(path, file, edges[-1])
        if tag != ITEM:
            break
        edges.append(edges[-1] + SHORT_HEADER + n)
    return edges


def _item(path: Path, file: BinaryIO, at: int) -> tuple[bytes, int]:
    file.seek(at)
    head = file.read(SHORT_HEADER)
    if len(head) < SHORT_HEADER or head[:4] not in (ITEM, END):
        msg = f"{path}: broken at byte {at}. Copy it again from its source."
        raise DataError(msg)
    return head[:4], int.from_bytes(head[4:], "little")
