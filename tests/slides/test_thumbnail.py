from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from histoscribe.errors import DataError
from histoscribe.slides.open import open_slide
from histoscribe.slides.pyramid import PyramidSlide

APERIO = "Aperio Image Library v12.0\r\n407x301 |AppMag = 20|MPP = 0.5000|Filename = a"


def forbid_level_0(slide: PyramidSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every level is large, and reading the full one fails."""
    read = slide._source.read_pixels

    def guarded(level: int, xy_px: tuple, size_px: tuple) -> np.ndarray:
        assert level > 0
        return read(level, xy_px, size_px)

    monkeypatch.setattr("histoscribe.slides.pyramid.LARGE_PX", 1000)
    monkeypatch.setattr(slide._source, "read_pixels", guarded)


@pytest.mark.parametrize(("max_px", "shape"), [(1000, (173, 211, 3)), (100, (82, 100, 3))])
def test_it_is_the_whole_slide_at_most_as_long_as_asked(
    noise: np.ndarray, write_pyramid: Callable[..., Path], max_px: int, shape: tuple
) -> None:
    small = open_slide(write_pyramid(noise, "p.tif", subifds=False), mpp=0.5).thumbnail(max_px)
    assert small.shape == shape
    assert np.abs(small.mean(axis=(0, 1)) - noise.mean(axis=(0, 1))).max() < 2


def test_its_pixels_are_square_where_those_of_the_slide_are_not(
    tmp_path: Path, smooth: np.ndarray
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        smooth,
        photometric="rgb",
        resolution=(40_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    slide = open_slide(tmp_path / "a.tif")  # 407 x 0.25 µm by 301 x 0.5 µm
    assert slide.thumbnail(150).shape == (150, 101, 3)


def test_a_large_level_0_is_left_alone_where_there_is_a_lower_one(
    noise: np.ndarray, write_pyramid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_slide(write_pyramid(noise, "p.tif", subifds=False), mpp=0.5)
    forbid_level_0(slide, monkeypatch)
    assert slide.thumbnail(150).shape == (86, 106, 3)
    assert slide.thumbnail(40).shape == (33, 40, 3)


def test_a_large_level_0_is_left_alone_where_there_is_a_thumbnail(
    tmp_path: Path, smooth: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"photometric": "rgb", "metadata": None, "description": APERIO}
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        file.write(smooth, tile=(128, 128), compression="jpeg", **common)
        file.write(smooth[::4, ::4], **common)
    slide = open_slide(tmp_path / "a.svs")
    forbid_level_0(slide, monkeypatch)
    small = slide.thumbnail(60)
    assert small.shape == (44, 60, 3)
    wanted = (np.arange(60) + 0.5) * 255 / 60  # red rises from edge to edge
    assert np.abs(small[:, :, 0] - wanted).mean() < 3
    assert slide.thumbnail(200).shape == (75, 102, 3)


def test_a_file_with_neither_is_read_whole(
    tmp_path: Path, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise, photometric="rgb", tile=(64, 64))
    slide = open_slide(tmp_path / "a.tif", mpp=0.5)
    plain = slide.thumbnail(100)
    monkeypatch.setattr("histoscribe.slides.pyramid.LARGE_PX", 1000)
    assert (slide.thumbnail(100) == plain).all()


def test_none_of_no_size(noise: np.ndarray, write_pyramid: Callable[..., Path]) -> None:
    slide = open_slide(write_pyramid(noise, "p.tif", subifds=False), mpp=0.5)
    with pytest.raises(DataError, match="thumbnail of 0 px; wanted at least 1"):
        slide.thumbnail(0)
