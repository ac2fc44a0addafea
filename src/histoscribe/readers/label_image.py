"""Label images in files: opened for their size, then an array of which few pages are in memory."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import tifffile

from histoscribe.data.mapped import new_mapped, release
from histoscribe.errors import DataError, HistoscribeError
from histoscribe.readers.packed import read_head

WHOLE_BYTES = 2**29
"""What is decoded at once: a PNG (16,384 x 16,384 px of 16 bits), a tile or a strip of a TIFF."""

RELEASE_BYTES = 2**26  # decoded pages that may stay in memory
PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; a palette is decoded to colours
NPY, PNG = b"\x93NUMPY", b"\x89PNG"


class LabelFile(NamedTuple):
    """A label image that was opened, not read.

    Attributes:
        shape: Of the array, without leading axes of one.
        dtype: Of the array.
        load: The array, given a folder to unpack it in (None: the system's).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[Path | None], np.ndarray]


def open_label_file(path: Path) -> LabelFile:
    """Open a label image in TIFF, PNG or npy.

    An npy file and a TIFF that is stored plainly are looked at where they lie. Any other TIFF is
    decoded segment by segment to a file without a name. A PNG cannot be decoded in parts.

    Raises:
        DataError: Broken, with pickled objects, or of a kind that only a whole decoding could read
            and too large for that. What `load` meets, it raises itself.
    """
    head = read_head(path)
    with _in_our_words(path):
        if head.startswith(NPY):
            return _opened(_open_npy(path))
        if head.startswith(PNG):
            return _opened(_read_png(path))
        return _open_tiff(path)


@contextmanager
def _in_our_words(path: Path) -> Iterator[None]:
    try:
        yield
    except (HistoscribeError, MemoryError):
        raise
    except Exception as fault:  # every codec has errors of its own
        text = " ".join(str(fault).split())
        raise DataError(
            f"{path}: no label image that can be read ({text}); wanted whole numbers in TIFF, PNG "
            "or npy, without pickled objects"
        ) from fault


def _opened(labels: np.ndarray) -> LabelFile:
    shape = _without_leading_ones(labels.shape)
    return LabelFile(shape, labels.dtype, lambda _: labels.reshape(shape))


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _open_npy(path: Path) -> np.ndarray:
    labels = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(labels, np.ndarray):
        raise ValueError("an archive of arrays")
    return labels


def _read_png(path: Path) -> np.ndarray:
    import imagecodecs

    with path.open("rb") as file:
        start = file.read(26)
    width, height, depth, colour = struct.unpack(">IIBB", start[16:26])
    _check_fits(path, width * height * PNG_SAMPLES.get(colour, 4) * max(1, depth // 8), "PNG")
    return imagecodecs.png_decode(path.read_bytes())


def _open_tiff(path: Path) -> LabelFile:
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        shape = _without_leading_ones(tuple(series.shape))
        if series.dtype is None:
            raise ValueError("no type of numbers that is known")

        def load(scratch: Path | None) -> np.ndarray:
            with _in_our_words(path):
                return _load_tiff(path, scratch).reshape(shape)

        return LabelFile(shape, np.dtype(series.dtype), load)


def _load_tiff(path: Path, scratch: Path | None) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        if series.dataoffset is not None:
            return tifffile.memmap(path, mode="r")
        page = series.keyframe
        if len(series.pages) != 1 or page.samplesperpixel != 1:
            raise ValueError(f"{len(series.pages)} pages of {page.samplesperpixel} samples")
        n_high = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
        n_wide = page.tilewidth if page.is_tiled else page.imagewidth
        dtype = np.dtype(series.dtype)
        _check_fits(path, n_high * n_wide * dtype.itemsize, "tile or strip of this TIFF")
        labels = _make_scratch(scratch, (page.imagelength, page.imagewidth), dtype)
        _decode_into(labels, path, page)
    return labels


def _decode_into(labels: np.ndarray, path: Path, page: tifffile.TiffPage) -> None:
    """Fill an array of zeros with the segments of a page; those that are left out are zeros."""
    n_decoded = 0
    with path.open("rb") as file:
        places = zip(page.dataoffsets, page.databytecounts, strict=True)
        for index, (offset, n_bytes) in enumerate(places):
            file.seek(offset)
            encoded = file.read(n_bytes)
            if len(encoded) < n_bytes:
                raise EOFError("the file ends early")
            if not n_bytes:
                continue
            decoded, (_, _, top, left, _), _ = page.decode(
                encoded, index, jpegtables=page.jpegtables
            )
            if decoded is None:
                continue
            own = labels[top : top + decoded.shape[1], left : left + decoded.shape[2]]
            own[:] = decoded[0, : own.shape[0], : own.shape[1], 0]
            n_decoded += decoded.nbytes
            if n_decoded > RELEASE_BYTES:
                release(labels)
                n_decoded = 0


def _make_scratch(scratch: Path | None, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """An array of a file whose name is gone already: it ends with the array."""
    with TemporaryDirectory(
        prefix="labels-", dir=scratch, ignore_cleanup_errors=True
    ) as folder:  # on a network share the name of a file that is in use stays for a while
        return new_mapped(Path(folder) / "labels", shape, dtype)


def _check_fits(path: Path, n_bytes: int, what: str) -> None:
    if n_bytes > WHOLE_BYTES:
        raise DataError(
            f"{path}: one {what} is {n_bytes / 1e9:.1f} GB when decoded, and can only be decoded "
            f"whole; at most {WHOLE_BYTES / 1e9:.1f} GB are: save the labels as TIFF in tiles, or "
            "as npy"
        )
