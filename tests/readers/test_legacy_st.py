from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histoscribe.data.regions import Regions
from histoscribe.errors import DataError
from histoscribe.readers.legacy_st import her2st_manifest, read_legacy_st
from histoscribe.readers.report import ReadReport
from histoscribe.readers.section import SpotSizes
from histoscribe.slides.open import open_slide
from histoscribe.slides.pyramid import PyramidSlide

Write = Callable[..., tuple[Path, Path]]


def read(
    paths: tuple[Path, Path], slide: PyramidSlide, **options: object
) -> tuple[Regions, ReadReport]:
    return read_legacy_st(*paths, slide, sample_id="C7", patient_id="C", **options)


def edited(lines: list[str], row: int, **cells: object) -> list[str]:
    """The lines with some cells of one row replaced."""
    header = lines[0].split("\t")
    values = lines[row].split("\t")
    for name, value in cells.items():
        values[header.index(name)] = str(value)
    return [*lines[:row], "\t".join(values), *lines[row + 1 :]]


def columns_swapped(lines: list[str], one: str, other: str) -> list[str]:
    """The lines with two columns exchanged under their header."""
    header = lines[0].split("\t")
    a, b = header.index(one), header.index(other)
    made = [lines[0]]
    for line in lines[1:]:
        values = line.split("\t")
        values[a], values[b] = values[b], values[a]
        made.append("\t".join(values))
    return made


def test_a_section_is_read_whole(write_section: Write, slide: PyramidSlide) -> None:
    regions, report = read(write_section(), slide)
    assert len(regions) == 17
    assert (regions.region_id[0], regions.region_id[-1]) == ("8x11", "10x14")
    assert set(regions.slide_id) == {"C7"}
    assert set(regions.patient_id) == {"C"}
    assert (regions.radius_um, regions.pitch_um) == (50.0, 200.0)
    assert regions.genes.ids == ("ACTB", "ERBB2", "FO538757.1")
    assert regions.genes.namespace == "symbol"
    assert regions.expression is not None
    # rows of the counts are in reverse order: 10x14 is their second, 8x11 their last but one
    assert regions.expression.toarray()[-1].tolist() == [301, 10, 1]
    assert regions.expression.toarray()[0].tolist() == [318, 180, 0]
    place = regions.xy_um[regions.region_id.index("10x14")]
    assert np.abs(place - [(200 + 750) * 0.8, (180 + 750) * 0.8]).max() < 25
    assert report == ReadReport(
        n_listed=20,
        n_selected=19,
        without_counts=("9x12",),
        below_min_counts=("7x11",),
        n_unused_counts=1,
        n_kept=17,
        n_genes=3,
        measured_pitch_um=report.measured_pitch_um,
        median_counts=report.median_counts,
    )
    assert report.measured_pitch_um == pytest.approx(200, rel=0.02)


def test_the_least_counts_are_a_setting(write_section: Write, slide: PyramidSlide) -> None:
    regions, report = read(write_section(), slide, sizes=SpotSizes(100.0, 200.0, min_counts=97))
    assert (len(regions), report.below_min_counts) == (18, ())
    assert regions.region_id[0] == "7x11"


def test_a_header_as_r_writes_it_is_the_same(
    write_section: Write, slide: PyramidSlide, count_lines: list[str]
) -> None:
    usual, _ = read(write_section(), slide)
    bare, _ = read(write_section(counts=[count_lines[0].lstrip("\t"), *count_lines[1:]]), slide)
    assert usual.genes == bare.genes
    assert (usual.expression != bare.expression).nnz == 0


def test_same_files_same_provenance_other_counts_other(
    write_section: Write, slide: PyramidSlide, count_lines: list[str]
) -> None:
    first, _ = read(write_section(), slide)
    assert read(write_section(), slide)[0].provenance.key == first.provenance.key
    changed, _ = read(write_section(counts=edited(count_lines, 1, ACTB=900)), slide)
    assert changed.provenance.key != first.provenance.key


def test_a_corrected_patient_is_no_stale_result(write_section: Write, slide: PyramidSlide) -> None:
    counts, spots = write_section()
    keys = [
        read_legacy_st(counts, spots, slide, sample_id="s", patient_id=patient)[0].provenance.key
        for patient in ("A", "B")
    ]
    assert keys[0] != keys[1]


def test_ensembl_ids_lose_their_version_and_get_symbols(
    write_section: Write, slide: PyramidSlide, count_lines: list[str], tmp_path: Path
) -> None:
    header = "\tENSG00000075624.17\tENSG00000141736.14\tENSG00000279928.2"
    (tmp_path / "genes.tsv").write_text(
        "gene_id\tgene_type\tgene_name\nENSG00000075624.11\tprotein_coding\tACTB\n"
    )
    paths = write_section(counts=[header, *count_lines[1:]])
    regions, _ = read(paths, slide, genes=tmp_path / "genes.tsv")
    assert regions.genes.namespace == "ensembl"
    assert regions.genes.ids == ("ENSG00000075624", "ENSG00000141736", "ENSG00000279928")
    assert regions.genes.symbols == ("ACTB", "ENSG00000141736", "ENSG00000279928")


def test_an_mpp_wrong_by_ten_is_told_with_the_true_one(
    write_section: Write, slide: PyramidSlide
) -> None:
    with pytest.raises(DataError, match=r"px = [12]\d\.\d+ µm apart.*200 µm.*mpp 0\.[78]\d"):
        read(write_section(), open_slide(slide.path, mpp=0.08))
    with pytest.raises(DataError, match=r"wanted 0\.05 to 5"):
        open_slide(slide.path, mpp=8.0)
    for by_hundred in (0.008, 80.0):
        with pytest.raises(DataError, match=r"wanted 0\.05 to 5"):
            open_slide(slide.path, mpp=by_hundred)


def test_a_pitch_of_another_platform_is_refused(write_section: Write, slide: PyramidSlide) -> None:
    with pytest.raises(DataError, match="the platform has 150 µm"):
        read(write_section(), slide, sizes=SpotSizes(110.0, 150.0))
    with pytest.raises(DataError, match="Are the two swapped"):
        read(write_section(), slide, sizes=SpotSizes(200.0, 100.0))


def test_swapped_axes_are_refused(
    write_section: Write, slide: PyramidSlide, spot_lines: list[str]
) -> None:
    with pytest.raises(DataError, match=r"axes are swapped.*Swap the two columns"):
        read(write_section(spots=columns_swapped(spot_lines, "pixel_x", "pixel_y")), slide)


def test_a_section_laid_out_upside_down_is_no_swap(
    write_section: Write, slide: PyramidSlide, spot_lines: list[str]
) -> None:
    turned = [spot_lines[0]]
    for line in spot_lines[1:]:
        cells = line.split("\t")
        cells[4], cells[5] = f"{1500 - float(cells[4]):.2f}", f"{1200 - float(cells[5]):.2f}"
        turned.append("\t".join(cells))
    assert len(read(write_section(spots=turned), slide)[0]) == 17


def test_coordinates_of_other_spots_are_refused(
    write_section: Write, slide: PyramidSlide, spot_lines: list[str]
) -> None:
    order = np.random.default_rng(1).permutation(19)
    rows = [line.split("\t") for line in spot_lines[1:]]
    mixed = ["\t".join([*rows[n][:4], *rows[other][4:6], "1"]) for n, other in enumerate(order)]
    with pytest.raises(DataError, match=r"half a pitch|µm apart|swapped"):
        read(write_section(spots=[spot_lines[0], *mixed]), slide)


def test_spots_off_the_slide_are_refused(
    write_section: Write, spot_lines: list[str], slide: PyramidSlide, tmp_path: Path
) -> None:
    Image.new("RGB", (1601, 800)).save(tmp_path / "cut.png")
    cut = open_slide(tmp_path / "cut.png", mpp=0.8)
    with pytest.raises(DataError, match=r"4 of 19 spots lie off the slide \(first: 7x14"):
        read(write_section(), cut)


@pytest.mark.parametrize(
    ("spots", "message"),
    [
        (lambda s: edited(s, 3, pixel_x="NaN"), r"1 spots have no pixel.*first: 9x11"),
        (lambda s: edited(s, 3, pixel_y="?"), r"1 spots have no pixel.*first: 9x11"),
        (lambda s: [*s, s[4]], r"1 spots occur more than once \(first: 10x11\)"),
        (lambda s: s[:2], "1 selected spot.*at least two"),
        (lambda s: s[:1], "a header and no rows"),
        (lambda s: [s[0].replace("pixel_x", "px"), *s[1:]], "no column pixel_x"),
        (lambda s: [line[:-1] + "0" if n else line for n, line in enumerate(s)], "none of 20"),
        (lambda s: edited(s, 2, x="8.4"), "whole numbers"),
    ],
)
def test_a_bad_table_of_spots_has_one_clear_message(
    write_section: Write,
    slide: PyramidSlide,
    spot_lines: list[str],
    spots: Callable[[list[str]], list[str]],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write_section(spots=spots(spot_lines)), slide)
    assert "C7_selection.tsv" in str(caught.value)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (lambda c: edited(c, 3, ACTB="1.5"), r"1 values are not whole.*1\.5 in spot 9x14"),
        (lambda c: edited(c, 3, ACTB="-2"), "1 values are negative"),
        (lambda c: edited(c, 3, ACTB=""), "1 values are missing"),
        (lambda c: edited(c, 3, ACTB="many"), "a cell of line 4 is no number"),
        (lambda c: [*c, c[5]], "1 spots occur more than once"),
        (lambda c: [c[0].replace("ERBB2", "ACTB"), *c[1:]], r"1 genes occur.*first: ACTB"),
        (
            lambda c: ["\tENSG00000075624.1\tENSG00000075624.2\tX", *c[1:]],
            "1 genes occur.*first: ENSG00000075624",
        ),
        (lambda c: c[:1], "empty counts"),
        (lambda c: [], "empty counts"),
        (lambda c: [c[0], *[f"{n}x99\t0\t0\t0" for n in range(3)]], "empty counts, all 9"),
        (lambda c: [c[0], *[f"{n}x99\t5\t0\t0" for n in range(3)]], "19 selected spots 0 have"),
        (lambda c: ["\t10x11\t10x12\t10x13", *c[1:2], "ACTB\t1\t2\t3"], "Transpose it"),
        (lambda c: [c[0] + "\tEXTRA", *c[1:]], "5 names in the first line, 3 values in line 2"),
    ],
)
def test_a_bad_table_of_counts_has_one_clear_message(
    write_section: Write,
    slide: PyramidSlide,
    count_lines: list[str],
    counts: Callable[[list[str]], list[str]],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(write_section(counts=counts(count_lines)), slide)
    assert "C7.tsv.gz" in str(caught.value)


def test_missing_and_broken_files_are_refused(
    write_section: Write, slide: PyramidSlide, tmp_path: Path
) -> None:
    counts, spots = write_section()
    with pytest.raises(DataError, match="no such file"):
        read((tmp_path / "none.tsv", spots), slide)
    counts.write_bytes(counts.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cannot be read as a table"):
        read((counts, spots), slide)


def test_her2st_sections_are_found_by_their_layout(tmp_path: Path) -> None:
    for patient, section in (("C", "C3"), ("C", "C2"), ("H", "H1"), ("H", "H2")):
        home = tmp_path / "ST-imgs" / patient / section
        home.mkdir(parents=True)
        (home / "scan.jpg").touch()
        for folder, name in (("ST-cnts", "{}.tsv.gz"), ("ST-spotfiles", "{}_selection.tsv")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name.format(section)).touch()
    (tmp_path / "ST-cnts" / "H1.tsv.gz").unlink()
    rows = her2st_manifest(tmp_path, mpp=0.69)
    assert [(row["sample"], row["patient"]) for row in rows] == [
        ("C2", "C"),
        ("C3", "C"),
        ("H2", "H"),
    ]
    assert rows[0]["mpp"] == "0.69"
    with pytest.raises(DataError, match="ST-imgs/<patient>/<section>"):
        her2st_manifest(tmp_path / "ST-cnts", mpp=0.69)


@pytest.mark.parametrize(
    ("section", "n_kept", "first", "last", "without", "below"),
    [
        ("C2", 185, "25x13", "22x29", (), ("18x20", "23x27")),
        ("C3", 179, "22x5", "16x20", ("13x9", "17x14"), ("11x17",)),
        ("C4", 184, "21x8", "16x23", ("17x14", "11x17", "18x20"), ()),
        ("C5", 179, "19x6", "17x21", ("13x9", "18x20"), ("17x14", "11x17")),
    ],
)
def test_published_sections_are_read_whole(
    data_dir: Path, section: str, n_kept: int, first: str, last: str, without: tuple, below: tuple
) -> None:
    row = {one["sample"]: one for one in her2st_manifest(data_dir / "her2st", 0.69)}[section]
    slide = open_slide(row["slide"], 0.69, section)
    regions, report = read_legacy_st(
        Path(row["expression"]), Path(row["spots"]), slide, sample_id=section, patient_id="C"
    )
    assert (len(regions), regions.region_id[0], regions.region_id[-1]) == (n_kept, first, last)
    assert (report.without_counts, report.below_min_counts) == (without, below)
    assert report.measured_pitch_um == pytest.approx(200, rel=0.01)


@pytest.mark.parametrize(("replicate", "n"), [("MOB1", 379), ("MOB2", 407), ("MOB3", 438)])
def test_the_olfactory_bulb_needs_its_scale_and_pitch(
    data_dir: Path, replicate: str, n: int
) -> None:
    home = data_dir / "mob"
    files = home / f"{replicate}.tsv.gz", home / f"alignment_table_{replicate}.tsv"
    with pytest.raises(DataError, match="--mpp"):
        open_slide(home / f"{replicate}.jpg")
    # scale and pitch are this test's assumption: what it shows is that they must agree
    slide = open_slide(home / f"{replicate}.jpg", mpp=4.4)
    sizes = SpotSizes(diameter_um=100.0, pitch_um=142.0)
    regions, _ = read_legacy_st(
        *files, slide, sample_id=replicate, patient_id="mouse", sizes=sizes,
        genes=home / "mouse_genes.tsv.gz",
    )  # fmt: skip
    assert len(regions) == n
    assert regions.genes.ids[0] == "ENSMUSG00000064339"
    assert regions.genes.symbols[0] == "mt-Rnr2"
    with pytest.raises(DataError, match=r"200 µm. Is the slide's mpp 6\.1"):
        read_legacy_st(*files, slide, sample_id=replicate, patient_id="mouse")
