"""Label images as files lay them out, and the memory that they take."""

import os
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile

from histoscribe.errors import DataError, MissingExtra
from histoscribe.readers import label_image
from histoscribe.readers.label_image import open_label_file

LABELS = np.random.default_rng(3).integers(0, 70_000, (411, 657)).astype(np.int32)


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ({}, np.int32),
        ({"byteorder": ">"}, np.uint16),
        ({"tile": (64, 80)}, np.uint32),
        ({"tile": (64, 80), "compression": "zlib"}, np.uint16),
        ({"tile": (128, 128), "compression": "zstd", "predictor": True}, np.int32),
        ({"rowsperstrip": 7, "compression": "lzw"}, np.int32),
        ({"rowsperstrip": 33, "compression": "zlib", "byteorder": ">"}, np.uint32),
        ({"rowsperstrip": 411, "compression": "zlib"}, np.int64),
        ({"tile": (64, 80), "compression": "zlib", "bigtiff": True}, np.uint8),
    ],
)
def test_every_layout_of_a_tiff_gives_its_numbers(tmp_path, layout, dtype):
    labels = LABELS.astype(dtype)
    tifffile.imwrite(tmp_path / "l.tif", labels, **layout)
    file = open_label_file(tmp_path / "l.tif")
    assert file.shape == labels.shape
    assert file.dtype == labels.dtype
    assert np.array_equal(file.load(tmp_path), labels)
    assert [path.name for path in tmp_path.iterdir()] == ["l.tif"]  # what it was unpacked to


def test_tiles_that_the_file_leaves_out_are_no_nuclei(tmp_path):
    labels = np.zeros((257, 300), np.int32)
    labels[200:210, 20:30] = 5
    tiles = [labels[y : y + 64, x : x + 64] for y in range(0, 257, 64) for x in range(0, 300, 64)]
    padded = [np.pad(one, [(0, 64 - n) for n in one.shape]) for one in tiles]
    encoded = (zlib.compress(one.tobytes()) if one.any() else b"" for one in padded)
    tifffile.imwrite(
        tmp_path / "l.tif",
        encoded,
        shape=labels.shape,
        dtype=labels.dtype,
        tile=(64, 64),
        compression="zlib",
    )
    assert np.array_equal(open_label_file(tmp_path / "l.tif").load(None), labels)


def test_what_could_only_be_decoded_whole_is_refused_if_it_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr(label_image, "WHOLE_BYTES", 411 * 657 * 2 - 1)
    labels = LABELS.astype(np.uint16)
    (tmp_path / "l.png").write_bytes(imagecodecs.png_encode(labels))
    with pytest.raises(DataError, match=r"l.png: one PNG is .* save the labels as TIFF in tiles"):
        open_label_file(tmp_path / "l.png")
    tifffile.imwrite(tmp_path / "l.tif", labels, rowsperstrip=411, compression="zlib")
    with pytest.raises(DataError, match="one tile or strip of this TIFF is"):
        open_label_file(tmp_path / "l.tif").load(tmp_path)
    tifffile.imwrite(tmp_path / "l.tif", labels, rowsperstrip=410, compression="zlib")
    assert np.array_equal(open_label_file(tmp_path / "l.tif").load(tmp_path), labels)


def test_a_torn_tile_is_told_with_the_file(tmp_path):
    tifffile.imwrite(tmp_path / "l.tif", LABELS, tile=(64, 80), compression="zlib")
    with tifffile.TiffFile(tmp_path / "l.tif") as file:
        place = file.pages[0].dataoffsets[3]
    with (tmp_path / "l.tif").open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\0" * 40)
    with pytest.raises(DataError, match=r"l.tif: no label image that can be read"):
        open_label_file(tmp_path / "l.tif").load(tmp_path)


def test_a_full_disk_is_told_before_anything_is_decoded(tmp_path, monkeypatch):
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    tifffile.imwrite(tmp_path / "l.tif", LABELS, tile=(64, 80), compression="zlib")
    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(MissingExtra, match="disk full"):
        open_label_file(tmp_path / "l.tif").load(tmp_path)


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from histoscribe.data.toy import ToySlide
from histoscribe.readers.nuclei import read_nuclei
from histoscribe.readers import nuclei_labels, label_image
import imagecodecs, skimage.measure, tifffile, shapely, scipy.spatial
side, path, scratch = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
white = np.broadcast_to(np.uint8(255), (side, side, 3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
given, _ = read_nuclei(path, ToySlide("S1", white, (0.25, 0.25)), None, scratch)
print(len(given), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux")
def test_memory_does_not_grow_with_the_image(tmp_path):
    """12,000^2 px of 32 bits are 576 MB; a nucleus each 100 px."""
    side = 12_000
    labels = np.zeros((side, side), np.int32)
    number = np.arange(1, 120**2 + 1, dtype=np.int32).reshape(120, 120)
    for y in range(31):
        for x in range(31):
            labels[30 + y :: 100, 40 + x :: 100] = number
    tifffile.imwrite(tmp_path / "l.tif", labels, tile=(512, 512), compression="zlib")
    del labels
    words = [sys.executable, "-c", MEASURE, str(side), str(tmp_path / "l.tif"), str(tmp_path)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) == 120**2
    assert int(said[1]) < 300_000
