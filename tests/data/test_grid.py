"""Regions where nothing was measured: a lattice of discs with nuclei, or the whole of a slide."""

from dataclasses import replace

import numpy as np
import pytest

from histoscribe.data.grid import grid_regions, sample_regions
from histoscribe.data.join import assign_cells
from histoscribe.data.toy import toy_world
from histoscribe.errors import ConfigError, DataError

CELLS = toy_world(3, "slide-x", has_lumen=True).cells


def with_places(xy_um):
    n_cells = len(xy_um)
    return replace(
        CELLS,
        xy_um=np.asarray(xy_um, np.float32).reshape(n_cells, 2),
        area_um2=CELLS.area_um2[:n_cells],
        features=CELLS.features[:n_cells],
        outlines=None,
    )


@pytest.mark.parametrize(("radius_um", "pitch_um"), [(27.5, 100.0), (13.0, 41.0), (36.5, 73.0)])
def test_every_disc_has_a_nucleus_and_no_other_place_of_the_lattice_has(radius_um, pitch_um):
    regions = grid_regions(CELLS, "anna", radius_um, pitch_um)
    inside = assign_cells(CELLS.xy_um, regions.xy_um, radius_um, 0.0)
    assert set(inside.region) == set(range(len(regions)))
    far = CELLS.xy_um.max(axis=0) + pitch_um
    axes = [np.arange(pitch_um / 2, size, pitch_um) for size in far]
    everywhere = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    n_filled = len(np.unique(assign_cells(CELLS.xy_um, everywhere, radius_um, 0.0).region))
    assert n_filled == len(regions)
    assert len(everywhere) > n_filled  # the corners of the slide, and the hole
    assert (regions.kind, regions.radius_um, regions.pitch_um) == ("spot", radius_um, pitch_um)
    assert set(regions.slide_id) == {"slide-x"}
    assert set(regions.patient_id) == {"anna"}
    assert regions.expression is None


def test_discs_lie_on_the_lattice_of_the_slide_row_by_row():
    regions = grid_regions(CELLS, "anna", 27.5, 100.0)
    place = regions.xy_um / 100.0 - 0.5
    np.testing.assert_array_equal(place, np.rint(place))
    names = [f"{int(column)}x{int(row)}" for column, row in place]
    assert list(regions.region_id) == names
    assert [(r, c) for c, r in place.tolist()] == sorted((r, c) for c, r in place.tolist())


def test_the_same_cells_give_the_same_grid_in_any_order():
    order = np.random.default_rng(5).permutation(len(CELLS))
    shuffled = with_places(CELLS.xy_um[order])
    one, two = (grid_regions(cells, "anna", 13.0, 41.0) for cells in (CELLS, shuffled))
    assert one.region_id == two.region_id
    np.testing.assert_array_equal(one.xy_um, two.xy_um)
    fewer = grid_regions(with_places(CELLS.xy_um[:50]), "anna", 13.0, 41.0)
    assert set(fewer.region_id) < set(one.region_id)


def test_a_nucleus_on_the_edge_is_inside_and_one_beyond_is_not():
    on, beyond = [73.0, 50.0], [150.0, 173.1]
    regions = grid_regions(with_places([on, beyond]), "anna", 23.0, 100.0)
    assert regions.region_id == ("0x0",)
    touching = grid_regions(with_places([[100.0, 50.0]]), "anna", 50.0, 100.0)
    assert len(touching) == 1


def test_what_cannot_be_a_grid_is_refused():
    with pytest.raises(ConfigError, match="discs of 55 µm cannot lie 54 µm apart"):
        grid_regions(CELLS, "anna", 27.5, 54.0)
    for radius_um in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="µm apart"):
            grid_regions(CELLS, "anna", radius_um, 100.0)
    with pytest.raises(DataError, match="none of the 1 nuclei"):
        grid_regions(with_places([[1.0, 1.0]]), "anna", 10.0, 100.0)


def test_an_empty_slide_is_refused():
    empty = with_places(np.empty((0, 2)))
    for make in (
        lambda: grid_regions(empty, "anna", 27.5, 100.0),
        lambda: sample_regions(empty, "a"),
    ):
        with pytest.raises(DataError, match="slide slide-x has no nucleus"):
            make()


def test_a_whole_sample_is_one_bulk_region_named_after_the_patient():
    regions = sample_regions(CELLS, "anna")
    assert (regions.kind, len(regions), regions.region_id) == ("bulk", 1, ("anna",))
    assert regions.size.radius_um is None
    inside = assign_cells(CELLS.xy_um, regions.xy_um, regions.radius_um, 0.0)
    assert len(inside) == len(CELLS)
