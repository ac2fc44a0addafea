from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from skimage import draw

from histoscribe.data.cells import Outlines
from histoscribe.data.nuclei import GivenNuclei
from histoscribe.data.provenance import Provenance
from histoscribe.data.toy import ToySlide
from histoscribe.errors import DataError
from histoscribe.preprocess.describe import FieldSquares
from histoscribe.preprocess.fields import FieldPlan, plan_around, plan_grid
from histoscribe.preprocess.line.gather import gather_nuclei
from histoscribe.preprocess.line.parts import FieldResult, PartList, make_part
from histoscribe.preprocess.nuclei import describe_found
from histoscribe.preprocess.quality import CropTally
from histoscribe.preprocess.segmenters.given import (
    fill,
    labels_of_field,
    place_nuclei,
    take_given,
    types_at,
)
from histoscribe.preprocess.tissue import TissueMask

MPP = 0.5
SIZE_PX = (601, 502)


def blob(rng, x, y, radius):
    n = int(rng.integers(5, 14))
    angle = np.arange(n) * 2 * np.pi / n + rng.uniform(0, 1)
    reach = radius * rng.uniform(0.7, 1.2, n)
    return np.stack([x + np.cos(angle) * reach, y + np.sin(angle) * reach], axis=1)


def nuclei_of(polygons, **changes) -> GivenNuclei:
    shapes = [shapely.Polygon(polygon) for polygon in polygons]
    size = [len(polygon) for polygon in polygons]
    facts = {
        "slide_id": "S1",
        "outlines": Outlines(
            np.concatenate(polygons).astype(np.float32),
            np.concatenate([[0], np.cumsum(size)]).astype(np.int64),
        ),
        "xy_um": np.array([shape.centroid.coords[0] for shape in shapes], np.float32),
        "area_um2": np.array([shape.area for shape in shapes], np.float32),
        "source": "test",
        "provenance": Provenance("test"),
    }
    return GivenNuclei(**facts | changes)


def crowd(seed=0, n=400) -> GivenNuclei:
    """Nuclei all over the slide, on seams and edges too; many overlap."""
    rng = np.random.default_rng(seed)
    places = rng.uniform([2, 2], np.array(SIZE_PX) * MPP - 2, (n, 2))
    polygons = [blob(rng, *place, rng.uniform(1.5, 5)) for place in places]
    types = tuple(f"type {row % 7}" for row in range(n))
    share = rng.uniform(0, 1, n).astype(np.float32)
    return nuclei_of(polygons, cell_type=types, type_probability=share)


def slide() -> ToySlide:
    return ToySlide("S1", np.zeros((SIZE_PX[1], SIZE_PX[0], 3), np.uint8))


def whole_plan() -> FieldPlan:
    mask = np.ones((-(-SIZE_PX[1] // 16), -(-SIZE_PX[0] // 16)), bool)
    return plan_grid(slide(), TissueMask(mask, 8.0, 1.0), MPP, 256, 64)


def one_field(side_px=64, mpp=1.0, origin_px=0) -> FieldPlan:
    origin = np.full((1, 2), origin_px)
    return FieldPlan(origin, side_px, mpp, 0.0, None, np.full((1, 2), side_px * mpp / 2))


@settings(deadline=None)
@drawn(seed=st.integers(0, 2**31), n=st.integers(1, 12))
def test_filled_are_the_pixels_whose_middle_is_inside(seed, n):
    """Any polygon, crossing itself or leaving the field; the other way is pixel by pixel."""
    rng = np.random.default_rng(seed)
    polygons = [rng.uniform(-9, 40, (int(rng.integers(3, 9)), 2)) for _ in range(n)]
    start = np.concatenate([[0], np.cumsum([len(one) for one in polygons])]).astype(np.int64)
    pixel, polygon = fill(np.concatenate(polygons), start, 31)
    y, x = np.mgrid[:31, :31] + 0.5
    for number, vertices in enumerate(polygons):
        got = np.zeros(31 * 31, int)
        np.add.at(got, pixel[polygon == number], 1)
        crossings = np.zeros((31, 31), int)
        for (x0, y0), (x1, y1) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
            spans = (y0 <= y) != (y1 <= y)
            if y0 != y1:
                crossings += spans & (x >= x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        assert np.array_equal(got.reshape(31, 31), crossings % 2)
    assert np.all(np.diff(polygon) >= 0)


def test_pixels_agree_with_those_of_another_program():
    rng = np.random.default_rng(4)
    polygon = blob(rng, 30, 28, 20)
    pixel, _ = fill(polygon, np.array([0, len(polygon)]), 64)
    rows, columns = draw.polygon(polygon[:, 1] - 0.5, polygon[:, 0] - 0.5, (64, 64))
    assert set(pixel.tolist()) == set((rows * 64 + columns).tolist())


def test_of_nuclei_that_overlap_the_first_of_the_file_has_the_pixels():
    square = np.array([[10, 10], [20, 10], [20, 20], [10, 20]], float)
    placed = place_nuclei(nuclei_of([square + 5, square, square + 40]), one_field())
    labels, row = labels_of_field(placed, 0)
    assert row.tolist() == [0, 1, 2]
    assert (labels[15:25, 15:25] == 1).all()
    assert (labels == 2).sum() == 75
    assert (labels == 3).sum() == 100


def test_every_nucleus_keeps_a_pixel_however_small_or_hidden():
    square = np.array([[10, 10], [20, 10], [20, 20], [10, 20]], float)
    tiny = [
        np.array([[dx, dy], [dx + 0.1, dy], [dx, dy + 0.1]])
        for dx, dy in [(40.1, 40.1), (40.3, 40.1), (40.5, 40.2), (0, 0), (63.8, 63.8)]
    ]
    hidden = square * 0.2 + 12.3
    placed = place_nuclei(nuclei_of([square, hidden, *tiny]), one_field())
    labels, row = labels_of_field(placed, 0)
    assert len(row) == 7
    n_pixels = np.bincount(labels.ravel(), minlength=8)
    assert n_pixels[2] == 1
    assert n_pixels[1] == 99
    assert (n_pixels[3:] == 1).all()
    assert labels[0, 0] == 6
    assert labels[63, 63] == 7
    again = labels_of_field(placed, 0).labels
    assert np.array_equal(labels, again)


def test_each_nucleus_is_in_the_field_that_owns_its_centroid_with_all_its_pixels():
    given, plan = crowd(), whole_plan()
    placed = place_nuclei(given, plan)
    assert placed.n_outside == 0
    times = np.zeros(len(given), int)
    for field in range(len(plan)):
        found, outlines = take_given(placed, field)
        row = given.rows_at(found.xy_um)
        assert np.array_equal(outlines.xy_um, given.outlines.take(row).xy_um)
        assert np.array_equal(plan.owner(given.xy_um[row]), np.full(len(row), field))
        assert np.array_equal(found.area_um2, given.area_um2[row])
        n_pixels = np.bincount(found.labels.ravel(), minlength=len(row) + 1)[1:]
        assert len(n_pixels) == len(row)
        assert (n_pixels > 0).all()
        times[row] += 1
    assert (times == 1).all()


def test_labels_do_not_depend_on_the_plan():
    """A field sees its nuclei as one drawing of the whole slide would."""
    given, plan = crowd(3), whole_plan()
    edge = 48  # what lies over the slide's edge is drawn too
    drawing = labels_of_field(place_nuclei(given, one_field(896, MPP, -edge)), 0)
    number = np.concatenate([[-1], drawing.row])[drawing.labels]
    placed = place_nuclei(given, plan)
    for field in range(len(plan)):
        seen = labels_of_field(placed, field)
        got = np.concatenate([[-1], seen.row])[seen.labels]
        x, y = plan.origin_px[field] + edge
        view = number[y : y + 256, x : x + 256]
        own = np.flatnonzero(placed.field == field)
        is_own = np.isin(got, own)
        assert is_own.any()
        assert np.array_equal(is_own, np.isin(view, own))
        assert np.array_equal(view[is_own], got[is_own])


def described(given, plan, lost=()):
    """All the way to the nuclei of the slide, as a run does it."""
    placed, parts = place_nuclei(given, plan), PartList()
    nothing = FieldSquares(
        np.zeros((0, 2), np.float32), np.zeros((0, 3), np.float16), np.zeros((0, 6), np.float32)
    )
    for field in range(len(plan)):
        found, outlines = take_given(placed, field)
        row = given.rows_at(found.xy_um)
        features = np.stack([row, found.area_um2], axis=1).astype(np.float32)
        features[np.isin(row, lost)] = np.nan
        nuclei = describe_found(found, outlines, field, features)
        parts.add(make_part(field, field + 1, [FieldResult(nuclei, nothing, CropTally())], []))
    return gather_nuclei(parts, 1 << 30)


@pytest.mark.parametrize("is_around", [False, True])
def test_what_is_stored_is_what_was_given(is_around):
    given, plan = crowd(1), whole_plan()
    wanted = np.arange(len(given))
    if is_around:
        centres = np.array([[90, 100], [120, 110], [230, 160]], np.float32)
        plan = plan_around(slide(), centres, 40.0, MPP, 512, 64)
        assert plan.owned_px is None
        near = np.linalg.norm(given.xy_um[:, None] - centres, axis=2).min(axis=1) <= 40
        wanted = np.flatnonzero(near)
        assert place_nuclei(given, plan).n_outside == (~near).sum() > 0
    got = described(given, plan)
    row = given.rows_at(got.xy_um)
    assert np.array_equal(np.sort(row), wanted)  # overlapping ones too: none is taken for a twin
    assert np.array_equal(got.features[:, 0], row.astype(np.float16))
    assert np.array_equal(got.area_um2, given.area_um2[row])
    own = given.outlines.take(row)
    assert np.array_equal(got.outlines.xy_um, own.xy_um)
    assert np.array_equal(got.outlines.start, own.start)
    types, share = types_at(given, got.xy_um)
    assert types == tuple(f"type {one % 7}" for one in row)
    assert np.array_equal(share, given.type_probability[row])
    bare = replace(given, cell_type=None, type_probability=None)
    assert types_at(bare, got.xy_um) == (None, None)


def test_nuclei_without_finite_features_are_left_out():
    given = crowd(2)
    got = described(given, whole_plan(), lost=[7, 90])
    assert np.array_equal(
        np.sort(given.rows_at(got.xy_um)), np.delete(np.arange(len(given)), [7, 90])
    )


def test_nuclei_away_from_all_fields_are_counted_and_none_at_all_is_a_fault():
    mask = np.zeros((32, 38), bool)
    mask[2:6, 2:6] = True
    plan = plan_grid(slide(), TissueMask(mask, 8.0, 1.0), MPP, 256, 64)
    given = crowd()
    placed = place_nuclei(given, plan)
    n_in = int((plan.owner(given.xy_um) >= 0).sum())
    assert 0 < n_in < len(given)
    assert placed.n_planned == n_in
    assert placed.n_outside == len(given) - n_in
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="none of 1 given nuclei lies where it is prepared"):
        place_nuclei(nuclei_of([blob(rng, 290, 240, 4)]), plan)


def test_a_field_with_more_nuclei_than_pixels_is_refused():
    specks = [np.array([[x, 1], [x + 0.01, 1], [x, 1.01]]) for x in np.linspace(1, 3, 40)]
    with pytest.raises(DataError, match="more given nuclei than pixels"):
        labels_of_field(place_nuclei(nuclei_of(specks), one_field(4)), 0)
