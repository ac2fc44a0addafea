import numpy as np
import pytest
import shapely

from histoscribe.readers import rings
from histoscribe.readers.rings import (
    RingCollector,
    Rings,
    drop_repeats,
    is_finite,
    largest_of,
    measure_rings,
    mend_rings,
)


def collected(*polygons) -> Rings:
    found = RingCollector()
    for polygon in polygons:
        found.add(polygon)
    return found.rings()


def ring(of: Rings, row: int) -> list[list[float]]:
    return of.xy[of.start[row] : of.start[row + 1]].tolist()


SQUARE = [[10, 20], [14, 20], [14, 23], [10, 23]]


def test_what_is_no_ring_has_no_vertices():
    odd = [None, [], [1, 2], "abc", [[1, 2], [3]], [["x", 1]], {"a": 1}, [[[1, 2]]]]
    got = collected(SQUARE, *odd, [[1, 2, 9], [3, 4, 9], [5, 0, 9]])
    assert np.diff(got.start).tolist() == [4, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert ring(got, 9) == [[1, 2], [3, 4], [5, 0]]


def test_a_closed_ring_opens_and_repeats_go():
    got = drop_repeats(
        collected([*SQUARE, SQUARE[0]], [], [[1, 1]] * 3, [SQUARE[0], *SQUARE, SQUARE[3]])
    )
    assert [ring(got, row) for row in range(4)] == [SQUARE, [], [], SQUARE]


def test_area_and_centroid_are_those_of_the_polygon(monkeypatch):
    monkeypatch.setattr(rings, "CHUNK", 7)
    rng = np.random.default_rng(2)
    polygons = []
    for number in range(30):
        n = 3 + number % 7
        angle = np.sort(rng.uniform(0, 2 * np.pi, n))[:: 1 - 2 * (number % 2)]
        radius = rng.uniform(3, 9, n)
        centre = np.array([90_000.0, 70_000.0]) * rng.uniform(0.5, 1, 2)
        polygons.append(centre + np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None])
    area, centre = measure_rings(collected(*polygons))
    for row, polygon in enumerate(map(shapely.Polygon, polygons)):
        signed = polygon.area if polygon.exterior.is_ccw else -polygon.area
        assert area[row] == pytest.approx(signed, rel=1e-6)
        assert centre[row] == pytest.approx(polygon.centroid.coords[0], abs=1e-5)


def test_crossing_rings_become_their_largest_sound_part(monkeypatch):
    monkeypatch.setattr(rings, "CHUNK", 2)
    bow_tie = [[0, 0], [10, 10], [10, 0], [0, 4]]
    flat = [[0, 0], [5, 0], [9, 0]]
    got, n_mended = mend_rings(collected(SQUARE, bow_tie, flat, SQUARE[::-1], SQUARE))
    assert n_mended == 1
    assert ring(got, 0) == SQUARE
    assert ring(got, 3) == SQUARE[::-1]
    assert ring(got, 4) == SQUARE
    assert np.diff(got.start)[2] == 0
    sound = shapely.Polygon(ring(got, 1))
    assert sound.is_valid
    parts = shapely.get_parts(shapely.make_valid(shapely.Polygon(bow_tie)))
    assert sound.equals(max(parts, key=lambda part: part.area))


def test_the_largest_piece_of_each_owner_is_taken():
    small, large = [[0, 0], [1, 0], [0, 1]], [[0, 0], [0, 5], [5, 5]]
    got, owner = largest_of(
        collected(small, large, [], small, large, small), np.array([2, 2, 5, 7, 9, 9])
    )
    assert owner.tolist() == [2, 5, 7, 9]
    assert [len(ring(got, row)) for row in range(4)] == [3, 0, 3, 3]
    assert ring(got, 0) == ring(got, 3) == large


def test_rings_with_a_vertex_that_is_not_finite_are_known():
    got = collected(SQUARE, [[0, 0], [np.nan, 1], [1, 1]], [], [[0, 0], [1, np.inf], [1, 1]])
    assert is_finite(got).tolist() == [True, False, True, False]
