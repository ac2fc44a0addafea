"""The doctor of slides: what it says of sound ones, of wrong scales, of folders and manifests."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from tests.app.conftest import row_of, write_manifest
from tests.slides.conftest import dicom_picture, save_dicom

from histoscribe.app.doctor_patients import find_patients, slides_below
from histoscribe.app.doctor_slides import examine_slide
from histoscribe.data.export import cells_to_geojson
from histoscribe.data.toy import MPP, toy_world
from histoscribe.demo_data.folder import demo_folder
from histoscribe.errors import ConfigError
from histoscribe.preprocess.mask_geojson import read_mask
from histoscribe.preprocess.tissue import tissue_mask
from histoscribe.slides.open import open_slide

DEMO_MPP = 0.7252
TILE_LENGTH = 323


def found_by(answer, what: str, words: str) -> str:
    """The verdict of the finding of a slide that holds these words."""
    findings = json.loads(answer.out)["findings"]
    return next(f["verdict"] for f in findings if f["what"] == what and words in f["found"])


@pytest.mark.slow
def test_a_sound_slide(call):
    slide = demo_folder() / "visium_crop.jpg"
    answer = call("doctor", slide, "--mpp", DEMO_MPP, "--json")
    assert answer.code == 0
    for words in ("µm/px = ", "1 level(s)", "mm² of tissue", "pen 0 %", "agree with the scale"):
        assert found_by(answer, str(slide), words) == "good"


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.25, 0.1])
def test_nuclei_are_a_witness_of_the_scale(call, factor):
    slide = demo_folder() / "visium_crop.jpg"
    answer = call("doctor", slide, "--mpp", DEMO_MPP * factor, "--json")
    findings = [f for f in json.loads(answer.out)["findings"] if f["what"] == str(slide)]
    assert any(f["verdict"] != "good" and "mpp" in f["found"] for f in findings)
    assert not any("agree with the scale" in f["found"] for f in findings)


def test_spots_are_a_witness_of_the_scale(call, toy_files, tmp_path):
    rows = [row_of("a1", "alice"), row_of("b1", "bob", mpp=1.0)]
    manifest = write_manifest(toy_files / "doctor.csv", rows)
    answer = call("doctor", manifest, "--json")
    assert answer.code == 3
    assert found_by(answer, "a1", "at the pitch of their array") == "good"
    assert found_by(answer, "b1", "µm apart") == "bad"


def test_a_folder_of_slides(call, toy_files, tmp_path):
    (tmp_path / "torn.svs").write_bytes(b"II*\0torn")
    (tmp_path / "notes.txt").write_text("no slide")
    (tmp_path / "a1.png").symlink_to(toy_files / "a1.png")
    answer = call("doctor", tmp_path, "--mpp", "0.5", "--json")
    assert answer.code == 3
    looked_at = {f["what"] for f in json.loads(answer.out)["findings"]}
    assert {str(tmp_path / "a1.png"), str(tmp_path / "torn.svs")} <= looked_at
    assert not any(what.endswith("notes.txt") for what in looked_at)


def test_a_folder_without_slides(call, tmp_path):
    answer = call("doctor", tmp_path)
    assert answer.code == 2
    assert "holds no slide" in answer.message


def test_a_tissue_mask_is_written_once(call, toy_files, tmp_path):
    words = ("tissue", toy_files / "a1.png", tmp_path / "mask.geojson", "--mpp", "0.5")
    assert call(*words).code == 0
    assert json.loads((tmp_path / "mask.geojson").read_text())["features"]
    answer = call(*words)
    assert answer.code == 2
    assert "may be edited by hand" in answer.message


def found_of(patient) -> dict[str, str]:
    """What is said of a slide, and the verdict of each."""
    return {finding.text: finding.verdict for finding in examine_slide(patient)}


def only_of(found: dict[str, str], words: str) -> str:
    """The verdict of the one finding that holds these words."""
    (verdict,) = (verdict for text, verdict in found.items() if words in text)
    return verdict


@pytest.fixture(scope="module")
def section():
    """A toy section."""
    return toy_world(5).slide.pixels


@pytest.fixture
def small(section):
    """A piece of it, all tissue."""
    return section[300:700, 300:750]


@pytest.fixture
def glass():
    """A slide without tissue, which is soon looked over."""
    return np.full((173, 211, 3), 238, dtype=np.uint8)


def test_a_damaged_slide_does_not_end_the_audit_of_a_folder(call, glass, tmp_path):
    (tmp_path / "stub.tif").write_bytes(b"II*\0")
    for name in ("tiles.tif", "sound.tif"):
        tifffile.imwrite(tmp_path / name, glass, photometric="rgb", tile=(64, 64))
    with tifffile.TiffFile(tmp_path / "tiles.tif") as file:
        at = file.pages[0].tags[TILE_LENGTH].valueoffset
    content = bytearray((tmp_path / "tiles.tif").read_bytes())
    content[at : at + 2] = bytes(2)
    (tmp_path / "tiles.tif").write_bytes(bytes(content))
    answer = call("doctor", tmp_path, "--mpp", "0.5", "--json")
    assert answer.code == 3
    findings = json.loads(answer.out)["findings"]
    for name in ("stub.tif", "tiles.tif"):
        (found,) = (f for f in findings if f["what"] == str(tmp_path / name))
        assert found["verdict"] == "bad"
        assert "truncated or damaged TIFF" in found["found"]
    assert found_by(answer, str(tmp_path / "sound.tif"), "µm/px = ") == "good"


def test_a_fault_of_ours_becomes_a_finding_too(glass, tmp_path, monkeypatch):
    Image.fromarray(glass).save(tmp_path / "a.png")

    def fail(*_: object) -> None:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr("histoscribe.app.doctor_slides.survey", fail)
    found = found_of(*find_patients([tmp_path / "a.png"], 0.5))
    assert only_of(found, "µm/px = ") == "good"
    assert only_of(found, "by nought") == "bad"


def test_what_was_found_before_a_fault_is_kept(toy_files, section, tmp_path):
    Image.new("RGB", (409, 301), (238, 238, 238)).save(tmp_path / "glass.png")
    found = found_of(*find_patients([tmp_path / "glass.png"], 0.5))
    assert only_of(found, "409 x 301 px at 0.5 µm/px") == "good"
    assert only_of(found, "1 level(s)") == "good"
    assert only_of(found, "no tissue found") == "bad"
    per_cm = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a1.tif", section, photometric="rgb", tile=(256, 256), **per_cm)
    shutil.copy(toy_files / "a1.h5ad", tmp_path)
    rows = [row_of("a1", "alice", slide="a1.tif", mpp=0.25)]
    (patient,) = find_patients([write_manifest(tmp_path / "wrong.csv", rows)], None)
    found = found_of(patient)
    assert only_of(found, "0.25 µm/px given; its resolution tag says 0.5") == "warning"
    assert only_of(found, "mm² of tissue; about") == "good"
    assert only_of(found, "µm apart") == "bad"


def test_mpp_is_for_slides_that_state_none(glass, tmp_path):
    for name, px_per_cm in (("half.tif", 20_000), ("screen.tif", 28)):
        options = {"resolution": (px_per_cm, px_per_cm), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(tmp_path / name, glass, photometric="rgb", **options)
    Image.fromarray(glass).save(tmp_path / "none.png")
    found = {one.path.name: found_of(one) for one in find_patients([tmp_path], 0.4)}
    assert only_of(found["half.tif"], "px at 0.5 µm/px") == "good"
    assert only_of(found["half.tif"], "by its resolution tag; --mpp 0.4 is for slides that state")
    for name in ("screen.tif", "none.png"):
        assert only_of(found[name], "px at 0.4 µm/px") == "good"
        assert not any("--mpp 0.4 is for" in text for text in found[name])


def test_every_slide_of_a_mixed_folder_is_looked_at(small, tmp_path):
    folder = tmp_path / "mixed"
    one, two = (small[:173, 10 * n : 211 + 10 * n] for n in (0, 1))
    for number, (image, uid) in enumerate(((one, "1.2.3"), (two, "1.2.4"))):
        for level, pixels in enumerate((image, image[::2, ::2])):
            header, frames = dicom_picture(pixels, "VOLUME", "native", (0.5, 0.5), level)
            header.SeriesInstanceUID = uid
            save_dicom(folder / f"s{number}-{level}.dcm", header, frames)
    below = folder / "below"
    for number, uid in enumerate(("1.2.5", "1.2.6")):
        header, frames = dicom_picture(one, "VOLUME", "native", (0.5, 0.5), 0)
        header.SeriesInstanceUID = uid
        save_dicom(below / f"t{number}.dcm", header, frames)
    header, frames = dicom_picture(one, "VOLUME", "native", None, 0)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    save_dicom(folder / "DICOMDIR", header, frames)  # an index, as its class says
    (folder / "torn.dcm").write_bytes((folder / "s0-0.dcm").read_bytes()[:300])
    Image.fromarray(small).save(folder / "a.png")
    (folder / "notes.txt").write_text("no slide")
    zarr.open_group(folder / "b.zarr", mode="w")
    named = [one.path.relative_to(folder).as_posix() for one in find_patients([folder], 0.5)]
    assert named == sorted(
        ["a.png", "b.zarr", "below/t0.dcm", "below/t1.dcm", "s0-0.dcm", "s1-0.dcm", "torn.dcm"]
    )
    assert [one.path for one in find_patients([folder / "b.zarr"], 0.5)] == [folder / "b.zarr"]
    assert sorted(slides_below(tmp_path)) == sorted(folder / name for name in named)
    assert list(slides_below(folder / "b.zarr")) == [folder / "b.zarr"]
    for number in (0, 1):
        (folder / "below" / f"t{number}.dcm").rename(tmp_path / f"t{number}.dcm")
    with pytest.raises(ConfigError, match="holds no slide"):
        find_patients([below], 0.5)
    shutil.copy(tmp_path / "t0.dcm", below)
    assert [one.path for one in find_patients([below], 0.5)] == [below]


def test_slides_of_one_name_are_told_apart(glass, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(glass).save(tmp_path / folder / "scan.png")
    paths = [tmp_path / folder / "scan.png" for folder in ("one", "two")]
    findings = [finding for one in find_patients(paths, 0.5) for finding in examine_slide(one)]
    assert {finding.what for finding in findings} == {str(path) for path in paths}
    rows = [
        row_of(n, n, slide=f"{n}/scan.png", expression="", min_counts="") for n in ("one", "two")
    ]
    patients = find_patients([write_manifest(tmp_path / "m.csv", rows)], None)
    assert [one.name for one in patients] == ["one", "two"]


def test_an_image_that_takes_more_than_the_memory_is_told(glass, tmp_path, monkeypatch):
    Image.fromarray(glass).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "strip.tif", glass, photometric="rgb", rowsperstrip=173)
    tifffile.imwrite(tmp_path / "tiles.tif", glass, photometric="rgb", tile=(64, 64))
    most_gb = 173 * 211 * 8 / 1e9
    for limit_gb, wanted in ((most_gb * 0.99, {"a.png", "strip.tif"}), (most_gb * 1.01, set())):
        monkeypatch.setattr("histoscribe.app.doctor_slides.MEMORY_GB", limit_gb)
        told = {
            one.path.name
            for one in find_patients([tmp_path], 0.5)
            if any("211 x 173 px are decoded at once" in text for text in found_of(one))
        }
        assert told == wanted


@pytest.mark.slow
def test_given_tissue_and_nuclei_are_read(toy_files, tmp_path):
    world = toy_world(0, "a1", "alice")
    for name in ("a1.png", "a1.h5ad"):
        shutil.copy(toy_files / name, tmp_path)
    cells_to_geojson(world.cells, tmp_path / "nuclei.geojson", mpp=(MPP, MPP))
    for name in ("torn-mask.geojson", "torn-nuclei.geojson"):
        (tmp_path / name).write_text('{"type": "FeatureCol')
    ring = [[0, 0], [900, 0], [900, 1600], [0, 1600], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    tissue = {"type": "Feature", "geometry": geometry, "properties": {}}
    (tmp_path / "half.geojson").write_text(json.dumps(tissue))

    def look(**files: str) -> dict[str, str]:
        manifest = write_manifest(tmp_path / "m.csv", [row_of("a1", "alice", **files)])
        return found_of(*find_patients([manifest], None))

    found = look(tissue="half.geojson", nuclei="nuclei.geojson")
    assert only_of(found, "half.geojson: 0.36 mm² of tissue") == "good"
    assert only_of(found, "0.36 mm² of tissue; about") == "good"  # the given one is looked over
    assert only_of(found, f"nuclei.geojson: {len(world.cells):,} of {len(world.cells):,}") == "good"
    assert "bad" not in found.values()
    found = look(tissue="torn-mask.geojson", nuclei="torn-nuclei.geojson")
    assert only_of(found, "torn-mask.geojson") == only_of(found, "torn-nuclei.geojson") == "bad"
    assert only_of(found, "at the pitch of their array") == "good"  # all else is still said
    assert only_of(found, "mm² of tissue; about") == "good"
    shifted = (tmp_path / "nuclei.geojson").read_text()
    document = json.loads(shifted)
    for one in document["features"] if isinstance(document, dict) else document:
        rings = one["geometry"]["coordinates"]
        one["geometry"]["coordinates"] = [[[y, x] for x, y in ring] for ring in rings]
        one.pop("nucleusGeometry", None)
    (tmp_path / "turned.geojson").write_text(json.dumps(document))
    found = look(nuclei="turned.geojson")
    assert any(verdict == "bad" and "swapped" in text for text, verdict in found.items())


def test_a_mask_that_is_not_edited_is_the_mask(call, section, tmp_path):
    pixels = section.copy()
    half = Image.fromarray(pixels[:, 960:])
    blurred = half.resize((half.width // 14, half.height // 14)).resize(half.size)
    pixels[:, 960:] = np.asarray(blurred)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    answer = call("tissue", tmp_path / "a.png", tmp_path / "m.geojson", "--mpp", "0.5", "--json")
    assert answer.code == 0
    written = (tmp_path / "m.geojson").read_text()
    assert '"Blur?"' in written
    assert '"Blur"' not in written
    slide = open_slide(tmp_path / "a.png", mpp=0.5)
    mask = tissue_mask(slide).mask
    assert (read_mask(tmp_path / "m.geojson", slide).mask == mask).all()
    (tmp_path / "m.geojson").write_text(written.replace("Blur?", "Blur"))
    assert read_mask(tmp_path / "m.geojson", slide).mask.sum() < 0.8 * mask.sum()


def test_tissue_of_a_slide_says_what_is_odd_about_it(call, small, tmp_path):
    options = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", small, photometric="rgb", **options)
    answer = call("tissue", tmp_path / "a.tif", tmp_path / "m.geojson", "--mpp", "0.4", "--json")
    assert answer.code == 0
    told = "0.4 µm/px given; its resolution tag says 0.5"
    assert told in answer.message
    assert answer.record["notes"] == [told]


def test_no_mask_is_written_of_glass(call, tmp_path):
    Image.new("RGB", (409, 301), (238, 238, 238)).save(tmp_path / "glass.png")
    answer = call("tissue", tmp_path / "glass.png", tmp_path / "m.geojson", "--mpp", "0.5")
    assert answer.code == 3
    assert "no tissue found" in answer.message
    assert [one.name for one in tmp_path.iterdir()] == ["glass.png"]
