"""Feature maps to features: of each nucleus, of each square of the field, and crops."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int32, UInt8
from scipy import sparse
from torch import Tensor

from histoscribe.errors import ConfigError


def pool_nuclei(
    maps: Sequence[Float[Tensor, "_ _ _"]],
    labels: Int32[np.ndarray, "y x"],
) -> Float32[np.ndarray, "nucleus feature"]:
    r"""Mean and standard deviation of every channel of every map over each nucleus.

    For nucleus n, channel c and a map of stride s, over the pixels p of n:

        mean[n, c] = avg_p map[c, p // s]     std[n, c]^2 = avg_p (map[c, p // s] - mean[n, c])^2

    so each coarse pixel counts by the number of nucleus pixels over it, and a nucleus smaller
    than a coarse pixel has its value (and a deviation of 0). Summed in float64.

    Args:
        maps: From fine to coarse; the stride of each is its share of the field's side.
        labels: 0 for none, 1 to n each with a pixel.

    Returns:
        The means of all channels, map by map, then their standard deviations.
    """
    n_nuclei = int(labels.max(initial=0))
    y, x = np.nonzero(labels)
    nucleus = labels[y, x].astype(np.int64) - 1
    n_pixels = np.bincount(nucleus, minlength=n_nuclei).astype(np.float64)[:, None]
    means: list[np.ndarray] = []
    deviations: list[np.ndarray] = []
    for level in maps:
        stride = stride_of(level, labels.shape)
        coarse = (y // stride) * level.shape[2] + x // stride
        seen, column = np.unique(coarse, return_inverse=True)
        weights = sparse.csr_array(
            (np.ones(len(nucleus)), (nucleus, column)), shape=(n_nuclei, len(seen))
        )
        # A view in channels-last memory, so that only the pixels under nuclei are moved.
        index = torch.from_numpy(seen).to(level.device)
        values = level.flatten(1).T.index_select(0, index).double().cpu().numpy()
        mean = weights @ values / n_pixels
        square = weights @ np.square(values) / n_pixels
        means.append(mean)
        deviations.append(np.sqrt(np.maximum(square - np.square(mean), 0)))
    return np.concatenate(means + deviations, axis=1).astype(np.float32)


def stride_of(level: Float[Tensor, "channel my mx"], field_shape: tuple[int, ...]) -> int:
    """How many pixels of the field one pixel of the map covers, along each axis."""
    stride = round(field_shape[0] / level.shape[1])
    covered = (level.shape[1] * stride, level.shape[2] * stride)
    if stride < 1 or covered[0] < field_shape[0] or covered[1] < field_shape[1]:
        raise ConfigError(
            f"a feature map of {level.shape[1]} x {level.shape[2]} pixels does not cover a field "
            f"of {field_shape[0]} x {field_shape[1]} in whole steps; the encoder must pad its input"
        )
    return stride


def pool_squares(
    maps: Sequence[Float[Tensor, "_ _ _"]],
    field_px: int,
    corner_px: Int[np.ndarray, "square 2"],
    side_px: int,
) -> Float32[np.ndarray, "square feature"]:
    """Mean and standard deviation of every channel of every map over squares of the field.

    The squares must lie on one grid of step `side_px` whose corners are whole pixels of every
    map, as `FieldPlan` sees to.

    Args:
        maps: From fine to coarse.
        field_px: Side of the field.
        corner_px: Top left corner (x, y) of each square, in pixels of the field.
        side_px: Side of a square.

    Returns:
        The means of all channels, map by map, then their standard deviations.
    """
    if not len(corner_px):
        return np.zeros((0, 2 * sum(level.shape[0] for level in maps)), np.float32)
    low = corner_px.min(axis=0)
    column, row = ((corner_px - low) // side_px).T
    n_columns, n_rows = int(column.max()) + 1, int(row.max()) + 1
    means: list[Tensor] = []
    deviations: list[Tensor] = []
    for level in maps:
        stride = stride_of(level, (field_px, field_px))
        if side_px % stride or np.any(low % stride):
            raise ConfigError(
                f"squares of {side_px} px from {low.tolist()} do not fall on whole pixels of a map "
                f"of stride {stride}; choose a tile side that is a multiple of it"
            )
        size = side_px // stride
        x0, y0 = (low // stride).tolist()
        area = level[:, y0 : y0 + n_rows * size, x0 : x0 + n_columns * size].permute(1, 2, 0)
        blocks = area.reshape(n_rows, size, n_columns, size, -1)
        mean = blocks.mean(dim=(1, 3), keepdim=True)
        means.append(mean[:, 0, :, 0])
        deviations.append((blocks - mean).square_().mean(dim=(1, 3)).sqrt_())
    grid = torch.cat(means + deviations, dim=2).float().cpu().numpy()
    return grid[row, column]


def colour_of_squares(
    image: UInt8[np.ndarray, "y x 3"],
    corner_px: Int[np.ndarray, "square 2"],
    side_px: int,
) -> Float32[np.ndarray, "square 6"]:
    """Mean red, green and blue of each square, then their standard deviations, 0 to 255."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    return pool_squares([pixels], image.shape[0], corner_px, side_px)


def crop_squares(
    image: UInt8[np.ndarray, "y x 3"],
    centre_px: Float[np.ndarray, "tile 2"],
    side_px: int,
) -> UInt8[np.ndarray, "tile side side 3"]:
    """Cut a square round each centre (x, y); all of them must lie inside the image."""
    corner = np.rint(centre_px - side_px / 2).astype(np.int64)
    height, width = image.shape[:2]
    limit = np.array([width, height]) - side_px
    if np.any(corner < 0) or np.any(corner > limit):
        raise ConfigError(
            f"a crop of {side_px} px leaves the field of {width} x {height} px; "
            "fields must be read with half a tile to spare"
        )
    step = np.arange(side_px)
    rows = (corner[:, 1, None] + step)[:, :, None]
    columns = (corner[:, 0, None] + step)[:, None, :]
    return image[rows, columns]
