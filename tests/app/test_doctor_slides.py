"""The doctor of slides: what it says of sound ones, of wrong scales, of folders and manifests."""

import json

import pytest
from tests.app.conftest import row_of, write_manifest

from histoscribe.demo_data.folder import demo_folder

DEMO_MPP = 0.7252


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
        assert found_by(answer, slide.name, words) == "good"


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.25, 0.1])
def test_nuclei_are_a_witness_of_the_scale(call, factor):
    slide = demo_folder() / "visium_crop.jpg"
    answer = call("doctor", slide, "--mpp", DEMO_MPP * factor, "--json")
    findings = [f for f in json.loads(answer.out)["findings"] if f["what"] == slide.name]
    assert any(f["verdict"] != "good" and "mpp" in f["found"] for f in findings)
    assert not any("agree with the scale" in f["found"] for f in findings)


def test_spots_are_a_witness_of_the_scale(call, toy_files, tmp_path):
    rows = [row_of("a1", "alice"), row_of("b1", "bob", mpp=1.0)]
    manifest = write_manifest(toy_files / "doctor.csv", rows)
    answer = call("doctor", manifest, "--json")
    assert answer.code == 3
    assert found_by(answer, "a1.png", "at the pitch of their array") == "good"
    assert found_by(answer, "b1.png", "µm apart") == "bad"


def test_a_folder_of_slides(call, toy_files, tmp_path):
    (tmp_path / "torn.svs").write_bytes(b"II*\0torn")
    (tmp_path / "notes.txt").write_text("no slide")
    (tmp_path / "a1.png").symlink_to(toy_files / "a1.png")
    answer = call("doctor", tmp_path, "--mpp", "0.5", "--json")
    assert answer.code == 3
    looked_at = {f["what"] for f in json.loads(answer.out)["findings"]}
    assert {"a1.png", "torn.svs"} <= looked_at
    assert "notes.txt" not in looked_at


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
