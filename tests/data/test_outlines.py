import numpy as np
import pytest
import shapely
from skimage import draw, measure

from histoscribe.data.outlines import trace_outlines


def blobs(seed: int) -> np.ndarray:
    """Random touching nuclei, some at the border, numbered without gaps."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((83, 97), np.int32)
    for _ in range(40):
        centre = rng.uniform(0, labels.shape)
        rows, columns = draw.ellipse(
            *centre, *rng.uniform(1, 9, 2), shape=labels.shape, rotation=rng.uniform(0, 3)
        )
        labels[rows, columns] = labels.max() + 1
    pieces = measure.label(labels, connectivity=2)
    return pieces.astype(np.int32)


def polygons(labels: np.ndarray) -> list[np.ndarray]:
    traced = trace_outlines(labels)
    return np.split(traced.xy_px, traced.start[1:-1])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_outline_is_the_contour_of_the_mask_at_one_half(seed: int) -> None:
    labels = blobs(seed)
    found = polygons(labels)
    assert len(found) == labels.max()
    for number, polygon in enumerate(found, 1):
        mask = np.pad(labels == number, 1).astype(float)
        contours = measure.find_contours(mask, 0.5, fully_connected="high")
        wanted = shapely.Polygon(max(contours, key=len)[:, ::-1] - 1 + 0.5)
        got = shapely.Polygon(polygon)
        assert got.is_valid
        assert got.symmetric_difference(wanted).area < 1e-9


def test_a_single_pixel_has_a_diamond() -> None:
    labels = np.zeros((5, 7), np.int32)
    labels[2, 4] = 1
    (polygon,) = polygons(labels)
    assert {tuple(vertex) for vertex in polygon} == {(4.5, 2), (5, 2.5), (4.5, 3), (4, 2.5)}


def test_straight_runs_have_no_vertices_and_holes_no_outline() -> None:
    labels = np.zeros((13, 17), np.int32)
    labels[2:10, 3:15] = 1
    labels[5, 6] = 0
    (polygon,) = polygons(labels)
    assert len(polygon) == 8
    assert shapely.Polygon(polygon).area == pytest.approx(8 * 12 - 0.5)


def test_pixels_that_meet_at_a_corner_are_one_outline() -> None:
    labels = np.zeros((6, 6), np.int32)
    labels[1:3, 1:3] = 1
    labels[3:5, 3:5] = 1
    (polygon,) = polygons(labels)
    assert shapely.Polygon(polygon).is_valid
    assert shapely.Polygon(polygon).contains(shapely.Point(2, 2))
    assert shapely.Polygon(polygon).contains(shapely.Point(4, 4))


def test_no_nuclei_no_outlines() -> None:
    traced = trace_outlines(np.zeros((9, 11), np.int32))
    assert traced.xy_px.shape == (0, 2)
    assert traced.start.tolist() == [0]
