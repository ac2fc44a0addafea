"""Masks and nuclei from elsewhere, stain and artefacts, through the command line."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.spatial import KDTree
from tests.app.conftest import TOY_PARTS, row_of, write_manifest

from histoscribe.app.prepare import load_slide
from histoscribe.app.prepare_sample import check_parts
from histoscribe.app.study import open_study
from histoscribe.data.export import cells_to_geojson
from histoscribe.data.store import read_cells
from histoscribe.data.toy import MPP
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.preprocess.preparation import PrepareConfig

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


TO_MORPHOLOGY = np.array([[2.35, 0.02, 311.0], [-0.02, 2.35, 97.0]])
"""H&E pixels of 0.5 µm to morphology pixels of 0.2125 µm."""


def write_alignment(path, shift_px=0.0):
    matrix = np.vstack([TO_MORPHOLOGY, [0, 0, 1]])
    matrix[0, 2] += shift_px
    np.savetxt(path, matrix, delimiter=",")


@pytest.fixture
def xenium(given, files):
    """The nuclei of a toy section as Xenium writes them, in µm of its own image."""
    _, cells = given
    outlines = cells.outlines
    xy_px = outlines.xy_um / MPP
    xy = (np.column_stack([xy_px, np.ones(len(xy_px))]) @ TO_MORPHOLOGY.T) * 0.2125
    number = np.repeat(np.arange(len(cells)), np.diff(outlines.start))
    table = pd.DataFrame({"cell_id": number, "vertex_x": xy[:, 0], "vertex_y": xy[:, 1]})
    table.to_parquet(files / "nucleus_boundaries.parquet", index=False)
    write_alignment(files / "he_imagealignment.csv")
    row = row_of(
        "a1", "alice", nuclei="nucleus_boundaries.parquet", nuclei_alignment="he_imagealignment.csv"
    )
    return write_manifest(files / "xenium.csv", [row]), cells


def test_xenium_reaches_the_program_with_its_alignment(xenium, files, tmp_path, call):
    manifest, cells = xenium
    study = tmp_path / "study"
    assert call("ingest", manifest, study).code == 0
    answer = call("prepare", study, *TOY_PARTS)
    assert answer.code == 0, answer.err
    stored = read_cells(study / "samples" / "a1")
    assert stored.segmenter_id.startswith("given-xenium@")
    assert len(stored) == len(cells)
    assert KDTree(cells.xy_um).query(stored.xy_um)[0].max() < 0.5
    again = call("prepare", study, *TOY_PARTS, "--json").record
    assert [sample["state"] for sample in again["samples"]] == ["kept"]

    write_alignment(files / "he_imagealignment.csv", shift_px=4.7)  # 1 µm
    answer = call("prepare", study, *TOY_PARTS)
    assert answer.code == 4
    assert "nuclei_alignment of sample 'a1' changed" in answer.message
    assert call("ingest", manifest, study).code == 0
    opened = open_study(study)
    with pytest.raises(MismatchError, match="are of another file of nuclei than was ingested"):
        load_slide(opened, opened.samples[0])
    again = call("prepare", study, *TOY_PARTS, "--json").record
    assert [sample["state"] for sample in again["samples"]] == ["done"]
    moved = read_cells(study / "samples" / "a1")
    assert np.median(stored.xy_um[:, 0] - moved.xy_um[:, 0]) == pytest.approx(1.0, abs=0.05)
    (files / "he_imagealignment.csv").unlink()
    assert "nuclei_alignment of sample 'a1' is gone" in call("prepare", study, *TOY_PARTS).message


def test_options_of_given_nuclei_are_kept_in_the_study(files, tmp_path, call):
    for name in ("nuclei.json", "names.json"):
        (files / name).write_text("{}")
    options = {
        "nuclei_mag": "40",
        "nuclei_slide_mag": "20",
        "nuclei_outline": "cell",
        "nuclei_takes_annotations": "yes",
        "nuclei_type_info": "names.json",
    }
    row = row_of("a1", "alice", nuclei="nuclei.json", **options)
    assert call("ingest", write_manifest(files / "m.csv", [row]), tmp_path / "study").code == 0
    study = open_study(tmp_path / "study")
    (sample,) = study.samples
    config = study.nuclei_config_of(sample)
    assert (config.mag, config.slide_mag, config.outline) == (40.0, 20.0, "cell")
    assert (config.takes_annotations, config.is_aligned) == (True, False)
    assert config.type_info == files / "names.json"
    assert set(sample.inputs) >= {"nuclei", "nuclei_type_info"}


@pytest.fixture
def without_weights(tmp_path, monkeypatch):
    """A machine without InstanSeg, and without a way to it."""
    monkeypatch.setenv("HISTOSCRIBE_CACHE", str(tmp_path / "no weights here"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.mark.usefixtures("without_weights")
def test_no_segmenter_is_wanted_where_all_nuclei_are_given(given, files, tmp_path, call):
    manifest = write_manifest(files / "given.csv", [row_of("a1", "alice", nuclei=given[0].name)])
    assert call("ingest", manifest, tmp_path / "study").code == 0
    answer = call("prepare", tmp_path / "study", "--encoder", "toy")  # InstanSeg by default
    assert answer.code == 0, answer.err


@pytest.mark.usefixtures("without_weights")
def test_a_segmenter_is_wanted_where_one_row_has_no_nuclei(files, tmp_path, call):
    (files / "nuclei.json").write_text("{}")
    with Image.open(files / "a1.png") as image:
        image.crop((0, 0, 401, 307)).save(files / "b1.png")
    rows = [
        row_of("a1", "alice", expression="", min_counts="", nuclei="nuclei.json"),
        row_of("b1", "bob", expression="", min_counts="", nuclei=""),
    ]
    assert call("ingest", write_manifest(files / "both.csv", rows), tmp_path / "study").code == 0
    answer = call("prepare", tmp_path / "study", "--encoder", "toy")
    assert answer.code == 5
    assert not (tmp_path / "study" / "prepare-summary.json").exists()  # before any slide


@pytest.mark.usefixtures("without_weights")
def test_the_scale_of_given_nuclei_is_checked_before_any_slide(files, tmp_path, call):
    """Tiles of 32.25 µm are no whole number of pixels of 0.5 µm."""
    (files / "nuclei.json").write_text("{}")
    manifest = write_manifest(files / "given.csv", [row_of("a1", "alice", nuclei="nuclei.json")])
    assert call("ingest", manifest, tmp_path / "study").code == 0
    samples = open_study(tmp_path / "study").samples
    check_parts(PrepareConfig("instanseg", "toy"), samples)
    with pytest.raises(ConfigError, match=r"tile_side_um 32.25 is no whole number"):
        check_parts(PrepareConfig("instanseg", "toy", tile_side_um=32.25), samples)


def test_one_slide_under_two_names_is_refused(files, tmp_path, call):
    shutil.copy(files / "a1.png", files / "copy.png")
    rows = [
        row_of("a1", "alice", expression="", min_counts=""),
        row_of("b1", "bob", expression="", min_counts="", slide="copy.png"),
    ]
    answer = call("ingest", write_manifest(files / "twice.csv", rows), tmp_path / "study")
    assert answer.code == 3
    assert "Samples 'a1' and 'b1' have one slide" in answer.message
    assert not (tmp_path / "study" / "study.json").exists()


def test_a_study_of_before_the_options_is_read(files, tmp_path, call):
    manifest = write_manifest(files / "m.csv", [row_of("a1", "alice")])
    assert call("ingest", manifest, tmp_path / "study").code == 0
    path = tmp_path / "study" / "study.json"
    record = json.loads(path.read_text())
    new = ("mag", "slide_mag", "alignment", "is_aligned", "type_info", "outline")
    for name in (*new, "takes_annotations"):
        del record["samples"][0][f"nuclei_{name}"]
    path.write_text(json.dumps(record))
    assert open_study(tmp_path / "study").samples[0].nuclei_options == {}
