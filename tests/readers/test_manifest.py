from pathlib import Path

import pytest

from histoscribe.errors import DataError
from histoscribe.readers.manifest import OPTIONAL, REQUIRED, read_manifest, write_manifest
from histoscribe.readers.nuclei_config import NUCLEI_COLUMNS, NucleiConfig
from histoscribe.readers.section import LEGACY_ST, VISIUM

HEADER = "sample,patient,slide,mpp,expression,spots,pitch_um"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    for name in ("a.jpg", "b.svs", "c.tif", "a.tsv.gz", "a_spots.tsv", "b.h5ad"):
        (tmp_path / "raw" / name).touch()
    return tmp_path


def write(home: Path, *rows: str, header: str = HEADER) -> Path:
    path = home / "manifest.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_paths_are_the_manifests_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    first, second, third = read_manifest(
        write(
            home,
            "A,p1,raw/a.jpg,0.69,raw/a.tsv.gz,raw/a_spots.tsv,",
            "",
            " B , p1,raw/b.svs,,raw/b.h5ad,,96.5",
            f"C,p2,{home}/raw/c.tif,0.25,",
        )
    )
    assert (first.sample, first.patient, first.mpp) == ("A", "p1", 0.69)
    assert first.slide == home / "raw" / "a.jpg"
    assert (first.platform, first.sizes) == ("legacy-st", LEGACY_ST)
    assert (second.sample, second.mpp, second.platform) == ("B", None, "h5ad")
    assert second.sizes is not None
    assert (second.sizes.pitch_um, second.sizes.diameter_um) == (96.5, VISIUM.diameter_um)
    assert (third.expression, third.platform, third.sizes) == (None, None, None)


def test_every_fault_is_listed_with_its_row_and_column(home: Path) -> None:
    path = write(
        home,
        "A,p1,raw/a.jpg,0.69,raw/a.tsv.gz,raw/a_spots.tsv,",
        "A,,raw/none.svs,0;5,raw/gone.h5ad,,wide",
        "C,p2,raw/a.jpg,nan,raw/a.tsv.gz,,",
        "../D,p2,raw/c.tif,,,,",
    )
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    faults = str(caught.value).splitlines()
    assert "10 fault(s)" in faults[0]
    for row, column, words in (
        (3, "sample", "already in row 2"),
        (3, "patient", "empty"),
        (3, "slide", "no such file"),
        (3, "expression", "no such file"),
        (3, "mpp", "no number"),
        (3, "pitch_um", "no number"),
        (4, "slide", "already in row 2"),
        (4, "mpp", "no number"),
        (4, "spots", "legacy-st needs"),
        (5, "sample", "names a folder"),
    ):
        hits = [one for one in faults if f"row {row}, column {column} " in one and words in one]
        assert len(hits) == 1, (row, column)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the header is empty"),
        ("sample,patient,slide\n", "lacking: mpp, expression"),
        (HEADER + ",colour\n", "unknown: colour"),
        (HEADER + ",mpp\n", "each once"),
        (HEADER + "\n", "a header and no rows"),
        (HEADER + "\nA,p1,raw/a.jpg,0.69,raw/a.tsv.gz,raw/a_spots.tsv,-3", "0 or more"),
        (HEADER + "\nA,p1,raw/a.jpg,0.69,raw/a.tsv.gz,raw/a_spots.tsv,1,5", "more values than"),
    ],
)
def test_a_bad_manifest_has_one_clear_message(home: Path, text: str, message: str) -> None:
    (home / "manifest.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_manifest(home / "manifest.csv")


def test_a_missing_or_binary_manifest_is_refused(home: Path) -> None:
    with pytest.raises(DataError, match="no such manifest"):
        read_manifest(home / "none.csv")
    (home / "manifest.csv").write_bytes(b"\xff\xd8\xff\xe0\x00\x10")
    with pytest.raises(DataError, match="cannot be read as CSV"):
        read_manifest(home / "manifest.csv")


def test_an_unknown_platform_is_refused(home: Path) -> None:
    row = "A,p1,raw/a.jpg,0.69,raw/a.tsv.gz,raw/a_spots.tsv,200,slide-seq"
    with pytest.raises(DataError, match=r"row 2, column platform \('slide-seq'\): unknown"):
        read_manifest(write(home, row, header=HEADER + ",platform"))


def test_what_is_written_is_read(home: Path) -> None:
    rows = [
        {
            "sample": "A, left",
            "patient": "p1",
            "slide": str(home / "raw" / "a.jpg"),
            "mpp": "0.69",
            "expression": str(home / "raw" / "a.tsv.gz"),
            "spots": str(home / "raw" / "a_spots.tsv"),
            "platform": "legacy-st",
        }
    ]
    write_manifest(rows, home / "again.csv")
    (read,) = read_manifest(home / "again.csv")
    assert (read.sample, read.mpp, read.platform) == ("A, left", 0.69, "legacy-st")


@pytest.mark.parametrize(
    "again", ["./raw/b.svs", "raw/../raw/b.svs", "link.svs", "{home}/raw/b.svs"]
)
def test_a_slide_twice_is_found_whichever_way_it_is_written(home: Path, again: str) -> None:
    (home / "link.svs").symlink_to(home / "raw" / "b.svs")
    path = write(home, "A,p1,raw/b.svs,,,,", f"B,p2,{again.format(home=home)},,,,")
    with pytest.raises(DataError, match=r"row 3, column slide .*: already in row 2"):
        read_manifest(path)


def test_links_in_a_circle_are_no_slide(home: Path) -> None:
    (home / "a.svs").symlink_to(home / "b.svs")
    (home / "b.svs").symlink_to(home / "a.svs")
    with pytest.raises(DataError, match=r"row 2, column slide .*: no such file"):
        read_manifest(write(home, "A,p1,a.svs,,,,"))


@pytest.mark.parametrize("number", ["0", "0.0", "-1", "inf", "x"])
def test_a_scale_is_above_0(home: Path, number: str) -> None:
    header = HEADER + ",nuclei,nuclei_mpp"
    path = write(home, f"A,p1,raw/a.jpg,{number},,,,raw/c.tif,{number}", header=header)
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    for column in ("mpp", "nuclei_mpp"):
        assert f"row 2, column {column} ({number!r}): no number above 0" in str(caught.value)


NUCLEI = {
    "format": ("xenium", "xenium"),
    "mpp": ("0.5", 0.5),
    "mag": ("40", 40.0),
    "slide_mag": ("20", 20.0),
    "alignment": ("raw/a.csv", "raw/a.csv"),
    "is_aligned": ("TRUE", True),
    "type_info": ("raw/t.json", "raw/t.json"),
    "outline": ("cell", "cell"),
    "takes_annotations": ("yes", True),
}
"""Option -> what stands in its column, and what it is then."""


def write_nuclei(home: Path, **given: str) -> Path:
    header = ",".join([HEADER, "nuclei", *(f"nuclei_{name}" for name in given)])
    row = ",".join(["A,p1,raw/a.jpg,0.69,,,,raw/c.tif", *given.values()])
    return write(home, row, header=header)


@pytest.mark.parametrize("name", NUCLEI)
def test_every_option_of_given_nuclei_has_a_column(home: Path, name: str) -> None:
    for file in ("a.csv", "t.json"):
        (home / "raw" / file).touch()
    text, wanted = NUCLEI[name]
    (row,) = read_manifest(write_nuclei(home, **{name: text}))
    is_file = name in ("alignment", "type_info")
    assert getattr(row.nuclei_config, name) == (home / wanted if is_file else wanted)
    assert row.files().get(f"nuclei_{name}") == (home / wanted if is_file else None)
    (row,) = read_manifest(write_nuclei(home, **{name: ""}))
    assert row.nuclei_config == NucleiConfig()


def test_no_option_of_given_nuclei_lacks_its_column_and_its_line_in_the_docs() -> None:
    assert {NUCLEI_COLUMNS[f"nuclei_{name}"] for name in NUCLEI} == {*vars(NucleiConfig())}
    docs = Path(__file__).parents[2] / "docs" / "how-to"
    nuclei = (docs / "nuclei-from-elsewhere.md").read_text(encoding="utf-8")
    assert [column for column in NUCLEI_COLUMNS if f"| `{column}` |" not in nuclei] == []
    rest = (docs / "own-slides.md").read_text(encoding="utf-8")
    others = {*REQUIRED, *OPTIONAL} - {*NUCLEI_COLUMNS}
    assert [column for column in others if f"`{column}`" not in rest] == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "stardist"}, "column nuclei_format ('stardist'): unknown; wanted cellvit, hov"),
        ({"outline": "both"}, "column nuclei_outline ('both'): unknown; wanted nucleus, cell"),
        ({"is_aligned": "1"}, "column nuclei_is_aligned ('1'): unknown; wanted yes or no"),
        ({"alignment": "raw/x.csv"}, "column nuclei_alignment ('raw/x.csv'): no such file"),
        (
            {"mpp": "0.5", "mag": "40"},
            "row 2, columns nuclei_mpp, nuclei_mag: both mpp and an objective power are given",
        ),
    ],
)
def test_options_of_given_nuclei_that_cannot_be(
    home: Path, given: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_manifest(write_nuclei(home, **given))
    assert message in str(caught.value)
    assert "1 fault(s)" in str(caught.value)


def test_options_without_nuclei_are_refused(home: Path) -> None:
    row = "A,p1,raw/a.jpg,0.69,,,,40"
    with pytest.raises(DataError, match=r"nuclei_mag .* without a file of nuclei"):
        read_manifest(write(home, row, header=HEADER + ",nuclei_mag"))


BULK = "sample,patient,slide,mpp,expression,platform,profile,unit,log,min_counts"


def test_rows_of_whole_samples(home: Path) -> None:
    (home / "raw" / "rsem.csv").touch()
    first, second = read_manifest(
        write(
            home,
            "A,p1,raw/a.jpg,0.25,raw/rsem.csv,bulk,R7,rsem,log2p1,",
            "B,p1,raw/b.svs,,raw/rsem.csv,bulk,,,,",
            header=BULK,
        )
    )
    assert (first.platform, first.sizes, first.spots) == ("bulk", None, None)
    assert (first.profile, first.unit, first.log) == ("R7", "rsem", "log2p1")
    assert (second.profile, second.unit, second.log) == ("p1", None, None)  # the patient's


def test_columns_of_whole_samples_and_of_spots_do_not_mix(home: Path) -> None:
    path = write(
        home,
        "A,p1,raw/a.jpg,0.25,raw/b.h5ad,h5ad,R7,,,",
        "B,p2,raw/b.svs,,raw/b.h5ad,bulk,R8,cpm,log2,200",
        "C,p3,raw/c.tif,,raw/b.h5ad,bulk,R8,,,",
        header=BULK,
    )
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    faults = str(caught.value).splitlines()
    assert "5 fault(s)" in faults[0]
    for words in (
        "row 2, column profile ('R7'): is of whole samples (platform bulk); leave it empty",
        "row 3, column min_counts ('200'): is of spots; leave it empty",
        "row 3, column unit ('cpm'): unknown; wanted tpm, fpkm, rsem, counts",
        "row 3, column log ('log2'): unknown; wanted none, log2p1, ln1p, log10p1, log2p0.001",
        "row 4, column profile ('R8'): is of patient p2 in row 3; wanted one patient a profile",
    ):
        assert sum(words in fault for fault in faults) == 1, words
