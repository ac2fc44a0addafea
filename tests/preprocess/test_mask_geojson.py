import gzip
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import Bool
from PIL import Image

from histoscribe.data.toy import ToySlide
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.preprocess.artefacts import find_artefacts, usable
from histoscribe.preprocess.mask_geojson import read_mask, write_mask
from histoscribe.preprocess.tissue import mask_of, tissue_mask
from histoscribe.slides.open import open_slide
from histoscribe.slides.pyramid import PyramidSlide

MPP = 8.0
SCALES = [(2.0, 2.0), (0.2527, 0.2498), (3.1, 7.9)]


def slide_for(shape: tuple[int, int], mpp: tuple[float, float]) -> ToySlide:
    """A slide whose mask of 8 µm per pixel has this shape."""
    high, wide = (max(1, round(n * MPP / one)) for n, one in zip(shape, mpp[::-1], strict=True))
    white = np.broadcast_to(np.uint8(255), (high, wide, 3))  # holds no memory
    return ToySlide("toy", white, mpp)


def there_and_back(
    mask: Bool[np.ndarray, "y x"], folder: Path, mpp: tuple[float, float]
) -> Bool[np.ndarray, "y x"]:
    write_mask(mask_of(mask, MPP), folder / "mask.geojson", mpp)
    found = read_mask(folder / "mask.geojson", slide_for(mask.shape, mpp))
    assert found.mpp == MPP
    assert found.area_mm2 == mask_of(mask, MPP).area_mm2
    return found.mask


def read(
    content: Any, folder: Path, size: tuple[int, int] = (13, 17), mpp: float = MPP
) -> Bool[np.ndarray, "y x"]:
    """What is read on a slide of so many mask pixels (y, x), each 4 x 4 slide pixels."""
    path = folder / "drawn.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_mask(path, slide_for(size, (2.0, 2.0)), mpp).mask


def square(x: float, y: float, side: float) -> list[list[float]]:
    """A closed ring, in mask pixels of four slide pixels."""
    corners = [(x, y), (x + side, y), (x + side, y + side), (x, y + side), (x, y)]
    return [[4 * a, 4 * b] for a, b in corners]


def feature(*rings: Any, **properties: object) -> dict[str, Any]:
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def drawn(*squares: tuple[int, int, int], size: tuple[int, int] = (13, 17)) -> np.ndarray:
    """Squares put on the mask in turn; a negative side takes away."""
    mask = np.zeros(size, dtype=bool)
    for x, y, side in squares:
        mask[y : y + abs(side), x : x + abs(side)] = side > 0
    return mask


def named(name: str) -> dict[str, Any]:
    return {"classification": {"name": name}}


@settings(max_examples=150, deadline=None)
@given(
    mask=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14)).filter(np.any),
    mpp=st.sampled_from(SCALES),
)
def test_any_mask_comes_back(
    mask: np.ndarray, mpp: tuple[float, float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert (there_and_back(mask, folder, mpp) == mask).all()


@pytest.mark.parametrize("mpp", SCALES)
def test_hard_masks_come_back(tmp_path: Path, mpp: tuple[float, float]) -> None:
    nested = drawn((1, 1, 11), (2, 2, -9), (3, 3, 7), (4, 4, -5), (6, 6, 1))
    checks = np.indices((13, 17)).sum(axis=0) % 2 == 0  # all touch at corners only
    noise = np.random.default_rng(3).random((101, 133)) < 0.55
    for mask in (nested, checks, ~checks, np.ones((7, 5), dtype=bool), noise):
        assert (there_and_back(mask, tmp_path, mpp) == mask).all()


def test_the_mask_of_an_image_comes_back_through_a_file_of_full_resolution(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:707, :911]
    image = np.full((707, 911, 3), 240.0)
    from_centre = np.hypot(x - 400, y - 350)
    image[(from_centre < 200) & (from_centre > 50)] = (205, 120, 180)
    image[300:, 700:] = (205, 120, 180)  # to the border, which cuts a mask pixel
    image += rng.normal(0, 3, image.shape)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png", mpp=2.0)
    mask = tissue_mask(slide)
    write_mask(mask, tmp_path / "a.geojson", slide.mpp)
    assert (read_mask(tmp_path / "a.geojson", slide).mask == mask.mask).all()
    (ring, corner) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert len(ring["geometry"]["coordinates"]) == 2  # the outline and its hole
    assert shapely.geometry.shape(ring["geometry"]).centroid.distance(shapely.Point(400, 350)) < 4
    assert corner["properties"] == {"objectType": "annotation", **named("Tissue")}


def test_many_pieces_and_holes_take_seconds_not_minutes(tmp_path: Path) -> None:
    mask = np.zeros((1201, 1603), dtype=bool)
    mask[5:900, 5:-5] = True
    mask[10:890:19, 10:-10:19] = False  # 3,900 holes in one piece
    mask[905::17, ::17] = True  # 1,700 pieces
    started = time.perf_counter()
    assert (there_and_back(mask, tmp_path, (8.0, 8.0)) == mask).all()
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize(
    "layout",
    ["collection", "feature", "list", "geometry", "geometries", "multi", "gzip", "child"],
)
def test_every_layout_of_geojson_is_read(tmp_path: Path, layout: str) -> None:
    one = feature(square(2, 3, 6), square(4, 5, 2), objectType="annotation")
    collection = {"type": "FeatureCollection", "features": [one]}
    shape = one["geometry"]
    wrapped = {"type": "GeometryCollection", "geometries": [shape]}
    multi = {"type": "MultiPolygon", "coordinates": [shape["coordinates"]]}
    parent = {"type": "Feature", "id": "PathRootObject", "geometry": None}
    contents: dict[str, Any] = {
        "collection": {"crs": {"name": "EPSG:3857"}, **collection},
        "feature": one,
        "list": [one],
        "geometry": shape,
        "geometries": {"type": "Feature", "geometry": wrapped},
        "multi": {"type": "Feature", "geometry": multi, "properties": None},
        "gzip": collection,
        "child": [{**parent, "properties": {"childObjects": [one]}}],
    }
    path = tmp_path / "tissue.geojson"
    content = json.dumps(contents[layout]).encode()
    path.write_bytes(gzip.compress(content) if layout == "gzip" else content)
    found = read_mask(path, slide_for((13, 17), (2.0, 2.0)))
    assert (found.mask == drawn((2, 3, 6), (4, 5, -2))).all()


@pytest.mark.parametrize("name", ["Pen", "BLUR", "fold", "Exclude", "ignore", "Ignore*"])
def test_artefacts_are_cut_out_wherever_they_stand(tmp_path: Path, name: str) -> None:
    features = [
        feature(square(4, 4, 2), **named(name)),
        feature(square(2, 3, 6), **named("Tumor")),
        feature(square(9, 3, 3)),
        feature(square(10, 4, 1), classification={"names": [name, "old"]}),
    ]
    expected = drawn((2, 3, 6), (4, 4, -2), (9, 3, 3), (10, 4, -1))
    assert (read(features, tmp_path) == expected).all()


def test_overlapping_annotations_are_one_tissue_and_cells_are_none(tmp_path: Path) -> None:
    features = [
        feature(square(2, 3, 6)),
        feature(square(5, 5, 6), **named("Stroma")),
        feature(square(0, 0, 2), objectType="cell"),
        feature(square(14, 0, 2), objectType="detection"),
        {**feature(square(0, 9, 2)), "id": "PathTileObject"},
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 3]}},
    ]
    assert (read(features, tmp_path) == drawn((2, 3, 6), (5, 5, 6))).all()


def test_contours_of_hest_and_trident_are_read(tmp_path: Path) -> None:
    new = [feature(square(2, 3, 6), square(4, 5, 2), tissue_id=n) for n in (0,)]
    assert (read(new, tmp_path) == drawn((2, 3, 6), (4, 5, -2))).all()
    rings = [square(1, 1, 10), square(5, 5, 1), square(3, 3, 6)]  # island before its hole
    old = {
        "type": "Feature",
        "geometry": {"type": "MultiPolygon", "coordinates": [[ring[:-1]] for ring in rings]},
        "properties": {"objectType": "annotation", **named("0"), "hole": [2]},
    }
    assert (read([old], tmp_path) == drawn((1, 1, 10), (3, 3, -6), (5, 5, 1))).all()


def test_a_pixel_is_tissue_by_its_centre(tmp_path: Path) -> None:
    shy, bold = square(2.55, 3.55, 5), square(2.45, 3.45, 5)
    assert (read(feature(shy), tmp_path) == drawn((3, 4, 5))).all()
    assert (read(feature(bold), tmp_path) == drawn((2, 3, 5))).all()
    rng = np.random.default_rng(8)
    ring = np.column_stack([rng.uniform(0, 17, 9), rng.uniform(0, 13, 9)])
    hull = shapely.get_coordinates(shapely.MultiPoint(ring).convex_hull)
    y, x = np.mgrid[:13, :17] + 0.5
    expected = shapely.contains_xy(shapely.Polygon(hull), x, y)
    assert (read(feature((hull * 4).tolist()), tmp_path) == expected).all()


def test_a_bow_tie_keeps_both_wings(tmp_path: Path) -> None:
    wings = [[0, 0], [40, 40], [40, 0], [0, 40], [0, 0]]
    y, x = np.mgrid[:13, :17]
    expected = (np.abs(y - 4.5) < np.abs(x - 4.5)) & (x < 10)
    found = read(feature(wings), tmp_path)
    on_edge = np.abs(y - 4.5) == np.abs(x - 4.5)
    assert (found == expected)[~on_edge].all()


def test_a_slip_over_the_edge_is_cut_and_more_is_refused(tmp_path: Path) -> None:
    assert read(feature([[-3, -3], [71, -3], [71, 52], [-3, 52]]), tmp_path).all()
    with pytest.raises(DataError, match="x and y look swapped"):
        read(feature([[40, 10], [40, 20], [66, 20], [66, 10]]), tmp_path, size=(17, 13))
    with pytest.raises(DataError, match=r"off toy.png, 68 x 52 px; .* another level"):
        read(feature(square(8, 8, 12)), tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read as JSON"),
        ('{"type": "Feature", "geometry"', "cannot be read as JSON"),
        ("[1, 2]", "no GeoJSON"),
        ({"cells": [], "type_map": {}}, "no GeoJSON"),
        ({"type": "FeatureCollection", "features": []}, "no polygon of tissue"),
        ([feature(square(2, 2, 3), **named("Pen"))], "no polygon of tissue"),
        ([feature(square(2, 2, 3), objectType="cell")], "no polygon of tissue"),
        ([feature([[0, 0], [9, 9]], [])], "no polygon of tissue"),
        ([feature()], "no polygon of tissue"),
        (
            [feature(square(2, 2, 3)), feature(square(1, 1, 6), **named("Blur"))],
            "no tissue is left",
        ),
        ([feature(square(2.6, 2.6, 0.3))], "no tissue is left"),
        ([feature([["a", 1], [2, 3], [4, 5]])], "cannot be read"),
        ([feature([[1.0, float("nan")], [2, 3], [4, 5]])], "cannot be read"),
        ([feature([[1.0], [2.0], [3.0]])], "cannot be read"),
        ([{"geometry": {"type": "MultiPolygon", "coordinates": 7}}], "cannot be read"),
        ([{"geometry": {"type": "Polygon"}}], "cannot be read"),
    ],
)
def test_what_holds_no_tissue_is_refused_by_name(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as fault:
        read(content, tmp_path)
    assert "drawn.geojson" in str(fault.value)


def test_what_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    slide = slide_for((13, 17), (2.0, 2.0))
    Image.new("L", (17, 13), 255).save(tmp_path / "mask.jpg")
    for name in ("mask.jpg", "missing.geojson"):
        with pytest.raises(DataError, match=name):
            read_mask(tmp_path / name, slide)
    for mpp in (0.0, float("nan")):
        with pytest.raises(ConfigError, match="mpp"):
            read_mask(tmp_path / "missing.geojson", slide, mpp)
        with pytest.raises(ConfigError, match="mpp"):
            write_mask(mask_of(np.ones((2, 3), dtype=bool), MPP), tmp_path / "a", (1.0, mpp))


def test_a_failed_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "mask.geojson"
    path.write_text("old")

    def full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(Exception, match="disk full"):
        write_mask(mask_of(np.ones((2, 3), dtype=bool), MPP), path, (1.0, 1.0))
    assert [one.name for one in tmp_path.iterdir()] == ["mask.geojson"]
    assert path.read_text() == "old"


def test_an_empty_mask_is_written_and_not_taken_for_tissue(tmp_path: Path) -> None:
    write_mask(mask_of(np.zeros((5, 7), dtype=bool), MPP), tmp_path / "a.json", (2.0, 2.0))
    assert json.loads((tmp_path / "a.json").read_text())["features"] == []
    with pytest.raises(DataError, match="no polygon of tissue"):
        read_mask(tmp_path / "a.json", slide_for((5, 7), (2.0, 2.0)))


def stained(folder: Path, *squares: tuple[int, int, int], size: tuple[int, int]) -> PyramidSlide:
    """A slide of 2 µm/px, pink where squares of so many mask pixels are."""
    pink = np.repeat(np.repeat(drawn(*squares, size=size), 4, axis=0), 4, axis=1)
    image = np.where(pink[..., None], (205, 120, 180), 240)
    image = image + np.random.default_rng(1).normal(0, 3, image.shape)
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "a.png")
    return open_slide(folder / "a.png", mpp=2.0)


def test_coordinates_that_meet_glass_only_are_refused(tmp_path: Path) -> None:
    slide = stained(tmp_path, (60, 15, 40), size=(113, 113))  # square: swapped is still on it
    path = tmp_path / "drawn.geojson"
    path.write_text(json.dumps(feature(square(60, 15, 40))))
    right = read_mask(path, slide).mask
    assert right.sum() == 1600
    swapped = [[y, x] for x, y in square(60, 15, 40)]
    coarser = [[x / 4, y / 4] for x, y in square(60, 15, 40)]  # of a level 4 times coarser
    for ring, words in ((swapped, "x and y look swapped"), (coarser, "another level")):
        path.write_text(json.dumps(feature(ring)))
        with pytest.raises(DataError, match=f"lies where a.png is stained.*{words}"):
            read_mask(path, slide)
    slipped = feature([[x + 8, y + 12] for x, y in square(60, 15, 40)])
    path.write_text(json.dumps(slipped))
    assert read_mask(path, slide).mask.sum() == 1600


def test_a_pale_tissue_that_is_not_found_can_be_drawn(tmp_path: Path) -> None:
    slide = stained(tmp_path, (3, 3, 20), size=(113, 97))  # the rest of it took no stain
    path = tmp_path / "drawn.geojson"
    path.write_text(json.dumps([feature(square(30, 30, 60)), feature(square(3, 3, 10))]))
    assert read_mask(path, slide).mask.sum() == 3700


def test_artefacts_are_written_as_remarks_and_cut_out_once_renamed(tmp_path: Path) -> None:
    slide = stained(tmp_path, (10, 10, 90), size=(113, 121))
    mask = tissue_mask(slide)
    found = find_artefacts(slide, mask)
    pen, blur, fold = (
        drawn(one, size=mask.mask.shape) for one in ((20, 5, 25), (60, 60, 30), (40, 70, 15))
    )
    planted = replace(found, pen=pen, blur=blur & mask.mask, fold=fold)
    path = tmp_path / "mask.geojson"
    write_mask(mask, path, slide.mpp, planted)
    names = [
        one["properties"]["classification"]["name"]
        for one in json.loads(path.read_text())["features"]
    ]
    assert names == ["Tissue", "Pen?", "Blur?", "Fold?"]
    assert (read_mask(path, slide).mask == mask.mask).all()
    path.write_text(path.read_text().replace("Pen?", "Pen"))
    assert (read_mask(path, slide).mask == mask.mask & ~pen).all()
    path.write_text(path.read_text().replace("Blur?", "Blur"))
    assert (read_mask(path, slide).mask == usable(mask, planted).mask).all()
    path.write_text(path.read_text().replace("Fold?", "Fold"))
    assert (read_mask(path, slide).mask == usable(mask, planted).mask & ~fold).all()
    with pytest.raises(MismatchError, match="find the artefacts on that mask"):
        write_mask(mask_of(mask.mask[1:], 8.0), path, slide.mpp, planted)


def test_a_piece_deleted_and_one_drawn_by_hand(tmp_path: Path) -> None:
    slide = stained(tmp_path, (5, 5, 30), (50, 8, 25), (60, 60, 30), size=(113, 121))
    mask = tissue_mask(slide)
    path = tmp_path / "mask.geojson"
    write_mask(mask, path, slide.mpp)
    document = json.loads(path.read_text())
    assert len(document["features"]) == 3
    del document["features"][1]
    document["features"].append(feature(square(20, 62, 17), objectType="annotation"))
    path.write_text(json.dumps(document))
    edited = mask.mask.copy()
    edited[:40, 45:] = False
    edited[62:79, 20:37] = True
    assert (read_mask(path, slide).mask == edited).all()
