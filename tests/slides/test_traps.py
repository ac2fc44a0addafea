"""The traps of published slides, one test each, in every format that can hold them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from histoscribe.errors import DataError
from histoscribe.slides.open import open_slide
from histoscribe.types import Box

Write = Callable[..., Path]
FORMATS = ["png", "jpg", "tif", "svs", "ome.tif", "dicom", "ome-zarr 0.4", "ome-zarr 0.5"]
SCALED = FORMATS[2:]


@pytest.fixture
def write(tmp_path: Path, write_dicom: Write, write_ome_zarr: Write) -> Write:
    """Writes an image in a format, with µm per pixel along x and y, or none."""

    def write(image: np.ndarray, kind: str, mpp: tuple[float, float] | None) -> Path:
        path = tmp_path / f"a.{kind}"
        if kind == "dicom":
            return write_dicom([image], mpp=mpp)
        if kind.startswith("ome-zarr"):
            return write_ome_zarr(
                [image],
                kind.split()[1],
                scale=mpp or (1.0, 1.0),
                unit="micrometer" if mpp else None,
            )
        if kind in ("png", "jpg"):
            Image.fromarray(image).save(path, quality=95)
            return path
        options: dict = {"photometric": "rgb", "tile": (64, 48)}
        if kind == "ome.tif":
            sizes = {"PhysicalSizeX": mpp[0], "PhysicalSizeY": mpp[1]} if mpp else {}
            options["metadata"] = {"axes": "YXS"} | sizes
        elif kind == "svs":
            options["description"] = "Aperio Image Library v12.0\r\n211x173"
            options["description"] += f" |MPP = {mpp[0]}|AppMag = 20" if mpp else ""
            options["metadata"] = None
        elif mpp:
            options["resolution"] = (10_000 / mpp[0], 10_000 / mpp[1])
            options["resolutionunit"] = "CENTIMETER"
        tifffile.imwrite(path, image, **options)
        return path

    return write


@pytest.mark.parametrize("kind", FORMATS)
def test_a_missing_mpp_is_refused_with_the_way_to_give_it(
    noise: np.ndarray, write: Write, kind: str
) -> None:
    path = write(noise, kind, None)
    with pytest.raises(DataError, match=r"does not say how many µm.*--mpp.*column mpp"):
        open_slide(path)
    assert open_slide(path, mpp=0.5).mpp == (0.5, 0.5)


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize(("mpp", "told"), [(0.005, r"0\.005"), (50.0, "50")])
def test_an_mpp_wrong_by_a_hundred_is_refused_with_the_way_to_mend_it(
    noise: np.ndarray, write: Write, kind: str, mpp: float, told: str
) -> None:
    path = write(noise, kind, (mpp, mpp))
    with pytest.raises(DataError, match=rf"says {told} µm/px; wanted 0\.05 to 5.*--mpp 0\.25"):
        open_slide(path)
    slide = open_slide(path, mpp=0.5)
    assert slide.mpp == (0.5, 0.5)
    assert "0.5 µm/px given" in slide.notes[0]


@pytest.mark.parametrize("kind", FORMATS)
def test_swapped_axes_would_put_the_mark_elsewhere(write: Write, kind: str) -> None:
    # x runs right and y down, the image is wider than high, and a scale differs by axis
    image = np.full((173, 211, 3), 230, dtype=np.uint8)
    image[24:40, 152:184] = (30, 60, 120)
    has_two = kind in SCALED and kind != "svs"
    path = write(image, kind, (0.25, 0.5) if has_two else (0.5, 0.5))
    slide = open_slide(path, mpp=None if kind in SCALED else 0.5)
    assert slide.size_px == (211, 173)
    assert slide.mpp == pytest.approx((0.25, 0.5) if has_two else (0.5, 0.5))
    x, y = slide.mpp
    mark = slide.read(Box(154 * x, 26 * y, 28 * x, 12 * y), max(x, y))
    beside = slide.read(Box(26 * x, 154 * y, 12 * x, 16 * y), max(x, y))
    assert np.abs(mark.astype(int) - (30, 60, 120)).max() < 12
    assert np.abs(beside.astype(int) - 230).max() < 12


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("kind", ["tif", "ome.tif", "ome-zarr 0.4", "ome-zarr 0.5"])
def test_pixels_of_another_range_are_refused_and_not_cut_to_8_bits(
    tmp_path: Path, noise: np.ndarray, write_ome_zarr: Write, kind: str, dtype: str
) -> None:
    if kind.startswith("ome-zarr"):
        path = write_ome_zarr([noise], kind.split()[1], dtype=dtype)
    else:
        path = tmp_path / f"a.{kind}"
        tifffile.imwrite(path, (noise / 255).astype(dtype), photometric="rgb")
    with pytest.raises(DataError, match=rf"holds {dtype} .*wanted one 8-bit RGB"):
        open_slide(path, mpp=0.5)
