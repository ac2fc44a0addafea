from dataclasses import replace

import numpy as np
import pytest

from histoscribe.data.splits import Split
from histoscribe.data.toy import toy_study, toy_world
from histoscribe.errors import MismatchError
from histoscribe.predict import predict_cells, predict_regions
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
