import numpy as np
import pytest

from histoscribe.data.toy import toy_world
from histoscribe.errors import DataError
from histoscribe.preprocess.segmenters.threshold import ThresholdSegmenter, fill_small
from histoscribe.types import Box


def test_the_toy_slide_s_nuclei_are_found() -> None:
    world = toy_world(3)
    segmenter = ThresholdSegmenter()
    image = world.slide.read(Box(200, 150, 301, 253), 0.5)
    calibration = segmenter.calibrate(image.reshape(-1, 3))
    (segmentation,) = segmenter.segment(image[None], calibration)
    labels = segmentation.labels
    inside = world.cells.xy_um - [200, 150]
    seen = np.all((inside > 6) & (inside < [295, 247]), axis=1)
    inside = inside[seen]
    column, row = np.floor(inside / 0.5).astype(int).T
    numbers = labels[row, column]
    assert (numbers > 0).mean() > 0.99
    assert len(np.unique(numbers[numbers > 0])) == (numbers > 0).sum()
    area = np.bincount(labels.ravel())[numbers[numbers > 0]] * 0.25
    assert area.mean() == pytest.approx(world.cells.area_um2[seen].mean(), rel=0.25)


def test_touching_nuclei_are_parted() -> None:
    y, x = np.mgrid[:60, :80]
    dark = (np.hypot(y - 30, x - 30) < 9) | (np.hypot(y - 30, x - 45) < 9)
    image = np.where(dark[..., None], np.uint8([80, 40, 120]), np.uint8([224, 174, 200]))
    segmenter = ThresholdSegmenter()
    calibration = segmenter.calibrate(image.reshape(-1, 3))
    labels = segmenter.segment(image[None], calibration)[0].labels
    assert labels.max() == 2
    assert labels[30, 28] != labels[30, 47]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_constant_image_is_refused(value: int) -> None:
    pixels = np.full((999, 3), value, np.uint8)
    with pytest.raises(DataError, match="constant"):
        ThresholdSegmenter().calibrate(pixels)


def test_no_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="no tissue"):
        ThresholdSegmenter().calibrate(np.zeros((0, 3), np.uint8))


def test_an_empty_field_has_no_nuclei() -> None:
    world = toy_world(3)
    segmenter = ThresholdSegmenter()
    image = world.slide.read(Box(300, 300, 100, 100), 0.5)
    calibration = segmenter.calibrate(image.reshape(-1, 3))
    white = np.full((1, 64, 80, 3), 243, np.uint8)
    assert segmenter.segment(white, calibration)[0].labels.max() == 0


def test_a_lumen_stays_open_and_pale_chromatin_is_filled() -> None:
    y, x = np.mgrid[:60, :80]
    radius = np.hypot(y - 30, x - 40)
    ring = (radius < 20) & (radius > 12)
    assert not fill_small(ring, 48)[30, 40]
    assert fill_small((radius < 6) & (radius > 2), 48)[30, 40]
