"""Whole samples: a bag of all blocks of all slides; some are drawn in training, all answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from histoscribe.data.bags import BagConfig
from histoscribe.data.pseudobulk import sum_regions
from histoscribe.data.splits import Split
from histoscribe.data.toy import toy_bag_batch
from histoscribe.errors import ConfigError, DataError
from histoscribe.models.stream import BagStream
from histoscribe.predict import predict_cells, predict_regions, represent_samples
from histoscribe.train import draw
from histoscribe.train.assemble import SlideData, assemble, cut_bags
from histoscribe.train.draw import Bags, Draw, draw_blocks, in_portions
from histoscribe.train.fit import fit, fit_scaling
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.targets import measure


def as_bulk(slide, patient, values=None):
    """A slide as one bulk sample, whose expression is the sum of its spots or what is given."""
    regions = slide.regions
    total = np.asarray(regions.expression.sum(axis=0)).ravel()[None] if values is None else values
    bulk = replace(
        regions.take(np.array([0])),
        kind="bulk",
        region_id=(patient,),
        patient_id=(patient,),
        xy_um=np.full((1, 2), np.nan, np.float32),
        radius_um=np.inf,
        pitch_um=np.nan,
        expression=csr_array(np.asarray(total, dtype=np.float32)),
    )
    return replace(slide, regions=bulk)


@pytest.fixture(scope="module")
def samples(slides):
    """Three patients; the first two slides are one patient's."""
    first = np.asarray(slides[0].regions.expression.sum(axis=0)).ravel()[None]
    names = ("p0", "p0", "p1", "p2")
    return [
        as_bulk(slide, name, first if name == "p0" else None)
        for slide, name in zip(slides, names, strict=True)
    ]


def test_slides_of_one_sample_are_one_bag(samples, panel, quick):
    cut = [cut_bags(slide, BagConfig(block_side_um=73.0)) for slide in samples]
    scaling = fit_scaling(cut, panel, quick)
    bags = assemble([cut[0], cut[2], cut[1], cut[3]], scaling, panel, has_target=True)
    assert bags.batch.n_bags == 3
    n_cells = [len(slide.cells) for slide in samples]
    assert bags.batch.cells_per_bag().tolist() == [n_cells[0] + n_cells[1], *n_cells[2:]]
    assert [rows.tolist() for rows in bags.bag_of_row] == [[0], [0], [1], [2]]
    assert [slide.slide_id for slide in bags.slides] == ["toy-0", "toy-1", "toy-2", "toy-3"]
    # graphs never cross slides, nor blocks
    batch = bags.batch
    linked = batch.neighbours.clamp(min=0)
    assert (batch.block_of_cell[linked] == batch.block_of_cell[:, None])[
        batch.neighbours >= 0
    ].all()
    assert float(batch.offset_um.abs().max()) <= 73.0 / 2


def test_parts_with_different_expression_are_refused(samples, slides, panel, quick):
    wrong = [samples[0], as_bulk(slides[1], "p0"), *samples[2:]]
    cut = [cut_bags(slide, BagConfig()) for slide in wrong]
    scaling = fit_scaling(cut, panel, quick)
    with pytest.raises(DataError, match="different expression"):
        assemble(cut, scaling, panel, has_target=True)


def test_spots_and_samples_do_not_meet_in_one_fit(samples, slides, panel, quick):
    split = Split(("toy-2", "toy-3"), ("toy-0",), "patient")
    with pytest.raises(DataError, match="regions of bulk and spot"):
        fit([samples[2], slides[3]], split, panel, config=quick)


@pytest.fixture(scope="module")
def fitted(samples, panel, quick, small):
    split = Split(("toy-0", "toy-1", "toy-2"), ("toy-3",), "patient")
    config = replace(quick, blocks_in_training=5, blocks_in_scoring=9)
    return fit(samples, split, panel, config=config, model_settings=small)


def test_a_fit_on_samples_predicts_every_slide_of_one_alike(fitted, samples):
    said = predict_regions(fitted, samples)
    assert said.slide_id == ("toy-0", "toy-1", "toy-2", "toy-3")
    assert np.array_equal(said.mean[0], said.mean[1])
    assert np.isfinite(said.mean).all()
    alone = predict_regions(fitted, samples[2:3])
    np.testing.assert_allclose(alone.mean[0], said.mean[2], atol=1e-5)
    turned = predict_regions(fitted, [samples[3], samples[1], samples[2], samples[0]])
    np.testing.assert_allclose(turned.mean[[3, 1, 2, 0]], said.mean, atol=1e-5)


def test_cells_of_a_sample_add_up_to_it(fitted, samples):
    whole = predict_regions(fitted, samples[2:3]).mean.astype(np.float64)
    cells = predict_cells(fitted, samples[2:3])
    assert len(cells.region_id) == len(samples[2].cells)
    np.testing.assert_allclose(
        cells.mean.astype(np.float64).sum(axis=0), np.expm1(whole[0]).clip(min=0), rtol=1e-4
    )


def test_a_sample_of_one_spot_is_that_spot(slides, split, panel, quick, small):
    """Level is data: the same cells answer alike, as a spot and as a bulk region of one block."""
    fitted = fit(slides, split, panel, config=quick, model_settings=small)
    slide = slides[3]
    group = np.arange(len(slide.regions))
    bulk, blocks = sum_regions(slide.regions, group)
    as_spots = predict_regions(fitted, [slide]).mean
    as_samples = predict_regions(fitted, [replace(slide, regions=bulk, blocks=blocks)]).mean
    np.testing.assert_allclose(as_samples, as_spots, atol=1e-5)


def test_the_cluster_loss_is_on_for_samples_and_off_for_spots(fitted):
    assert fitted.fit_settings["cluster_weight"] == 0.1
    assert FitConfig().resolve("spot").cluster_weight == 0.0
    assert FitConfig(cluster_weight=0.3).resolve("spot").cluster_weight == 0.3
    assert FitConfig(cluster_weight=0.0).resolve("bulk").cluster_weight == 0.0
    with pytest.raises(ConfigError, match="cluster_weight"):
        FitConfig(cluster_weight=-1.0)


def test_samples_stop_on_the_loss_unless_told_otherwise(fitted):
    assert fitted.fit_settings["stop_on"] == "loss"
    assert FitConfig().resolve("spot").stop_on == "gene_pcc"
    assert FitConfig(stop_on="gene_pcc").resolve("bulk").stop_on == "gene_pcc"


def test_a_sample_of_several_slides_counts_once_in_the_scales(fitted, samples):
    z = np.stack(
        [
            fitted.scaling.target.standardise(measure(s.regions, fitted.panel, "log1p_cp10k")[0])[0]
            for s in (samples[0], samples[2])
        ]
    )  # the two training samples, p0 on two slides
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)


def test_samples_as_vectors(fitted, samples):
    found = represent_samples(fitted, samples)
    assert found.patient_id == ("p0", "p1", "p2")
    assert found.vector.shape == (3, len(fitted.nets) * (14 + 6))
    again = represent_samples(fitted, samples[2:3])
    np.testing.assert_allclose(again.vector[0], found.vector[1], atol=1e-5)


@pytest.fixture(scope="module")
def whole(samples, panel, quick):
    cut = [cut_bags(slide, BagConfig(block_side_um=73.0)) for slide in samples]
    return assemble(cut, fit_scaling(cut, panel, quick), panel, has_target=True).batch


def test_a_step_sees_some_blocks_of_each_sample(whole):
    drawn = draw_blocks(whole, torch.tensor([2, 0]), 7, seed=1)
    assert drawn.n_blocks_of_bag.tolist() == [7, 7]
    assert torch.equal(drawn.target, whole.target[[2, 0]])
    assert torch.equal(draw_blocks(whole, torch.tensor([2, 0]), 7, seed=1).features, drawn.features)
    other = draw_blocks(whole, torch.tensor([2, 0]), 7, seed=2)
    assert other.n_cells != drawn.n_cells or not torch.equal(other.features, drawn.features)
    everything = draw_blocks(whole, torch.tensor([2, 0]), 0, seed=1)
    assert torch.equal(everything.features, whole.take(torch.tensor([2, 0])).features)
    assert len(Bags(whole, 7)) == 3
    assert Bags(whole, 7)[Draw(torch.tensor([2, 0]), 1)].n_blocks == 14


def test_each_block_is_drawn_alike(whole):
    n_blocks = int(whole.n_blocks_of_bag[1])
    count = np.zeros(n_blocks)
    first = int(whole.first_block_of_bag[1])
    sizes = whole.n_cells_of_block[first : first + n_blocks]
    for seed in range(400):
        drawn = draw_blocks(whole, torch.tensor([1]), 5, seed)
        features = {tuple(row) for row in drawn.features[drawn.first_cell_of_block].tolist()}
        for block in range(n_blocks):
            row = int(whole.first_cell_of_block[first + block])
            count[block] += tuple(whole.features[row].tolist()) in features
    assert int(sizes.min()) > 0
    assert count.sum() == 2000
    assert abs(count / 400 - 5 / n_blocks).max() < 0.11


def test_portions_hold_all_bags_in_order(whole):
    portions = in_portions(Bags(whole, 0))
    assert torch.cat(portions).tolist() == [0, 1, 2]
    many = toy_bag_batch(torch.Generator().manual_seed(1), n_bags=700, most_blocks=3)
    portions = in_portions(Bags(many, 2))
    assert torch.cat(portions).tolist() == list(range(700))
    n_blocks = [int(many.n_blocks_of_bag[rows].clamp(max=2).sum()) for rows in portions]
    assert max(n_blocks) <= 257
    assert min(n_blocks[:-1]) >= 254


def test_several_bulk_regions_of_a_slide_need_blocks(slides):
    two = slides[0].regions.take(np.arange(2))
    nowhere = np.full((2, 2), np.nan, np.float32)
    bulk = replace(two, kind="bulk", xy_um=nowhere, radius_um=np.inf, pitch_um=np.nan)
    with pytest.raises(DataError, match="2 bulk regions claim the slide"):
        cut_bags(SlideData(slides[0].cells, slides[0].tiles, bulk), BagConfig())


@pytest.mark.parametrize("most_blocks", [0, 13])
def test_a_sample_scores_the_same_in_portions(
    samples, panel, quick, small, most_blocks, monkeypatch
):
    split = Split(("toy-0", "toy-1", "toy-2"), ("toy-3",), "patient")
    config = replace(quick, max_epochs=1, blocks_in_training=5, blocks_in_scoring=most_blocks)
    seen = []
    monkeypatch.setattr(
        BagStream,
        "add",
        lambda stream, batch, add=BagStream.add: seen.append(1) or add(stream, batch),
    )

    def fit_at_once(n_blocks):
        monkeypatch.setattr(draw, "EVALUATED_AT_ONCE", n_blocks)
        cut = BagConfig(block_side_um=73.0)
        fitted = fit(samples, split, panel, config=config, bags=cut, model_settings=small)
        return fitted, [net["best_score"] for net in fitted.report]

    whole, of_whole = fit_at_once(10**6)
    assert not seen
    parted, of_parts = fit_at_once(4)
    assert len(seen) > 2 * 3
    np.testing.assert_allclose(of_parts, of_whole, rtol=1e-5)
    for a, b in zip(whole.nets, parted.nets, strict=True):
        assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
