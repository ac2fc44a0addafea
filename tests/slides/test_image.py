"""JPEG and PNG: decoded whole, in little memory, and 8 bits or refused."""

import json
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from histoscribe.errors import DataError
from histoscribe.slides.image import open_image
from histoscribe.slides.open import open_slide
from histoscribe.types import Box

SIDE_PX = 3000
MOST_BYTES = 11.0
MEASURE = """
import json, re, sys
from pathlib import Path
from histoscribe.slides.image import open_image

def peak():
    return int(re.search(r"VmHWM:\\s+([0-9]+)", STATUS.read_text()).group(1)) * 1024

STATUS = Path("/proc/self/status")
source = open_image(Path(sys.argv[1]))
before = peak()
source.decode()
print(json.dumps((peak() - before) / (source.level_size_px[0][0] * source.level_size_px[0][1])))
"""


def picture(kind: str, rgb: np.ndarray) -> Image.Image:
    image = Image.fromarray(rgb)
    if kind == "palette":
        return image.quantize(31)
    if kind == "RGBA":
        alpha = np.random.default_rng(5).integers(0, 256, rgb.shape[:2], dtype=np.uint8)
        image.putalpha(Image.fromarray(alpha))
    elif kind != "RGB":
        image = image.convert(kind)
    return image


@pytest.mark.parametrize("n_px", [1, 211, 5 * 211, 10**9])
@pytest.mark.parametrize("kind", ["RGB", "RGBA", "palette", "CMYK"])
def test_bands_are_the_whole(
    tmp_path: Path, noise: np.ndarray, kind: str, n_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histoscribe.slides.image.BAND_PX", n_px)
    path = tmp_path / ("a.jpg" if kind == "CMYK" else "a.png")
    picture(kind, noise).save(path)
    with Image.open(path) as image:
        whole = image.convert("RGBA" if kind in ("RGBA", "palette") else "RGB")
    if whole.mode == "RGBA":
        white = Image.new("RGBA", whole.size, (255, 255, 255, 255))
        whole = Image.alpha_composite(white, whole).convert("RGB")
    assert (open_image(path).decode() == np.asarray(whole)).all()


def test_a_transparent_colour_of_a_palette_is_white(tmp_path: Path, noise: np.ndarray) -> None:
    image = picture("palette", noise)
    image.save(tmp_path / "a.png", transparency=3)
    made, which = open_image(tmp_path / "a.png").decode(), np.asarray(image)
    colours = np.asarray(image.convert("RGB"))
    assert (made[which == 3] == 255).all()
    assert (made[which != 3] == colours[which != 3]).all()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_decoding_takes_little_more_than_the_pixels(tmp_path: Path, kind: str) -> None:
    # Pillow's own copy has 4 bytes a pixel, ours 3; whole conversions took 14 to 22
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    rgb = np.stack([x % 256, y % 256, (x + y) % 256], axis=2).astype(np.uint8)
    picture(kind, rgb).save(tmp_path / "a.png", compress_level=1)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a.png")]
    answer = subprocess.run(command, capture_output=True, check=True, text=True)
    assert 3 <= json.loads(answer.stdout) < MOST_BYTES


@pytest.mark.parametrize("n_samples", [3, 4])
def test_a_png_of_16_bits_is_refused_and_not_cut(
    tmp_path: Path, noise: np.ndarray, n_samples: int
) -> None:
    deep = np.dstack([noise, noise])[:, :, :n_samples].astype(np.uint16) * 257
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep))
    with pytest.raises(DataError, match=r"a\.png: an image of 16 bits a sample; wanted 8-bit"):
        open_slide(tmp_path / "a.png", mpp=0.5)


def test_an_image_too_large_to_hold_is_refused(
    tmp_path: Path, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histoscribe.slides.image.LARGEST_PIECE_PX", noise.shape[0] * 210)
    Image.fromarray(noise).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="211 x 173 px are too many to hold decoded"):
        open_slide(tmp_path / "a.png", mpp=0.5)


def test_an_exif_orientation_is_noted_and_not_applied(tmp_path: Path, smooth: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95, exif=exif)
    Image.fromarray(smooth).save(tmp_path / "b.jpg", quality=95)
    turned, upright = (open_slide(tmp_path / name, mpp=0.5) for name in ("a.jpg", "b.jpg"))
    assert turned.size_px == (407, 301)
    box = Box(0.0, 0.0, 203.5, 150.5)
    assert (turned.read(box, 0.5) == upright.read(box, 0.5)).all()
    assert "EXIF orientation says 6" in turned.notes[0]
    assert upright.notes == ()


def test_damaged_exif_is_noted(tmp_path: Path, smooth: np.ndarray) -> None:
    breaks_off = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff"
    Image.fromarray(smooth).save(tmp_path / "a.jpg", exif=breaks_off)
    slide = open_slide(tmp_path / "a.jpg", mpp=0.5)
    assert "header is damaged (Corrupt EXIF data." in slide.notes[0]
    assert len(slide.notes) == 1
    slide.read(Box(0.0, 0.0, 20.0, 20.0), 0.5)
