import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor

from histoscribe.errors import ConfigError
from histoscribe.preprocess.features import (
    FeatureMap,
    colour_of_squares,
    crop_squares,
    pool_interpolated,
    pool_nuclei,
    pool_squares,
    pool_squares_by_area,
    pool_windows,
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


def labels_of(seed: int, side: int, n: int) -> np.ndarray:
    """Boxes, some of which cover each other."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.int32)
    for number in range(1, n + 1):
        y, x = rng.integers(0, side - 4, 2)
        labels[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = number
    return np.unique(labels, return_inverse=True)[1].reshape(side, side).astype(np.int32)


def means_of(image: Tensor, labels: np.ndarray) -> np.ndarray:
    """Mean of an image "channel y x" over each label."""
    return np.stack(
        [image.numpy()[:, labels == number].mean(axis=1) for number in range(1, labels.max() + 1)]
    )


def test_pooling_over_nuclei_equals_the_plain_form() -> None:
    generator = torch.Generator().manual_seed(5)
    maps = maps_of(generator, 48, (3, 5, 2, 7))
    labels = labels_of(3, 48, 11)
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


def test_the_interpolated_mean_is_that_of_the_enlarged_map() -> None:
    values = torch.randn(13, 6, 6, generator=torch.Generator().manual_seed(2))
    labels = labels_of(9, 96, 17)
    level = FeatureMap(values, (40.0, 24.0), 8.0)
    enlarged = F.interpolate(values[None], size=(96, 96), mode="bilinear", align_corners=False)[0]
    got = pool_interpolated(level, labels, (40.0, 24.0), 0.5)
    np.testing.assert_allclose(got, means_of(enlarged, labels), atol=1e-5)


def test_map_and_labels_may_have_frames_of_their_own() -> None:
    values = torch.randn(5, 9, 11, generator=torch.Generator().manual_seed(2))
    level = FeatureMap(values, (97.0, 41.5), 7.0)
    labels = labels_of(4, 70, 12)
    corner, mpp = (103.3, 52.9), 0.61
    places = [corner[i] + (np.arange(70) + 0.5) * mpp - level.corner_um[i] for i in (0, 1)]
    u, v = (torch.from_numpy(2 * places[i] / (7.0 * n) - 1) for i, n in ((0, 11), (1, 9)))
    grid = torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)[None]
    seen = F.grid_sample(
        values[None].double(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )[0]
    got = pool_interpolated(level, labels, corner, mpp)
    np.testing.assert_allclose(got, means_of(seen, labels), atol=1e-5)


def test_a_map_of_places_gives_each_nucleus_its_centroid() -> None:
    centre = (torch.arange(8) + 0.5) * 8.0
    y, x = torch.meshgrid(centre + 16.0, centre + 48.0, indexing="ij")
    level = FeatureMap(torch.stack([x, y]), (48.0, 16.0), 8.0)
    labels = np.zeros((64, 64), np.int32)
    labels[10:13, 20:31] = 1
    labels[41:46, 31:33] = 2
    got = pool_interpolated(level, labels, (60.0, 30.0), 0.5)
    wanted = [[60 + 0.5 * 25.5, 30 + 0.5 * 11.5], [60 + 0.5 * 32.0, 30 + 0.5 * 43.5]]
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_deviations_say_how_much_the_vectors_under_a_nucleus_differ() -> None:
    values = torch.zeros(1, 2, 2)
    values[0, :, 1] = 3.0
    labels = np.zeros((16, 16), np.int32)
    labels[2:14, 7:9] = 1  # about the border of the two columns: half of each
    labels[6, 0] = 2  # beyond the outermost vectors
    level = FeatureMap(values, (0.0, 0.0), 8.0)
    got = pool_interpolated(level, labels, (0.0, 0.0), 1.0, with_deviation=True)
    np.testing.assert_allclose(got, [[1.5, 1.5], [0.0, 0.0]], atol=1e-6)


def test_squares_on_the_map_s_own_borders_are_pooled_as_ever() -> None:
    level = maps_of(torch.Generator().manual_seed(1), 64, (3, 5, 4))[2]
    corner = np.array([[8, 12], [40, 12], [24, 44], [24, 28]])
    wanted = pool_squares([level], 64, corner, 16)
    corner_um = 100.0 + 0.5 * corner
    got = pool_squares_by_area(FeatureMap(level, (100.0, 100.0), 2.0), corner_um, 8.0)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_squares_off_the_map_s_borders_count_vectors_by_their_area() -> None:
    level = 1000 + torch.randn(3, 7, 9, generator=torch.Generator().manual_seed(6))
    corner = np.array([[3, 5], [29, 5], [3, 31], [16, 18]])  # in tenths of a vector
    wanted = []
    large = level.numpy().repeat(10, axis=1).repeat(10, axis=2).astype(np.float64)
    for x, y in corner:
        inside = large[:, y : y + 26, x : x + 26].reshape(3, -1)
        wanted.append([*inside.mean(axis=1), *inside.std(axis=1)])
    got = pool_squares_by_area(
        FeatureMap(level, (7.0, 5.0), 10.0), corner + np.array([7.0, 5.0]), 26.0
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-3)
    with pytest.raises(ConfigError, match="more margin"):
        pool_squares_by_area(FeatureMap(level, (7.0, 5.0), 10.0), np.array([[72.0, 5.0]]), 26.0)


def test_windows_are_the_squares_of_the_lattice_anywhere() -> None:
    generator = np.random.default_rng(7)
    values = torch.from_numpy(generator.normal(3, 1, (5, 13, 17)).astype(np.float32))
    level = FeatureMap(values, (11.0, -4.0), 8.0)
    corner = np.array([11.0, -4.0]) + generator.uniform(0, 1, (23, 2)) * [17 * 8 - 24, 13 * 8 - 24]
    found = pool_windows(level, corner + 12, 24.0)
    wanted = np.concatenate([pool_squares_by_area(level, one[None], 24.0) for one in corner])
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_window_beyond_the_map_is_refused() -> None:
    level = FeatureMap(torch.ones(2, 5, 5), (0.0, 0.0), 8.0)
    with pytest.raises(ConfigError, match="window_um"):
        pool_windows(level, np.array([[5.0, 20.0]]), 24.0)
