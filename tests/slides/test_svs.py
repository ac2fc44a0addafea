"""What the scanners' own TIFFs need beyond plain ones."""

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from histoscribe.errors import DataError
from histoscribe.slides.formats import backend_of
from histoscribe.slides.open import open_slide
from histoscribe.slides.openslide import open_openslide
from histoscribe.slides.tiff import open_tiff
from histoscribe.types import Box

APERIO = "Aperio Image Library v12.0\r\n{} |AppMag = 20|MPP = 0.5000|Filename = a"
JP2_YCBCR, JP2_RGB = 33003, 33005


def write_svs(path: Path, image: np.ndarray, n_levels: int = 1, **extra: np.ndarray) -> Path:
    """Levels, each half the last, and a thumbnail, label or macro page as Aperio lays them."""
    side = {"thumbnail": {}, "label": {"subfiletype": 1}, "macro": {"subfiletype": 9}}
    common = {"photometric": "rgb", "metadata": None, "compression": "jpeg"}
    common |= {"compressionargs": {"level": 97}}
    with tifffile.TiffWriter(path) as file:
        file.write(image, tile=(128, 128), description=APERIO.format("407x301"), **common)
        if "thumbnail" in extra:
            file.write(extra["thumbnail"], description=APERIO.format("thumbnail"), **common)
        for level in range(1, n_levels):
            lower = image[:: 2**level, :: 2**level]
            file.write(lower, tile=(128, 128), description=APERIO.format("level"), **common)
        for name in ("label", "macro"):
            if name in extra:
                said = f"Aperio Image Library\r\n{name} 1x1"
                file.write(extra[name], description=said, **(common | side[name]))
    return path


@pytest.mark.parametrize("compression", [JP2_YCBCR, JP2_RGB])
def test_either_jpeg_2000_of_aperio_reads_in_its_colours(
    tmp_path: Path, smooth: np.ndarray, compression: int
) -> None:
    image, path = smooth[:256, :384], tmp_path / "a.svs"
    stored = image
    if compression == JP2_YCBCR:
        red, green, blue = image.astype(float).transpose(2, 0, 1)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        chroma = ((blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128)
        stored = np.rint(np.stack([luma, *chroma], axis=2)).astype(np.uint8)
    tiles = stored.reshape(2, 128, 3, 128, 3).transpose(0, 2, 1, 3, 4).reshape(6, 128, 128, 3)
    options = {"level": 0, "codecformat": "j2k", "mct": False, "reversible": True}
    tifffile.imwrite(
        path,
        (imagecodecs.jpeg2k_encode(np.ascontiguousarray(tile), **options) for tile in tiles),
        shape=image.shape,
        dtype=np.uint8,
        tile=(128, 128),
        compression=compression,
        photometric="rgb" if compression == JP2_RGB else "ycbcr",
        description=APERIO.format("384x256"),
        metadata=None,
    )
    made = open_slide(path).read(Box(0.0, 0.0, 192.0, 128.0), 0.5).astype(int)
    assert np.abs(made - image).max() <= (1 if compression == JP2_YCBCR else 0)
    theirs = open_openslide(path).read_pixels(0, (0, 0), (384, 256))
    assert np.abs(made - theirs).max() <= 1


def test_a_label_is_neither_a_level_nor_a_thumbnail(tmp_path: Path, smooth: np.ndarray) -> None:
    black = np.zeros((75, 102, 3), dtype=np.uint8)  # of the shape of the slide
    one_level = open_tiff(write_svs(tmp_path / "a.svs", smooth, label=black, macro=black))
    assert one_level.level_size_px == ((407, 301),)
    assert one_level.read_thumbnail() is None
    kept = open_tiff(
        write_svs(tmp_path / "b.svs", smooth, 2, thumbnail=smooth[::4, ::4], label=black)
    )
    assert kept.level_size_px == ((407, 301), (204, 151))
    thumbnail = kept.read_thumbnail()
    assert thumbnail is not None
    assert np.abs(thumbnail.astype(float) - smooth[::4, ::4]).mean() < 3


def test_openslide_gives_a_place_the_same_pixels_in_any_rectangle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histoscribe.slides.openslide.BLOCK_PX", 96)
    image = np.random.default_rng(5).integers(0, 256, (901, 1103, 3), dtype=np.uint8)
    source = open_openslide(write_svs(tmp_path / "a.svs", image, 3, thumbnail=image[::8, ::8]))
    assert source.level_size_px == ((1103, 901), (552, 451), (276, 226))
    for level, (width, height) in enumerate(source.level_size_px):
        whole = source.read_pixels(level, (0, 0), (width, height))
        assert (whole == 255).mean() < 0.1
        for x, y in ((0, 0), (101, 37), (width - 50, height - 40)):
            made = source.read_pixels(level, (x, y), (50, 40))
            assert (made == whole[y : y + 40, x : x + 50]).all()


def test_a_large_tiff_of_64_bit_offsets_reads(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise, bigtiff=True, photometric="rgb", tile=(64, 48))
    assert path.read_bytes()[:4] == b"II+\0"
    assert (open_slide(path, mpp=0.5).read(Box(0, 0, 105.5, 86.5), 0.5) == noise).all()


def test_a_file_in_the_layout_of_ndpi_reads_through_openslide(
    tmp_path: Path, smooth: np.ndarray
) -> None:
    # written, not scanned: Hamamatsu's tags 65420 (format), 65421 (lens; -1 is the macro image),
    # 65422-65424 (offsets and focal plane)
    image, path = smooth[:256, :384], tmp_path / "a.ndpi"
    with tifffile.TiffWriter(path) as file:
        for page, lens in ((image, 20.0), (image[::8, ::4], -1.0)):
            tags = [(65420, "I", 1, 1, True), (65421, "f", 1, lens, True)]
            tags += [(code, "i", 1, 0, True) for code in (65422, 65423, 65424)]
            file.write(
                page,
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 95},
                rowsperstrip=len(page),
                resolution=(20_000, 20_000),
                resolutionunit="CENTIMETER",
                extratags=tags,
                metadata=None,
                software=None,
            )
    assert backend_of(path) == "openslide"
    slide = open_slide(path)
    assert (slide.size_px, slide.mpp) == ((384, 256), (0.5, 0.5))
    made = slide.read(Box(20.0, 30.0, 100.0, 70.0), 0.5)
    assert np.abs(made.astype(float) - image[60:200, 40:240]).mean() < 2
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"Copy it again|no image format"):
        open_slide(path, mpp=0.5).read(Box(20.0, 30.0, 100.0, 70.0), 0.5)
