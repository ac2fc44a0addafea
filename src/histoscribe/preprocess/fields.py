"""Fields: the squares in which a slide is read, and which of them owns a place on it.

Every place of the planned area is owned by exactly one field, and a field sees at least
`halo_um` beyond what it owns. So a nucleus up to twice the halo across is whole in the field that
owns its centroid, and a square of the tile grid in the field that owns its centre.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from scipy.spatial import KDTree

from histoscribe.data.slide import Slide
from histoscribe.errors import ConfigError, DataError
from histoscribe.preprocess.tissue import TissueMask
from histoscribe.types import Box

STEP_PX = 16  # fields begin and end on a multiple of this, so that all feature maps agree
PLACES_AT_ONCE = 1 << 18  # looked up together; a mask of a large slide has millions
BAND_UM = 0.5  # how far the same nucleus' centroid may differ between two fields


@dataclass(frozen=True)
class FieldPlan:
    """Fields of one size, by one of two rules of ownership.

    Attributes:
        origin_px: Top left corners (x, y) on the slide's grid of `mpp`; may lie outside the slide.
        side_px: Side of a field.
        mpp: Resolution the fields are read at, µm per pixel.
        halo_um: What a field sees beyond what it owns, at least.
        owned_px: Side of the squares that tile the plane, each owned by the field round it; or
            None where a place belongs to the field with the nearest centre.
        centre_um: Centres of the fields' own areas.
        disc_um: Centres of the discs that are wanted, or None for all that is owned.
        disc_radius_um: Their radius.
    """

    origin_px: Int64[np.ndarray, "field 2"]
    side_px: int
    mpp: float
    halo_um: float
    owned_px: int | None
    centre_um: Float64[np.ndarray, "field 2"]
    disc_um: Float64[np.ndarray, "disc 2"] | None = None
    disc_radius_um: float = np.inf

    def __len__(self) -> int:
        return len(self.origin_px)

    def box(self, field: int, margin_um: float = 0) -> Box:
        """What to read for a field."""
        x, y = (self.origin_px[field] * self.mpp - margin_um).tolist()
        side = self.side_px * self.mpp + 2 * margin_um
        return Box(x, y, side, side)

    def owner(self, xy_um: Float32[np.ndarray, "place 2"]) -> Int64[np.ndarray, " place"]:
        """The field that owns each place, or -1."""
        if len(xy_um) > PLACES_AT_ONCE:
            runs = range(0, len(xy_um), PLACES_AT_ONCE)
            return np.concatenate([self.owner(xy_um[i : i + PLACES_AT_ONCE]) for i in runs])
        if not len(xy_um):
            return np.zeros(0, np.int64)
        if self.owned_px is None:
            field = self._centres.query(xy_um)[1]
        else:
            side, keys = self.owned_px * self.mpp, self._keys
            wanted = cell_key(np.floor(xy_um.astype(np.float64) / side))
            field = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            field = np.where(keys[field] == wanted, field, -1)
        return np.where(self.is_wanted(xy_um), field, -1)

    def is_wanted(self, xy_um: Float32[np.ndarray, "place 2"]) -> Bool[np.ndarray, " place"]:
        """Whether each place lies in a disc."""
        if self.disc_um is None:
            return np.ones(len(xy_um), bool)
        return self._discs.query(xy_um)[0] <= self.disc_radius_um

    def excess_um(
        self, field: int, xy_um: Float32[np.ndarray, "place 2"]
    ) -> Float64[np.ndarray, " place"]:
        """How far outside the field's own area each place lies; negative inside."""
        offset = xy_um.astype(np.float64) - self.centre_um[field]
        if self.owned_px is not None:
            return np.abs(offset).max(axis=1) - self.owned_px * self.mpp / 2
        if not len(xy_um) or len(self) == 1:
            return np.full(len(xy_um), -np.inf)
        distance, near = self._centres.query(xy_um, k=2)
        distance, near = np.asarray(distance), np.asarray(near)
        other = np.where(near[:, 0] == field, distance[:, 1], distance[:, 0])
        return (np.hypot(*offset.T) - other) / 2

    # Made once: every field asks, and a plan may have a hundred thousand.

    @cached_property
    def _centres(self) -> KDTree:
        return KDTree(self.centre_um)

    @cached_property
    def _discs(self) -> KDTree:
        return KDTree(self.disc_um)

    @cached_property
    def _keys(self) -> Int64[np.ndarray, " field"]:
        """The grid's cell of each field; sorted, for fields are in reading order."""
        side = (self.owned_px or 1) * self.mpp
        return cell_key(np.floor(self.centre_um / side))


def cell_key(cell: Float64[np.ndarray, "place 2"]) -> Int64[np.ndarray, " place"]:
    """One number for each cell (x, y) of a grid, in reading order."""
    x, y = cell.astype(np.int64).T
    return y * 2**31 + x


def plan_grid(
    slide: Slide, mask: TissueMask, mpp: float, field_px: int, overlap_px: int
) -> FieldPlan:
    """Fields on a grid, wherever the area a field owns holds tissue."""
    side_um = owned_side(field_px, overlap_px) * mpp
    # A pixel of the mask may reach over a border: its near and its far edge count.
    touched = touched_cells(touched_cells(mask.mask, mask.mpp / side_um).T, mask.mpp / side_um)
    return grid_fields(slide, np.argwhere(touched).astype(float), mpp, field_px, overlap_px)


def touched_cells(mask: Bool[np.ndarray, "y x"], step: float) -> Bool[np.ndarray, "y cell"]:
    """Which cells of a grid along x hold a part of a True pixel, in each row.

    Args:
        mask: Pixel x covers [x * step, (x + 1) * step), where cell i covers [i, i + 1).
        step: At most 1.
    """
    x = np.arange(mask.shape[1])
    low, high = (np.floor((x + edge) * step).astype(np.int64) for edge in (0, 1 - 1e-6))
    touched = np.zeros((len(mask), int(high.max(initial=-1)) + 1), bool)
    for cell in (low, high):
        first = np.flatnonzero(np.diff(cell, prepend=-1))
        touched[:, cell[first]] |= np.logical_or.reduceat(mask, first, axis=1)
    return touched


def plan_around(
    slide: Slide,
    centre_um: Float32[np.ndarray, "region 2"],
    around_um: float,
    mpp: float,
    field_px: int,
    overlap_px: int,
) -> FieldPlan:
    """Fields that see every disc of `around_um`, by the way that reads less.

    Either one field a region, with it in the middle (sparse lattices), or the fields of the grid
    that own a part of a disc. What comes out is the same nuclei either way.
    """
    discs = np.unique(centre_um.astype(np.float64), axis=0)
    if not len(discs) or not np.isfinite(discs).all():
        raise ConfigError(
            "--around-regions needs the position of every region; "
            "prepare the whole slide instead (leave the flag out)"
        )
    grid = grid_around(slide, discs, around_um, mpp, field_px, overlap_px)
    halo_um = overlap_px * mpp / 2
    reach_px = (around_um + halo_um) / mpp + STEP_PX / 4  # half a step of snapping
    side_px = int(np.ceil(2 * reach_px / STEP_PX)) * STEP_PX
    if len(discs) * side_px**2 >= len(grid) * field_px**2:
        return grid
    discs = discs[np.lexsort(discs.T)]
    snap = STEP_PX // 2
    origin = np.rint((discs / mpp - side_px / 2) / snap) * snap
    return FieldPlan(origin.astype(np.int64), side_px, mpp, halo_um, None, discs, discs, around_um)


def grid_around(
    slide: Slide,
    disc_um: Float64[np.ndarray, "disc 2"],
    around_um: float,
    mpp: float,
    field_px: int,
    overlap_px: int,
) -> FieldPlan:
    """The fields of the grid that own a part of a disc."""
    side_um = owned_side(field_px, overlap_px) * mpp
    reach = int(np.ceil(around_um / side_um)) + 1
    near = np.arange(-reach, reach + 1)
    offsets = np.stack(np.meshgrid(near, near), axis=-1).reshape(-1, 2)
    cells = np.floor(disc_um / side_um)[:, None] + offsets
    nearest = np.clip(disc_um[:, None], cells * side_um, (cells + 1) * side_um)
    touches = np.linalg.norm(nearest - disc_um[:, None], axis=2) <= around_um
    plan = grid_fields(slide, cells[touches], mpp, field_px, overlap_px)
    return FieldPlan(
        plan.origin_px,
        field_px,
        mpp,
        plan.halo_um,
        plan.owned_px,
        plan.centre_um,
        disc_um,
        around_um,
    )


def grid_fields(
    slide: Slide,
    cells: Float64[np.ndarray, "cell 2"],
    mpp: float,
    field_px: int,
    overlap_px: int,
) -> FieldPlan:
    """The fields of the grid that own the given cells of it, each once, those on the slide."""
    owned_px = owned_side(field_px, overlap_px)
    size_um = np.array(slide.size_px) * np.array(slide.mpp)
    on_slide = np.all((cells >= 0) & (cells * owned_px * mpp < size_um), axis=1)
    cells = cells[on_slide].astype(np.int64)
    if not len(cells):
        raise DataError(
            f"slide {slide.slide_id}: nothing to segment: no tissue and no region on the slide; "
            "look at the slide and at --mpp"
        )
    cells = np.unique(cells[:, ::-1], axis=0)[:, ::-1]  # reading order
    origin = cells * owned_px - overlap_px // 2
    centre = (cells + 0.5) * owned_px * mpp
    return FieldPlan(origin, field_px, mpp, overlap_px * mpp / 2, owned_px, centre)


def owned_side(field_px: int, overlap_px: int) -> int:
    """Side of the square that a field of the grid owns."""
    if field_px % STEP_PX or overlap_px % STEP_PX or not 0 < overlap_px < field_px:
        raise ConfigError(
            f"field_px {field_px} and overlap_px {overlap_px} must be multiples of {STEP_PX}, "
            "and the overlap smaller than the field"
        )
    return field_px - overlap_px


def squares_of_field(
    plan: FieldPlan, field: int, side_px: int, size_um: tuple[float, float]
) -> tuple[Float32[np.ndarray, "square 2"], Int64[np.ndarray, "square 2"]]:
    """The squares of the slide's tile grid that a field describes.

    Those whose centre the field owns, that lie on the slide whole; in a plan each square is in
    exactly one field.

    Args:
        plan: The plan.
        field: Which field.
        side_px: Side of a square, in pixels of the field.
        size_um: Width and height of the slide.

    Returns:
        Centres in µm in the slide's frame, and top left corners (x, y) in pixels of the field.
    """
    origin = plan.origin_px[field]
    first = -(-origin // side_px)
    count = (origin + plan.side_px) // side_px - first
    if np.any(count < 1):
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.int64)
    x, y = (np.arange(count[i]) + first[i] for i in (0, 1))
    cell = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    centre = ((cell + 0.5) * side_px * plan.mpp).astype(np.float32)
    far = (cell + 1) * side_px * plan.mpp
    on_slide = np.all((cell >= 0) & (far <= np.array(size_um) + 1e-6), axis=1)
    kept = on_slide & (plan.owner(centre) == field)
    return centre[kept], (cell[kept] * side_px - origin).astype(np.int64)
