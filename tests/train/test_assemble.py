from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from histoscribe.data import mapped
from histoscribe.data.bags import BagConfig
from histoscribe.data.toy import toy_world
from histoscribe.errors import DataError, MismatchError
from histoscribe.train.assemble import SlideData, assemble, cut_bags, cut_into_strips, hold_in_file
from histoscribe.train.fit import FitConfig, fit_scaling


@pytest.fixture(scope="module")
def holed():
    world = toy_world(11, "holed", has_lumen=True)
    return SlideData(world.cells, world.tiles, world.regions)


def test_a_region_without_nuclei_has_no_bag_and_is_counted(holed, panel):
    cut = cut_bags(holed, BagConfig())
    empty = sorted(set(range(len(holed.regions))) - set(cut.row_of_bag.tolist()))
    assert len(empty) == 1
    distance = np.hypot(*(holed.cells.xy_um - holed.regions.xy_um[empty[0]]).T)
    assert distance.min() > holed.regions.radius_um
    scaling = fit_scaling([cut], panel, FitConfig(n_components=5, n_field_components=4))
    bags = assemble([cut], scaling, panel, has_target=True)
    assert bags.n_empty == 1
    assert bags.batch.n_bags == len(holed.regions) - 1


def test_bags_hold_the_cells_and_targets_of_their_regions(slides, panel, quick):
    cut = [cut_bags(slide, BagConfig(ring_um=13.0)) for slide in slides[:2]]
    scaling = fit_scaling(cut, panel, quick)
    bags = assemble(cut, scaling, panel, has_target=True)
    bag = len(cut[0]) + 5
    slide, row = slides[1], int(bags.row_of_bag[bag])
    assert bags.slide_of_bag[bag] == 1
    one = bags.batch.take(torch.tensor([bag]))
    distance = np.hypot(*(slide.cells.xy_um - slide.regions.xy_um[row]).T)
    inside = np.flatnonzero(distance <= slide.regions.radius_um)
    assert int(one.is_inside.sum()) == len(inside)
    wanted = scaling.cells.apply(slide.cells.features[inside])
    np.testing.assert_allclose(one.features[one.is_inside].numpy(), wanted, atol=1e-6)
    reach = one.offset_um.norm(dim=1)
    assert float(reach.max()) <= slide.regions.radius_um + 13.0 + 1e-3
    np.testing.assert_allclose(reach[one.is_inside].numpy(), distance[inside], atol=1e-3)
    counts = slide.regions.align(panel).expression[[row]].toarray()[0]
    size = slide.regions.expression[[row]].sum()
    y = scaling.target.restore(one.target.numpy())[0]
    np.testing.assert_allclose(y, np.log1p(counts / size * 1e4), rtol=1e-4)
    assert bool(one.is_observed.all())


def test_what_lies_in_files_has_the_same_bits(slides, panel, quick, monkeypatch):
    def make():
        cut = [hold_in_file(cut_bags(slide, BagConfig(ring_um=13.0))) for slide in slides[:3]]
        scaling = fit_scaling(cut, panel, quick)
        return cut, scaling, assemble(cut, scaling, panel, has_target=True).batch

    _, in_memory, plain = make()
    monkeypatch.setattr(mapped, "IN_FILE_BYTES", 1)
    cut, in_files, batch = make()
    for part in cut:
        for array in (part.neighbours, part.descriptors):
            assert array.base.untyped_storage().filename is not None
    for field in fields(batch):
        values, wanted = getattr(batch, field.name), getattr(plain, field.name)
        if isinstance(values, torch.Tensor):
            assert torch.equal(values, wanted), field.name
            assert values.untyped_storage().filename is not None
            assert wanted.untyped_storage().filename is None
    arrays = in_files.to_arrays()
    assert all(np.array_equal(arrays[name], a) for name, a in in_memory.to_arrays().items())


def test_a_strip_sees_of_another_only_the_image_in_its_own_fields(slides):
    config = BagConfig()

    def second_strip(slide):
        return cut_bags(cut_into_strips(slide, 3, 100.0)[1], config)

    clean = second_strip(slides[0])
    last_um = clean.slide.regions.xy_um[:, 0].max()

    def poison(noun, beyond_um):
        rng = np.random.default_rng(5)
        features = noun.features.copy()
        there = noun.xy_um[:, 0] > beyond_um
        features[there] = rng.normal(size=(int(there.sum()), features.shape[1]))
        return replace(noun, features=features)

    for beyond_um, is_same in ((config.field_side_um / 2, True), (0.0, False)):
        limit_um = last_um + beyond_um
        other = replace(
            slides[0],
            cells=poison(slides[0].cells, limit_um),
            tiles=poison(slides[0].tiles, limit_um),
        )
        assert np.array_equal(second_strip(other).descriptors, clean.descriptors) == is_same


def test_parts_that_do_not_belong_together_are_told(slides):
    with pytest.raises(MismatchError, match="came with tiles or regions of toy-1"):
        SlideData(slides[0].cells, slides[1].tiles, slides[0].regions)
    with pytest.raises(MismatchError, match="prepare the slide again"):
        replace(slides[0], tiles=replace(slides[0].tiles, encoder_id="x"))
    far = replace(slides[0].regions, xy_um=slides[0].regions.xy_um + 1e5)
    with pytest.raises(DataError, match="none of the 62 regions"):
        cut_bags(replace(slides[0], regions=far), BagConfig())
