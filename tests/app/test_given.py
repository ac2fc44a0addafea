"""Masks and nuclei from elsewhere, stain and artefacts, through the command line."""

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image
from scipy.spatial import KDTree
from tests.app.conftest import TOY_PARTS, row_of, write_manifest

from histoscribe.data.export import cells_to_geojson
from histoscribe.data.store import read_cells

pytestmark = pytest.mark.slow


@pytest.fixture
def files(toy_files, tmp_path):
    """One toy section, to add files to."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("a1.png", "a1.h5ad"):
        shutil.copy(toy_files / name, folder)
    return folder


@pytest.fixture
def given(fitted, files):
    """The nuclei of a toy section as QuPath would write them, with types; and as they are."""
    cells = read_cells(fitted / "samples" / "a1")
    types = tuple("tumour" if one % 3 else "lymphocyte" for one in range(len(cells)))
    cells = replace(cells, cell_type=types)
    path = files / "a1-nuclei.geojson"
    cells_to_geojson(cells, path, mpp=(0.5, 0.5))
    return path, cells


def test_given_nuclei_are_what_is_stored(given, files, tmp_path, call):
    path, cells = given
    manifest = write_manifest(files / "given.csv", [row_of("a1", "alice", nuclei=path.name)])
    study = tmp_path / "study"
    assert call("ingest", manifest, study).code == 0
    answer = call("prepare", study, *TOY_PARTS)
    assert answer.code == 0, answer.err
    stored = read_cells(study / "samples" / "a1")
    assert stored.segmenter_id.startswith("given-qupath@")
    assert len(stored) == len(cells)
    far_um, row = KDTree(stored.xy_um).query(cells.xy_um)
    assert far_um.max() < 0.5  # centroid of a polygon against that of its pixels
    assert sorted(row) == list(range(len(cells)))
    assert stored.cell_type is not None
    assert tuple(stored.cell_type[one] for one in row) == cells.cell_type
    again = call("prepare", study, *TOY_PARTS, "--json").record
    assert [sample["state"] for sample in again["samples"]] == ["kept"]
    path.write_text(path.read_text() + " ")
    assert "nuclei of sample 'a1' changed" in call("prepare", study, *TOY_PARTS).message


def test_a_given_tissue_mask_is_what_is_searched(files, tmp_path, call):
    with Image.open(files / "a1.png") as image:
        width, height = image.size
    ring = [[0, 0], [width / 2, 0], [width / 2, height], [0, height], [0, 0]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation"},
    }
    mask = {"type": "FeatureCollection", "features": [feature]}
    (files / "half.geojson").write_text(json.dumps(mask))
    manifest = write_manifest(files / "half.csv", [row_of("a1", "alice", tissue="half.geojson")])
    study = tmp_path / "study"
    assert call("ingest", manifest, study).code == 0
    assert call("prepare", study, *TOY_PARTS).code == 0
    x_um = read_cells(study / "samples" / "a1").xy_um[:, 0]
    assert len(x_um) > 50
    assert x_um.max() < 0.75 * width * 0.5  # fields that touch the mask are searched whole


def test_the_stain_is_normalised_and_kept_in_the_record(files, tmp_path, call):
    manifest = write_manifest(files / "stain.csv", [row_of("a1", "alice")])
    study = tmp_path / "study"
    assert call("ingest", manifest, study).code == 0
    words = ("prepare", study, *TOY_PARTS, "-s")
    answer = call(*words, "prepare.stain.method=reinhard")
    assert answer.code == 0, answer.err
    made = read_cells(study / "samples" / "a1").provenance
    assert made.settings["stain"]["method"] == "reinhard"
    answer = call(*words, "prepare.stain.method=vahadane")  # the toy world has one stain
    assert answer.code == 3
    assert "one stain found" in answer.message
