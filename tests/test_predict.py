from dataclasses import replace

import numpy as np
import pytest

from histoscribe.data.grid import grid_regions, sample_regions
from histoscribe.data.splits import Split
from histoscribe.data.toy import toy_study, toy_world
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.predict import describe_departure, predict_cells, predict_regions
from histoscribe.train.assemble import SlideData
from histoscribe.train.fit import FitConfig, fit
from histoscribe.train.gene_panel import PanelConfig, choose_panel


@pytest.fixture(scope="module")
def slides():
    worlds = [*toy_study(3, n_slides=3), toy_world(21, "holed", "patient-h", has_lumen=True)]
    return [SlideData(w.cells, w.tiles, w.regions) for w in worlds]


@pytest.fixture(scope="module")
def checkpoint(slides):
    panel = choose_panel([s.regions for s in slides[:2]], PanelConfig(n_genes=5))
    config = FitConfig(n_components=9, n_field_components=6, max_epochs=2, learning_rate=1e-2)
    small = {"width": 6, "gat_width": 10, "gat_heads": 2, "transformer_heads": 3}
    split = Split(("toy-0", "toy-1"), ("toy-2", "holed"), "patient")
    return fit(slides, split, panel, config=config, model_settings={**small, "context_width": 14})


def test_regions_come_in_order_and_one_without_nuclei_is_nan(checkpoint, slides):
    prediction = predict_regions(checkpoint, slides[2:])
    names = [name for slide in slides[2:] for name in slide.regions.region_id]
    assert list(prediction.region_id) == names
    assert prediction.unit == "log1p_cp10k"
    empty = np.isnan(prediction.mean).all(axis=1)
    assert empty.sum() == 1
    assert prediction.slide_id[int(empty.argmax())] == "holed"
    assert np.isfinite(prediction.mean[~empty]).all()


def test_a_slide_is_answered_alike_alone_and_in_company(checkpoint, slides):
    alone = predict_regions(checkpoint, slides[2:3]).mean
    together = predict_regions(checkpoint, slides[1:]).mean
    start = len(slides[1].regions)
    np.testing.assert_allclose(together[start : start + len(alone)], alone, atol=1e-5)


def test_an_ensemble_is_the_mean_of_its_nets(checkpoint, slides):
    whole = predict_regions(checkpoint, slides[2:3]).mean
    single = [
        predict_regions(replace(checkpoint, nets=(net,), _packed={}), slides[2:3]).mean
        for net in checkpoint.nets
    ]
    np.testing.assert_allclose(whole, np.mean(single, axis=0), atol=1e-5)
    assert np.abs(single[0] - single[1]).max() > 1e-3


def test_the_cells_of_a_region_sum_to_it_in_counts(checkpoint, slides):
    regions = predict_regions(checkpoint, slides[2:])
    cells = predict_cells(checkpoint, slides[2:])
    assert cells.kind == "cell"
    assert cells.unit == "cp10k"
    assert (cells.mean >= 0).all()
    home = [(s, r.rpartition("/")[0]) for s, r in zip(cells.slide_id, cells.region_id, strict=True)]
    for row in (0, 7, len(regions) - 3):
        name = (regions.slide_id[row], regions.region_id[row])
        of_cells = cells.mean[[h == name for h in home]].sum(axis=0)
        wanted = np.expm1(regions.mean[row].astype(np.float64)).clip(min=0)
        np.testing.assert_allclose(of_cells, wanted, rtol=1e-5, atol=1e-6)
    row = 11
    slide = slides[2]
    cell = int(cells.region_id[row].rpartition("/")[2])
    np.testing.assert_allclose(cells.xy_um[row], slide.cells.xy_um[cell])


def test_another_encoder_is_refused_with_the_mend(checkpoint, slides):
    other = replace(
        slides[2],
        cells=replace(slides[2].cells, encoder_id="uni2@91c0"),
        tiles=replace(slides[2].tiles, encoder_id="uni2@91c0"),
    )
    with pytest.raises(MismatchError, match=r"features of toy@.*have uni2@91c0.*prepare.stain"):
        predict_regions(checkpoint, [other])


def on_grid(slide, radius_um=27.5, pitch_um=100.0):
    return replace(slide, regions=grid_regions(slide.cells, "p", radius_um, pitch_um))


def as_sample(slide, patient="p"):
    return replace(slide, regions=sample_regions(slide.cells, patient))


def test_a_slide_without_expression_is_answered_like_one_with(checkpoint, slides):
    slide = slides[2]
    bare = replace(slide.regions, expression=None)
    answer = predict_regions(checkpoint, [replace(slide, regions=bare)])
    assert answer.mean.tobytes() == predict_regions(checkpoint, [slide]).mean.tobytes()


def test_every_disc_of_a_grid_is_answered(checkpoint, slides):
    slide = on_grid(slides[2], 20.0, 55.0)
    prediction = predict_regions(checkpoint, [slide])
    assert len(prediction) == len(slide.regions) > 100
    assert np.isfinite(prediction.mean).mean() > 0.95  # a few have no tile whose centre is tissue


@pytest.mark.parametrize("make", [on_grid, as_sample])
def test_cells_of_made_regions_sum_to_them(checkpoint, slides, make):
    slide = make(slides[2])
    regions, cells = (predict(checkpoint, [slide]) for predict in (predict_regions, predict_cells))
    home = np.array([name.rpartition("/")[0] for name in cells.region_id])
    for row in (0, len(regions) - 1):
        wanted = np.expm1(regions.mean[row].astype(np.float64)).clip(min=0)
        of_cells = cells.mean[home == regions.region_id[row]].sum(axis=0)
        np.testing.assert_allclose(of_cells, wanted, rtol=1e-4, atol=1e-5)


def test_slides_of_a_patient_are_one_whole_sample(checkpoint, slides):
    both = predict_regions(checkpoint, [as_sample(slide) for slide in slides[1:3]])
    assert both.slide_id == ("toy-1", "toy-2")
    np.testing.assert_array_equal(both.mean[0], both.mean[1])
    alone = predict_regions(checkpoint, [as_sample(slides[1])]).mean[0]
    assert np.abs(alone - both.mean[0]).max() > 1e-3
    assert both.of_slide("toy-2").slide_id == ("toy-2",)


@pytest.mark.parametrize("predict", [predict_regions, predict_cells])
def test_some_genes_are_those_columns_of_all(checkpoint, slides, predict):
    slide = as_sample(slides[2])
    whole, symbols = predict(checkpoint, [slide]), checkpoint.panel.symbols
    some = predict(checkpoint, [slide], [symbols[3], checkpoint.panel.ids[1], symbols[3]])
    assert some.genes.symbols == (symbols[3], symbols[1])
    np.testing.assert_array_equal(some.mean, whole.mean[:, [3, 1]])
    assert some.provenance.key != whole.provenance.key
    with pytest.raises(ConfigError, match=f"'{symbols[0]}x' is not among.*nearest.*{symbols[0]}"):
        predict(checkpoint, [slide], [symbols[0] + "x"])


def test_a_table_too_large_is_refused_before_it_is_made(checkpoint, slides):
    slide = as_sample(slides[2])
    needed_gb = len(slides[2].cells) * 5 * 4 / 1e9
    predict_cells(checkpoint, [slide], memory_gb=needed_gb * 1.001)
    with pytest.raises(ConfigError, match=r"cells x 5 genes take .* GB.*--gene.*--memory"):
        predict_cells(checkpoint, [slide], memory_gb=needed_gb * 0.999)
    predict_cells(checkpoint, [slide], checkpoint.panel.symbols[:4], memory_gb=needed_gb * 0.999)


def test_regions_unlike_those_of_the_training_are_called_so(checkpoint, slides):
    assert describe_departure(checkpoint, slides[2:3]) == ""
    assert describe_departure(checkpoint, [on_grid(slides[2])]) == ""
    wide = describe_departure(checkpoint, [on_grid(slides[2], 50.0, 100.0)])
    assert "trained on spots of 55 µm, 100 µm apart and predicts spots of 100 µm" in wide
    whole = [as_sample(slides[2])]
    assert "predicts whole samples" in describe_departure(checkpoint, whole)
    settings = predict_regions(checkpoint, whole).provenance.settings
    assert settings["trained_on"] == {"kind": "spot", "radius_um": 27.5, "pitch_um": 100.0}
    assert settings["regions"] == {"kind": "bulk", "radius_um": None, "pitch_um": None}
