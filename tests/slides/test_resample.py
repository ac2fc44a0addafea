from itertools import pairwise

import numpy as np
import pytest

from histoscribe.slides.resample import apply_filters, axis_filter


def resample(
    image: np.ndarray, start: tuple[float, float], step: float, size: tuple[int, int]
) -> np.ndarray:
    across = axis_filter(start[0], step, size[0], image.shape[1])
    down = axis_filter(start[1], step, size[1], image.shape[0])
    needed = image[down.first : down.stop, across.first : across.stop]
    return apply_filters(needed, down, across)


def area_average(
    image: np.ndarray, start: tuple[float, float], step: float, size: tuple[int, int]
) -> np.ndarray:
    """The plain form: each output pixel integrates the source under it, white outside."""
    made = np.empty((size[1], size[0], 3))
    for row in range(size[1]):
        for column in range(size[0]):
            total = np.zeros(3)
            left, top = start[0] + column * step, start[1] + row * step
            for y in range(int(np.floor(top)), int(np.ceil(top + step))):
                for x in range(int(np.floor(left)), int(np.ceil(left + step))):
                    wide = min(x + 1, left + step) - max(x, left)
                    high = min(y + 1, top + step) - max(y, top)
                    is_on = 0 <= y < image.shape[0] and 0 <= x < image.shape[1]
                    total += max(wide, 0) * max(high, 0) * (image[y, x] if is_on else 255.0)
            made[row, column] = total / step**2
    return made


@pytest.mark.parametrize("step", [1.0, 1.38, 2.0, 3.7, 11.59])
@pytest.mark.parametrize("start", [(0.0, 0.0), (3.25, 7.9), (-4.4, -2.5), (195.3, 160.2)])
def test_shrinking_is_the_area_average(
    noise: np.ndarray, step: float, start: tuple[float, float]
) -> None:
    size = (9, 7)
    wanted = area_average(noise, start, step, size)
    assert np.abs(resample(noise, start, step, size) - wanted).max() <= 0.51


@pytest.mark.parametrize("step", [0.5, 0.7246, 0.93])
def test_enlarging_is_bilinear_between_pixel_centres(step: float) -> None:
    y, x = np.mgrid[:61, :83]
    image = np.stack([2 * x, 3 * y, x + y], axis=2).astype(np.uint8)
    made = resample(image, (5.3, 4.1), step, (41, 29)).astype(float)
    at_x = 5.3 + (np.arange(41) + 0.5) * step - 0.5
    at_y = 4.1 + (np.arange(29) + 0.5) * step - 0.5
    assert np.abs(made[:, :, 0] - 2 * at_x[None, :]).max() <= 0.51
    assert np.abs(made[:, :, 1] - 3 * at_y[:, None]).max() <= 0.51


def test_enlarging_keeps_the_edge_and_is_white_beyond() -> None:
    image = np.full((11, 13, 3), 90, dtype=np.uint8)
    made = resample(image, (-2.0, 0.0), 0.5, (30, 22))
    assert (made[:, :4] == 255).all()
    assert (made[:, 4:] == 90).all()


def test_whole_pixels_come_unchanged(noise: np.ndarray) -> None:
    assert (resample(noise, (17.0, 23.0), 1.0, (31, 29)) == noise[23:52, 17:48]).all()


def test_off_the_slide_is_white(noise: np.ndarray) -> None:
    assert (resample(noise, (500.0, 3.0), 1.7, (5, 7)) == 255).all()
    assert (resample(noise, (3.0, -90.0), 0.6, (5, 7)) == 255).all()


@pytest.mark.parametrize("step", [0.58, 1.0, 2.9])
def test_pieces_are_the_whole(noise: np.ndarray, step: float) -> None:
    start, size = (-3.3, 1.7), (47, 37)
    whole = resample(noise, start, step, size)
    cuts = [0, 5, 16, 37]
    pieces = [
        resample(noise, (start[0], start[1] + low * step), step, (size[0], high - low))
        for low, high in pairwise(cuts)
    ]
    assert (np.concatenate(pieces) == whole).all()
