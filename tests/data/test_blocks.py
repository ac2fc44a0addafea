"""Blocks: every cell of a sample in one square, every spot a block of its own."""

from dataclasses import replace

import numpy as np
import pytest

from histoscribe.data.bags import BagConfig
from histoscribe.data.blocks import Blocks, assign_to_blocks, blocks_of
from histoscribe.data.join import assign_cells
from histoscribe.data.toy import toy_world
from histoscribe.errors import DataError

WORLD = toy_world(3)
CONFIG = BagConfig(block_side_um=73.0)


def bulk_of(world, n_regions=1):
    regions = world.regions.take(np.arange(n_regions))
    nowhere = np.full((n_regions, 2), np.nan, np.float32)
    return replace(regions, kind="bulk", xy_um=nowhere, radius_um=np.inf, pitch_um=np.nan)


def test_a_spot_is_a_block():
    blocks = blocks_of(WORLD.regions, WORLD.cells.xy_um, CONFIG)
    assert np.array_equal(blocks.xy_um, WORLD.regions.xy_um)
    assert blocks.region.tolist() == list(range(len(WORLD.regions)))
    for ring_um in (0.0, 17.0):
        got = assign_to_blocks(WORLD.cells.xy_um, blocks, ring_um)
        want = assign_cells(
            WORLD.cells.xy_um, WORLD.regions.xy_um, WORLD.regions.radius_um, ring_um
        )
        for name in ("region", "cell", "is_inside"):
            assert np.array_equal(getattr(got, name), getattr(want, name))


def test_squares_hold_every_cell_once():
    edge = np.array([[73.0, 10.0], [0.0, 0.0], [-1e-3, 5.0], [72.999, 72.999]], np.float32)
    xy_um = np.concatenate([WORLD.cells.xy_um, edge])
    blocks = blocks_of(bulk_of(WORLD), xy_um, CONFIG)
    members = assign_to_blocks(xy_um, blocks, 0.0)
    assert sorted(members.cell.tolist()) == list(range(len(xy_um)))
    assert members.is_inside.all()
    assert (np.diff(members.region) >= 0).all()
    assert set(members.region.tolist()) == set(range(len(blocks)))
    offset = xy_um[members.cell].astype(np.float64) - blocks.xy_um[members.region]
    assert (offset >= -36.5).all()
    assert (offset < 36.5).all()


def test_cells_of_other_squares_are_in_none():
    blocks = blocks_of(bulk_of(WORLD), WORLD.cells.xy_um, CONFIG)
    some = blocks.take(np.array([4, 1]))
    members = assign_to_blocks(WORLD.cells.xy_um, some, 0.0)
    whole = assign_to_blocks(WORLD.cells.xy_um, blocks, 0.0)
    for new, old in enumerate((4, 1)):
        own = members.cell[members.region == new]
        assert own.tolist() == whole.cell[whole.region == old].tolist()


def test_wrong_blocks_are_refused():
    with pytest.raises(DataError, match="2 bulk regions claim the slide"):
        blocks_of(bulk_of(WORLD, 2), WORLD.cells.xy_um, CONFIG)
    xy_um = np.zeros((2, 2), np.float32)
    for region, reach_um, shape, match in (
        ([1, 0], 50.0, "disc", "order of their regions"),
        ([0, 1], np.inf, "disc", "reach_um"),
    ):
        with pytest.raises(DataError, match=match):
            Blocks(xy_um, np.array(region), reach_um, shape)
