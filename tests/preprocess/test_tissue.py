from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histoscribe.errors import DataError
from histoscribe.preprocess.tissue import sample_tissue_pixels, tissue_mask
from histoscribe.slides.open import open_slide
from histoscribe.slides.pyramid import PyramidSlide

MPP = 2.0
PINK = np.array([205, 120, 180])


def drawn(tmp_path: Path, lamp: float = 1.0) -> PyramidSlide:
    """Glass with a disc of 400 µm radius, a hole of 100 µm in it, a speck and a black stroke."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:707, :911]
    image = np.full((707, 911, 3), 240.0)
    from_centre = np.hypot(x - 400, y - 350)
    image[(from_centre < 200) & (from_centre > 50)] = PINK
    image[20:30, 20:30] = PINK
    image[600:640, 500:900] = 25
    image = image * lamp + rng.normal(0, 3, image.shape)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    return open_slide(tmp_path / "a.png", mpp=MPP)


@pytest.mark.parametrize("lamp", [1.0, 0.55])
def test_the_disc_is_found_and_its_hole_kept(tmp_path: Path, lamp: float) -> None:
    found = tissue_mask(drawn(tmp_path, lamp), mpp=8.0)
    assert found.mask.shape == (round(707 * 2 / 8), round(911 * 2 / 8))
    assert found.area_mm2 == pytest.approx(np.pi * (0.4**2 - 0.1**2), rel=0.06)
    rows, columns = np.nonzero(found.mask)
    assert abs(columns.mean() - 100) < 1
    assert abs(rows.mean() - 87.5) < 1
    assert not found.mask[87, 100]  # the hole
    assert not found.mask[:12, :12].any()  # the speck, 20 µm across
    assert not found.mask[145:].any()  # the ink


def test_all_tissue_is_all_and_glass_is_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for name, colour, share in (("full", PINK, 1.0), ("none", [238, 238, 238], 0.0)):
        image = rng.normal(colour, 12, (301, 407, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        assert tissue_mask(open_slide(tmp_path / f"{name}.png", mpp=MPP)).mask.mean() == share
    Image.new("RGB", (301, 407), (255, 255, 255)).save(tmp_path / "constant.png")
    slide = open_slide(tmp_path / "constant.png", mpp=MPP)
    empty = tissue_mask(slide)
    assert empty.area_mm2 == 0
    with pytest.raises(DataError, match="no tissue found"):
        sample_tissue_pixels(slide, empty, 10, 2.0, np.random.default_rng(0))


@pytest.mark.parametrize("side_px", [12, 25, 45, 49, 60, 95])
def test_an_image_smaller_than_a_fragment_may_be_tissue(tmp_path: Path, side_px: int) -> None:
    rng = np.random.default_rng(2)
    image = rng.normal(PINK, 12, (side_px, side_px, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png", mpp=MPP)  # 24 to 190 µm across
    assert tissue_mask(slide).mask.mean() == 1.0
    half = np.where(np.arange(side_px)[:, None] < side_px // 2, image, np.uint8(238))
    if side_px >= 45:
        Image.fromarray(half.transpose(1, 0, 2).copy()).save(tmp_path / "half.png")
        share = tissue_mask(open_slide(tmp_path / "half.png", mpp=MPP)).mask.mean()
        assert 0.3 < share < 0.7


def test_pixels_come_from_the_tissue_and_follow_the_generator(tmp_path: Path) -> None:
    slide = drawn(tmp_path)
    mask = tissue_mask(slide)
    one, again, other = (
        sample_tissue_pixels(slide, mask, 1501, 2.0, np.random.default_rng(seed))
        for seed in (4, 4, 5)
    )
    assert one.shape == (1501, 3)
    assert (one == again).all()
    assert (one != other).any()
    is_pink = np.abs(one.astype(float) - PINK).max(axis=1) < 25
    assert is_pink.mean() > 0.95
    with pytest.raises(DataError, match="wanted finer"):
        sample_tissue_pixels(slide, mask, 10, 9.0, np.random.default_rng(0))


def test_a_published_section_has_its_tissue_under_its_spots(data_dir: Path) -> None:
    path = next((data_dir / "her2st" / "ST-imgs" / "C" / "C2").glob("*.jpg"))
    mask = tissue_mask(open_slide(path, mpp=0.69))
    assert 4 < mask.area_mm2 < 9
    table = np.genfromtxt(
        data_dir / "her2st" / "ST-spotfiles" / "C2_selection.tsv", names=True, delimiter="\t"
    )
    rows = (table["pixel_y"] * 0.69 / 8).astype(int)
    columns = (table["pixel_x"] * 0.69 / 8).astype(int)
    near = [
        mask.mask[y - 6 : y + 7, x - 6 : x + 7].mean() for y, x in zip(rows, columns, strict=True)
    ]
    assert np.median(near) > 0.8
    assert np.mean(np.array(near) > 0.2) > 0.97
