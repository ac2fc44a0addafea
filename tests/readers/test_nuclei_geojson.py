"""QuPath's GeoJSON of several versions, and CellViT's and HEST's lists."""

import json
import zipfile
from uuid import UUID

import numpy as np
import pytest

from histoscribe.data.cells import Outlines
from histoscribe.data.export import cells_to_geojson
from histoscribe.data.toy import toy_world
from histoscribe.errors import DataError
from histoscribe.readers.nuclei import read_nuclei
from histoscribe.readers.nuclei_config import NucleiConfig

NAMES = ("Tumor", "Stroma", "Immune cells")
UM = NucleiConfig(mpp=1.0)


def closed(contour):
    return [*contour, contour[0]]


def wider(contour, factor=1.6):
    xy = np.array(contour, dtype=float)
    middle = xy.mean(axis=0)
    return np.round(middle + (xy - middle) * factor, 2).tolist()


def qupath(contours, kind="cell", with_nucleus=True):
    features = []
    for number, contour in enumerate(contours):
        outer = wider(contour) if with_nucleus else contour
        feature = {
            "type": "Feature",
            "id": str(UUID(int=number + 1)),
            "geometry": {"type": "Polygon", "coordinates": [closed(outer)]},
            "properties": {
                "objectType": kind,
                "classification": {"name": NAMES[number % 3], "color": [200, 0, 0]},
                "measurements": {"Nucleus: Area µm^2": 31.2, "Odd": float("nan")},
            },
        }
        if with_nucleus:
            inner = {"type": "Polygon", "coordinates": [closed(contour)]}
            feature["nucleusGeometry"] = inner
        features.append(feature)
    return {"type": "FeatureCollection", "features": features}


def cellvit_list(contours):
    """A bare list, one feature a class."""
    return [
        {
            "type": "Feature",
            "id": str(UUID(int=90 + number)),
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [[closed(contour)] for contour in contours[number::3]],
            },
            "properties": {
                "objectType": "annotation",
                "classification": {"name": name, "color": [255, 0, 0]},
            },
        }
        for number, name in enumerate(NAMES)
    ]


def write(content, path):
    path.write_text(json.dumps(content))
    return path


def polygon_of(given, row):
    return given.outlines.xy_um[slice(*given.outlines.start[row : row + 2])]


def assert_planted(given, contours, first_px=0.0):
    assert len(given) == len(contours)
    for row, contour in enumerate(contours):
        wanted = (np.array(contour) + first_px) * 0.25
        np.testing.assert_allclose(polygon_of(given, row), wanted, atol=1e-3)


def test_the_nucleus_of_a_cell_is_taken_or_the_cell_if_wanted(tmp_path, blank_slide, contours):
    path = write(qupath(contours), tmp_path / "cells.geojson")
    given, report = read_nuclei(path, blank_slide)
    assert_planted(given, contours)
    assert report.format == given.source == "qupath"
    assert given.cell_type == tuple(NAMES[n % 3] for n in range(23))
    assert given.type_probability is None
    cells, _ = read_nuclei(path, blank_slide, NucleiConfig(outline="cell"))
    assert_planted(cells, [wider(contour) for contour in contours])
    assert cells.identity != given.identity


@pytest.mark.parametrize("layout", ["collection", "list", "feature", "geometry last", "crs last"])
def test_every_layout_is_the_same(tmp_path, blank_slide, contours, layout):
    content = qupath(contours)
    wanted = contours
    if layout == "list":
        content = content["features"]
    if layout == "feature":
        content, wanted = content["features"][0], contours[:1]
    if layout == "geometry last":
        content["features"] = [dict(reversed(one.items())) for one in content["features"]]
    if layout == "crs last":
        content |= {"name": "cells", "crs": {"type": "name", "properties": {"name": "EPSG:3857"}}}
    given, report = read_nuclei(write(content, tmp_path / "c.json"), blank_slide)
    assert_planted(given, wanted)
    assert report.n_listed == len(wanted)
    assert given.cell_type == tuple(NAMES[n % 3] for n in range(len(wanted)))


def test_older_versions_of_qupath_are_read(tmp_path, blank_slide, contours):
    """0.2 says the kind in the id, 0.3 in object_type; measurements were lists."""
    features = qupath(contours, with_nucleus=False)["features"]
    for number, feature in enumerate(features):
        properties = feature["properties"]
        del properties["objectType"]
        properties["classification"] = {"name": NAMES[number % 3], "colorRGB": -3670016}
        properties["measurements"] = [{"name": "Type probability", "value": 0.5}]
        feature["id"] = "PathDetectionObject"
    given, _ = read_nuclei(write(features, tmp_path / "02.json"), blank_slide)
    assert_planted(given, contours)
    assert (given.type_probability == 0.5).all()
    for number, feature in enumerate(features):
        feature["id"] = str(UUID(int=number))
        feature["properties"]["object_type"] = "detection"
    assert_planted(read_nuclei(write(features, tmp_path / "03.json"), blank_slide)[0], contours)


def test_cells_come_before_detections_and_the_rest_is_counted(tmp_path, blank_slide, contours):
    content = qupath(contours[:20])
    others = qupath(contours[20:], "detection", with_nucleus=False)["features"]
    tile = qupath(contours[:1], "tile", with_nucleus=False)["features"][0] | {"id": "t"}
    tissue = {
        "type": "Feature",
        "id": "a",
        "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]},
        "properties": {"name": "tissue"},
    }
    for number, feature in enumerate(others):
        feature["id"] = f"other {number}"
    content["features"] = [tissue, *others, *content["features"], tile]
    path = write(content, tmp_path / "c.geojson")
    given, report = read_nuclei(path, blank_slide)
    assert_planted(given, contours[:20])
    assert report.dropped == {"another kind of object": 5}
    assert report.n_listed == 25
    content["features"] = [tissue, *others]
    given, _ = read_nuclei(write(content, tmp_path / "c.geojson"), blank_slide)
    assert_planted(given, contours[20:])


def test_objects_below_others_are_found(tmp_path, blank_slide, contours):
    parent = qupath(contours[:1])["features"][0]
    children = qupath(contours[1:])["features"]
    for number, child in enumerate(children):
        child["id"] = f"child {number}"
    properties = parent.pop("properties")
    turned = {"properties": properties | {"childObjects": children}} | parent
    given, _ = read_nuclei(write([turned], tmp_path / "c.geojson"), blank_slide)
    assert_planted(given, contours)


def test_classes_of_several_names_and_none(tmp_path, blank_slide, contours):
    content = qupath(contours)
    content["features"][0]["properties"]["classification"] = {"names": ["Tumor", "Positive"]}
    del content["features"][1]["properties"]["classification"]
    given, report = read_nuclei(write(content, tmp_path / "c.geojson"), blank_slide)
    assert given.cell_type[:3] == ("Tumor: Positive", "", "Immune cells")
    assert report.classes[""] == 1


def test_a_nucleus_in_pieces_is_its_largest_and_holes_are_filled(tmp_path, blank_slide, contours):
    content = qupath(contours, "detection", with_nucleus=False)
    shape = content["features"][2]["geometry"]
    shape["type"] = "MultiPolygon"
    hole = closed(wider(contours[2], 0.3))
    shape["coordinates"] = [[closed(wider(contours[3], 0.2))], [closed(contours[2]), hole]]
    given, report = read_nuclei(write(content, tmp_path / "c.geojson"), blank_slide)
    assert_planted(given, contours)
    assert any("1 holes" in note for note in report.notes)
    assert any("1 smaller pieces" in note for note in report.notes)


def test_a_cell_without_a_nucleus_keeps_its_cell_outline_and_is_noted(
    tmp_path, blank_slide, contours
):
    content = qupath(contours)
    del content["features"][5]["nucleusGeometry"]
    given, report = read_nuclei(write(content, tmp_path / "c.geojson"), blank_slide)
    np.testing.assert_allclose(polygon_of(given, 5), np.array(wider(contours[5])) / 4, atol=1e-3)
    assert report.notes == ("1 cells have no nucleus outline; their cell outline is taken",)


def test_cellvit_lists_hold_a_nucleus_an_outline(tmp_path, blank_slide, contours):
    given, report = read_nuclei(write(cellvit_list(contours), tmp_path / "c.geojson"), blank_slide)
    order = [*range(0, 23, 3), *range(1, 23, 3), *range(2, 23, 3)]
    assert_planted(given, [contours[n] for n in order], first_px=0.5)
    assert given.cell_type == tuple(NAMES[n % 3] for n in order)
    assert report.format == "cellvit"
    assert report.n_listed == 23


def test_hest_is_the_same_in_a_zip(tmp_path, blank_slide, contours):
    path = tmp_path / "TENX1_cellvit_seg.geojson.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("TENX1_cellvit_seg.geojson", json.dumps(cellvit_list(contours)))
    given, report = read_nuclei(path, blank_slide, NucleiConfig(format="hest"))
    assert len(given) == 23
    assert report.format == "hest"
    assert report.classes == {"Tumor": 8, "Stroma": 8, "Immune cells": 7}


def test_running_numbers_of_hest_are_no_cell_types(tmp_path, blank_slide, contours):
    content = cellvit_list(contours)
    for number, feature in enumerate(content):
        feature["properties"]["classification"] = {"name": str(number)}
    given, report = read_nuclei(write(content, tmp_path / "c.geojson"), blank_slide)
    assert given.cell_type is None
    assert "running numbers" in report.notes[0]


def test_annotations_are_nuclei_only_if_that_is_said(tmp_path, blank_slide, contours):
    content = qupath(contours, "annotation", with_nucleus=False)
    path = write(content, tmp_path / "c.geojson")
    with pytest.raises(DataError, match=r"23 annotations, no cells.*say takes_annotations"):
        read_nuclei(path, blank_slide)
    given, _ = read_nuclei(path, blank_slide, NucleiConfig(takes_annotations=True))
    assert_planted(given, contours)


def test_points_are_no_outlines(tmp_path, blank_slide, contours):
    content = cellvit_list(contours)
    for feature in content:
        shape = feature["geometry"]
        shape["type"] = "MultiPoint"
        shape["coordinates"] = [polygon[0][0] for polygon in shape["coordinates"]]
    with pytest.raises(DataError, match=r"no polygon among them.*not cell_detection.geojson"):
        read_nuclei(write(content, tmp_path / "cell_detection.geojson"), blank_slide)


@pytest.mark.parametrize("mpp", [(0.5, 0.5), None])
def test_what_was_exported_comes_back(tmp_path, mpp):
    world = toy_world(6)
    n = len(world.cells)
    types = tuple(("", "Tumor", "naïve B cell")[row % 3] for row in range(n))
    share = np.where(np.arange(n) % 3 > 0, np.linspace(0, 1, n), np.nan).astype(np.float32)
    cells = world.cells.take(np.arange(n))
    cells = type(cells)(
        **{name: getattr(cells, name) for name in cells.__dataclass_fields__}
        | {"cell_type": types, "type_probability": share}
    )
    cells_to_geojson(cells, tmp_path / "c.geojson", mpp=mpp)
    given, report = read_nuclei(
        tmp_path / "c.geojson", world.slide, UM if mpp is None else NucleiConfig()
    )
    assert report.n_kept == n
    assert report.dropped == {}
    assert isinstance(given.outlines, Outlines)
    assert np.array_equal(given.outlines.start, cells.outlines.start)
    np.testing.assert_allclose(given.outlines.xy_um, cells.outlines.xy_um, atol=1e-3)
    np.testing.assert_allclose(given.xy_um, cells.xy_um, atol=2e-3)
    assert given.cell_type == types
    np.testing.assert_allclose(given.type_probability, share, atol=1e-6)


@pytest.mark.parametrize("value", [[1], {}, True, None, 1.5])
def test_ids_that_are_none_are_passed_over(tmp_path, blank_slide, contours, value):
    content = qupath(contours)
    content["features"][2]["id"] = content["features"][3]["id"] = value
    given, report = read_nuclei(write(content, tmp_path / "c.geojson"), blank_slide)
    assert_planted(given, contours)
    assert report.dropped == {}


@pytest.mark.parametrize("value", [7, "seven"])
def test_an_id_that_stands_twice_counts_once(tmp_path, blank_slide, contours, value):
    content = qupath(contours)
    content["features"][2]["id"] = content["features"][3]["id"] = value
    given, report = read_nuclei(write(content, tmp_path / "c.geojson"), blank_slide)
    assert_planted(given, [*contours[:3], *contours[4:]])
    assert report.dropped == {"repeated id": 1}


def test_names_of_measurements_that_are_none_are_passed_over(tmp_path, blank_slide, contours):
    content = qupath(contours)
    content["features"][2]["properties"]["measurements"] = [
        {"name": ["x"], "value": 1},
        {"name": {}},
        {"name": "Type probability", "value": 0.25},
    ]
    given, _ = read_nuclei(write(content, tmp_path / "c.geojson"), blank_slide)
    assert given.type_probability[2] == 0.25


@pytest.mark.parametrize("value", [pytest.param(10**400, id="huge"), True, "0.5", 1.5, -1])
def test_a_probability_that_is_none_is_refused(tmp_path, blank_slide, contours, value):
    content = qupath(contours)
    content["features"][2]["properties"]["measurements"] = {"Type probability": value}
    with pytest.raises(DataError, match=r"c\.geojson: feature 2 has Type probability"):
        read_nuclei(write(content, tmp_path / "c.geojson"), blank_slide)


@pytest.mark.parametrize("is_type_first", [True, False])
@pytest.mark.parametrize("kind", ["MultiLineString", "LineString", "MultiPoint"])
def test_lines_and_points_are_no_nuclei(tmp_path, blank_slide, contours, kind, is_type_first):
    content = qupath(contours, "detection", with_nucleus=False)
    shape = content["features"][5]["geometry"]
    ring = shape["coordinates"][0]
    inside = [ring, ring] if kind == "MultiLineString" else ring
    shape = {"type": kind, "coordinates": inside}
    if not is_type_first:
        shape = dict(reversed(shape.items()))
    content["features"][5]["geometry"] = shape
    whole = {"type": "GeometryCollection", "geometries": [{"type": kind, "coordinates": inside}]}
    content["features"][6]["geometry"] = whole
    given, report = read_nuclei(write(content, tmp_path / "c.geojson"), blank_slide)
    assert_planted(given, [*contours[:5], *contours[7:]])
    assert report.dropped == {"no polygon": 2}
    assert report.notes == ()  # further lines are no holes
    below = {"type": "Feature", "properties": {"childObjects": content["features"]}}
    given, _ = read_nuclei(write([below], tmp_path / "c.geojson"), blank_slide)
    assert_planted(given, [*contours[:5], *contours[7:]])
