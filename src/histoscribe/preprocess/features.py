"""Feature maps to features: of each nucleus, of each square of the field, and crops."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float, Float32, Float64, Int, Int32, Int64, UInt8
from scipy import sparse
from torch import Tensor

from histoscribe.errors import ConfigError

EDGE_PX = 1e-6  # of a map's pixel: positions nearer than this are the same


@dataclass(frozen=True)
class FeatureMap:
    """A feature map in the slide's frame.

    The vector at row i and column j describes the square of side `step_um` whose top left corner
    is at `corner_um` + `step_um` * (j, i), and stands at that square's centre.
    """

    values: Float[Tensor, "channel my mx"]
    corner_um: tuple[float, float]
    step_um: float


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
        values = take_pixels(level, seen)
        mean = weights @ values / n_pixels
        square = weights @ np.square(values) / n_pixels
        means.append(mean)
        deviations.append(np.sqrt(np.maximum(square - np.square(mean), 0)))
    return np.concatenate(means + deviations, axis=1).astype(np.float32)


def take_pixels(
    level: Float[Tensor, "channel my mx"], places: Int64[np.ndarray, " place"]
) -> Float64[np.ndarray, "place channel"]:
    """The vectors of a map at some of its pixels, row by row, counted from its first."""
    # A view in channels-last memory, so that only these pixels are moved.
    index = torch.from_numpy(places).to(level.device)
    return level.flatten(1).T.index_select(0, index).double().cpu().numpy()


def pool_interpolated(
    level: FeatureMap,
    labels: Int32[np.ndarray, "y x"],
    corner_um: tuple[float, float],
    mpp: float,
    *,
    with_deviation: bool = False,
) -> Float32[np.ndarray, "nucleus feature"]:
    r"""Mean over each nucleus' pixels of the map, interpolated bilinearly between its vectors.

    A map is coarser than nuclei (8 µm a vector for a network of 16-px patches at 0.5 µm/px), so
    that the vector nearest to a nucleus often stands for a neighbour. For the pixels p of nucleus
    n and the vectors k of the map, with w[p, k] the bilinear weights of the four vectors round p:

        W[n, k] = avg_p w[p, k]        mean[n] = sum_k W[n, k] map[k]

    This is the mean over n of the map enlarged to the labels' pixels (`F.interpolate`, bilinear,
    align_corners=False), without enlarging it: W is sparse, a few vectors a nucleus. Beyond the
    outermost vectors the map goes on as they are. Summed in float64.

    Args:
        level: The map.
        labels: 0 for none, 1 to n each with a pixel.
        corner_um: Top left corner (x, y) of the labels on the slide.
        mpp: µm per pixel of the labels.
        with_deviation: Then the deviations come after the means, sqrt(sum_k W[n, k] (map[k] -
            mean[n])^2): how much the vectors under a nucleus differ.
    """
    n_nuclei = int(labels.max(initial=0))
    y, x = np.nonzero(labels)
    nucleus = labels[y, x].astype(np.int64) - 1
    n_rows, n_columns = level.values.shape[1:]
    place = [
        (corner_um[axis] + (np.arange(n) + 0.5) * mpp - level.corner_um[axis]) / level.step_um - 0.5
        for axis, n in enumerate(reversed(labels.shape))
    ]
    left, to_right = floor_and_share(place[0], n_columns)
    top, to_bottom = floor_and_share(place[1], n_rows)
    columns, weights = [], []
    for below in (0, 1):
        down = to_bottom[y] if below else 1 - to_bottom[y]
        row = np.minimum(top[y] + below, n_rows - 1) * n_columns
        for right in (0, 1):
            columns.append(row + np.minimum(left[x] + right, n_columns - 1))
            weights.append(down * (to_right[x] if right else 1 - to_right[x]))
    seen, column = np.unique(np.concatenate(columns), return_inverse=True)
    summed = sparse.csr_array(
        (np.concatenate(weights), (np.tile(nucleus, 4), column)), shape=(n_nuclei, len(seen))
    )
    n_pixels = np.bincount(nucleus, minlength=n_nuclei).astype(np.float64)[:, None]
    values = take_pixels(level.values, seen)
    mean = summed @ values / n_pixels
    if not with_deviation:
        return mean.astype(np.float32)
    square = summed @ np.square(values) / n_pixels
    deviation = np.sqrt(np.maximum(square - np.square(mean), 0))
    return np.concatenate([mean, deviation], axis=1).astype(np.float32)


def floor_and_share(
    place: Float64[np.ndarray, " pixel"], n: int
) -> tuple[Int64[np.ndarray, " pixel"], Float64[np.ndarray, " pixel"]]:
    """Of places along an axis of n vectors: the vector before each, and the next one's weight."""
    clipped = np.clip(place, 0, n - 1)
    before = np.floor(clipped)
    return before.astype(np.int64), clipped - before


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


def pool_squares_by_area(
    level: FeatureMap,
    corner_um: Float64[np.ndarray, "square 2"],
    side_um: float,
) -> Float32[np.ndarray, "square feature"]:
    """Mean and standard deviation of a map over squares of one lattice that lie within it.

    Every vector counts by the area that its own square shares with the square asked for. Where
    the squares' borders are those of the map, this is `pool_squares`.

    Args:
        level: The map.
        corner_um: Top left corners (x, y) on the slide; few different x, few different y.
        side_um: Side of a square.

    Returns:
        The means of all channels, then their standard deviations.

    Raises:
        ConfigError: A square reaches beyond the map.
    """
    n_channels = level.values.shape[0]
    if not len(corner_um):
        return np.zeros((0, 2 * n_channels), np.float32)
    shared, place = [], []
    for axis, n in enumerate(reversed(level.values.shape[1:])):
        low, index = np.unique(corner_um[:, axis], return_inverse=True)
        first = (low - level.corner_um[axis]) / level.step_um
        shared.append(share_of_cells(first, side_um / level.step_um, n))
        place.append(index)
    across, down = (torch.from_numpy(one).to(level.values) for one in shared)
    # About the mean of the map, so that the small deviation of large values survives float32.
    middle = level.values.mean(dim=(1, 2), keepdim=True)
    centred = level.values - middle
    mean = down @ centred @ across.T
    square = down @ centred.square() @ across.T
    deviation = (square - mean.square()).clamp_min_(0).sqrt_()
    pooled = torch.cat([mean + middle, deviation]).float().cpu().numpy()
    return np.ascontiguousarray(pooled[:, place[1], place[0]].T)


def pool_windows(
    level: FeatureMap,
    centre_um: Float[np.ndarray, "window 2"],
    side_um: float,
) -> Float32[np.ndarray, "window feature"]:
    """Mean and standard deviation of a map over a square round each point.

    As `pool_squares_by_area`, for squares anywhere: each is four looks into a table of sums. The
    table is linear between its entries where the map is constant, which it is within a vector's
    own square, so that fractions of vectors count by their area.

    Args:
        level: The map.
        centre_um: Centres (x, y) on the slide.
        side_um: Side of the squares.

    Returns:
        The means of all channels, then their standard deviations.

    Raises:
        ConfigError: A square reaches beyond the map.
    """
    n_channels = level.values.shape[0]
    if not len(centre_um):
        return np.zeros((0, 2 * n_channels), np.float32)
    first = (centre_um - side_um / 2 - np.array(level.corner_um)) / level.step_um
    limit = np.array(level.values.shape[:0:-1])
    if np.any(first < -EDGE_PX) or np.any(first + side_um / level.step_um > limit + EDGE_PX):
        raise ConfigError(
            f"windows of {side_um:g} µm leave the field; give a smaller prepare.view.window_um, or "
            "a larger prepare.overlap_px or prepare.view.margin_um"
        )
    low = torch.from_numpy(first.clip(0)).to(level.values.device)
    high = torch.from_numpy((first + side_um / level.step_um).clip(max=limit)).to(low)
    middle = level.values.mean(dim=(1, 2), keepdim=True)
    centred = (level.values - middle).double()
    n_vectors = (high - low).prod(dim=1)
    mean = _sum_within(centred, low, high) / n_vectors
    square = _sum_within(centred.square_(), low, high) / n_vectors
    deviation = (square - mean.square()).clamp_min_(0).sqrt_()
    pooled = torch.cat([mean + middle[:, 0].double(), deviation])
    return np.ascontiguousarray(pooled.T.float().cpu().numpy())


def _sum_within(
    values: Float[Tensor, "d my mx"],
    low: Float[Tensor, "window 2"],
    high: Float[Tensor, "window 2"],
) -> Float[Tensor, "d window"]:
    table = F.pad(values.cumsum(1).cumsum(2), (1, 0, 1, 0))

    def up_to(x: Tensor, y: Tensor) -> Tensor:
        column = x.floor().long().clamp(0, values.shape[2] - 1)
        row = y.floor().long().clamp(0, values.shape[1] - 1)
        right, down = x - column, y - row
        above = table[:, row, column] * (1 - right) + table[:, row, column + 1] * right
        below = table[:, row + 1, column] * (1 - right) + table[:, row + 1, column + 1] * right
        return above * (1 - down) + below * down

    return (
        up_to(high[:, 0], high[:, 1])
        - up_to(low[:, 0], high[:, 1])
        - up_to(high[:, 0], low[:, 1])
        + up_to(low[:, 0], low[:, 1])
    )


def share_of_cells(
    first: Float64[np.ndarray, " interval"], length: float, n: int
) -> Float64[np.ndarray, "interval cell"]:
    """The share of each of the cells [i, i + 1), i < n, in each interval [first, first + length).

    Raises:
        ConfigError: An interval leaves [0, n].
    """
    last = first + length
    if first.min() < -EDGE_PX or last.max() > n + EDGE_PX:
        raise ConfigError(
            f"squares from {first.min():.4g} to {last.max():.4g} leave a feature map of {n} "
            "vectors; read the field with more margin (prepare.view.margin_um)"
        )
    cell = np.arange(n)
    overlap = np.minimum(last[:, None], cell + 1) - np.maximum(first[:, None], cell)
    shared = np.maximum(overlap, 0)
    return shared / shared.sum(axis=1, keepdims=True)


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
