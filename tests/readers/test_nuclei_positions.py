"""One mask, told in every way: as labels, and as the contours that other programs draw of it."""

import json

import geopandas
import numpy as np
import pytest
import shapely

from histoscribe.data.toy import ToySlide
from histoscribe.readers.nuclei import read_nuclei
from histoscribe.readers.nuclei_config import NucleiConfig

SIZE = (613, 409)  # x, y, in pixels of 0.25 µm
RECTANGLE = (100, 100, 139, 129)  # first and last x and y: 40 x 30 px
DIAMOND = (301, 207, 33)  # x, y, reach


def labels_and_contours():
    """Two nuclei, and the contours that OpenCV's findContours gives: through border pixels."""
    labels = np.zeros(SIZE[::-1], np.int32)
    left, top, right, bottom = RECTANGLE
    labels[top : bottom + 1, left : right + 1] = 1
    x, y, reach = DIAMOND
    down, across = np.indices(labels.shape)
    labels[np.abs(across - x) + np.abs(down - y) <= reach] = 2
    return labels, [
        [[left, top], [left, bottom], [right, bottom], [right, top]],
        [[x, y - reach], [x - reach, y], [x, y + reach], [x + reach, y]],
    ]


def slide_of(factor=1):
    white = np.broadcast_to(np.uint8(255), (SIZE[1] * factor, SIZE[0] * factor, 3))
    return ToySlide("S1", white, (0.25, 0.25))


def hovernet(contours, path, mag=40):
    nuclei = {str(n + 1): {"contour": contour} for n, contour in enumerate(contours)}
    path.write_text(json.dumps({"mag": mag, "nuc": nuclei}))


def cellvit(contours, path, **meta):
    cells = [{"contour": contour, "type": 1} for contour in contours]
    facts = {"wsi_metadata": meta, "type_map": {"1": "Neoplastic"}, "cells": cells}
    path.write_text(json.dumps(facts))


def cellvit_list(contours, path):
    shapes = [[[*contour, contour[0]]] for contour in contours]
    feature = {
        "type": "Feature",
        "geometry": {"type": "MultiPolygon", "coordinates": shapes},
        "properties": {"objectType": "annotation", "classification": {"name": "Neoplastic"}},
    }
    path.write_text(json.dumps([feature]))


def hest(contours, path):
    polygons = [shapely.Polygon(contour) for contour in contours]
    geopandas.GeoDataFrame({"class": ["Dead"] * 2}, geometry=polygons).to_parquet(path)


def boxes(given):
    rings = [given.outlines.xy_um[a:b] for a, b in np.lib.stride_tricks.sliding_window_view(
        given.outlines.start, 2)]  # fmt: skip
    return np.array([[*ring.min(axis=0), *ring.max(axis=0)] for ring in rings])


def read_both(tmp_path, write, slide, config=None, **facts):
    """The nuclei of the label image and of the contours."""
    labels, contours = labels_and_contours()
    np.save(tmp_path / "labels.npy", labels)
    write(contours, tmp_path / "contours", **facts)
    return (
        read_nuclei(tmp_path / "labels.npy", slide, config)[0],
        read_nuclei(tmp_path / "contours", slide)[0],
    )


@pytest.mark.parametrize("write", [hovernet, cellvit, cellvit_list, hest])
def test_contours_lie_where_their_mask_does(tmp_path, write):
    masks, drawn = read_both(tmp_path, write, slide_of())
    np.testing.assert_allclose(masks.xy_um[0], [30.0, 28.75], atol=1e-4)
    np.testing.assert_allclose(drawn.xy_um, masks.xy_um, atol=1e-4)
    # One pixel less in all, half of it on each side.
    inner = boxes(masks) + 0.125 * np.array([1, 1, -1, -1])
    np.testing.assert_allclose(boxes(drawn), inner, atol=1e-4)
    np.testing.assert_allclose(boxes(masks)[0], [25, 25, 35, 32.5], atol=1e-4)


def test_half_a_pixel_is_one_of_those_that_were_looked_at(tmp_path):
    """HoVer-Net at 20x of a 40x slide: half of its pixel is a whole one of the slide."""
    masks, drawn = read_both(tmp_path, hovernet, slide_of(2), NucleiConfig(mpp=0.5), mag=20)
    np.testing.assert_allclose(drawn.xy_um, masks.xy_um, atol=1e-4)
    np.testing.assert_allclose(drawn.xy_um[0], [60.0, 57.5], atol=1e-4)


def test_cellvit_that_looked_at_a_reduced_slide_is_half_of_a_larger_pixel_off(tmp_path):
    """It multiplies what it drew, at 0.5 µm/px, by 2: the slide has 0.25."""

    def write(contours, path):
        twice = (2 * np.array(contours)).tolist()
        cellvit(twice, path, base_mpp=0.25, target_patch_mpp=0.5, downsampling=2)

    masks, drawn = read_both(tmp_path, write, slide_of(2), NucleiConfig(mpp=0.5))
    np.testing.assert_allclose(drawn.xy_um, masks.xy_um, atol=1e-4)


def test_outlines_without_pixels_are_not_moved(tmp_path):
    """HEST's xenium_seg has no class, or running numbers in GeoJSON."""
    _, contours = labels_and_contours()
    polygons = [shapely.Polygon(contour) for contour in contours]
    geopandas.GeoDataFrame({"cell_id": [4, 7]}, geometry=polygons).to_parquet(tmp_path / "x")
    cellvit_list(contours, tmp_path / "x.geojson")
    text = (tmp_path / "x.geojson").read_text().replace("Neoplastic", "0")
    (tmp_path / "x.geojson").write_text(text)
    for name in ("x", "x.geojson"):
        given, _ = read_nuclei(tmp_path / name, slide_of())
        np.testing.assert_allclose(given.xy_um[0], [29.875, 28.625], atol=1e-4)
