"""Bad input, kind by kind: one clear message on stderr, its exit code, never a traceback."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.app.conftest import TOY_PARTS, check

from histoscribe.data import atomic

MPP = 0.8
PITCH_PX = 250.0  # 200 µm
PLACES = [(x, y) for y in range(11, 15) for x in range(7, 12)]
GENES = ("ACTB", "ERBB2", "KRT8")

Lines = list[list[str]]


class Section:
    """A sound first-generation section on disk, to be spoilt in one way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mpp: object = MPP
        self.header = ["sample", "patient", "slide", "mpp", "expression", "spots"]
        self.slide = "C7.jpg"
        self.counts: Lines = [["", *GENES]]
        self.counts += [[f"{x}x{y}", "300", str(7 * x + y), str(x % 3)] for x, y in PLACES]
        self.spots: Lines = [["x", "y", "pixel_x", "pixel_y", "selected"]]
        for x, y in PLACES:
            across, down = 200 + (x - 7) * PITCH_PX, 180 + (y - 11) * PITCH_PX
            self.spots.append([str(x), str(y), f"{across:.1f}", f"{down:.1f}", "1"])
        rng = np.random.default_rng(5)
        pixels = rng.integers(150, 230, (1303, 1601, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "C7.jpg")

    def write(self) -> Path:
        with gzip.open(self.folder / "C7.tsv.gz", "wt") as file:
            file.writelines("\t".join(line) + "\n" for line in self.counts)
        lines = ["\t".join(line) for line in self.spots]
        (self.folder / "spots.tsv").write_text("\n".join(lines) + "\n")
        row = f"C7,C,{self.slide},{self.mpp},C7.tsv.gz,spots.tsv"
        manifest = self.folder / "manifest.csv"
        manifest.write_text(",".join(self.header) + "\n" + row + "\n")
        return manifest


@pytest.fixture
def section(tmp_path) -> Section:
    return Section(tmp_path)


def no_slide(section: Section) -> None:
    section.slide = "C8.jpg"


def truncated_jpeg(section: Section) -> None:
    path = section.folder / "C7.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def no_image(section: Section) -> None:
    (section.folder / "C7.jpg").write_text("not found")


def unreadable_column(section: Section) -> None:
    section.header[4] = "counts"


def comma_for_a_point(section: Section) -> None:
    section.mpp = '"0,8"'


def no_mpp(section: Section) -> None:
    section.mpp = ""


def zero_mpp(section: Section) -> None:
    section.mpp = 0


def mpp_by_10(section: Section) -> None:
    section.mpp = MPP / 10


def mpp_by_100(section: Section) -> None:
    section.mpp = MPP / 100


def empty_counts(section: Section) -> None:
    section.counts = section.counts[:1]


def zero_counts(section: Section) -> None:
    section.counts = [section.counts[0], *([row[0], "0", "0", "0"] for row in section.counts[1:])]


def fractions(section: Section) -> None:
    section.counts[3][2] = "2.5"


def negative_counts(section: Section) -> None:
    section.counts[3][2] = "-4"


def words_for_counts(section: Section) -> None:
    section.counts[3][2] = "many"


def genes_twice(section: Section) -> None:
    section.counts[0][3] = "ACTB"


def barcodes_twice(section: Section) -> None:
    section.counts[4][0] = section.counts[3][0]


def off_the_slide(section: Section) -> None:
    for row in section.spots[1:]:
        row[2] = str(float(row[2]) + 1000)


def nan_places(section: Section) -> None:
    section.spots[4][2] = "nan"


def swapped_axes(section: Section) -> None:
    for row in section.spots[1:]:
        row[0], row[1] = row[1], row[0]
    for row in section.counts[1:]:
        row[0] = "x".join(reversed(row[0].split("x")))


def one_spot(section: Section) -> None:
    section.spots = section.spots[:2]


def strange_barcodes(section: Section) -> None:
    for row in section.counts[1:]:
        row[0] = "1" + row[0]


def few_counts(section: Section) -> None:
    for row in section.counts[1:]:
        row[1:] = ["1", "0", "2"]


def no_pixels(section: Section) -> None:
    section.spots[0][2] = "pxl_col"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_slide, ["slide ('C8.jpg')", "no such file"]),
        (truncated_jpeg, ["C7.jpg", "truncated"]),
        (no_image, ["no image format that is known"]),
        (unreadable_column, ["lacking: expression", "unknown: counts"]),
        (comma_for_a_point, ["column mpp ('0,8')", "decimal point"]),
        (no_mpp, ["does not say how many µm", "--mpp"]),
        (zero_mpp, ["row 2, column mpp (", "no number above 0"]),
        (mpp_by_10, ["20 µm apart", "0.8"]),
        (mpp_by_100, ["0.008 µm/px", "wanted 0.05 to 5"]),
        (empty_counts, ["empty"]),
        (zero_counts, ["zero"]),
        (fractions, ["2.5 in spot 9x11", "raw counts"]),
        (negative_counts, ["-4"]),
        (words_for_counts, ["many"]),
        (genes_twice, ["ACTB", "more than once"]),
        (barcodes_twice, ["more than once"]),
        (off_the_slide, ["off the slide", "has 1601 x 1303"]),
        (nan_places, ["no pixel coordinates, NaN"]),
        (swapped_axes, ["axes", "swapped"]),
        (one_spot, ["1 selected spot", "at least two"]),
        (strange_barcodes, ["have counts"]),
        (few_counts, ["200 or more"]),
        (no_pixels, ["pixel_x"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_ingest_refuses(call, section, tmp_path, spoil, words):
    spoil(section)
    answer = call("ingest", section.write(), tmp_path / "study")
    check(answer, 3, words)
    assert not (tmp_path / "study" / "study.json").exists()


def test_the_section_is_sound_before_it_is_spoilt(call, section, tmp_path):
    answer = call("ingest", section.write(), tmp_path / "study")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["ingest", "none.csv", "study"], 3, ["none.csv", "no such manifest"]),
        (["ingest", "none.csv"], 2, ["Missing argument 'STUDY'"]),
        (["prepare", "nowhere"], 3, ["No study at nowhere", "histoscribe ingest"]),
        (["fit", "nowhere"], 3, ["No study at nowhere"]),
        (["fitt", "study"], 2, ["No such command 'fitt'"]),
        (["fit", "study", "--tset", "C2"], 2, ["No such option", "--test"]),
        (["fit", "study", "--seed", "one"], 2, ["--seed", "valid int"]),
        (["config", "-c", "none.yaml"], 3, ["No config file at none.yaml"]),
        (["config", "-s", "fit.max_epoch=3"], 2, ["fit.max_epoch", "Did you mean 'max_epochs'?"]),
        (["config", "-s", "fits.seed=3"], 2, ["'fits'", "Did you mean 'fit'?"]),
        (["config", "-s", "fit.seed=three"], 2, ["fit.seed = 'three'", "int is wanted"]),
        (["config", "-s", "fit.max_epochs=0"], 2, ["max_epochs = 0", "1 or more"]),
        (["config", "-s", "fit.model=nonesuch"], 2, ["nonesuch", "bitro"]),
        (["config", "-s", "bags.rings_um=[9.0,3.0]"], 2, ["growing radii"]),
        (["config", "-s", "seed"], 2, ["KEY=VALUE"]),
        (["config", "-c", "."], 3, ["No config file at ."]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_wrong_request_is_refused(call, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    check(call(*words), code, message)


def test_a_config_that_is_no_yaml(call, tmp_path):
    (tmp_path / "c.yaml").write_text("fit: [1\n")
    check(call("config", "-c", tmp_path / "c.yaml"), 2, ["c.yaml is no YAML"])


def test_an_unknown_segmenter_and_encoder(call, section, tmp_path):
    study = tmp_path / "study"
    assert call("ingest", section.write(), study).code == 0
    check(call("prepare", study, "--segmenter", "hovernet"), 2, ["'hovernet'", "instanseg"])
    words = ("--segmenter", "toy", "--encoder")
    check(call("prepare", study, *words, "unix"), 2, ["'unix'", "instanseg", "vit:", "uni:FILE"])
    check(call("prepare", study, *words, "uni"), 2, ["'uni' wants a model", "uni:FILE"])
    check(call("prepare", study, "--sample", "C9"), 2, ["no sample 'C9'", "C7"])


def test_a_slide_that_changed_after_it_was_ingested(call, section, tmp_path):
    study = tmp_path / "study"
    assert call("ingest", section.write(), study).code == 0
    Image.new("RGB", (1601, 1303), (220, 150, 190)).save(tmp_path / "C7.jpg")
    check(call("prepare", study, *TOY_PARTS), 4, ["slide of sample 'C7' changed", "ingest"])
    (tmp_path / "C7.jpg").unlink()
    check(call("prepare", study, *TOY_PARTS), 3, ["slide of sample 'C7' is gone"])


def test_a_file_where_a_folder_is_wanted(call, section, tmp_path):
    (tmp_path / "file").write_text("mine")
    check(call("ingest", section.write(), tmp_path / "file"), 3, ["a file lies there", "file"])
    check(call("demo", "--out", tmp_path / "file" / "in"), 3, ["a file lies there"])
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["mean", "none", "C 7"])
def test_a_name_that_cannot_be_had(call, section, tmp_path, name):
    manifest = section.write()
    manifest.write_text(manifest.read_text().replace("C7,C", f"{name},C"))
    check(call("ingest", manifest, tmp_path / "study"), 2, [f"'{name}' cannot name a sample"])
    assert not (tmp_path / "study").exists()


def test_a_demonstration_over_a_study(call, section, tmp_path):
    study = tmp_path / "study"
    assert call("ingest", section.write(), study).code == 0
    before = (study / "study.json").read_bytes()
    check(call("demo", "--out", study), 2, ["a study of C7", "--out"])
    assert (study / "study.json").read_bytes() == before


def test_a_manifest_with_one_bad_row_changes_nothing(call, section, tmp_path):
    study = tmp_path / "study"
    assert call("ingest", section.write(), study).code == 0
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    for row in section.counts[1:]:
        row[1] = str(int(row[1]) + 5)
    manifest = section.write()
    with manifest.open("a") as file:
        file.write(f"C9,C,none.jpg,{MPP},C7.tsv.gz,spots.tsv\n")
    check(call("ingest", manifest, study), 3, ["none.jpg"])
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


def test_samples_that_leave_are_named(call, section, tmp_path):
    study = tmp_path / "study"
    assert call("ingest", section.write(), study).code == 0
    manifest = section.write()
    manifest.write_text(manifest.read_text().replace("C7,C", "D1,D"))
    answer = call("ingest", manifest, study)
    assert answer.code == 0
    assert "no longer in the study, their stores are kept: C7" in answer.message


def test_a_constant_slide(call, section, tmp_path):
    Image.new("RGB", (1601, 1303), (220, 150, 190)).save(tmp_path / "C7.jpg")
    study = tmp_path / "study"
    assert call("ingest", section.write(), study).code == 0
    check(call("prepare", study, *TOY_PARTS), 3, ["constant"])


def test_a_study_of_another_format(call, tmp_path):
    (tmp_path / "study.json").write_text('{"format": 99}')
    check(call("prepare", tmp_path), 3, ["format 99"])
    (tmp_path / "study.json").write_text('{"format": 1, "samp')
    check(call("prepare", tmp_path), 3, ["study.json is corrupted"])


def test_fit_before_prepare(call, section, tmp_path):
    study = tmp_path / "study"
    assert call("ingest", section.write(), study).code == 0
    words = ("--unit", "strip", "--test", "C7")
    check(call("fit", study, *words), 3, ["'C7' is not prepared", "histoscribe prepare"])
    check(call("fit", study), 2, ["No sample is left to train on", "--unit"])


def test_a_full_disk(call, section, tmp_path, monkeypatch):
    def write_nothing(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_flush", write_nothing)
    check(call("ingest", section.write(), tmp_path / "study"), 5, ["full"])
    assert not (tmp_path / "study" / "study.json").exists()
