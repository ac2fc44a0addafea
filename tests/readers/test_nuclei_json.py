"""CellViT's and HoVer-Net's JSON, as those programs write it."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import shapely

from histoscribe.data.toy import ToySlide
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.nuclei import read_nuclei
from histoscribe.readers.nuclei_config import NucleiConfig

PANNUKE = {
    "1": "Neoplastic",
    "2": "Inflammatory",
    "3": "Connective",
    "4": "Dead",
    "5": "Epithelial",
}
FIRST_PANNUKE = {"Background": 0} | {name: int(number) for number, name in PANNUKE.items()}
META = {
    "orig_n_tiles_cols": 4, "orig_n_tiles_rows": 3, "base_magnification": 40, "downsampling": 1,
    "label_map": {"background": 0}, "patch_overlap": 64, "patch_size": 1024, "base_mpp": 0.25,
    "target_patch_mpp": 0.25, "stain_normalization": False, "magnification": 40, "level": 0,
}  # fmt: skip


def record(contour, number):
    """What both programs say of a nucleus; bbox as HoVer-Net's mode for slides has it: wrong."""
    xy = np.array(contour or [[0, 0]])
    return {
        "bbox": [[int(xy[:, 0].min()) + 9, 7], [int(xy[:, 1].max()) + 9, 3]],
        "centroid": xy.mean(axis=0).tolist(),
        "contour": contour,
        "type_prob": round(0.5 + number / 100, 2),
        "type": 1 + number % 5,
    }


def cellvit(contours, **changes):
    cells = [
        record(contour, number)
        | {"patch_coordinates": [2, 1], "cell_status": 0, "offset_global": [1920, 960]}
        | {"edge_position": False}
        for number, contour in enumerate(contours)
    ]
    return {"wsi_metadata": META, "type_map": PANNUKE, "cells": cells} | changes


def hovernet(contours, mag=40):
    """Ids are strings from 1 and not contiguous."""
    nuclei = {str(3 * n + 1): record(contour, n) for n, contour in enumerate(contours)}
    return {"mag": mag, "nuc": nuclei}


def write(content, path):
    path.write_text(json.dumps(content))
    return path


def assert_planted(given, contours, factor=0.25):
    """Each nucleus is where it was planted, with its own outline and area."""
    assert len(given) == len(contours)
    for row, contour in enumerate(contours):
        wanted = (np.array(contour) + 0.5) * factor  # (0, 0) is the middle of the first pixel
        polygon = shapely.Polygon(wanted)
        first, last = given.outlines.start[row : row + 2]
        np.testing.assert_allclose(given.outlines.xy_um[first:last], wanted, atol=1e-3)
        np.testing.assert_allclose(given.xy_um[row], polygon.centroid.coords[0], atol=1e-3)
        assert given.area_um2[row] == pytest.approx(polygon.area, rel=1e-5)


@pytest.mark.parametrize("type_map", [PANNUKE, FIRST_PANNUKE])
def test_cellvit_is_read_with_its_types_by_name(tmp_path, blank_slide, contours, type_map):
    path = write(cellvit(contours, type_map=type_map), tmp_path / "cells.json")
    given, report = read_nuclei(path, blank_slide)
    assert_planted(given, contours)
    assert given.source == report.format == "cellvit"
    assert given.cell_type == tuple(PANNUKE[str(1 + n % 5)] for n in range(23))
    np.testing.assert_allclose(given.type_probability, 0.5 + np.arange(23) / 100, rtol=1e-6)
    assert report.n_listed == report.n_kept == 23
    assert report.dropped == {}
    assert report.classes["Neoplastic"] == 5
    assert sum(report.classes.values()) == 23
    assert report.notes == ()


def test_the_files_cellvit_writes_packed_are_the_same(tmp_path, blank_slide, contours):
    text = json.dumps(cellvit(contours)).encode()
    plain = write(cellvit(contours), tmp_path / "cells.json")
    (tmp_path / "cells.json.snappy").write_bytes(imagecodecs.snappy_encode(text))
    (tmp_path / "cells.json.gz").write_bytes(gzip.compress(text))
    one = read_nuclei(plain, blank_slide)[0]
    for name in ("cells.json.snappy", "cells.json.gz"):
        other = read_nuclei(tmp_path / name, blank_slide)[0]
        assert np.array_equal(one.outlines.xy_um, other.outlines.xy_um)
        assert one.cell_type == other.cell_type
        assert one.identity != other.identity  # another file


def test_the_order_of_the_keys_does_not_matter(tmp_path, blank_slide, contours):
    turned = dict(reversed(cellvit(contours).items()))
    given, _ = read_nuclei(write(turned, tmp_path / "c.json"), blank_slide)
    assert given.cell_type[:2] == ("Neoplastic", "Inflammatory")
    turned = dict(reversed(hovernet(contours, mag=20).items()))
    slide = replace(blank_slide, mpp=(0.5, 0.5))
    assert_planted(read_nuclei(write(turned, tmp_path / "h.json"), slide)[0], contours, 0.5)


def test_a_type_without_a_name_keeps_its_number(tmp_path, blank_slide, contours):
    content = cellvit(contours, type_map={"1": "Neoplastic", "2": "Inflammatory"})
    given, report = read_nuclei(write(content, tmp_path / "c.json"), blank_slide)
    assert given.cell_type[:5] == ("Neoplastic", "Inflammatory", "type 3", "type 4", "type 5")
    assert report.classes["type 3"] == 5


def test_types_that_are_missing_are_empty_and_a_probability_of_0_is_not_known(
    tmp_path, blank_slide, contours
):
    content = cellvit(contours)
    content["cells"][2] |= {"type": None, "type_prob": None}
    content["cells"][3]["type_prob"] = 0
    given, _ = read_nuclei(write(content, tmp_path / "c.json"), blank_slide)
    assert given.cell_type[1:4] == ("Inflammatory", "", "Dead")
    assert np.flatnonzero(np.isnan(given.type_probability)).tolist() == [2, 3]
    for nucleus in content["cells"]:
        nucleus |= {"type": None, "type_prob": None}
    given, _ = read_nuclei(write(content, tmp_path / "c.json"), blank_slide)
    assert given.cell_type is None
    assert given.type_probability is None


def test_cellvit_on_a_reduced_slide_is_refused_where_its_version_wrote_nonsense(
    tmp_path, blank_slide, contours
):
    first_meta = {key: META[key] for key in META if "mpp" not in key} | {"downsampling": 2}
    first = cellvit(contours, wsi_metadata=first_meta, type_map=FIRST_PANNUKE)
    with pytest.raises(DataError, match=r"reduced by 2.*run it again"):
        read_nuclei(write(first, tmp_path / "first.json"), blank_slide)
    first["type_map"] = PANNUKE
    first["processed_patches"] = ["0_0", "0_1"]
    with pytest.raises(DataError, match="reduced by 2"):
        read_nuclei(write(first, tmp_path / "first.json"), blank_slide)
    now = cellvit(contours, wsi_metadata=META | {"downsampling": 2})
    assert_planted(read_nuclei(write(now, tmp_path / "now.json"), blank_slide)[0], contours)


def test_cellvit_of_another_scale_is_noted(tmp_path, blank_slide, contours):
    content = cellvit(contours, wsi_metadata=META | {"base_mpp": 0.5})
    _, report = read_nuclei(write(content, tmp_path / "c.json"), blank_slide)
    assert "CellViT took the slide to have 0.5 µm/px" in report.notes[0]


def test_detections_without_outlines_are_refused(tmp_path, blank_slide, contours):
    content = cellvit(contours)
    for nucleus in content["cells"]:
        del nucleus["contour"]
    with pytest.raises(DataError, match=r"give cells.json, not cell_detection.json"):
        read_nuclei(write(content, tmp_path / "cell_detection.json"), blank_slide)


@pytest.mark.parametrize(
    ("mag", "mpp", "factor"), [(40, 0.25, 0.25), (20, 0.25, 0.5), (40, 0.5, 0.25), (20, 0.46, 0.46)]
)
def test_hovernet_is_scaled_by_its_power(tmp_path, contours, mag, mpp, factor):
    """20x of a 40x slide: one of its pixels is two. The slide's own mpp counts, not 10 / power."""
    white = np.broadcast_to(np.uint8(255), (6002, 8006, 3))
    slide = ToySlide("S1", white, (mpp, mpp))
    given, report = read_nuclei(write(hovernet(contours, mag), tmp_path / "h.json"), slide)
    assert_planted(given, contours, factor)
    assert report.format == "hovernet"
    assert given.provenance.settings["mag"] == mag
    assert given.provenance.settings["slide_mag"] == (40 if mpp == 0.25 else 20)


def test_hovernet_types_are_numbers_unless_named(tmp_path, blank_slide, contours):
    path = write(hovernet(contours), tmp_path / "h.json")
    assert read_nuclei(path, blank_slide)[0].cell_type[:2] == ("type 1", "type 2")
    info = {"0": ["nolabe", [0, 0, 0]], "1": ["neopla", [255, 0, 0]], "2": ["inflam", [0, 255, 0]]}
    config = NucleiConfig(type_info=write(info, tmp_path / "type_info.json"))
    given, _ = read_nuclei(path, blank_slide, config)
    assert given.cell_type[:3] == ("neopla", "inflam", "type 3")


def test_a_hovernet_tile_needs_its_power_or_scale(tmp_path, blank_slide, contours):
    path = write(hovernet(contours, mag=None), tmp_path / "tile.json")
    with pytest.raises(ConfigError, match=r"mag is null.*give mag, or mpp"):
        read_nuclei(path, blank_slide)
    for config in (NucleiConfig(mag=40.0), NucleiConfig(mpp=0.25)):
        assert_planted(read_nuclei(path, blank_slide, config)[0], contours)
    odd = replace(blank_slide, mpp=(0.69, 0.69))
    with pytest.raises(ConfigError, match="no usual objective power; give slide_mag"):
        read_nuclei(path, odd, NucleiConfig(mag=40.0))
    config = NucleiConfig(mag=40.0, slide_mag=20.0)
    assert_planted(read_nuclei(path, odd, config)[0], contours, 0.345)
    path = write(hovernet(contours, mag=40), tmp_path / "h.json")
    with pytest.raises(ConfigError, match="says mag 40, 20 is given"):
        read_nuclei(path, blank_slide, NucleiConfig(mag=20.0))


def test_hovernet_of_old_is_the_nuclei_alone(tmp_path, blank_slide, contours):
    path = write(hovernet(contours)["nuc"], tmp_path / "old.json")
    given, report = read_nuclei(path, blank_slide, NucleiConfig(mag=40.0))
    assert_planted(given, contours)
    assert report.format == "hovernet"


def test_an_id_that_stands_twice_counts_once(tmp_path, blank_slide, contours):
    text = json.dumps(hovernet(contours)).replace('"4": {', '"1": {')
    (tmp_path / "h.json").write_text(text)
    given, report = read_nuclei(tmp_path / "h.json", blank_slide)
    assert len(given) == 22
    assert report.dropped == {"repeated id": 1}
    assert given.cell_type[:2] == ("type 1", "type 3")


def test_what_is_no_nucleus_is_left_out_and_counted(tmp_path, blank_slide, contours):
    content = cellvit([*contours, contours[3], [[5, 5], [6, 6]], [], [[9, 9], [12, 9], [15, 9]]])
    broken = [[1, 1], [float("nan"), 9], [8, 2]]
    content["cells"].append(content["cells"][0] | {"contour": broken})
    content["cells"].append(record([[0, 0], [40, 40], [40, 0], [0, 24]], 1))
    given, report = read_nuclei(write(content, tmp_path / "c.json"), blank_slide)
    assert report.dropped == {
        "repeated outline": 1,
        "fewer than 3 vertices": 2,
        "no area": 1,
        "not finite": 1,
    }
    assert report.n_mended == 1
    assert report.n_listed == 29
    assert report.n_kept == len(given) == 24


def test_odd_types_and_probabilities_are_refused(tmp_path, blank_slide, contours):
    for value in (1.5, -1, "tumour", [1]):
        content = cellvit(contours)
        content["cells"][4]["type"] = value
        with pytest.raises(DataError, match="nucleus 4 has type"):
            read_nuclei(write(content, tmp_path / "c.json"), blank_slide)
    content["cells"][4] |= {"type": 1, "type_prob": 12}
    with pytest.raises(DataError, match=r"c.json: nucleus 4 has type_prob 12; wanted 0 to 1"):
        read_nuclei(write(content, tmp_path / "c.json"), blank_slide)
    with pytest.raises(DataError, match="type_map has 'b' with 'a'; wanted names and whole"):
        read_nuclei(write(cellvit(contours, type_map={"a": "b"}), tmp_path / "c.json"), blank_slide)
    path = write(hovernet(contours, mag="40x"), tmp_path / "h.json")
    with pytest.raises(DataError, match="mag is '40x'"):
        read_nuclei(path, blank_slide)


HUGE = 10**400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type_map": [1, 2]}, "type_map is no object"),
        ({"type_map": 7}, "type_map is no object"),
        ({"type_map": {"A": 1, "B": 1}}, "two names for 1, 'A' and 'B'"),
        ({"type_map": {"1": "A", "01": "B"}}, "two names for 1, 'A' and 'B'"),
        ({"type_map": {"A": 1.5}}, "type_map has 1.5 with 'A'"),
        ({"type_map": {"A": True}}, "type_map has True with 'A'"),
        ({"type_map": {"1": ["A"]}}, "type_map has '1' with"),
        ({"type_map": {"9" * 5000: "A"}}, "type_map has '9999"),
        ({"wsi_metadata": [1]}, "wsi_metadata is .1.; wanted an object"),
        ({"wsi_metadata": {"downsampling": "x"}, "processed_patches": []}, "downsampling is 'x'"),
        ({"wsi_metadata": {"downsampling": [2]}, "processed_patches": []}, "downsampling is .2."),
        ({"wsi_metadata": {"downsampling": HUGE}, "processed_patches": []}, "downsampling is 100"),
    ],
)
def test_what_cellvit_never_writes_is_refused_by_name(
    tmp_path, blank_slide, contours, changes, message
):
    path = write(cellvit(contours, **changes), tmp_path / "c.json")
    with pytest.raises(DataError, match=rf"c\.json: .*{message}"):
        read_nuclei(path, blank_slide)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": 1e30}, "type 1e.30"),
        ({"type": HUGE}, "type 1000"),
        ({"type": True}, "type True"),
        ({"type": "2" * 400}, "type '222"),
        ({"type_prob": HUGE}, "type_prob 1000"),
        ({"type_prob": True}, "type_prob True; wanted 0 to 1"),
        ({"type_prob": "0.9"}, "type_prob '0.9'"),
        ({"type_prob": 1e39}, "type_prob 1e.39"),
        ({"type_prob": [1]}, r"type_prob \[1\]"),
    ],
)
def test_numbers_of_a_nucleus_that_are_none_are_refused(
    tmp_path, blank_slide, contours, changes, message
):
    content = cellvit(contours)
    content["cells"][4] |= changes
    with pytest.raises(DataError, match=rf"c\.json: nucleus 4 has {message}"):
        read_nuclei(write(content, tmp_path / "c.json"), blank_slide)


def test_coordinates_beyond_numbers_are_no_outline(tmp_path, blank_slide, contours):
    content = cellvit(contours)
    content["cells"][4]["contour"][2] = [HUGE, 3]
    _, report = read_nuclei(write(content, tmp_path / "c.json"), blank_slide)
    assert report.dropped == {"fewer than 3 vertices": 1}
    content["cells"][4]["contour"][2] = [6, 3]
    text = json.dumps(content).replace('"type": 1', '"type": ' + 5000 * "9", 1)
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match=r"c\.json: cannot be read as JSON .*4300 digits"):
        read_nuclei(tmp_path / "c.json", blank_slide)


def test_a_name_that_stands_twice_in_a_type_map_is_seen(tmp_path, blank_slide, contours):
    """Which a parser of the whole file would not: the last one would win."""
    text = json.dumps(cellvit(contours)).replace('"2": "Inflammatory"', '"1": "Inflammatory"')
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match="two names for 1, 'Neoplastic' and 'Inflammatory'"):
        read_nuclei(tmp_path / "c.json", blank_slide)
    info = tmp_path / "type_info.json"
    info.write_text('{"1": ["neopla", [255, 0, 0]], "1": ["inflam", [0, 255, 0]]}')
    path = write(hovernet(contours), tmp_path / "h.json")
    with pytest.raises(DataError, match=r"type_info\.json: .*two names for 1"):
        read_nuclei(path, blank_slide, NucleiConfig(type_info=info))


@pytest.mark.parametrize("mag", [True, pytest.param(HUGE, id="huge"), 0, -40, [40], "40x"])
def test_a_power_that_is_none_is_refused(tmp_path, blank_slide, contours, mag):
    path = write(hovernet(contours, mag), tmp_path / "h.json")
    with pytest.raises(DataError, match=r"h\.json: mag is"):
        read_nuclei(path, blank_slide)


@pytest.mark.parametrize("text", ["[1, 2]", "7", '{"1": []}', '{"1": {"a": 2}}', '{"x": "a"}', "["])
def test_what_is_no_type_info_is_refused(tmp_path, blank_slide, contours, text):
    (tmp_path / "t.json").write_text(text)
    path = write(hovernet(contours), tmp_path / "h.json")
    with pytest.raises(DataError, match=r"t\.json: .*wanted JSON such as"):
        read_nuclei(path, blank_slide, NucleiConfig(type_info=tmp_path / "t.json"))


def test_other_names_of_the_types_are_other_nuclei(tmp_path, blank_slide, contours):
    path, info = write(hovernet(contours), tmp_path / "h.json"), tmp_path / "t.json"
    config, seen = NucleiConfig(type_info=info), set()
    for name in ("neopla", "inflam"):
        info.write_text(json.dumps({"1": [name, [1, 2, 3]]}))
        given, _ = read_nuclei(path, blank_slide, config)
        assert given.cell_type[0] == name
        seen |= {given.identity, given.provenance.inputs["nuclei_type_info"]}
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("option", "value"), [("alignment", Path("a.csv")), ("is_aligned", True), ("outline", "cell")]
)
def test_an_option_that_the_file_has_no_use_for_is_refused(
    tmp_path, blank_slide, contours, option, value
):
    path = write(cellvit(contours), tmp_path / "c.json")
    with pytest.raises(ConfigError, match=rf"{option} is for \w+ files, this one is cellvit"):
        read_nuclei(path, blank_slide, NucleiConfig(**{option: value}))
