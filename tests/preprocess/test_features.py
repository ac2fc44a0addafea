import numpy as np
import pytest
import torch
from torch import Tensor

from histoscribe.errors import ConfigError
from histoscribe.preprocess.features import (
    colour_of_squares,
    crop_squares,
    pool_nuclei,
    pool_squares,
    stride_of,
)


def maps_of(generator: torch.Generator, side: int, channels: tuple[int, ...]) -> list[Tensor]:
    """Fine to coarse, one of them in channels-last memory."""
    maps = [
        3 + torch.randn(c, -(-side // 2**level), -(-side // 2**level), generator=generator)
        for level, c in enumerate(channels)
    ]
    maps[0] = maps[0].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return maps


def pool_nuclei_plainly(maps: list[Tensor], labels: np.ndarray) -> np.ndarray:
    """The reference: every map enlarged to the field, every nucleus by itself."""
    rows = []
    for number in range(1, labels.max() + 1):
        inside = labels == number
        means, deviations = [], []
        for level in maps:
            stride = round(labels.shape[0] / level.shape[1])
            large = level.numpy().repeat(stride, axis=1).repeat(stride, axis=2)
            values = large[:, : labels.shape[0], : labels.shape[1]][:, inside].astype(np.float64)
            means.append(values.mean(axis=1))
            deviations.append(values.std(axis=1))
        rows.append(np.concatenate(means + deviations))
    return np.array(rows)


def test_pooling_over_nuclei_equals_the_plain_form() -> None:
    generator = torch.Generator().manual_seed(5)
    maps = maps_of(generator, 48, (3, 5, 2, 7))
    rng = np.random.default_rng(3)
    labels = np.zeros((48, 48), np.int32)
    for number in range(1, 12):
        y, x = rng.integers(0, 44, 2)
        labels[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = number
    labels = np.unique(labels, return_inverse=True)[1].reshape(48, 48).astype(np.int32)
    got = pool_nuclei(maps, labels)
    assert got.shape == (labels.max(), 2 * 17)
    np.testing.assert_allclose(got, pool_nuclei_plainly(maps, labels), rtol=1e-5, atol=1e-6)


def test_a_nucleus_smaller_than_a_coarse_pixel_has_its_value_and_no_deviation() -> None:
    level = torch.arange(4.0).reshape(1, 2, 2)
    labels = np.zeros((16, 16), np.int32)
    labels[3, 12] = 1
    np.testing.assert_allclose(pool_nuclei([level], labels), [[1.0, 0.0]])


def test_a_small_deviation_beside_a_large_mean_survives() -> None:
    level = torch.full((1, 8, 8), 1000.0)
    level[0, :, ::2] += 0.25
    got = pool_nuclei([level], np.ones((8, 8), np.int32))
    np.testing.assert_allclose(got, [[1000.125, 0.125]], rtol=1e-6)
    squares = pool_squares([level], 8, np.array([[0, 0]]), 8)
    np.testing.assert_allclose(squares, [[1000.125, 0.125]], rtol=1e-4)


def test_a_map_that_does_not_cover_the_field_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not cover"):
        stride_of(torch.zeros(2, 5, 5), (11, 11))


def test_pooling_over_squares_equals_the_plain_form() -> None:
    maps = maps_of(torch.Generator().manual_seed(1), 64, (3, 5, 2))
    corner = np.array([[8, 12], [40, 12], [24, 44], [24, 28]])
    got = pool_squares(maps, 64, corner, 16)
    for (x, y), row in zip(corner, got, strict=True):
        labels = np.zeros((64, 64), np.int32)
        labels[y : y + 16, x : x + 16] = 1
        np.testing.assert_allclose(row, pool_nuclei_plainly(maps, labels)[0], rtol=1e-4)


def test_squares_off_the_pixels_of_a_map_are_refused() -> None:
    with pytest.raises(ConfigError, match="whole pixels"):
        pool_squares([torch.zeros(1, 8, 8)], 64, np.array([[4, 0]]), 16)


def test_colours_are_those_of_the_square() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    (got,) = colour_of_squares(image, np.array([[7, 3]]), 20)
    square = image[3:23, 7:27].reshape(-1, 3).astype(float)
    np.testing.assert_allclose(got, [*square.mean(axis=0), *square.std(axis=0)], rtol=1e-4)


def test_crops_lie_round_their_centres_and_never_leave_the_image() -> None:
    image = np.arange(30 * 34 * 3, dtype=np.uint32).astype(np.uint8).reshape(30, 34, 3)
    crops = crop_squares(image, np.array([[10.0, 8.0], [31.0, 27.0]]), 6)
    np.testing.assert_array_equal(crops[0], image[5:11, 7:13])
    np.testing.assert_array_equal(crops[1], image[24:30, 28:34])
    with pytest.raises(ConfigError, match="leaves the field"):
        crop_squares(image, np.array([[32.0, 27.0]]), 6)
