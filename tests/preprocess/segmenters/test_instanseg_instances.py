import numpy as np
import pytest
from scipy import ndimage

from histoscribe.preprocess.segmenters.instanseg_instances import (
    Claims,
    InstanceConfig,
    PixelClassifier,
    closed_windows,
    embed,
    fill_holes,
    find_instances,
    find_seeds,
    grow,
    keep_largest_pieces,
    merge_overlapping,
)

CONFIG = InstanceConfig()
SHAPE = (75, 91)
EIGHT = np.ones((3, 3), bool)


def box_classifier(reach=1.0):
    """Says yes where |dx| + |dy| of the embeddings is below `reach`; ignores sigma."""
    split = np.array([[1, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0]], np.float32)
    zero = np.zeros(4, np.float32)
    summed = (np.full((1, 4), -50, np.float32), np.array([50 * reach], np.float32))
    return PixelClassifier([(split, zero), (np.eye(4, dtype=np.float32), zero), summed])


def draw_nuclei(discs, shape=SHAPE):
    """Maps in which every pixel of a disc (y, x, radius) points to the centre of the disc."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    here = embed(np.zeros((2, *shape), np.float32))
    target = here.copy()
    seed_map = np.zeros(shape, np.float32)
    drawn = np.zeros(shape, np.int32)
    for number, (cy, cx, radius) in enumerate(discs, 1):
        distance = np.hypot(y - cy, x - cx)
        inside = (distance <= radius) & (drawn == 0)
        drawn[inside] = number
        target[:, inside] = here[:, cy, cx][:, None]
        seed_map[inside] = 1 - distance[inside] / (4 * radius)
    maps = np.zeros((5, *shape), np.float32)
    maps[:2] = offsets_towards(target - here)
    maps[4] = 15 * (seed_map - 0.5)
    return maps, drawn


def offsets_towards(difference):
    """What the network would say for an offset in (-4, 4)."""
    share = np.clip((difference + 4) / 8, 1e-4, 1 - 1e-4)
    return np.log(share / (1 - share)).astype(np.float32)


def test_discs_are_found_again_in_the_order_of_their_seeds():
    maps, drawn = draw_nuclei([(12, 15, 7), (13, 60, 5), (40, 30, 11), (66, 80, 9)])
    np.testing.assert_array_equal(find_instances(maps, box_classifier(), CONFIG), drawn)


def test_nuclei_cut_by_the_border_are_found():
    maps, drawn = draw_nuclei([(0, 3, 6), (74, 90, 8), (37, 0, 5)])
    labels = find_instances(maps, box_classifier(), CONFIG)
    np.testing.assert_array_equal(labels > 0, drawn > 0)
    assert labels.max() == 3


def test_a_field_without_nuclei_gives_none():
    maps = np.full((5, *SHAPE), -9, np.float32)
    labels = find_instances(maps, box_classifier(), CONFIG)
    assert labels.shape == SHAPE
    assert labels.dtype == np.int32
    assert not labels.any()


def test_seeds_that_no_pixel_joins_give_none():
    maps, _ = draw_nuclei([(30, 30, 7)])
    assert not find_instances(maps, box_classifier(reach=-1.0), CONFIG).any()


def test_same_answer_twice():
    maps = np.random.default_rng(5).normal(size=(5, *SHAPE)).astype(np.float32)
    maps[4] = 15 * (ndimage.gaussian_filter(maps[4], 2) * 3)
    first = find_instances(maps.copy(), box_classifier(2.0), CONFIG)
    assert first.max() > 3
    np.testing.assert_array_equal(find_instances(maps, box_classifier(2.0), CONFIG), first)


def test_enclosed_pixels_belong_to_the_nucleus():
    maps, drawn = draw_nuclei([(30, 30, 13)])
    maps[0, 26:31, 22:27] = 9  # 5 x 5 pixels that point elsewhere
    labels = find_instances(maps, box_classifier(), CONFIG)
    np.testing.assert_array_equal(labels, drawn)


def test_an_island_that_points_to_the_seed_is_left_out():
    maps, drawn = draw_nuclei([(30, 30, 9)])
    here = embed(np.zeros((2, *SHAPE), np.float32))
    away = (slice(28, 33), slice(44, 49))  # 3.5 units of embedding off, 5 pixels from the disc
    maps[:2, *away] = offsets_towards(here[:, 30, 30][:, None, None] - here[:, *away])
    np.testing.assert_array_equal(find_instances(maps, box_classifier(), CONFIG), drawn)


def test_three_seeds_of_one_nucleus_become_one():
    maps, drawn = draw_nuclei([(30, 30, 12)])
    maps[4, 30, 22] = maps[4, 30, 38] = 15
    assert len(find_seeds(maps[4] / 15 + 0.5, CONFIG)) == 3
    np.testing.assert_array_equal(find_instances(maps, box_classifier(), CONFIG), drawn)


def test_a_plateau_gives_one_seed_within_reach():
    seed_map = np.zeros(SHAPE, np.float32)
    seed_map[20:24, 30:35] = 0.9
    seed_map[60, 60] = 0.8
    np.testing.assert_array_equal(find_seeds(seed_map, CONFIG), [[20, 30], [60, 60]])


def test_merging_follows_chains_and_the_smaller_area():
    rows = {0: range(20), 1: range(15, 25), 2: range(21, 31), 3: range(29, 59)}
    seed = np.concatenate([np.full(len(row), k) for k, row in rows.items()])
    pixel = np.concatenate([np.array(row) for row in rows.values()])
    claims = Claims(seed, pixel, np.ones(len(seed), np.float32))
    # 0-1 share 5 of 10, 1-2 share 4 of 10, 2-3 share 2 of 10: the last pair stays apart.
    np.testing.assert_array_equal(merge_overlapping(claims, 4, 0.3), [0, 0, 0, 3])


def test_largest_piece_stays_and_small_nuclei_go():
    labels = np.zeros((17, 23), np.int32)
    labels[1:5, 1:6] = 4
    labels[10:12, 1:6] = 4  # the smaller piece
    labels[1:4, 10:13] = 7  # 9 pixels
    labels[10:15, 10:20] = 9
    tidy = keep_largest_pieces(labels, 10)
    wanted = np.zeros_like(labels)
    wanted[1:5, 1:6] = 1
    wanted[10:15, 10:20] = 2
    np.testing.assert_array_equal(tidy, wanted)


def claim_plainly(features, seeds, classifier, config):
    """The reference form: every seed by itself, over the whole field."""
    shape = features.shape[1:]
    claims = {}
    for number, seed in enumerate(seeds):
        difference = features.copy()
        difference[:2] -= features[:2, *seed][:, None, None]
        probability = classifier(difference.reshape(4, -1)).reshape(shape)
        y, x = np.mgrid[: shape[0], : shape[1]]
        near = np.maximum(abs(y - seed[0]), abs(x - seed[1])) <= config.window_px
        begin = np.zeros(shape, bool)
        begin[tuple(seed)] = True
        passed = (probability >= config.mask_threshold) & near
        piece, _ = ndimage.label(passed | begin, EIGHT)
        region = (piece == piece[tuple(seed)]) & passed
        outside, _ = ndimage.label(np.pad(~region, 1, constant_values=True), EIGHT)
        hole = (outside != outside[0, 0])[1:-1, 1:-1] & ~region
        for at in np.flatnonzero(region | hole):
            value = probability.ravel()[at] if region.ravel()[at] else config.mask_threshold
            claims[number, int(at)] = np.float32(value)
    return claims


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_growing_all_at_once_equals_each_seed_by_itself(seed):
    generator = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(generator.normal(size=(4, *SHAPE)), (0, 1.5, 1.5)) * 9
    features = np.concatenate([embed(smooth[:2].astype(np.float32)), smooth[2:]]).astype(np.float32)
    first = np.zeros((6, 4), np.float32)
    first[[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 3]] = (1, -1, 1, -1, 1, -1)
    last = np.array([[-3, -3, -3, -3, 2, -2]], np.float32)
    zero = np.zeros(6, np.float32)
    classifier = PixelClassifier([(first, zero), (last, np.array([9], np.float32))])
    config = InstanceConfig(window_px=21)
    seeds = np.stack([generator.integers(0, side, 13) for side in SHAPE], axis=1)
    grown = fill_holes(grow(features, seeds, classifier, config), seeds, SHAPE[1], config)
    wanted = claim_plainly(features, seeds, classifier, config)
    keys = list(zip(grown.seed.tolist(), grown.pixel.tolist(), strict=True))
    assert len(keys) == len(set(keys)) > 500
    assert set(keys) == set(wanted)
    assert (grown.probability == np.float32(config.mask_threshold)).any()  # there were holes
    np.testing.assert_allclose(grown.probability, [wanted[key] for key in keys], rtol=1e-5)


def test_windows_are_closed_outside_the_field():
    closed = closed_windows(np.array([[0, 10]]), (7, 30), 3)[0]
    open_rows, open_columns = np.nonzero(~closed)
    assert (open_rows.min(), open_rows.max()) == (4, 7)  # rows 0 to 3 of the field
    assert (open_columns.min(), open_columns.max()) == (1, 7)
