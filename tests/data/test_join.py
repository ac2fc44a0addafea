"""Cells join regions, and each other, as a plain double loop would have it."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoscribe.data import join
from histoscribe.data.join import assign_cells, knn_within_bags
from histoscribe.errors import DataError


def assign_plainly(cells, regions, radius, ring):
    home, rows = {}, []
    for c, cell in enumerate(cells):
        distance = np.hypot(*(regions - cell).T)
        if len(regions) and distance.min() <= radius:
            home[c] = int(distance.argmin())
    for r, region in enumerate(regions):
        if r not in home.values():
            continue
        for c, cell in enumerate(cells):
            if home.get(c) == r:
                rows.append((r, c, True))
            elif ring > 0 and np.hypot(*(region - cell)) <= radius + ring:
                rows.append((r, c, False))
    return rows


def knn_plainly(xy, bag, k):
    result = np.full((len(xy), k + 1), -1)
    for i in range(len(xy)):
        others = [j for j in range(len(xy)) if bag[j] == bag[i] and j != i]
        others.sort(key=lambda j: (((xy[j] - xy[i]) ** 2).sum(), j))
        row = [i, *others[:k]]
        result[i, : len(row)] = row
    return result


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_cells=st.integers(0, 71),
    side=st.integers(0, 5),
    is_grid=st.booleans(),
)
def test_assignment_equals_the_double_loop(seed, n_cells, side, is_grid):
    rng = np.random.default_rng(seed)
    cells = rng.uniform(-20, 220, (n_cells, 2))
    if is_grid:  # positions on a lattice: ties and distances of exactly the radius
        cells = np.round(cells / 25) * 25
    axis = np.arange(side) * 50.0
    regions = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    got = assign_cells(cells, regions, radius_um=25.0, ring_um=13.0)
    pairs = zip(got.region.tolist(), got.cell.tolist(), got.is_inside.tolist(), strict=True)
    assert list(pairs) == assign_plainly(cells, regions, 25.0, 13.0)


def test_small_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    cells, regions = rng.uniform(0, 300, (211, 2)), rng.uniform(0, 300, (37, 2))
    bag = rng.integers(0, 9, 211)
    whole = assign_cells(cells, regions, 20.0, 15.0)
    graph = knn_within_bags(cells, bag, 4)
    monkeypatch.setattr(join, "CHUNK", 32)
    parts = assign_cells(cells, regions, 20.0, 15.0)
    assert np.array_equal(whole.cell, parts.cell)
    assert np.array_equal(whole.is_inside, parts.is_inside)
    assert np.array_equal(graph, knn_within_bags(cells, bag, 4))


def test_a_radius_in_pixels_changes_who_is_inside():
    """The unit trap: HEST's diameter is in µm; taken for pixels a spot loses most of its cells."""
    rng = np.random.default_rng(1)
    cells = rng.uniform(0, 1000, (3001, 2))
    regions = np.stack(np.meshgrid([250.0, 750.0], [250.0, 500.0, 750.0]), axis=-1).reshape(-1, 2)
    right = assign_cells(cells, regions, 27.5, 0.0).is_inside.sum()
    wrong = assign_cells(cells, regions, 27.5 * 0.5, 0.0).is_inside.sum()
    expected = 6 * np.pi * 27.5**2 * 3001 / 1e6
    assert abs(right - expected) < 4 * np.sqrt(expected)
    assert wrong < right / 2


def test_a_bulk_region_holds_every_cell_and_is_alone():
    cells = np.zeros((7, 2))
    nowhere = np.full((1, 2), np.nan)
    assert len(assign_cells(cells, nowhere, np.inf, 0.0)) == 7
    with pytest.raises(DataError, match="bulk regions claim"):
        assign_cells(cells, np.full((2, 2), np.nan), np.inf, 0.0)


def test_bad_lengths_and_positions_are_refused():
    cells = np.zeros((3, 2))
    for radius, ring in ((np.nan, 0.0), (-1.0, 0.0), (5.0, -1.0), (5.0, np.nan)):
        with pytest.raises(DataError, match="give lengths"):
            assign_cells(cells, cells, radius, ring)
    cells[1, 0] = np.nan
    with pytest.raises(DataError, match="row 1"):
        assign_cells(cells, np.zeros((1, 2)), 5.0, 0.0)
    with pytest.raises(DataError, match="row 1"):
        knn_within_bags(cells, np.zeros(3, np.int64), 2)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_cells=st.integers(0, 53),
    n_bags=st.integers(1, 6),
    k=st.integers(0, 11),
    step=st.sampled_from([0.0, 1.0, 7.0, 60.0]),
)
def test_neighbours_equal_the_double_loop(seed, n_cells, n_bags, k, step):
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 100, (n_cells, 2)).astype(np.float32)
    if step:  # a coarse lattice: many ties, and with a step of 60 nearly all points coincide
        xy = (np.round(xy / step) * step).astype(np.float32)
    bag = rng.integers(0, n_bags, n_cells)
    assert np.array_equal(knn_within_bags(xy, bag, k), knn_plainly(xy, bag, k))


def test_coincident_points_keep_themselves_first():
    xy = np.zeros((41, 2))
    graph = knn_within_bags(xy, np.zeros(41, np.int64), 3)
    assert np.array_equal(graph, knn_plainly(xy, np.zeros(41), 3))


def test_neighbours_do_not_depend_on_where_a_bag_lies():
    rng = np.random.default_rng(8)
    xy = rng.integers(0, 64, (97, 2)).astype(np.float64)
    bag = np.sort(rng.integers(0, 5, 97))
    moved = xy + np.stack([bag * 4096.0, bag * -512.0], axis=1)
    assert np.array_equal(knn_within_bags(xy, bag, 4), knn_within_bags(moved, bag, 4))


def test_an_empty_membership_has_no_rows():
    empty = SimpleNamespace(cells=np.empty((0, 2)), regions=np.zeros((3, 2)))
    assert len(assign_cells(empty.cells, empty.regions, 5.0, 2.0)) == 0
    assert len(assign_cells(empty.regions, empty.cells, 5.0, 2.0)) == 0
