"""Other programs read what we export."""

import json

import anndata
import numpy as np
import pytest
from shapely.geometry import shape

from histoscribe.data.export import cells_to_geojson, prediction_to_anndata
from histoscribe.data.prediction import Prediction
from histoscribe.data.provenance import Provenance
from histoscribe.data.toy import toy_world
from histoscribe.errors import ConfigError, DataError

WORLD = toy_world(6)
CELLS = WORLD.cells.take(np.array([7, 3, 200]))


def test_polygons_are_the_nuclei_in_the_unit_asked_for(tmp_path):
    cells_to_geojson(CELLS, tmp_path / "um.geojson")
    cells_to_geojson(CELLS, tmp_path / "px.geojson", mpp=(0.5, 0.25))
    um, px = (
        json.loads((tmp_path / f"{unit}.geojson").read_text())["features"] for unit in ("um", "px")
    )
    assert len(um) == len(px) == 3
    for row in range(3):
        nucleus, pixels = shape(um[row]["geometry"]), shape(px[row]["geometry"])
        assert np.allclose(nucleus.centroid.coords[0], CELLS.xy_um[row], atol=0.01)
        assert np.isclose(nucleus.area, CELLS.area_um2[row], rtol=0.04)
        assert np.isclose(pixels.area, nucleus.area / (0.5 * 0.25), rtol=1e-3)
        ring = um[row]["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1]


def test_points_and_labels_where_there_are_no_outlines(tmp_path):
    from dataclasses import replace

    share = np.array([0.75, np.nan, np.nan], np.float32)
    points = replace(CELLS, outlines=None, cell_type=("T", "B", ""), type_probability=share)
    cells_to_geojson(points, tmp_path / "p.geojson")
    features = json.loads((tmp_path / "p.geojson").read_text())["features"]
    properties = [feature["properties"] for feature in features]
    assert [one.get("classification") for one in properties] == [{"name": "T"}, {"name": "B"}, None]
    assert [one["measurements"].get("Type probability") for one in properties] == [0.75, None, None]
    assert {f["geometry"]["type"] for f in features} == {"Point"}
    with pytest.raises(ConfigError, match="mpp"):
        cells_to_geojson(points, tmp_path / "p.geojson", mpp=(0.0, 0.5))


def test_a_prediction_becomes_anndata_without_empty_rows(tmp_path):
    regions = WORLD.regions
    mean = np.ones((len(regions), len(regions.genes)), np.float32)
    mean[4] = np.nan
    prediction = Prediction(
        kind="spot",
        region_id=regions.region_id,
        slide_id=regions.slide_id,
        xy_um=regions.xy_um,
        genes=regions.genes,
        mean=mean,
        unit="counts",
        model_id="m",
        provenance=Provenance("test"),
    )
    prediction_to_anndata(prediction, tmp_path / "p.h5ad")
    table = anndata.read_h5ad(tmp_path / "p.h5ad")
    assert table.n_obs == len(regions) - 1
    assert int(table.uns["n_without_cells"]) == 1
    assert np.array_equal(table.obsm["spatial"], np.delete(regions.xy_um, 4, axis=0))
    assert tuple(table.var_names) == regions.genes.ids
    with pytest.raises(DataError, match="h5ad"):
        prediction_to_anndata(prediction, tmp_path / "p.csv")
