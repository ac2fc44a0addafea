"""Rings as files hold them, made into outlines that hold up; what is left out is counted."""

from array import array
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import shapely
from jaxtyping import Bool, Float32, Float64, Int64

CHUNK = 50_000  # polygons looked at together: 50 MB of shapely objects


class Rings(NamedTuple):
    """Ring i has the vertices `xy[start[i] : start[i + 1]]`, open or closed."""

    xy: Float64[np.ndarray, "vertex 2"]
    start: Int64[np.ndarray, " ring_plus_1"]

    def take(self, rows: Int64[np.ndarray, " row"]) -> "Rings":
        """These rings, in this order."""
        size = np.diff(self.start)[rows]
        start = starts(size)
        shift = np.repeat(self.start[:-1][rows] - start[:-1], size)
        return Rings(self.xy[np.arange(start[-1]) + shift], start)


@dataclass(frozen=True)
class RawNuclei:
    """What one format gives, in the order and in the units of the file.

    Attributes:
        format: Which it was.
        rings: One a nucleus.
        to_um: Brings (x, y, 1) of the file to µm in the slide's frame.
        settings: How it was read, for the provenance.
        inputs: SHA-256 of further files that were read, by their columns of the manifest.
        cell_type: Labels, "" where there is none; or None.
        type_probability: NaN where the file does not say; or None.
        is_repeat: Nuclei whose id stood there before.
        centroid: Centroids where the file has better ones than the ring's, in its units.
        area: Areas likewise.
        dropped: What was left out already: reason, how many.
        notes: What a user should know of it.
    """

    format: str
    rings: Rings
    to_um: Float64[np.ndarray, "2 3"]
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    cell_type: tuple[str, ...] | None = None
    type_probability: Float32[np.ndarray, " nucleus"] | None = None
    is_repeat: Bool[np.ndarray, " nucleus"] | None = None
    centroid: Float64[np.ndarray, "nucleus 2"] | None = None
    area: Float64[np.ndarray, " nucleus"] | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class RingCollector:
    """Takes rings one by one and holds them as plain numbers."""

    def __init__(self) -> None:
        self._xy = array("d")
        self._size = array("q")

    def __len__(self) -> int:
        return len(self._size)

    def add(self, points: Any) -> None:  # noqa: ANN401 - whatever a file holds there
        """Add a ring: a list of (x, y). What is none becomes a ring without vertices."""
        try:
            xy = np.asarray(points, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            xy = np.zeros((0, 2))
        if xy.ndim != 2 or xy.shape[1] < 2:
            xy = np.zeros((0, 2))
        self._xy.frombytes(xy[:, :2].tobytes())
        self._size.append(len(xy))

    def rings(self) -> Rings:
        """All of them."""
        xy = np.frombuffer(self._xy, dtype=np.float64).reshape(-1, 2)
        return Rings(xy, starts(np.frombuffer(self._size, dtype=np.int64)))


def starts(size: Int64[np.ndarray, " ring"]) -> Int64[np.ndarray, " ring_plus_1"]:
    """Where rings of these sizes begin, and where the last ends."""
    return np.concatenate([[0], np.cumsum(size)]).astype(np.int64)


def drop_repeats(rings: Rings) -> Rings:
    """Without vertices that equal the next one, the last being followed by the first.

    So a closed ring becomes an open one.
    """
    size = np.diff(rings.start)
    following = np.arange(1, len(rings.xy) + 1)
    following[rings.start[1:][size > 0] - 1] = rings.start[:-1][size > 0]
    differs = np.any(rings.xy != rings.xy[following], axis=1)
    kept = np.concatenate([[0], np.cumsum(differs)])[rings.start]
    return Rings(rings.xy[differs], kept.astype(np.int64))


def is_finite(rings: Rings) -> Bool[np.ndarray, " ring"]:
    """Whether all vertices of each ring are finite."""
    bad = np.concatenate([[0], np.cumsum(~np.isfinite(rings.xy).all(axis=1))])
    return bad[rings.start[1:]] == bad[rings.start[:-1]]


def measure_rings(
    rings: Rings,
) -> tuple[Float64[np.ndarray, " ring"], Float64[np.ndarray, "ring 2"]]:
    """Signed areas, and centroids, of rings of three vertices or more.

    With vertices p_i, taken from the first one so that no digits are lost far from the origin:

        A = 1/2 sum_i p_i x p_(i+1)        c = 1/(6 A) sum_i (p_i + p_(i+1)) (p_i x p_(i+1))

    A ring without area has its vertices' mean for a centroid.
    """
    n_rings = len(rings.start) - 1
    area, centroid = np.zeros(n_rings), np.zeros((n_rings, 2))
    for first in range(0, n_rings, CHUNK):
        rows = np.arange(first, min(first + CHUNK, n_rings))
        area[rows], centroid[rows] = _measure(rings.take(rows))
    return area, centroid


def _measure(
    rings: Rings,
) -> tuple[Float64[np.ndarray, " ring"], Float64[np.ndarray, "ring 2"]]:
    first, size = rings.start[:-1], np.diff(rings.start)
    origin = rings.xy[first]
    here = rings.xy - np.repeat(origin, size, axis=0)
    following = np.arange(1, len(rings.xy) + 1)
    following[rings.start[1:] - 1] = first
    there = here[following]
    cross = here[:, 0] * there[:, 1] - here[:, 1] * there[:, 0]
    area = np.add.reduceat(cross, first) / 2
    moment = np.add.reduceat((here + there) * cross[:, None], first, axis=0)
    mean = np.add.reduceat(here, first, axis=0) / size[:, None]
    is_flat = area == 0
    offset = np.where(is_flat[:, None], mean, moment / (6 * np.where(is_flat, 1.0, area))[:, None])
    return area, origin + offset


def mend_rings(rings: Rings) -> tuple[Rings, int]:
    """Rings that cross or touch themselves become the outside of their largest sound part.

    Args:
        rings: Of three vertices or more, finite.

    Returns:
        The rings, and how many were mended. What has no sound part becomes a ring of no vertices.
    """
    n_rings = len(rings.start) - 1
    coordinates, sizes, n_mended = [np.zeros((0, 2))], [np.zeros(0, np.int64)], 0
    for first in range(0, n_rings, CHUNK):
        some = rings.take(np.arange(first, min(first + CHUNK, n_rings)))
        size = np.diff(some.start)
        closed = shapely.linearrings(some.xy, indices=np.repeat(np.arange(len(size)), size))
        polygons = np.asarray(shapely.polygons(closed))
        bad = np.flatnonzero(~shapely.is_valid(polygons))
        if not len(bad):
            coordinates.append(some.xy)
            sizes.append(size)
            continue
        polygons[bad] = [_largest_part(polygon) for polygon in polygons[bad]]
        n_mended += int((~shapely.is_empty(polygons[bad])).sum())
        outside = shapely.get_exterior_ring(polygons)
        n_points = shapely.get_num_coordinates(outside)
        is_last = np.zeros(int(n_points.sum()), dtype=bool)
        is_last[np.cumsum(n_points)[n_points > 0] - 1] = True
        coordinates.append(shapely.get_coordinates(outside)[~is_last])
        sizes.append(np.maximum(n_points - 1, 0).astype(np.int64))
    return Rings(np.concatenate(coordinates), starts(np.concatenate(sizes))), n_mended


def _largest_part(polygon: shapely.Polygon) -> shapely.Polygon:
    parts = shapely.get_parts(shapely.make_valid(polygon, method="structure"))
    areas = shapely.area(parts)
    if not len(parts) or areas.max() == 0:
        return shapely.Polygon()
    largest = parts[int(areas.argmax())]
    return shapely.Polygon(largest.exterior)


def largest_of(
    rings: Rings, owner: Int64[np.ndarray, " ring"]
) -> tuple[Rings, Int64[np.ndarray, " nucleus"]]:
    """Of the rings of one owner the largest, the first of equal ones; owners in their order.

    Args:
        rings: The parts of nuclei.
        owner: Whose each is, never falling.

    Returns:
        One ring an owner, and the owners.
    """
    if not len(owner):
        return rings, owner
    size = np.diff(rings.start)
    area = np.zeros(len(owner))
    solid = np.flatnonzero(size > 2)
    area[solid] = np.abs(measure_rings(rings.take(solid))[0])
    order = np.lexsort((np.arange(len(owner)), -np.nan_to_num(area), owner))
    is_first = np.concatenate([[True], np.diff(owner[order]) > 0])
    rows = order[is_first]
    return rings.take(rows), owner[rows]
