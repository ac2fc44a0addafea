r"""From InstanSeg's five maps to nuclei: seeds, one grown region per seed, merge, clean.

Goldsborough et al. 2024 (arXiv:2408.15954): every pixel carries an embedding e (its own position
plus a predicted offset) and two values sigma; a seed s claims pixel p with the probability

    P(p, s) = classifier(e[p] - e[s], sigma[p])            a perceptron 4 - 5 - 5 - 1

and a nucleus is the connected part of {p: P >= threshold} around its seed, holes filled. A pixel
goes to the seed that claims it most; seeds whose regions overlap by more than a share of the
smaller one are one nucleus.

Departs from the published module in the way, not in the result: that module evaluates the
classifier over a window of 64 x 64 pixels round every seed, floods each window by repeated
max-pooling and compares all pairs of nuclei. Here all regions grow together from their seeds, one
ring of pixels a step, and the classifier sees only (seed, pixel) pairs that the growth reaches
(about 1 in 20); overlaps come from a sparse product. The cost is linear in the nuclei. Beyond the
module: after the assignment only the largest piece of each nucleus is kept, and nuclei below
`min_area_px` are dropped.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32
from scipy import ndimage, sparse, spatial, special
from skimage import measure


@dataclass(frozen=True)
class InstanceConfig:
    """The module's own thresholds; lengths in pixels of 0.5 µm."""

    seed_threshold: float = 0.7  # of the seed map
    seed_distance_px: int = 5  # a seed is the largest value within this distance, along each axis
    mask_threshold: float = 0.53  # of P(p, s)
    overlap_threshold: float = 0.3  # of the smaller region
    window_px: int = 32  # a nucleus reaches at most this far from its seed
    min_area_px: int = 10  # 2.5 µm²


class PixelClassifier(NamedTuple):
    """The perceptron: weight and bias of each layer, ReLU between them, a sigmoid at the end."""

    layers: Sequence[tuple[Float32[np.ndarray, "out in"], Float32[np.ndarray, " out"]]]

    def __call__(self, x: Float32[np.ndarray, "in pair"]) -> Float32[np.ndarray, " pair"]:
        """The probability that each pair's pixel belongs to its seed."""
        for index, (weight, bias) in enumerate(self.layers):
            if index:
                x = np.maximum(x, 0)
            x = weight @ x + bias[:, None]
        return special.expit(x[0])


class Claims(NamedTuple):
    """Which seed claims which pixel, one row per pair."""

    seed: Int[np.ndarray, " pair"]
    pixel: Int[np.ndarray, " pair"]  # y * width + x
    probability: Float32[np.ndarray, " pair"]


def find_instances(
    maps: Float32[np.ndarray, "5 y x"],
    classifier: PixelClassifier,
    config: InstanceConfig,
) -> Int32[np.ndarray, "y x"]:
    """Label the nuclei of one field.

    Args:
        maps: What `InstanSegNetwork` answers for the field.
        classifier: The published pixel classifier.
        config: Thresholds.

    Returns:
        0 for none, 1 to n in the order of the seeds (row by row).
    """
    height, width = maps.shape[1:]
    labels = np.zeros((height, width), np.int32)
    seeds = find_seeds(maps[4] / 15 + 0.5, config)  # the published scaling of the seed map
    if not len(seeds):
        return labels
    pixel_features = np.concatenate([embed(maps[:2]), maps[2:4]])
    claims = fill_holes(grow(pixel_features, seeds, classifier, config), seeds, width, config)
    # The last write wins: the strongest claim last, and the earlier seed last among equals.
    order = np.lexsort((-claims.seed, claims.probability))
    nucleus_of_seed = merge_overlapping(claims, len(seeds), config.overlap_threshold)
    labels.ravel()[claims.pixel[order]] = nucleus_of_seed[claims.seed[order]] + 1
    return keep_largest_pieces(labels, config.min_area_px)


def find_seeds(
    seed_map: Float32[np.ndarray, "y x"], config: InstanceConfig
) -> Int[np.ndarray, "seed 2"]:
    """The (y, x) of every local maximum above the threshold, row by row.

    Of equal maxima within reach of each other the first counts.
    """
    reach = config.seed_distance_px
    highest = ndimage.maximum_filter(seed_map, 2 * reach + 1, mode="constant", cval=-np.inf)
    seeds = np.argwhere((seed_map == highest) & (seed_map > config.seed_threshold))
    if not len(seeds):
        return seeds
    # Two maxima within reach of each other are equal, or the lower one would not be a maximum.
    ties = spatial.KDTree(seeds).query_pairs(reach, p=np.inf, output_type="ndarray")
    return np.delete(seeds, ties.max(axis=1), axis=0) if len(ties) else seeds


def embed(offsets: Float32[np.ndarray, "2 y x"]) -> Float32[np.ndarray, "2 y x"]:
    """Each pixel's embedding (x, y): its position in units of 4 pixels, plus up to 4 either way.

    The position runs from 0 to side / 4 inclusive, as in training, so that its step depends a
    little on the side of the field.
    """
    height, width = offsets.shape[1:]
    embedding = 8 * special.expit(offsets) - 4
    embedding[0] += np.linspace(0, width / 4, width, dtype=np.float32)[None, :]
    embedding[1] += np.linspace(0, height / 4, height, dtype=np.float32)[:, None]
    return embedding


def grow(
    pixel_features: Float32[np.ndarray, "4 y x"],
    seeds: Int[np.ndarray, "seed 2"],
    classifier: PixelClassifier,
    config: InstanceConfig,
) -> Claims:
    """Grow all regions from their seeds at once, ring by ring (8 neighbours).

    The seed itself need not pass the threshold: growth begins with it and its neighbours.
    Each seed has a window of its own in `seen`, whose margin and whose part outside the field
    count as seen, so that no step needs a bounds check.
    """
    height, width = pixel_features.shape[1:]
    features = pixel_features.reshape(4, height * width)
    seed_features = features[:, seeds[:, 0] * width + seeds[:, 1]]
    seed_features[2:] = 0  # the classifier sees differences of embeddings, but sigma as it is
    seen = closed_windows(seeds, (height, width), config.window_px)
    side = seen.shape[1]
    ring = np.array([y * side + x for y in (-1, 0, 1) for x in (-1, 0, 1)])
    seen = seen.ravel()
    ticket = np.empty(len(seen), np.int32)
    origin = (seeds[:, 0] - side // 2) * width + seeds[:, 1] - side // 2
    front = np.arange(len(seeds)) * side**2 + side**2 // 2
    found: list[Claims] = []
    while len(front):
        reached = (front[:, None] + ring).ravel()
        reached = reached[~seen[reached]]
        ticket[reached] = np.arange(len(reached))  # of several that reach a pixel one stays
        reached = reached[ticket[reached] == np.arange(len(reached))]
        seen[reached] = True
        seed, within = np.divmod(reached, side**2)
        y, x = np.divmod(within, side)
        pixel = origin[seed] + y * width + x
        probability = classifier(features[:, pixel] - seed_features[:, seed])
        passed = probability >= config.mask_threshold
        front = reached[passed]
        found.append(Claims(seed[passed], pixel[passed], probability[passed]))
    return Claims(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def closed_windows(
    seeds: Int[np.ndarray, "seed 2"], shape: tuple[int, int], reach_px: int
) -> Bool[np.ndarray, "seed side side"]:
    """A square window round each seed: True in its margin of one pixel and outside the field."""
    offset = np.arange(-reach_px - 1, reach_px + 2)
    margin = np.abs(offset) > reach_px
    y = seeds[:, :1] + offset
    x = seeds[:, 1:] + offset
    no_row = margin | (y < 0) | (y >= shape[0])
    no_column = margin | (x < 0) | (x >= shape[1])
    return no_row[:, :, None] | no_column[:, None, :]


def fill_holes(
    claims: Claims, seeds: Int[np.ndarray, "seed 2"], width: int, config: InstanceConfig
) -> Claims:
    """Add the pixels that a region encloses, each claimed with just the threshold.

    Enclosed is what has no way out in 8 steps. Regions are drawn in stacks of similar size, so
    that small nuclei do not pay for the window of a large one.
    """
    y, x = np.divmod(claims.pixel, width)
    dy, dx = y - seeds[claims.seed, 0], x - seeds[claims.seed, 1]
    reach = np.zeros(len(seeds), np.int64)
    np.maximum.at(reach, claims.seed, np.maximum(np.abs(dy), np.abs(dx)))
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = True
    parts = [claims]
    bounds = [0, 8, 12, 18, max(config.window_px, 19)]
    for low, high in itertools.pairwise(bounds):
        chosen = np.flatnonzero((reach > low) & (reach <= high))
        plane = np.full(len(seeds), -1)
        plane[chosen] = np.arange(len(chosen))
        member = plane[claims.seed] >= 0
        # One free pixel all round: the outside of every plane is one piece.
        drawn = np.zeros((len(chosen), 2 * high + 3, 2 * high + 3), bool)
        drawn[plane[claims.seed[member]], dy[member] + high + 1, dx[member] + high + 1] = True
        piece, n_pieces = cast(tuple[np.ndarray, int], ndimage.label(~drawn, in_plane))
        is_hole = np.ones(n_pieces + 1, bool)
        is_hole[0] = False
        is_hole[piece[:, 0, 0]] = False
        at, hole_y, hole_x = np.nonzero(is_hole[piece])
        seed = chosen[at]
        pixel = (seeds[seed, 0] + hole_y - high - 1) * width + seeds[seed, 1] + hole_x - high - 1
        parts.append(Claims(seed, pixel, np.full(len(at), config.mask_threshold, np.float32)))
    return Claims(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def merge_overlapping(
    claims: Claims, n_seeds: int, overlap_threshold: float
) -> Int[np.ndarray, " seed"]:
    """The first seed of the nucleus that each seed belongs to.

    Two seeds are one nucleus if their regions share more than `overlap_threshold` of the smaller
    one, and so on through chains.
    """
    area = np.bincount(claims.seed, minlength=n_seeds)
    claimed, pixel = np.unique(claims.pixel, return_inverse=True)
    shared = np.bincount(pixel)[pixel] > 1
    member = sparse.csr_array(
        (np.ones(shared.sum(), np.int32), (claims.seed[shared], pixel[shared])),
        shape=(n_seeds, len(claimed)),
    )
    overlap = (member @ member.T).tocoo()
    first, second = overlap.coords
    is_one = overlap.data > overlap_threshold * np.minimum(area[first], area[second])
    graph = sparse.coo_array(
        (np.ones(is_one.sum(), np.int8), (first[is_one], second[is_one])), shape=(n_seeds, n_seeds)
    )
    n_nuclei, nucleus = sparse.csgraph.connected_components(graph, directed=False)
    first_seed = np.full(n_nuclei, n_seeds)
    np.minimum.at(first_seed, nucleus, np.arange(n_seeds))
    return first_seed[nucleus]


def keep_largest_pieces(
    labels: Int32[np.ndarray, "y x"], min_area_px: int
) -> Int32[np.ndarray, "y x"]:
    """Keep the largest connected piece of each label, drop small ones, renumber from 1.

    Of pieces of the same size the first stays.
    """
    numbered = measure.label(labels, return_num=True, connectivity=2)
    piece, n_pieces = cast(tuple[np.ndarray, int], numbered)
    area = np.bincount(piece.ravel(), minlength=n_pieces + 1)
    label_of_piece = np.zeros(n_pieces + 1, np.int32)
    label_of_piece[piece.ravel()] = labels.ravel()
    # The last write wins: the largest piece last, and the earlier one last among equals.
    order = np.lexsort((-np.arange(n_pieces + 1), area))
    order = order[(order > 0) & (area[order] >= min_area_px)]
    best = np.zeros(int(labels.max()) + 1, np.int64)
    best[label_of_piece[order]] = order
    kept = best[best > 0]
    number = np.zeros(n_pieces + 1, np.int32)
    number[kept] = np.arange(1, len(kept) + 1)
    return number[piece]
