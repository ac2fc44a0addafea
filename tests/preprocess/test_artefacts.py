"""Pen, blur and folds planted on a real image: the Visium crop of the demonstration."""

from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from histoscribe.data.slide import Slide
from histoscribe.data.toy import ToySlide
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.preprocess import artefacts as module
from histoscribe.preprocess.artefacts import (
    Artefacts,
    describe_artefacts,
    find_artefacts,
    measure_blur,
    usable,
)
from histoscribe.preprocess.tissue import TissueMask, mask_of, tissue_mask, whole_of
from histoscribe.slides.open import open_slide
from histoscribe.slides.pyramid import PyramidSlide
from histoscribe.types import Box

CROP_MPP = 0.615
GRID = 8.0
INKS = {
    "blue": (25, 45, 170),
    "green": (20, 120, 60),
    "cyan": (20, 140, 170),
    "black": (20, 20, 24),
    "navy": (30, 30, 110),
    "red": (205, 25, 35),
}


@dataclass(frozen=True)
class Recorded:
    """A slide that notes what is read of it."""

    slide: Slide
    boxes: list[tuple[Box, float]]
    slide_id: str = "recorded"

    @property
    def path(self) -> Path:
        return self.slide.path

    @property
    def size_px(self) -> tuple[int, int]:
        return self.slide.size_px

    @property
    def mpp(self) -> tuple[float, float]:
        return self.slide.mpp

    def read(self, box: Box, mpp: float) -> UInt8[np.ndarray, "y x 3"]:
        self.boxes.append((box, mpp))
        return self.slide.read(box, mpp)


@pytest.fixture(scope="module")
def crop() -> UInt8[np.ndarray, "y x 3"]:
    file = files("histoscribe.demo_data") / "visium_crop.jpg"
    with file.open("rb") as opened:
        return np.asarray(Image.open(opened).convert("RGB"))


def written(
    image: np.ndarray, folder: Path, mpp: float = CROP_MPP, name: str = "a.png"
) -> PyramidSlide:
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name, compress_level=1)
    return open_slide(folder / name, mpp=mpp)


def stroke(shape: tuple[int, int], width_um: float) -> Bool[np.ndarray, "y x"]:
    """A bent line right across the image."""
    high, wide = shape
    image = Image.new("L", (wide, high), 0)
    points = [(-0.05 * wide, 0.3 * high), (0.45 * wide, 0.6 * high), (1.05 * wide, 0.35 * high)]
    width_px = round(width_um / CROP_MPP)
    ImageDraw.Draw(image).line(points, fill=255, width=width_px, joint="curve")
    return np.asarray(image) > 0


def on_grid(drawn: Bool[np.ndarray, "y x"], mpp: float = CROP_MPP) -> Bool[np.ndarray, "y x"]:
    """Where the mask's pixels are mostly drawn on."""
    grey = np.repeat((drawn * 255).astype(np.uint8)[..., None], 3, axis=2)
    slide = ToySlide("drawn", grey, (mpp, mpp))
    return slide.read(whole_of(slide, GRID), GRID)[..., 0] > 127


def inked(image: np.ndarray, where: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Beer-Lambert: the density of the ink over that of the tissue, soft at its rim."""
    density = -np.log((np.array(colour) + 1) / 256)
    amount = ndimage.gaussian_filter(where.astype(np.float32), 8 / CROP_MPP)[..., None]
    return image * np.exp(-amount * density)


def defocused(image: np.ndarray, where: np.ndarray, sigma_px: float, seed: int) -> np.ndarray:
    """Part of an image out of focus; the camera's noise comes after."""
    noise = np.random.default_rng(seed).normal(0, 1.5, image.shape)
    soft = ndimage.gaussian_filter(image.astype(np.float32), (sigma_px, sigma_px, 0)) + noise
    return np.where(where[..., None], soft, image)


def doubled(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Tissue from elsewhere laid over a band."""
    density = -np.log(np.minimum((image.astype(np.float32) + 1) / 246, 1))
    amount = ndimage.gaussian_filter(where.astype(np.float32), 3 / CROP_MPP)[..., None]
    return 246 * np.exp(-density - amount * np.roll(density, (211, 103), axis=(0, 1)))


def test_a_real_image_has_nothing_of_it(tmp_path: Path, crop: np.ndarray) -> None:
    for lamp in (1.0, 0.6):
        slide = written(crop * lamp, tmp_path, name=f"{lamp}.png")
        found = find_artefacts(slide, tissue_mask(slide))
        assert describe_artefacts(found) == "pen 0 %, blur 0 %, fold 0 % of tissue"


@pytest.mark.parametrize("ink", INKS)
def test_ink_is_found_by_its_colour(tmp_path: Path, crop: np.ndarray, ink: str) -> None:
    where = stroke(crop.shape[:2], 180)
    slide = written(inked(crop, where, INKS[ink]), tmp_path)
    mask = tissue_mask(slide)
    found = find_artefacts(slide, mask)
    truth = on_grid(where)
    beside = ~np.array(ndimage.binary_dilation(truth, iterations=5), bool)
    assert found.pen[truth].mean() > (0.7 if ink == "red" else 0.97)
    assert found.pen[beside].mean() < 0.03
    left = usable(mask, found)
    assert not (left.mask & found.pen).any()
    assert left.area_mm2 == pytest.approx(left.mask.sum() * GRID**2 / 1e6)
    assert found.pen_share == (found.pen & mask.mask).sum() / mask.mask.sum()
    assert found.pen_outside_mm2 == pytest.approx((found.pen & ~mask.mask).sum() * GRID**2 / 1e6)


@pytest.mark.parametrize("sigma_um", [2.0, 4.0, 8.0])
def test_the_blurred_half_is_found(tmp_path: Path, crop: np.ndarray, sigma_um: float) -> None:
    half_um = 3 * module.WINDOW_UM
    where = np.zeros(crop.shape[:2], dtype=bool)
    where[:, : round((half_um + 16) / CROP_MPP)] = True  # the seam lies in the next window
    slide = written(defocused(crop, where, sigma_um / CROP_MPP, 3), tmp_path)
    mask = tissue_mask(slide)
    found = find_artefacts(slide, mask)
    column = round(half_um / GRID)
    is_tissue = mask.mask
    assert found.blur[:, :column][is_tissue[:, :column]].mean() > 0.9
    assert found.blur[:, column:][is_tissue[:, column:]].mean() < 0.01
    assert not found.blur[~is_tissue].any()
    assert found.blur_share == found.blur.sum() / is_tissue.sum()
    assert (usable(mask, found).mask == (is_tissue & ~found.blur)).all()


def test_blur_is_measured_in_um_whatever_the_stain(tmp_path: Path, crop: np.ndarray) -> None:
    window = Box(250.0, 250.0, 128.0, 128.0)
    everywhere = np.ones(crop.shape[:2], dtype=bool)
    assert measure_blur(written(crop, tmp_path), window) < 0.7
    for sigma_um in (2.0, 4.0):
        soft = defocused(crop, everywhere, sigma_um / CROP_MPP, 4)
        pale = 255 - (255 - soft) * 0.5
        measured = [
            measure_blur(written(image, tmp_path, name=f"{sigma_um}{name}.png"), window)
            for name, image in (("full", soft), ("pale", pale))
        ]
        assert measured == pytest.approx([sigma_um] * 2, rel=0.45)
        assert measured[0] == pytest.approx(measured[1], rel=0.1)


def test_flat_glass_and_slivers_are_neither_sharp_nor_blurred(tmp_path: Path) -> None:
    flat = np.full((301, 407, 3), 240)
    slide = written(flat, tmp_path, mpp=0.5)
    assert measure_blur(slide, Box(20.0, 20.0, 64.0, 64.0)) == 0
    assert measure_blur(slide, Box(203.0, 20.0, 64.0, 64.0)) == 0
    found = find_artefacts(slide, tissue_mask(slide))
    assert (found.pen_share, found.blur_share, found.fold_share) == (0, 0, 0)


def test_a_double_band_is_a_fold_and_a_dense_disc_is_none(tmp_path: Path, crop: np.ndarray) -> None:
    where = stroke(crop.shape[:2], 60)
    slide = written(doubled(crop, where), tmp_path)
    mask = tissue_mask(slide)
    found = find_artefacts(slide, mask)
    truth = on_grid(where)
    assert found.fold[truth & mask.mask].mean() > 0.8
    assert found.fold[~np.array(ndimage.binary_dilation(truth, iterations=3), bool)].mean() < 0.01
    assert found.pen_share == 0
    assert usable(mask, found).mask[found.fold & ~found.blur].all()

    y, x = np.mgrid[: crop.shape[0], : crop.shape[1]]
    disc = np.hypot(y - 500, x - 500) < 60 / CROP_MPP
    slide = written(doubled(crop, disc), tmp_path, name="disc.png")
    assert find_artefacts(slide, tissue_mask(slide)).fold_share == 0


def test_the_same_tissue_at_two_resolutions_gives_the_same(
    tmp_path: Path, crop: np.ndarray
) -> None:
    part = crop[: len(crop) // 2]
    shape = tuple(round(n * CROP_MPP / 0.25) // 2 * 2 for n in part.shape[1::-1])
    fine = np.asarray(Image.fromarray(part).resize(shape, Image.Resampling.BICUBIC))
    high, wide = fine.shape[:2]
    image = fine.astype(np.float32)
    image = defocused(image, np.arange(wide) < np.full((high, 1), wide // 2), 3 / 0.25, 6)
    image[high // 2 : high // 2 + 600, 2 * wide // 3 :] = INKS["green"]
    coarse = image.reshape(high // 2, 2, wide // 2, 2, 3).mean(axis=(1, 3))
    found = []
    for mpp, one in ((0.25, image), (0.5, coarse)):
        slide = written(one, tmp_path, mpp, f"{mpp}.png")
        mask = tissue_mask(slide)
        found.append((mask, find_artefacts(slide, mask)))
    (mask, one), (other_mask, other) = found
    assert mask.mask.shape == other_mask.mask.shape
    assert (mask.mask == other_mask.mask).mean() > 0.999
    assert one.pen_outside_mm2 > 0.03
    assert one.blur_share is not None
    assert other.blur_share is not None
    assert 0.2 < one.blur_share == pytest.approx(other.blur_share, abs=0.01)
    assert (one.pen == other.pen).mean() > 0.999
    assert (one.fold == other.fold).mean() > 0.999


def test_what_is_read_at_once_stays_small(
    tmp_path: Path, crop: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = np.zeros(crop.shape[:2], dtype=bool)
    where[:, : round(256 / CROP_MPP)] = True
    slide = Recorded(written(defocused(crop, where, 5 / CROP_MPP, 3), tmp_path), [])
    mask = tissue_mask(slide)
    every = find_artefacts(slide, mask)
    fine = [box for box, mpp in slide.boxes if mpp < GRID]
    assert len(fine) > 20
    assert max(max(box.width_um, box.height_um) for box in fine) <= 128 + 2 * 8
    slide.boxes.clear()
    monkeypatch.setattr(module, "MOST_WINDOWS", 12)
    sampled = find_artefacts(slide, mask)
    n_sampled = sum(mpp < GRID for _, mpp in slide.boxes)
    assert 4 <= n_sampled <= 16
    assert (sampled.blur == every.blur).mean() > 0.6
    assert sampled.blur.any()


def test_too_coarse_to_tell_is_said(tmp_path: Path, crop: np.ndarray) -> None:
    slide = written(crop[::2, ::2], tmp_path, mpp=2 * CROP_MPP)
    found = find_artefacts(slide, tissue_mask(slide))
    assert found.blur_share is None
    assert not found.blur.any()
    assert "blur not judged (coarser than 1 µm/px)" in describe_artefacts(found)
    with pytest.raises(ConfigError, match="32 µm/px is too coarse"):
        find_artefacts(slide, tissue_mask(slide, mpp=32.0))


def named(pen: float, blur: float | None, fold: float, outside_mm2: float = 0.0) -> Artefacts:
    none = np.zeros((3, 5), dtype=bool)
    return Artefacts(none, none, none, GRID, pen, blur, fold, outside_mm2)


def test_one_line_for_the_doctor() -> None:
    assert describe_artefacts(named(0.003, 0.12, 0.001)) == (
        "pen 0.3 %, blur 12 %, fold 0.1 % of tissue"
    )
    assert describe_artefacts(named(0.0001, 0.999, 0.0, 2.14)) == (
        "pen < 0.1 %, blur 99 %, fold 0 % of tissue; 2.1 mm² of ink outside the mask"
    )
    assert describe_artefacts(named(0.0, 1.0, 0.0)).startswith("pen 0 %, blur 100 %")


def test_artefacts_of_another_mask_are_refused() -> None:
    mask: TissueMask = mask_of(np.ones((3, 5), dtype=bool), GRID)
    assert usable(mask, named(0.0, 0.0, 0.0)).mask.all()
    for other in (mask_of(np.ones((5, 3), dtype=bool), GRID), replace(mask, mpp=4.0)):
        with pytest.raises(MismatchError, match="find the artefacts on that mask"):
            usable(other, named(0.0, 0.0, 0.0))


@pytest.mark.slow
def test_published_sections_are_hardly_touched(data_dir: Path) -> None:
    for name in ("C2", "C5"):
        path = next((data_dir / "her2st" / "ST-imgs" / "C" / name).glob("*.jpg"))
        slide = open_slide(path, mpp=0.69)
        found = find_artefacts(slide, tissue_mask(slide))
        assert found.blur_share is not None
        assert (found.pen_share, found.pen_outside_mm2) == (0, 0)
        assert found.blur_share < 0.04  # its lifted rims are out of focus
        assert found.fold_share < 0.02
