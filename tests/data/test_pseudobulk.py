"""Pseudo-bulk: disjoint patches of spots, whose counts and cells are those of the spots."""

from dataclasses import replace

import numpy as np
import pytest

from histoscribe.data.blocks import assign_to_blocks
from histoscribe.data.join import assign_cells
from histoscribe.data.pseudobulk import cut_patches, lattice_of, sum_regions
from histoscribe.data.toy import toy_world
from histoscribe.errors import DataError

WORLD = toy_world(5)


def lattice(n_columns, n_rows, holes=()):
    places = [(x, y) for y in range(n_rows) for x in range(n_columns)]
    return np.array([place for place in places if place not in holes])


def test_patches_are_disjoint_and_without_a_gap():
    places = lattice(7, 8, holes=[(4, 4)])
    patch = cut_patches(places)
    for number in range(patch.max() + 1):
        own = places[patch == number]
        assert len(own) == 9
        assert (np.ptp(own, axis=0) == 2).all()
    assert patch.max() + 1 == 3  # of 2 x 2 that fit, the hole spoils one wherever the grid lies


def test_the_grid_is_laid_where_most_patches_fit():
    places = lattice(7, 4) + np.array([2, 1])
    assert cut_patches(places).max() + 1 == 2
    assert cut_patches(places, side=2).max() + 1 == 6
    assert cut_patches(places, side=1).tolist() == list(range(28))


def test_patches_with_gaps_count_where_it_is_said():
    places = lattice(3, 3, holes=[(0, 0), (1, 2)])
    assert cut_patches(places).max() == -1
    assert (cut_patches(places, least=7) == 0).all()
    for wrong in ({"side": 0}, {"least": 0}, {"least": 10}):
        with pytest.raises(DataError, match="patches of"):
            cut_patches(places, **wrong)


def test_the_lattice_is_read_from_the_names():
    regions = WORLD.regions
    names = tuple(f"{3 + row}x{row * row}" for row in range(len(regions)))
    got = lattice_of(replace(regions, region_id=names))
    assert got[4].tolist() == [7, 16]
    with pytest.raises(DataError, match="does not say where it lies"):
        lattice_of(replace(regions, region_id=("AAC-1", *names[1:])))


def test_counts_and_cells_are_those_of_the_spots():
    regions = WORLD.regions
    group = np.array([row % 4 - 1 for row in range(len(regions))])
    bulk, blocks = sum_regions(regions, group)
    assert len(bulk) == 3
    counts = regions.expression.toarray()
    members = assign_to_blocks(WORLD.cells.xy_um, blocks, 0.0)
    home = assign_cells(WORLD.cells.xy_um, regions.xy_um, regions.radius_um, 0.0)
    for number in range(3):
        rows = np.flatnonzero(group == number)
        assert np.array_equal(bulk.expression[[number]].toarray()[0], counts[rows].sum(axis=0))
        assert np.allclose(bulk.xy_um[number], regions.xy_um[rows].mean(axis=0), atol=1e-2)
        own = members.cell[blocks.region[members.region] == number]
        assert sorted(own.tolist()) == sorted(home.cell[np.isin(home.region, rows)].tolist())
    assert (blocks.region == -1).sum() == (group == -1).sum()


def test_what_cannot_be_added_up_is_refused():
    regions = WORLD.regions
    everything = np.zeros(len(regions), np.int64)
    with pytest.raises(DataError, match="raw counts"):
        sum_regions(replace(regions, expression=None), everything)
    with pytest.raises(DataError, match="empty"):
        sum_regions(regions, everything + 1)
    slides, patients = (*regions.slide_id[1:], "other"), (*regions.patient_id[1:], "another")
    mixed = replace(regions, slide_id=slides, patient_id=patients)
    with pytest.raises(DataError, match="several slides"):
        sum_regions(mixed, everything)
