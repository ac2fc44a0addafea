"""JPEG and PNG: decoded once, whole, and held. They carry no scale of their own.

Pixels are taken as stored: an EXIF orientation is not applied, since the coordinates of spots
refer to the stored pixels.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from histoscribe.errors import DataError
from histoscribe.slides.pixels import LARGEST_PIECE_PX

BAND_PX = 1_000_000  # brought to RGB at a time
DEPTH_AT, DEPTH = 24, 8  # byte of a PNG at which the bits of a sample stand, and how many
UPRIGHT = 1
ORIENTATION = 0x0112  # of EXIF
END_MARKS = (b"\xff\xd9", b"IEND")
TAIL_BYTES = 4096
COLOUR_MODES = ("RGB", "RGBA", "P", "CMYK", "YCbCr")


def open_image(path: Path) -> "ImageSource":
    """Open a JPEG or PNG.

    Raises:
        DataError: Broken, truncated, grey, 16-bit or too large to hold decoded.
    """
    with _heard() as heard, _open(path) as image:
        size, mode, notes = image.size, image.mode, (*_notes(image), *heard)
        is_deep = isinstance(image, PngImageFile) and _depth(path) > DEPTH
    if mode not in COLOUR_MODES or is_deep:
        came = "16 bits a sample" if is_deep else f"mode {mode}"
        msg = f"{path}: an image of {came}; wanted 8-bit colour (RGB). Export it as RGB."
        raise DataError(msg)
    if size[0] * size[1] > LARGEST_PIECE_PX:
        msg = (
            f"{path}: {size[0]} x {size[1]} px are too many to hold decoded (at most "
            f"{LARGEST_PIECE_PX:,} px). Convert it to a pyramidal TIFF."
        )
        raise DataError(msg)
    source = ImageSource(path, size, notes)
    if not _has_end_mark(path):
        source.decode()  # finds out now, not halfway through a run
    return source


class ImageSource:
    """The pixels of a JPEG or PNG, decoded at the first reading."""

    stated_mpp = None

    def __init__(self, path: Path, size_px: tuple[int, int], notes: tuple[str, ...]) -> None:
        self.path = path
        self.level_size_px = self.level_piece_px = (size_px,)
        self.notes = notes
        self._pixels: UInt8[np.ndarray, "y x 3"] | None = None
        self._lock = threading.Lock()

    def read_pixels(
        self,
        level: int,  # noqa: ARG002 - there is one
        xy_px: tuple[int, int],
        size_px: tuple[int, int],
    ) -> UInt8[np.ndarray, "y x 3"]:
        """A rectangle of the image."""
        pixels = self.decode()
        (x, y), (width, height) = xy_px, size_px
        return pixels[y : y + height, x : x + width]

    def read_thumbnail(self) -> None:
        """None: it is one picture."""

    def decode(self) -> UInt8[np.ndarray, "y x 3"]:
        """All pixels, RGB, transparent ones white.

        Raises:
            DataError: The file ends early or is damaged.
        """
        with self._lock:
            if self._pixels is None:
                self._pixels = _decode(self.path)
            return self._pixels


def _open(path: Path) -> ImageFile:
    # the classes themselves, not Image.open: its guard against decompression bombs stops
    # ordinary sections of 92 million pixels and is a global setting; LARGEST_PIECE_PX is ours
    with path.open("rb") as file:
        opener = PngImageFile if file.read(4) == b"\x89PNG" else JpegImageFile
    try:
        return opener(path)
    except (OSError, SyntaxError, ValueError) as fault:
        raise _broken(path, fault) from fault


def _decode(path: Path) -> UInt8[np.ndarray, "y x 3"]:
    with _heard(), _open(path) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as fault:
            raise _broken(path, fault) from fault
        width, height = image.size
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        n_rows = max(1, BAND_PX // width)
        for top in range(0, height, n_rows):  # a copy of the whole would take as much again
            band = image.crop((0, top, width, min(top + n_rows, height)))
            pixels[top : top + n_rows] = _rgb_of(band)
        return pixels


def _rgb_of(band: Image.Image) -> UInt8[np.ndarray, "y x 3"]:
    if band.mode in ("RGBA", "P"):
        rgba = band.convert("RGBA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        band = Image.alpha_composite(white, rgba)
    return np.asarray(band if band.mode == "RGB" else band.convert("RGB"))


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What Pillow warns of, of EXIF data that break off: it is noted, and not told each time."""
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: said.append(
            f"its header is damaged ({' '.join(str(message).split())})"
        )
        yield said


def _notes(image: ImageFile) -> tuple[str, ...]:
    if not isinstance(image, JpegImageFile):  # a PNG may hold it behind all its pixels
        return ()
    try:
        orientation = image.getexif().get(ORIENTATION, UPRIGHT)
    except Exception as fault:  # noqa: BLE001 - damaged, of many classes; it is not applied anyway
        return (f"its EXIF data cannot be read ({fault})",)
    if orientation == UPRIGHT:
        return ()
    return (
        f"its EXIF orientation says {orientation}, turned or mirrored; pixels are taken as they "
        "are stored",
    )


def _depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(DEPTH_AT + 1)[-1]


def _has_end_mark(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        tail = file.read()
    return any(mark in tail for mark in END_MARKS)


def _broken(path: Path, fault: Exception) -> DataError:
    return DataError(
        f"{path}: truncated or damaged image ({fault}); wanted a whole JPEG or PNG. "
        "Copy it again from its source."
    )
