"""Damaged TIFFs: refused in our words, whatever is wrong with them, or read."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from histoscribe.errors import DataError
from histoscribe.slides.open import open_slide

WRITTEN = {
    "tiles": {"tile": (64, 48)},
    "strips": {"rowsperstrip": 23, "compression": "deflate"},
    "jpeg": {"tile": (64, 64), "compression": "jpeg"},
    "planes": {"planarconfig": "separate"},
    "big": {"bigtiff": True, "tile": (64, 64)},
    "ome": {"ome": True, "metadata": {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}},
}
TILE_LENGTH, X_RESOLUTION = 323, 282


def write(path: Path, image: np.ndarray, kind: str) -> bytes:
    made = image.transpose(2, 0, 1) if kind == "planes" else image
    options = {"photometric": "rgb", "resolution": (20_000, 20_000)} | WRITTEN[kind]
    tifffile.imwrite(path, np.ascontiguousarray(made), resolutionunit="CENTIMETER", **options)
    return path.read_bytes()


def read_or_refuse(path: Path, *, with_mpp: bool) -> bool:
    """Whether it reads; False where it is refused as damaged or as no slide."""
    try:
        slide = open_slide(path, mpp=0.5 if with_mpp else None)
        slide.thumbnail(60)
    except DataError:
        return False
    return True


@pytest.mark.parametrize("stub", [b"II*\0", b"MM\0*", b"II*\0\x08\0\0\0", b"II+\0\x08\0\0\0"])
def test_a_stub_is_refused_at_every_length(tmp_path: Path, stub: bytes) -> None:
    path = tmp_path / "a.tif"
    for n in range(1, 12):
        path.write_bytes((stub + bytes(8))[:n])
        with pytest.raises(DataError, match=r"damaged TIFF|no image format|wanted one 8-bit"):
            open_slide(path, mpp=0.5)


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_cut_anywhere_is_refused_or_read(
    tmp_path: Path, noise: np.ndarray, kind: str
) -> None:
    path = tmp_path / "a.tif"
    content = write(path, noise, kind)
    for n in [*range(40), *np.linspace(40, len(content) - 1, 60).astype(int)]:
        path.write_bytes(content[:n])
        read_or_refuse(path, with_mpp=True)


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_with_changed_bytes_is_refused_or_read(
    tmp_path: Path, noise: np.ndarray, kind: str
) -> None:
    path = tmp_path / "a.tif"
    content = write(path, noise, kind)
    with tifffile.TiffFile(path) as file:
        tags = [tag.offset for tag in file.pages[0].tags]
    rng, n_refused = np.random.default_rng(3), 0
    for n in range(150):
        changed = bytearray(content)
        for _ in range(1 + n % 3):
            changed[int(rng.choice(tags)) + int(rng.integers(0, 12))] = int(rng.integers(0, 256))
        path.write_bytes(bytes(changed))
        n_refused += not read_or_refuse(path, with_mpp=bool(n % 2))
    assert n_refused > 20


def edit_tag(path: Path, code: int, value: bytes) -> None:
    """Put bytes where the value of a tag stands."""
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags[code].valueoffset
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(bytes(content))


def test_tiles_of_no_height_are_refused(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    write(path, noise, "tiles")
    edit_tag(path, TILE_LENGTH, bytes(2))
    with pytest.raises(DataError, match=r"a\.tif: truncated or damaged TIFF"):
        open_slide(path, mpp=0.5)


def test_a_resolution_over_nothing_says_nothing(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    write(path, noise, "tiles")
    edit_tag(path, X_RESOLUTION, bytes(8))  # 0 / 0
    with pytest.raises(DataError, match="does not say how many µm"):
        open_slide(path)
    assert open_slide(path, mpp=0.5).size_px == (211, 173)


def test_a_width_that_has_no_tiles_is_refused_when_opened(
    tmp_path: Path, noise: np.ndarray
) -> None:
    path = tmp_path / "a.tif"
    write(path, noise, "tiles")
    edit_tag(path, 256, (70_000).to_bytes(4, "little"))
    with pytest.raises(DataError, match=r"pieces of 48 x 64 px are announced, 15 are there"):
        open_slide(path, mpp=0.5)
