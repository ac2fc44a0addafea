"""Nuclei that are given in place of a segmenter's: into a field's labels, and out as they came.

Their own outlines, centroids and areas are what is stored; labels serve to pool features only.
A nucleus belongs to the one field that owns its centroid, so each is described once.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from histoscribe.data.cells import Outlines
from histoscribe.data.nuclei import GivenNuclei
from histoscribe.errors import DataError
from histoscribe.preprocess.fields import FieldPlan
from histoscribe.preprocess.nuclei import Found


class FieldLabels(NamedTuple):
    """The nuclei that a field sees, its own and others."""

    labels: Int32[np.ndarray, "y x"]  # 0 for none, k + 1 for the nucleus of row[k]
    row: Int64[np.ndarray, " seen"]  # in the given nuclei, rising


@dataclass(frozen=True)
class PlacedNuclei:
    """Given nuclei in a plan of fields.

    Attributes:
        outlines: Of all nuclei, slide frame.
        xy_um: Their centroids.
        area_um2: Their areas.
        plan: The fields.
        field: The field of each nucleus, or -1 where none is planned.
        low_um: Top left corner of each outline's box.
        high_um: Bottom right corner.
        by_top: All rows, by the top of their boxes.
        top_um: Those tops, rising.
        tallest_um: Height of the tallest box.
    """

    outlines: Outlines
    xy_um: Float32[np.ndarray, "nucleus 2"]
    area_um2: Float32[np.ndarray, " nucleus"]
    plan: FieldPlan
    field: Int64[np.ndarray, " nucleus"]
    low_um: Float32[np.ndarray, "nucleus 2"]
    high_um: Float32[np.ndarray, "nucleus 2"]
    by_top: Int64[np.ndarray, " nucleus"]
    top_um: Float32[np.ndarray, " nucleus"]
    tallest_um: float

    @property
    def n_outside(self) -> int:
        """Nuclei that no field owns: off the tissue, or away from the regions asked for."""
        return int((self.field < 0).sum())

    @property
    def n_planned(self) -> int:
        """Nuclei that will be described."""
        return len(self.field) - self.n_outside

    def seen_in(self, field: int) -> Int64[np.ndarray, " seen"]:
        """Nuclei whose box meets a field, in their order."""
        box = self.plan.box(field)
        low = np.array([box.x_um, box.y_um])
        high = low + np.array([box.width_um, box.height_um])
        first, last = np.searchsorted(self.top_um, [low[1] - self.tallest_um - 1, high[1]])
        rows = self.by_top[first:last]
        meets = np.all((self.low_um[rows] < high) & (self.high_um[rows] > low), axis=1)
        return np.sort(rows[meets])


def place_nuclei(given: GivenNuclei, plan: FieldPlan) -> PlacedNuclei:
    """Give each nucleus to the field that owns its centroid.

    Raises:
        DataError: No field owns any.
    """
    placed = place_outlines(given.outlines, given.xy_um, given.area_um2, plan)
    if not placed.n_planned:
        raise DataError(
            f"slide {given.slide_id}: none of {len(given)} given nuclei lies where it is prepared "
            "(tissue, or around regions); the nuclei, or the tissue mask, are of another slide"
        )
    return placed


def place_outlines(
    outlines: Outlines,
    xy_um: Float32[np.ndarray, "nucleus 2"],
    area_um2: Float32[np.ndarray, " nucleus"],
    plan: FieldPlan,
) -> PlacedNuclei:
    """The same of bare outlines; a field may own none."""
    first, vertices = outlines.start[:-1], outlines.xy_um
    low = np.minimum.reduceat(vertices, first, axis=0) if len(first) else vertices
    high = np.maximum.reduceat(vertices, first, axis=0) if len(first) else vertices
    by_top = np.argsort(low[:, 1], kind="stable")
    return PlacedNuclei(
        outlines=outlines,
        xy_um=xy_um,
        area_um2=area_um2,
        plan=plan,
        field=plan.owner(xy_um),
        low_um=low,
        high_um=high,
        by_top=by_top,
        top_um=low[by_top, 1],
        tallest_um=float((high[:, 1] - low[:, 1]).max(initial=0)),
    )


def labels_of_field(placed: PlacedNuclei, field: int) -> FieldLabels:
    """Draw the nuclei that a field sees, at its resolution.

    A pixel belongs to the nucleus that its middle lies in; of several to the first of the file.
    A nucleus whose centroid is in the field has a pixel in any case: the one nearest to its
    centroid that is free, or that another can spare.

    Args:
        placed: Given nuclei.
        field: Number of the field in their plan.
    """
    plan, row = placed.plan, placed.seen_in(field)
    outlines = placed.outlines.take(row)
    xy_px = outlines.xy_um.astype(np.float64) / plan.mpp - plan.origin_px[field]
    pixel, nucleus = fill(xy_px, outlines.start, plan.side_px)
    labels = np.zeros(plan.side_px**2, np.int32)
    distinct, first = np.unique(pixel, return_index=True)  # pixels come nucleus by nucleus
    labels[distinct] = nucleus[first] + 1
    labels = labels.reshape(plan.side_px, plan.side_px)
    centre_px = placed.xy_um[row].astype(np.float64) / plan.mpp - plan.origin_px[field]
    _give_each_a_pixel(labels, centre_px)
    return FieldLabels(labels, row)


def take_given(placed: PlacedNuclei, field: int) -> tuple[Found, Outlines]:
    """The nuclei of a field, as `take_owned` and `outline_found` give those of a segmenter.

    Centroids, areas and outlines are those of the file. `excess_um` is minus infinity: no other
    field gives them, so that two which overlap must not be taken for one.
    """
    seen = labels_of_field(placed, field)
    is_own = placed.field[seen.row] == field
    number = np.concatenate([[0], np.where(is_own, np.cumsum(is_own), 0)]).astype(np.int32)
    row = seen.row[is_own]
    excess = np.full(len(row), -np.inf, np.float32)
    found = Found(number[seen.labels], placed.xy_um[row], placed.area_um2[row], excess)
    return found, placed.outlines.take(row)


def types_at(
    given: GivenNuclei, xy_um: Float32[np.ndarray, "cell 2"]
) -> tuple[tuple[str, ...] | None, Float32[np.ndarray, " cell"] | None]:
    """Cell types and their probabilities of cells that were made from given nuclei.

    Args:
        given: The nuclei.
        xy_um: Centroids of the cells, untouched, in any order.

    Raises:
        DataError: A cell is at no given nucleus.
    """
    row = given.rows_at(xy_um)
    types, share = given.cell_type, given.type_probability
    return (
        None if types is None else tuple(types[one] for one in row),
        None if share is None else share[row],
    )


def fill(
    xy_px: Float64[np.ndarray, "vertex 2"], start: Int64[np.ndarray, " ring_plus_1"], side_px: int
) -> tuple[Int64[np.ndarray, " pixel"], Int64[np.ndarray, " pixel"]]:
    """Pixels whose middle lies in each polygon (even-odd rule), of all polygons at once.

    Every edge is cut with the middle lines of the pixel rows; along a row the cuts of a polygon
    are, in pairs, where it begins and ends. An edge takes its upper end and not its lower, so that
    a row has an even number of cuts.

    Args:
        xy_px: Vertices; pixel (0, 0) covers [0, 1) x [0, 1).
        start: Where each polygon begins among them.
        side_px: Side of the field; what lies outside is left out.

    Returns:
        Pixels as y * side_px + x, and the polygon of each, rising.
    """
    following = np.arange(1, len(xy_px) + 1)
    following[start[1:] - 1] = start[:-1]
    polygon = np.repeat(np.arange(len(start) - 1), np.diff(start))
    x, y = xy_px.T
    to_x, to_y = xy_px[following].T
    first = np.clip(np.ceil(np.minimum(y, to_y) - 0.5), 0, side_px).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y, to_y) - 0.5), 0, side_px).astype(np.int64)
    edge, row = _ranges(first, last)
    slope = (to_x - x)[edge] / (to_y - y)[edge]  # an edge that meets a row's middle is not level
    cut = x[edge] + (row + 0.5 - y[edge]) * slope
    order = np.lexsort((cut, row, polygon[edge]))
    pair, row, cut = polygon[edge][order][::2], row[order][::2], cut[order]
    begin = np.clip(np.ceil(cut[::2] - 0.5), 0, side_px).astype(np.int64)
    end = np.clip(np.ceil(cut[1::2] - 0.5), 0, side_px).astype(np.int64)
    span, column = _ranges(begin, end)
    return row[span] * side_px + column, pair[span]


def _ranges(
    first: Int64[np.ndarray, " range"], last: Int64[np.ndarray, " range"]
) -> tuple[Int64[np.ndarray, " one"], Int64[np.ndarray, " one"]]:
    """All numbers of each range [first, last), and the range of each."""
    size = np.maximum(last - first, 0)
    which = np.repeat(np.arange(len(size)), size)
    return which, np.arange(len(which)) + (first - np.cumsum(size) + size)[which]


def _give_each_a_pixel(
    labels: Int32[np.ndarray, "y x"], centre_px: Float64[np.ndarray, "nucleus 2"]
) -> None:
    """Give those without a pixel, whose centre is in the field, the nearest that can be had."""
    side = len(labels)
    n_pixels = np.bincount(labels.ravel(), minlength=len(centre_px) + 1)
    is_in = np.all((centre_px >= 0) & (centre_px < side), axis=1)
    for nucleus in np.flatnonzero((n_pixels[1:] == 0) & is_in):
        x, y = centre_px[nucleus]
        for reach in (2 << np.arange(side.bit_length())).tolist():
            rows = np.arange(max(0, int(y) - reach), min(side, int(y) + reach + 1))
            columns = np.arange(max(0, int(x) - reach), min(side, int(x) + reach + 1))
            holder = labels[np.ix_(rows, columns)]
            can_be_had = (holder == 0) | (n_pixels[holder] > 1)
            if can_be_had.any():
                break
        else:
            raise DataError(f"a field of {side} px has more given nuclei than pixels")
        far = np.hypot(rows[:, None] + 0.5 - y, columns + 0.5 - x)
        at = int(np.where(can_be_had, far, np.inf).argmin())
        i, j = divmod(at, len(columns))
        n_pixels[holder[i, j]] -= 1
        labels[rows[i], columns[j]] = nucleus + 1
        n_pixels[nucleus + 1] = 1
