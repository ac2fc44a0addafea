"""What holds for every format: told by content, checked against the slide, refused in our words."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from histoscribe.data.cells import Outlines
from histoscribe.data.nuclei import GivenNuclei
from histoscribe.data.provenance import Provenance
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.nuclei import read_nuclei
from histoscribe.readers.nuclei_config import NucleiConfig


def cellvit(contours):
    cells = [{"contour": contour, "type": 1, "type_prob": 0.5} for contour in contours]
    return {"wsi_metadata": {}, "type_map": {"1": "Neoplastic"}, "cells": cells}


def write(content, path: Path) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_name_of_a_file_says_nothing(tmp_path, blank_slide, contours):
    for name in ("cells.geojson", "cells.png", "cells"):
        _, report = read_nuclei(write(cellvit(contours), tmp_path / name), blank_slide)
        assert report.format == "cellvit"
    with pytest.raises(
        DataError, match="format hovernet was asked, its content is that of cellvit"
    ):
        read_nuclei(tmp_path / "cells", blank_slide, NucleiConfig(format="hovernet"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("nothing of that kind", "begins with b'nothing of t'"),
        ("x,y\n1,2\n", "no format of nuclei that is known"),
        ("{}", "JSON without nuclei that are known"),
        ('{"shapes": [{"points": [[1, 2]]}]}', "JSON without nuclei that are known"),
        ('{"nuc": {"1": ', "cannot be read as JSON"),
        ('{"nuc": {"1": {"contour": [[1, 2]}}}', "cannot be read as JSON at character"),
        ('{"mag": 40, "nuc": {}}', "no nuclei .it lists none."),
        ('{"type_map": {}, "cells": []}', "no nuclei"),
        ('{"type_map": {}, "cells": [7]}', "nucleus 0 has no contour"),
        ('{"type": "FeatureCollection", "features": []}', "no nuclei"),
        ("[]", "no nuclei"),
        (
            '[{"type": "Feature", "geometry": null, "properties": {"objectType": "cell"}}]',
            "polygon",
        ),
    ],
)
def test_what_holds_no_nuclei_is_refused(tmp_path, blank_slide, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_nuclei(write(content, tmp_path / "f.json"), blank_slide)
    assert "f.json" in str(caught.value)


def test_missing_files_and_broken_archives_are_refused(tmp_path, blank_slide, contours):
    with pytest.raises(DataError, match="no such file"):
        read_nuclei(tmp_path / "none.json", blank_slide)
    (tmp_path / "b.json.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    with pytest.raises(DataError, match="cannot be unpacked or read"):
        read_nuclei(tmp_path / "b.json.gz", blank_slide)
    (tmp_path / "b.json.snappy").write_bytes(b"\xff\xff\xff\x00broken")
    with pytest.raises(DataError, match="cannot be unpacked or read"):
        read_nuclei(tmp_path / "b.json.snappy", blank_slide)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.geojson", "[]")
        archive.writestr("b.geojson", "[]")
    with pytest.raises(DataError, match=r"a zip of 2 files \(a.geojson, b.geojson\)"):
        read_nuclei(tmp_path / "two.zip", blank_slide)
    (tmp_path / "latin.json").write_bytes(
        json.dumps(cellvit(contours)).replace("Neoplastic", "Tumör").encode("latin-1")
    )
    with pytest.raises(DataError, match="no text in UTF-8"):
        read_nuclei(tmp_path / "latin.json", blank_slide)


def test_a_scale_too_large_is_told_by_what_lies_off_the_slide(tmp_path, blank_slide, contours):
    path = write(cellvit(contours), tmp_path / "c.json")
    with pytest.raises(DataError, match=r"reach 1.86 times as far as the slide: give the right"):
        read_nuclei(path, blank_slide, NucleiConfig(mpp=0.5))
    hovernet = {"mag": 20, "nuc": {str(n): {"contour": c} for n, c in enumerate(contours)}}
    with pytest.raises(DataError, match="times as far as the slide"):
        read_nuclei(write(hovernet, tmp_path / "h.json"), blank_slide)


def test_swapped_axes_are_told_where_they_leave_the_slide(tmp_path, blank_slide, contours):
    swapped = [[[y, x] for x, y in contour] for contour in contours]
    with pytest.raises(DataError, match="x and y look swapped"):
        read_nuclei(write(cellvit(swapped), tmp_path / "c.json"), blank_slide)


def test_a_few_off_the_slide_are_left_out_and_counted(tmp_path, blank_slide, contours):
    many = [
        [[x + 17 * (n % 13), y + 13 * (n // 13)] for x, y in contour]
        for n in range(10)
        for contour in contours
    ]
    astride = [[4005, 50], [4030, 50], [4030, 80]]
    given, report = read_nuclei(write(cellvit([*many, astride]), tmp_path / "c.json"), blank_slide)
    assert report.dropped == {"off the slide": 1}
    assert len(given) == 230


def test_reading_is_recorded_and_repeats_itself(tmp_path, blank_slide, contours):
    path = write(cellvit(contours), tmp_path / "c.json")
    one, other = (read_nuclei(path, blank_slide)[0] for _ in range(2))
    assert one.provenance == other.provenance
    assert one.identity == other.identity
    assert one.identity.startswith("given-cellvit@")
    assert len(one.provenance.inputs["nuclei"]) == 64
    scaled, _ = read_nuclei(path, blank_slide, NucleiConfig(mpp=0.24))
    assert scaled.identity != one.identity
    with pytest.raises(ValueError, match="read-only"):
        one.xy_um[0] = 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "stardist"}, "no format of nuclei is called 'stardist'; there are cellvit"),
        ({"mpp": 0.0}, "mpp = 0.0; give a number above 0"),
        ({"mag": float("nan")}, "mag = nan"),
        ({"mpp": 0.5, "slide_mag": 40.0}, "give one of the two"),
        ({"outline": "both"}, "outline = 'both'; give nucleus or cell"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    make = NucleiConfig.__init__
    make = getattr(make, "__wrapped__", make)  # what a user without the type checks of tests meets
    with pytest.raises(ConfigError, match=message):
        make(NucleiConfig.__new__(NucleiConfig), **settings)


def nuclei(xy_um, **changes) -> GivenNuclei:
    n = len(xy_um)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
    facts = {
        "slide_id": "S1",
        "outlines": Outlines(
            (np.asarray(xy_um, np.float32)[:, None] + corners).reshape(-1, 2),
            np.arange(n + 1, dtype=np.int64) * 4,
        ),
        "xy_um": np.asarray(xy_um, np.float32),
        "area_um2": np.full(n, 4, np.float32),
        "source": "test",
        "provenance": Provenance("test"),
    }
    return GivenNuclei(**facts | changes)


def test_given_nuclei_refuse_what_does_not_hold_up():
    places = [[3, 4], [50, 60], [7, 8]]
    with pytest.raises(DataError, match="two nuclei of S1 have one centroid"):
        nuclei([[3, 4], [5, 5], [3, 4]])
    with pytest.raises(DataError, match="nucleus 1 of S1 has no area"):
        nuclei(places, area_um2=np.array([1, 0, 1], np.float32))
    with pytest.raises(DataError, match="not finite in row 2"):
        nuclei(places, area_um2=np.array([1, 1, np.nan], np.float32))
    with pytest.raises(DataError, match="cell_type has 1 entries; wanted 3"):
        nuclei(places, cell_type=("a",))
    with pytest.raises(DataError, match="have a type_probability and no cell_type"):
        nuclei(places, type_probability=np.ones(3, np.float32))


@drawn(seed=st.integers(0, 2**31), n=st.integers(1, 50))
def test_a_centroid_names_its_nucleus(seed, n):
    rng = np.random.default_rng(seed)
    places = np.unique(rng.uniform(0, 90_000, (n, 2)).astype(np.float32), axis=0)
    rng.shuffle(places)
    given = nuclei(places)
    rows = rng.integers(0, len(places), 2 * n)
    assert np.array_equal(given.rows_at(given.xy_um[rows]), rows)
    with pytest.raises(DataError, match="no given nucleus of S1 is at"):
        given.rows_at(np.nextafter(given.xy_um[:1], np.float32(1e9)))
