import dataclasses

import numpy as np
import pytest
import shapely

from histoscribe.data.toy import ToySlide, ToyWorld, toy_world
from histoscribe.errors import ConfigError, DataError
from histoscribe.preprocess.run import PrepareConfig, plan_preparation, prepare_slide
from histoscribe.types import Box

TOY = PrepareConfig(segmenter="toy", encoder="toy", calibration_pixels=9999)


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    return toy_world(11)


def same(one: object, other: object) -> None:
    for field in dataclasses.fields(one):  # type: ignore[arg-type]
        left, right = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(left) and field.name != "provenance":
            same(left, right)
        elif isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right


def match(found: np.ndarray, planted: np.ndarray) -> np.ndarray:
    distance = np.linalg.norm(found[:, None] - planted[None], axis=2)
    assert distance.min(axis=1).max() < 0.5
    return distance.argmin(axis=1)


def test_every_planted_nucleus_is_found_once_and_whole(world: ToyWorld) -> None:
    steps: list[tuple[int, int, int]] = []
    cells, tiles = prepare_slide(world.slide, None, TOY, lambda *step: steps.append(step))
    assert len(cells) == len(world.cells)
    matched = match(cells.xy_um, world.cells.xy_um)
    assert len(np.unique(matched)) == len(cells)
    np.testing.assert_allclose(cells.area_um2, world.cells.area_um2[matched], rtol=0.25)
    assert cells.outlines is not None
    for i in range(0, len(cells), 97):
        ring = cells.outlines.xy_um[slice(*cells.outlines.start[i : i + 2])]
        assert shapely.Polygon(ring).contains(shapely.Point(cells.xy_um[i]))
    dark = cells.features[:, 0].astype(float)  # mean red, which tells the two kinds apart
    kind = world.kind_of_cell[matched]
    assert dark[kind == 1].max() < dark[kind == 0].min()
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert steps[-1][2] >= len(cells)
    assert len(np.unique(tiles.xy_um, axis=0)) == len(tiles)


def test_tiles_carry_the_colours_of_their_squares(world: ToyWorld) -> None:
    _, tiles = prepare_slide(world.slide, None, TOY)
    assert tiles.features.shape[1] == 18
    for i in range(0, len(tiles), 31):
        x, y = tiles.xy_um[i].tolist()
        square = world.slide.read(Box(x - 16, y - 16, 32, 32), 0.5).reshape(-1, 3).astype(float)
        np.testing.assert_allclose(tiles.colour[i, :3], square.mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(tiles.colour[i, 3:], square.std(axis=0), rtol=1e-3)


def test_the_same_request_gives_the_same_arrays(world: ToyWorld) -> None:
    first = prepare_slide(world.slide, None, TOY)
    second = prepare_slide(world.slide, None, TOY)
    same(first[0], second[0])
    same(first[1], second[1])


@pytest.mark.parametrize("segmenter", ["toy", "threshold"])
def test_fields_give_what_the_whole_slide_gives(world: ToyWorld, segmenter: str) -> None:
    small = dataclasses.replace(TOY, segmenter=segmenter)
    large = dataclasses.replace(small, field_px=2048)
    for one, other in zip(
        prepare_slide(world.slide, None, small),
        prepare_slide(world.slide, None, large),
        strict=True,
    ):
        a, b = one.xy_um, other.xy_um
        if hasattr(one, "area_um2"):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(one.area_um2, other.area_um2)
        shared, i, j = np.intersect1d(
            a.view("f4,f4").ravel(), b.view("f4,f4").ravel(), return_indices=True
        )
        assert len(shared) >= 0.99 * len(a)
        np.testing.assert_allclose(
            one.features[i].astype(float), other.features[j].astype(float), atol=2e-3
        )


@pytest.mark.parametrize("n_regions", [2, 40])
def test_around_regions_gives_the_nuclei_near_regions(world: ToyWorld, n_regions: int) -> None:
    everything, _ = prepare_slide(world.slide, None, TOY)
    chosen = np.linspace(0, len(world.regions) - 1, n_regions).astype(int)
    regions = dataclasses.replace(
        world.regions,
        region_id=tuple(world.regions.region_id[i] for i in chosen),
        slide_id=(world.slide.slide_id,) * n_regions,
        patient_id=("p",) * n_regions,
        xy_um=world.regions.xy_um[chosen],
        expression=None,
    )
    config = dataclasses.replace(TOY, around_regions=True, around_um=60.0)
    cells, tiles = prepare_slide(world.slide, regions, config)
    distance = np.linalg.norm(everything.xy_um[:, None] - regions.xy_um[None], axis=2).min(axis=1)
    near = np.flatnonzero(distance <= 60)
    np.testing.assert_array_equal(cells.xy_um, everything.xy_um[near])
    np.testing.assert_array_equal(cells.area_um2, everything.area_um2[near])
    to_tiles = np.linalg.norm(tiles.xy_um[:, None] - regions.xy_um[None], axis=2).min(axis=1)
    assert to_tiles.max() <= 60


def test_provenance_knows_all_that_changes_the_result(world: ToyWorld) -> None:
    plain = plan_preparation(world.slide, None, TOY).provenance
    assert plain.settings["segmenter"] == "toy@none"
    assert plain.settings["mpp_read"] == 0.5
    assert plain == plan_preparation(world.slide, None, TOY).provenance
    keys = {plain.key}
    for change in (
        {"segmenter": "threshold"},
        {"tile_side_um": 16.0},
        {"field_px": 256},
        {"seed": 1},
        {"around_regions": True},
    ):
        config = dataclasses.replace(TOY, **change)
        keys.add(plan_preparation(world.slide, world.regions, config).provenance.key)
    other = toy_world(12).slide
    keys.add(plan_preparation(other, None, TOY).provenance.key)
    assert len(keys) == 7


def test_requests_that_do_not_fit_are_refused(world: ToyWorld) -> None:
    for change, message in (
        ({"segmenter": "stardist"}, "there are instanseg, threshold, toy"),
        ({"encoder": "uni2"}, "there are instanseg"),
        ({"encoder": "vit"}, "vit:FOLDER"),
        ({"tile_side_um": 32.2}, "whole number"),
        ({"tile_side_um": 64.0}, "raise overlap_px"),
        ({"around_regions": True}, "needs regions"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare_slide(world.slide, None, dataclasses.replace(TOY, **change))
    config = dataclasses.replace(TOY, around_regions=True, around_um=20.0)
    with pytest.raises(ConfigError, match="less than the regions' radius"):
        prepare_slide(world.slide, world.regions, config)


@dataclasses.dataclass(frozen=True)
class BrokenSlide(ToySlide):
    """Fields of some places cannot be read."""

    beyond_um: float = 0.0

    def read(self, box: Box, mpp: float) -> np.ndarray:
        if box.width_um == 256 and box.x_um > self.beyond_um:
            raise DataError("a tile of the file is truncated")
        return super().read(box, mpp)


@dataclasses.dataclass(frozen=True)
class SlideWithAHole(ToySlide):
    """One field in the middle cannot be read."""

    def read(self, box: Box, mpp: float) -> np.ndarray:
        if box.width_um == 64 and (box.x_um, box.y_um) == (464.0, 400.0):
            raise DataError("a tile of the file is truncated")
        return super().read(box, mpp)


@pytest.mark.slow
def test_an_unreadable_field_is_left_out_and_nothing_invented(world: ToyWorld) -> None:
    config = dataclasses.replace(TOY, field_px=128)
    whole, whole_tiles = prepare_slide(world.slide, None, config)
    left, left_tiles = prepare_slide(SlideWithAHole("toy-a", world.slide.pixels), None, config)
    middle = np.array([496.0, 432.0])  # of the field, which owns 16 µm either way
    for some, all_ in ((left.xy_um, whole.xy_um), (left_tiles.xy_um, whole_tiles.xy_um)):
        beyond = np.abs(all_ - middle).max(axis=1) - 16
        kept = {tuple(place) for place in some.tolist()}
        assert len(kept) == len(some) < len(all_)
        assert kept <= {tuple(place) for place in all_.tolist()}
        assert kept >= {tuple(place) for place in all_[beyond > 0.5].tolist()}
        assert np.abs(some - middle).max(axis=1).min() > 15


def test_too_many_unreadable_fields_are_refused(world: ToyWorld) -> None:
    slide = BrokenSlide("toy-a", world.slide.pixels, beyond_um=600.0)
    with pytest.raises(DataError, match="could not be read"):
        prepare_slide(slide, None, TOY)


def test_a_slide_without_nuclei_is_refused() -> None:
    rng = np.random.default_rng(2)
    pixels = np.full((801, 903, 3), (224, 174, 200), np.uint8)
    pixels += rng.integers(0, 9, pixels.shape, dtype=np.uint8)
    pixels[:100] = 243
    with pytest.raises(DataError):
        prepare_slide(ToySlide("empty", pixels), None, TOY)


@pytest.mark.parametrize("factor", [0.1, 10.0])
@pytest.mark.parametrize("segmenter", ["toy", "threshold"])
def test_a_wrong_mpp_does_not_pass_in_silence(
    world: ToyWorld, factor: float, segmenter: str
) -> None:
    slide = dataclasses.replace(world.slide, mpp=(0.5 * factor, 0.5 * factor))
    config = dataclasses.replace(TOY, segmenter=segmenter)
    with pytest.raises(DataError):
        prepare_slide(slide, None, config)
