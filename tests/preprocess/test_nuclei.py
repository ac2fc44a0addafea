import numpy as np
import pytest
import shapely
from skimage import draw

from histoscribe.data.cells import Outlines
from histoscribe.data.toy import ToySlide
from histoscribe.preprocess.describe import FieldSquares
from histoscribe.preprocess.fields import FieldPlan, plan_around, plan_grid
from histoscribe.preprocess.line.gather import SlideNuclei, gather_nuclei
from histoscribe.preprocess.line.parts import FieldResult, PartList, make_part
from histoscribe.preprocess.nuclei import (
    FieldNuclei,
    describe_found,
    outline_found,
    take_owned,
)
from histoscribe.preprocess.quality import CropTally
from histoscribe.preprocess.tissue import TissueMask

MPP = 0.5
STEP_UM = 96.0  # what a field of 256 px with an overlap of 64 px owns


def planted(nuclei: list[tuple[float, float, float]], size_px: tuple[int, int]) -> np.ndarray:
    """Labels of the whole slide with a disc at each (x, y, radius) in µm."""
    labels = np.zeros(size_px[::-1], np.int32)
    for number, (x, y, radius) in enumerate(nuclei, 1):
        rows, columns = draw.disk((y / MPP - 0.5, x / MPP - 0.5), radius / MPP, shape=labels.shape)
        labels[rows, columns] = number
    return labels


def view(labels: np.ndarray, plan: FieldPlan, field: int) -> np.ndarray:
    """What a perfect segmenter sees in a field, numbered anew and cut by the field's border."""
    side = plan.side_px
    padded = np.pad(labels, side)
    x, y = plan.origin_px[field] + side
    seen = padded[y : y + side, x : x + side]
    return (
        np.unique(np.append(seen.ravel(), 0), return_inverse=True)[1][:-1]
        .reshape(side, side)
        .astype(np.int32)
    )


def segment_by_fields(labels: np.ndarray, plan: FieldPlan) -> SlideNuclei:
    fields = []
    for field in range(len(plan)):
        found = take_owned(view(labels, plan, field), plan, field)
        features = np.full((len(found.xy_um), 2), field, np.float32)
        outlines = outline_found(found, plan, field)
        fields.append(describe_found(found, outlines, field, features))
    return join(fields)


def join(fields: list[FieldNuclei]) -> SlideNuclei:
    """Each field a part of its own."""
    squares = FieldSquares(
        *(np.zeros((0, n), kind) for n, kind in ((2, "f4"), (4, "f2"), (6, "f4")))
    )
    parts = PartList()
    for one in fields:
        result = FieldResult(one, squares, CropTally())
        parts.add(make_part(one.field, one.field + 1, [result], []))
    return gather_nuclei(parts, 1)


def measured(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroids and areas of the whole slide's nuclei."""
    y, x = np.nonzero(labels)
    counts = np.bincount(labels[y, x])[1:]
    xy = [np.bincount(labels[y, x], axis + 0.5)[1:] / counts * MPP for axis in (x, y)]
    return np.stack(xy, axis=1).astype(np.float32), counts * MPP**2


def whole_plan(size_px: tuple[int, int]) -> tuple[ToySlide, FieldPlan]:
    slide = ToySlide("s", np.zeros((size_px[1], size_px[0], 3), np.uint8))
    mask = np.ones((-(-size_px[1] // 16), -(-size_px[0] // 16)), bool)
    return slide, plan_grid(slide, TissueMask(mask, 8.0, 1.0), MPP, 256, 64)


def seam_nuclei() -> list[tuple[float, float, float]]:
    """On seams, on corners of four fields, astride the slide's edges, and elsewhere."""
    on_seams = [(STEP_UM, 31.0, 5.0), (2 * STEP_UM - 0.3, 77.0, 7.0), (50.0, STEP_UM + 0.2, 14.0)]
    on_corners = [(STEP_UM, STEP_UM, 4.3), (2 * STEP_UM, STEP_UM + 0.4, 15.0)]
    at_edges = [(0.6, 50.0, 5.0), (120.0, 0.0, 4.0), (299.5, 140.0, 6.0), (161.0, 249.0, 6.0)]
    return on_seams + on_corners + at_edges + [(20.0, 20.0, 3.0), (150.0, 60.0, 6.0)]


def test_nuclei_on_seams_and_corners_are_found_once_and_whole() -> None:
    size_px = (601, 502)
    nuclei = seam_nuclei()
    labels = planted(nuclei, size_px)
    _, plan = whole_plan(size_px)
    got = segment_by_fields(labels, plan)
    assert len(got.xy_um) == len(nuclei)
    xy, area = measured(labels)
    order = np.lexsort(xy.T)
    np.testing.assert_allclose(got.xy_um, xy[order], atol=1e-3)
    np.testing.assert_allclose(got.area_um2, area[order], rtol=1e-6)
    for i, (centre, size) in enumerate(zip(got.xy_um, got.area_um2, strict=True)):
        polygon = shapely.Polygon(got.outlines.xy_um[slice(*got.outlines.start[i : i + 2])])
        assert polygon.is_valid
        assert polygon.area == pytest.approx(size - 0.5 * MPP**2, rel=0.02)
        assert polygon.contains(shapely.Point(centre))


def test_around_regions_every_nucleus_near_a_region_is_found_once_and_whole() -> None:
    size_px = (601, 502)
    rng = np.random.default_rng(7)
    grid = np.stack(np.meshgrid(np.arange(9, 300, 13), np.arange(9, 250, 13)), axis=-1)
    nuclei = [(*place, rng.uniform(2, 5)) for place in grid.reshape(-1, 2).astype(float)]
    labels = planted(nuclei, size_px)
    slide, _ = whole_plan(size_px)
    centres = np.array([[90, 100], [120, 110], [230, 160]], np.float32)
    plan = plan_around(slide, centres, 70.0, MPP, 512, 64)
    assert plan.owned_px is None
    got = segment_by_fields(labels, plan)
    xy, area = measured(labels)
    near = np.linalg.norm(xy[:, None] - centres, axis=2).min(axis=1) <= 70
    order = np.lexsort(xy[near].T)
    np.testing.assert_allclose(got.xy_um, xy[near][order], atol=1e-3)
    np.testing.assert_allclose(got.area_um2, area[near][order], rtol=1e-6)


def test_a_nucleus_cut_by_the_border_of_its_field_is_not_kept() -> None:
    _, plan = whole_plan((601, 502))
    labels = np.zeros((256, 256), np.int32)
    labels[100:110, 0:80] = 1
    labels[140:150, 100:110] = 2
    found = take_owned(labels, plan, 4)
    assert found.labels.max() == 1
    assert found.labels[145, 105] == 1


def square(x: float, y: float, width: float, height: float) -> np.ndarray:
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float32)


def part(field: int, polygons: list[np.ndarray], excess: list[float]) -> FieldNuclei:
    start = np.arange(len(polygons) + 1, dtype=np.int64) * 4
    return FieldNuclei(
        field,
        np.array([polygon.mean(axis=0) for polygon in polygons], np.float32),
        np.ones(len(polygons), np.float32),
        np.array(excess, np.float32),
        Outlines(np.concatenate(polygons), start),
        np.full((len(polygons), 2), field, np.float16),
    )


def test_two_readings_of_one_nucleus_are_one() -> None:
    one = part(0, [square(0, 0, 10, 6), square(30, 0, 6, 6)], [0.4, -0.1])
    other = part(1, [square(0.3, 0.2, 10, 6), square(36, 0, 6, 6)], [-0.4, -0.1])
    got = join([one, other])
    assert got.features[:, 0].tolist() == [0, 1, 1]
    np.testing.assert_allclose(got.xy_um[:, 0], [33, 39, 5.3])


def test_halves_that_another_field_saw_merged_are_left_out() -> None:
    merged = part(0, [square(0, 0, 12, 6)], [-0.5])
    halves = part(1, [square(0, 0, 6, 6), square(6, 0, 6, 6)], [-3.0, -0.5])
    got = join([merged, halves])
    assert len(got.xy_um) == 1
    assert got.features[0, 0] == 0


def test_neighbours_that_touch_are_two() -> None:
    got = join([part(0, [square(0, 0, 6, 6)], [-1.0]), part(1, [square(5, 0, 6, 6)], [-1.0])])
    assert len(got.xy_um) == 2


def test_nuclei_without_finite_features_are_left_out() -> None:
    _, plan = whole_plan((601, 502))
    labels = np.zeros((256, 256), np.int32)
    labels[100:110, 100:112] = 1
    labels[140:150, 100:110] = 2
    labels[180:190, 100:113] = 3
    found = take_owned(labels, plan, 4)
    features = np.array([[1, 2], [1, 70000], [np.nan, 2]], np.float32)
    got = describe_found(found, outline_found(found, plan, 4), 4, features)
    assert len(got) == 1
    assert got.area_um2.tolist() == [30.0]
    assert len(got.outlines) == 1
