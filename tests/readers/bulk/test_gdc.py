"""A folder of GDC's STAR gene counts: every row, every way it is laid out, every refusal."""

import numpy as np
import pytest
from tests.readers.bulk.conftest import COUNTS, GENES, LATER_SHEET, star_text

from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.bulk import gdc
from histoscribe.readers.bulk.gdc import read_gdc_star, read_star_file

PANEL = (
    "ENSG00000000003",
    "ENSG00000000005",
    "ENSG00000000419",
    "ENSG00000002586",
    "ENSG00000288675",
)


def tidy(name):
    """Counts of a file with the copy on Y added to the gene."""
    first, second, third, on_x, on_y, last = COUNTS[name]
    return np.array([first, second, third, on_x + on_y, last], dtype=np.float64)


def tpm(name):
    return tidy(name) / sum(COUNTS[name]) * 1e6


def test_a_file_is_read_row_by_row():
    star = read_star_file(star_text(COUNTS["a"]).encode(), "f", "counts")
    assert len(star.gene) == 4 + 6
    assert (star.gene[0], star.gene[4], star.gene[-1]) == (
        "N_unmapped",
        "ENSG00000000003.15",
        "ENSG00000288675.1",
    )
    assert star.values[4:].tolist() == list(COUNTS["a"])
    assert star.gene_model == "GENCODE v36"


@pytest.mark.parametrize("has_manifest", [True, False])
def test_tpm_of_tumours_with_aliquots_averaged(download, has_manifest):
    manifest = download.manifest() if has_manifest else None
    expression, report = read_gdc_star(download.folder, download.sheet(), manifest=manifest)
    assert expression.profile_id == ("TCGA-38-6178", "TCGA-49-4488")
    assert expression.genes.ids == PANEL
    assert expression.genes.symbols == ("TSPAN6", "TNMD", "DPM1", "CD99", "AC006486.3")
    np.testing.assert_allclose(expression.values[0], (tpm("a") + tpm("b")) / 2, atol=1e-3)
    np.testing.assert_allclose(expression.values[1], tpm("c"), atol=1e-3)
    assert (expression.unit, expression.sample_type) == ("tpm", ("01", "01"))
    assert list(report.averaged) == ["TCGA-38-6178"]
    assert len(report.averaged["TCGA-38-6178"]) == 2
    assert report.summed == ("ENSG00000002586",)
    assert (report.n_listed, report.n_profiles, report.n_genes) == (4, 2, 5)
    normal = "of a sample type that was not chosen: 11, solid tissue, normal"
    assert report.dropped[normal] == ("f4" + gdc.ENDING,)
    assert report.notes == ("gene model GENCODE v36",)


def test_other_units_and_normal_tissue(download):
    counts, _ = read_gdc_star(download.folder, download.sheet(), unit="counts")
    np.testing.assert_array_equal(counts.values[0], np.rint((tidy("a") + tidy("b")) / 2))
    fpkm, _ = read_gdc_star(download.folder, download.sheet(), unit="fpkm")
    np.testing.assert_allclose(fpkm.values[1], tpm("c") / 2, atol=1e-3)
    normal, _ = read_gdc_star(download.folder, download.sheet(), sample_types=("11",))
    assert normal.profile_id == ("TCGA-49-4488",)
    np.testing.assert_allclose(normal.values[0], tpm("b"), atol=1e-3)
    with pytest.raises(ConfigError, match="have no unit rsem"):
        read_gdc_star(download.folder, download.sheet(), unit="rsem")
    with pytest.raises(ConfigError, match="mix normal tissue"):
        read_gdc_star(download.folder, download.sheet(), sample_types=("01", "11"))


def test_files_may_lie_side_by_side(download, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in download.folder.rglob(f"*{gdc.ENDING}"):
        path.rename(flat / path.name)
    expression, _ = read_gdc_star(flat, download.sheet())
    assert len(expression) == 2


def test_the_same_files_give_the_same_provenance(download):
    one, _ = read_gdc_star(download.folder, download.sheet())
    assert read_gdc_star(download.folder, download.sheet())[0].provenance == one.provenance
    other, _ = read_gdc_star(download.folder, download.sheet(), unit="counts")
    assert other.provenance.key != one.provenance.key


def test_a_damaged_file_is_told_by_its_md5(download):
    path = next(download.folder.rglob(f"f3{gdc.ENDING}"))
    path.write_text(path.read_text().replace("\t5\t", "\t6\t", 1))
    read_gdc_star(download.folder, download.sheet())  # nothing else tells
    with pytest.raises(DataError, match=r"f3.* bytes of md5 .*download it again"):
        read_gdc_star(download.folder, download.sheet(), manifest=download.manifest())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[: text.rindex("ENSG00000002586.20\t")], "the TPM sum to .*not whole"),
        (lambda text: text[:-30], r"f3.*: (cannot be read|\d of 6 genes have no value)"),
        (
            lambda text: text.replace("tpm_unstranded", "tpm"),
            "no column tpm_unstranded; wanted GDC",
        ),
        (lambda text: "ENSG00000000003.15\t2370\n", "no column gene_id"),  # HTSeq, up to release 31
        (lambda text: text.replace("ENSG00000000003", "ENSG00000000004"), "wanted the same genes"),
        (
            lambda text: star_text((*COUNTS["c"][:5], 1), (*GENES[:5], ("ENSG9.1", "X")), "v22"),
            "lines by v22",
        ),
    ],
)
def test_a_file_that_is_not_whole_or_of_another_model_is_refused(download, spoil, message):
    path = next(download.folder.rglob(f"f3{gdc.ENDING}"))
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataError, match=message):
        read_gdc_star(download.folder, download.sheet())


def test_files_that_are_not_told_or_not_there_are_named(download):
    download.add("f5", "TCGA-A6-6782-01A", "Primary Tumor", star_text(COUNTS["c"]))
    download.sheet_lines.pop()
    download.manifest_lines.pop()
    next(download.folder.rglob(f"f2{gdc.ENDING}")).unlink()
    expression, report = read_gdc_star(
        download.folder, download.sheet(), manifest=download.manifest()
    )
    assert len(expression) == 2
    assert report.averaged == {}
    assert report.dropped[gdc.NOT_IN_SHEET] == ("f5" + gdc.ENDING,)
    assert report.dropped[gdc.NOT_IN_MANIFEST] == ("f5" + gdc.ENDING,)
    assert report.dropped[gdc.NOT_THERE] == ("f2" + gdc.ENDING,)


def test_what_the_manifest_does_not_list_is_left_out(download):
    download.manifest_lines = [line for line in download.manifest_lines if "f2." not in line]
    expression, report = read_gdc_star(
        download.folder, download.sheet(), manifest=download.manifest()
    )
    np.testing.assert_allclose(expression.values[0], tpm("a"), atol=1e-3)
    assert report.dropped[gdc.NOT_IN_MANIFEST] == ("f2" + gdc.ENDING,)


def test_folders_without_the_files_are_refused(download, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file that ends in \.rna_seq"):
        read_gdc_star(tmp_path / "empty", download.sheet())
    twice = download.folder / "again" / f"f1{gdc.ENDING}"
    twice.parent.mkdir()
    twice.write_text(star_text(COUNTS["a"]))
    with pytest.raises(DataError, match="lies both at"):
        read_gdc_star(download.folder, download.sheet())
    twice.unlink()
    names = [line for line in download.sheet_lines[1:] if "f1." in line]
    download.sheet_lines = [download.sheet_lines[0], names[0].replace("f1.", "other.")]
    with pytest.raises(DataError, match="none of its 4 files is in the sample sheet"):
        read_gdc_star(download.folder, download.sheet())


def test_the_later_sample_sheet_and_cases_that_are_not_tcga(download):
    download.sheet_lines[0] = LATER_SHEET
    words = {"Primary Tumor": "Tumor\tPrimary", "Solid Tissue Normal": "Normal\tNot Applicable"}
    for old, new in words.items():
        download.sheet_lines = [
            line.replace(old, f"{new}\tSolid Tissue\tOCT") for line in download.sheet_lines
        ]
    cptac = (
        ("f6", "C3L-00001-01", "Tumor\tPrimary\tSolid Tissue\tFrozen"),
        ("f7", "C3L-00001-06", "Normal\tNot Applicable\tSolid Tissue\tFrozen"),
        ("f8", "C3L-00002-01", "Tumor\tMetastatic\tSolid Tissue\tFrozen"),
    )
    for name, sample, described in cptac:
        download.add(name, sample, described, star_text(COUNTS["c"]), case=sample[:9])
    expression, _ = read_gdc_star(download.folder, download.sheet(), sample_types=("01", "06"))
    assert expression.profile_id == ("TCGA-38-6178", "TCGA-49-4488", "C3L-00001", "C3L-00002")
    assert expression.sample_type == ("01", "01", "01", "06")


def test_target_is_told_by_words(download):
    words = "Primary Blood Derived Cancer - Peripheral Blood"
    download.add("f6", "TARGET-20-PAEFGT-03A", words, star_text(COUNTS["c"]), "TARGET-20-PAEFGT")
    expression, _ = read_gdc_star(download.folder, download.sheet(), sample_types=("03",))
    assert expression.profile_id == ("TARGET-20-PAEFGT",)


@pytest.mark.parametrize(
    ("sample", "words", "case", "message"),
    [
        ("TCGA-A6-6782-11A", "Primary Tumor", "TCGA-A6-6782", "is 11 by its name and 01 by its"),
        ("TCGA-A6-6782-01A, TCGA-A6-6782-06A", "Primary Tumor", "TCGA-A6-6782", "Sample ID of f6"),
        ("TCGA-A6-6782-01A", "Primary Tumor", "TCGA-A6-6782, TCGA-A6-6783", "Case ID of f6"),
        ("C3L-1-01", "Something Else", "C3L-1", "is of type 'Something Else', which is not known"),
        ("TCGA-A6-6782-77A", "Primary Tumor", "TCGA-A6-6782", "sample type 77"),
    ],
)
def test_a_sheet_that_does_not_hold_up_is_refused(download, sample, words, case, message):
    download.add("f6", sample, words, star_text(COUNTS["c"]), case=case)
    with pytest.raises(DataError, match=message):
        read_gdc_star(download.folder, download.sheet())


def test_repeated_names_in_a_sheet_are_one(download):
    download.add(
        "f6", "TCGA-A6-6782-01A, TCGA-A6-6782-01A", "Primary Tumor, Primary Tumor",
        star_text(COUNTS["c"]), case="TCGA-A6-6782, TCGA-A6-6782",
    )  # fmt: skip
    expression, _ = read_gdc_star(download.folder, download.sheet())
    assert expression.profile_id[-1] == "TCGA-A6-6782"


def test_sheets_and_manifests_that_are_none_are_refused(download, tmp_path):
    sheet = download.sheet()
    for text, message in (
        ("File Name,Case ID,Sample ID\n", "no column File Name, Case ID, Sample ID; wanted"),
        ("", "no column File Name"),
        ("File Name\tCase ID\tSample ID\nx.svs\tC\tS\n", "lists no file that ends in .rna_seq"),
        (f"File Name\tCase ID\tSample ID\nf1{gdc.ENDING}\tC\n", "a line of 2 of 3 columns"),
    ):
        (tmp_path / "other.tsv").write_text(text)
        with pytest.raises(DataError, match=message):
            read_gdc_star(download.folder, tmp_path / "other.tsv")
    for text, message in (
        ("id\tfilename\n", "no column md5, size; wanted id, filename, md5, size"),
        ("id\tfilename\tmd5\tsize\n1\tx.svs\t0\t1\n", "lists no file that ends in .rna_seq"),
        (f"id\tfilename\tmd5\tsize\n1\tf1{gdc.ENDING}\tabc\t1\n", "has md5 'abc' and size '1'"),
    ):
        (tmp_path / "other.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            read_gdc_star(download.folder, sheet, manifest=tmp_path / "other.txt")
    download.sheet_lines.append(download.sheet_lines[1].replace("01A", "06A"))
    with pytest.raises(DataError, match="stands there twice, as TCGA-38-6178-01A and"):
        read_gdc_star(download.folder, download.sheet())
