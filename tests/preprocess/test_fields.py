import numpy as np
import pytest

from histoscribe.data.toy import ToySlide
from histoscribe.errors import ConfigError, DataError
from histoscribe.preprocess import fields
from histoscribe.preprocess.fields import (
    FieldPlan,
    plan_around,
    plan_grid,
    squares_of_field,
)
from histoscribe.preprocess.tissue import TissueMask

SLIDE = ToySlide("s", np.zeros((1100, 1400, 3), np.uint8))  # 700 x 550 µm
SIZE_UM = (700.0, 550.0)


def mask_of(*boxes: tuple[int, int, int, int]) -> TissueMask:
    mask = np.zeros((69, 88), bool)
    for y0, y1, x0, x1 in boxes:
        mask[y0:y1, x0:x1] = True
    return TissueMask(mask, 8.0, float(mask.sum()) * 64e-6)


def grid() -> FieldPlan:
    return plan_grid(SLIDE, mask_of((0, 69, 0, 88)), 0.5, 256, 64)


def places(n: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).uniform(0, 1, (n, 2)) * SIZE_UM).astype(np.float32)


def test_each_place_is_owned_once_and_seen_with_the_halo() -> None:
    plan = grid()
    xy = np.concatenate([places(999), [[96.0, 96.0], [0.0, 0.0], [192.0, 5.0]]]).astype(np.float32)
    owner = plan.owner(xy)
    assert (owner >= 0).all()
    for place, field in zip(xy, owner, strict=True):
        box = plan.box(int(field))
        inside = [place[0] - box.x_um, place[1] - box.y_um]
        assert min(inside) >= plan.halo_um
        assert max(inside) <= box.width_um - plan.halo_um
        assert plan.excess_um(int(field), place[None])[0] <= 0
    others = [(plan.excess_um(field, xy) < 0) for field in range(len(plan))]
    assert np.sum(others, axis=0).max() == 1


def test_the_grid_covers_the_tissue_and_nothing_else() -> None:
    plan = plan_grid(SLIDE, mask_of((0, 3, 0, 3), (40, 42, 46, 50)), 0.5, 256, 64)
    assert len(plan) == 3  # the second piece, 368 to 400 µm, lies across the border at 384
    assert plan.owner(np.array([[5, 5], [410, 330], [300, 5]], np.float32)).tolist()[2] == -1


@pytest.mark.parametrize(("n", "side_px"), [(1, 256), (7, 144), (300, 528)])
def test_a_field_of_the_grid_is_planned_wherever_it_owns_a_part_of_a_pixel(
    n: int, side_px: int
) -> None:
    mask = mask_of((0, 0, 0, 0))
    rng = np.random.default_rng(n)
    mask.mask[rng.integers(0, 69, n), rng.integers(0, 88, n)] = True
    plan = plan_grid(SLIDE, mask, 0.5, side_px, 64)
    side_um = (side_px - 64) * 0.5
    row, column = np.nonzero(mask.mask)
    wanted = set()
    for x, y in zip(column * 8.0, row * 8.0, strict=True):
        for corner in ((x, y), (x + 7.9, y), (x, y + 7.9), (x + 7.9, y + 7.9)):
            cell = tuple(int(one // side_um) for one in corner)
            if cell[0] * side_um < SIZE_UM[0] and cell[1] * side_um < SIZE_UM[1]:
                wanted.add(cell)
    found = (plan.origin_px + 32) // (side_px - 64)
    assert sorted(map(tuple, found.tolist())) == sorted(wanted)
    assert found[:, ::-1].tolist() == sorted(found[:, ::-1].tolist())  # in reading order


def test_many_places_are_looked_up_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [grid(), plan_around(SLIDE, places(3), 80.0, 0.5, 256, 64)]
    for plan in plans:
        wanted = plan.owner(places(999))
        with monkeypatch.context() as patch:
            patch.setattr(fields, "PLACES_AT_ONCE", 100)
            np.testing.assert_array_equal(plan.owner(places(999)), wanted)


@pytest.mark.parametrize(("n", "is_grid"), [(3, False), (60, True)])
def test_around_regions_the_same_places_are_wanted_by_either_plan(n: int, is_grid: bool) -> None:
    centres = places(n, seed=n)
    plan = plan_around(SLIDE, centres, 80.0, 0.5, 256, 64)
    assert (plan.owned_px is not None) is is_grid
    xy = places(2999, seed=1)
    distance = np.linalg.norm(xy[:, None] - centres[None], axis=2).min(axis=1)
    owner = plan.owner(xy)
    np.testing.assert_array_equal(owner >= 0, distance <= 80)
    for place, field in zip(xy[owner >= 0], owner[owner >= 0], strict=True):
        box = plan.box(int(field))
        inside = [place[0] - box.x_um, place[1] - box.y_um]
        assert min(inside) >= plan.halo_um
        assert max(inside) <= box.width_um - plan.halo_um


def test_regions_at_one_place_are_one_field() -> None:
    centres = np.array([[200, 200], [200, 200], [600, 300]], np.float32)
    assert len(plan_around(SLIDE, centres, 80.0, 0.5, 512, 64)) == 2


@pytest.mark.parametrize("around", [False, True])
def test_each_square_on_the_slide_is_described_once_and_lies_in_its_field(around: bool) -> None:
    centres = np.array([[200, 200], [290, 220], [600, 300]], np.float32)
    plan = plan_around(SLIDE, centres, 80.0, 0.5, 512, 64) if around else grid()
    found = []
    for field in range(len(plan)):
        centre, corner = squares_of_field(plan, field, 64, SIZE_UM)
        assert corner.min(initial=0) >= 0
        assert (corner + 64).max(initial=0) <= plan.side_px
        assert not np.any(corner % 8)  # whole pixels of a map of stride 8
        origin = (plan.origin_px[field] + corner) * plan.mpp
        np.testing.assert_allclose(centre, origin + 16)
        found += [tuple(place) for place in centre.tolist()]
    x, y = np.meshgrid(np.arange(16, 688, 32), np.arange(16, 534, 32))
    every = np.stack([x, y], axis=-1).reshape(-1, 2)
    if around:
        distance = np.linalg.norm(every[:, None] - centres[None], axis=2).min(axis=1)
        every = every[distance <= 80]
    assert sorted(found) == sorted(map(tuple, every.astype(float).tolist()))


def test_bad_plans_are_refused() -> None:
    with pytest.raises(ConfigError, match="position"):
        plan_around(SLIDE, np.array([[np.nan, 1]], np.float32), 80.0, 0.5, 256, 64)
    with pytest.raises(ConfigError, match="multiples of 16"):
        plan_grid(SLIDE, mask_of((0, 9, 0, 9)), 0.5, 250, 64)
    with pytest.raises(DataError, match="nothing to segment"):
        plan_grid(SLIDE, mask_of(), 0.5, 256, 64)
