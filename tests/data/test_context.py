"""A region is described by its own field and by others, as a plain loop would have it."""

from dataclasses import replace

import numpy as np
import pytest

from histoscribe.data.bags import BagConfig
from histoscribe.data.blocks import blocks_of
from histoscribe.data.context import colour_of_blocks, describe_blocks
from histoscribe.data.toy import toy_world
from histoscribe.errors import MismatchError

WORLD = toy_world(2, has_lumen=True)
CONFIG = BagConfig(field_side_um=86.0, rings_um=(101.0, 212.0))
BLOCKS = blocks_of(WORLD.regions, WORLD.cells.xy_um, CONFIG)
EMPTY = len(WORLD.regions) // 2


def describe(**changes):
    parts = {"cells": WORLD.cells, "tiles": WORLD.tiles, "regions": WORLD.regions} | changes
    blocks = blocks_of(parts["regions"], parts["cells"].xy_um, CONFIG)
    return describe_blocks(parts["cells"], parts["tiles"], blocks, CONFIG)


def own_plainly(row):
    xy = WORLD.regions.xy_um[row]
    near = np.abs(WORLD.tiles.xy_um - xy).max(axis=1) <= CONFIG.field_side_um / 2
    mean, deviation = np.split(WORLD.tiles.features[near].astype(np.float64), 2, axis=1)
    inside = np.hypot(*(WORLD.cells.xy_um - xy).T) <= WORLD.regions.radius_um
    return np.concatenate(
        [
            mean.mean(axis=0),
            np.sqrt((deviation**2).mean(axis=0) + mean.var(axis=0)),
            WORLD.cells.features[inside].astype(np.float64).mean(axis=0),
            [np.log1p(inside.sum())],
        ]
    )


def test_descriptors_equal_the_plain_loop():
    got = describe()
    rows = [row for row in range(len(WORLD.regions)) if row != EMPTY]
    own = {row: own_plainly(row) for row in rows}
    for row in rows[::5]:
        assert np.allclose(got[row, 0], own[row], atol=1e-4)
        distance = np.hypot(*(WORLD.regions.xy_um - WORLD.regions.xy_um[row]).T)
        for ring, reach in enumerate(CONFIG.rings_um, start=1):
            around = [own[r] for r in rows if r != row and distance[r] <= reach]
            assert np.allclose(got[row, ring], np.mean(around, axis=0), atol=1e-4)


def test_a_region_without_nuclei_is_nan_and_touches_no_other():
    got = describe()
    assert np.isnan(got[EMPTY]).all()
    rest = np.delete(np.arange(len(WORLD.regions)), EMPTY)
    assert np.isfinite(got[rest]).all()
    assert np.array_equal(got[rest], describe(regions=WORLD.regions.take(rest)))


def test_a_lone_region_is_its_own_context():
    lone = describe(regions=WORLD.regions.take(np.array([1])))
    assert np.array_equal(lone[:, 1], lone[:, 0])
    assert np.array_equal(lone[:, 2], lone[:, 0])


def test_descriptors_know_nothing_of_the_expression():
    blind = replace(WORLD.regions, expression=None)
    assert np.array_equal(describe(), describe(regions=blind), equal_nan=True)


def test_strangers_are_refused():
    with pytest.raises(MismatchError, match="do not belong"):
        describe(tiles=replace(WORLD.tiles, encoder_id="other"))


def test_colour_of_a_field_is_that_of_its_pixels():
    row = 7
    xy = WORLD.regions.xy_um[row]
    got = colour_of_blocks(WORLD.tiles, BLOCKS, 86.0)[row]
    near = np.abs(WORLD.tiles.xy_um - xy).max(axis=1) <= 43.0
    corners = np.round((WORLD.tiles.xy_um[near] - 16.0) / 0.5).astype(int)
    pixels = np.concatenate(
        [WORLD.slide.pixels[y : y + 64, x : x + 64].reshape(-1, 3) for x, y in corners]
    )
    assert np.allclose(got[:3], pixels.mean(axis=0), atol=0.01)
    assert np.allclose(got[3:], pixels.std(axis=0), atol=0.05)


def test_colour_is_nan_where_there_is_no_tile():
    far = replace(BLOCKS, xy_um=BLOCKS.xy_um + np.float32(5000))
    assert np.isnan(colour_of_blocks(WORLD.tiles, far, 86.0)).all()
