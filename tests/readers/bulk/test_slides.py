from pathlib import Path

import numpy as np
import pytest

from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.bulk import slides
from histoscribe.readers.bulk.expression import BulkExpression
from histoscribe.readers.bulk.slides import match_slides, read_patients

UUID = ".2b5b1fd2-0b2a-4b1c-9a38-1f2f3b4c5d6e.svs"
DX1, DX2 = f"TCGA-38-6178-01Z-00-DX1{UUID}", f"TCGA-38-6178-01Z-00-DX2{UUID}"
TOP, BOTTOM = f"TCGA-49-4488-01A-01-TS1{UUID}", f"TCGA-49-4488-01B-01-BS1{UUID}"
NORMAL = f"TCGA-38-6178-11A-01-TS1{UUID}"
STRANGER = f"TCGA-ZZ-0001-01Z-00-DX1{UUID}"
ALL = (DX1, DX2, TOP, BOTTOM, NORMAL, STRANGER, "S7.svs")


def expression(*profiles, sample_types=None, aliquots=None):
    return BulkExpression(
        profile_id=profiles,
        genes=GenePanel(("A",), ("A",), "symbol"),
        values=np.ones((len(profiles), 1)),
        unit="tpm",
        sample_type=sample_types or ("01",) * len(profiles),
        aliquots=aliquots or tuple((name,) for name in profiles),
        provenance=Provenance("test"),
    )


COHORT = expression("TCGA-38-6178", "TCGA-49-4488", "TCGA-69-7764")


def match(*names, table=COHORT, **options):
    return match_slides([Path("slides") / name for name in names], table, **options)


def names_of(found):
    return [one.sample for one in found.matched]


def test_diagnostic_slides_go_with_their_patients_and_the_rest_is_named():
    found = match(*ALL)
    assert names_of(found) == ["TCGA-38-6178-01Z-00-DX1", "TCGA-38-6178-01Z-00-DX2"]
    assert {(one.patient, one.profile) for one in found.matched} == {("TCGA-38-6178",) * 2}
    assert found.matched[0].path == Path("slides") / DX1
    frozen = f"{slides.OTHER_SLIDE_TYPE}: "
    assert found.left_out == {
        "of sample type 11, solid tissue, normal, with profiles of 01": (NORMAL,),
        f"{frozen}TS, top section, frozen": (TOP,),
        f"{frozen}BS, bottom section, frozen": (BOTTOM,),
        slides.NO_PROFILE: (STRANGER,),
        slides.NOT_TOLD: ("S7.svs",),
    }
    assert found.without_slide == ("TCGA-49-4488", "TCGA-69-7764")
    text = "\n".join(found.lines())
    assert "patients of several slides, which form one region: 1 (TCGA-38-6178 2)" in text
    assert "profiles without a slide: 2" in text


def test_other_slide_types_are_chosen():
    found = match(*ALL, slide_types=("TS", "BS"))
    assert names_of(found) == ["TCGA-49-4488-01A-01-TS1", "TCGA-49-4488-01B-01-BS1"]
    with pytest.raises(ConfigError, match="wanted one or more, each once, of DX"):
        match(*ALL, slide_types=("FF",))


def test_without_slides_of_the_type_those_that_are_there_are_said():
    message = r"none of 2 slides.*of slide type DX.*TS, top.*Choose with --slide-type BS --slide-t"
    with pytest.raises(DataError, match=message):
        match(TOP, BOTTOM)


def test_normal_slides_go_with_normal_profiles_only():
    with pytest.raises(DataError, match=r"none of 1 slides goes with a profile.*11, solid tissue"):
        match(NORMAL, slide_types=("TS",))
    table = expression("TCGA-38-6178", sample_types=("11",))
    found = match(*ALL, table=table, slide_types=("TS", "DX"), sample_types=("11",))
    assert names_of(found) == ["TCGA-38-6178-11A-01-TS1"]


def test_a_metastasis_does_not_go_with_the_primary():
    other = f"TCGA-38-6178-06A-00-DX3{UUID}"
    assert "of sample type 06, metastasis, with profiles of 01" in match(DX1, other).left_out
    unknown = expression("TCGA-38-6178", sample_types=("",))
    found = match(DX1, other, NORMAL, table=unknown, sample_types=("01", "06"))
    assert names_of(found) == ["TCGA-38-6178-01Z-00-DX1", "TCGA-38-6178-06A-00-DX3"]
    assert [name for names in found.left_out.values() for name in names] == [NORMAL]


def test_another_vial_than_the_rna_is_said():
    table = expression(
        "TCGA-49-4488", "TCGA-38-6178", aliquots=(("TCGA-49-4488-01A-01R-1755-07",), ("x",))
    )
    found = match(TOP, BOTTOM, DX1, table=table, slide_types=("TS", "BS", "DX"))
    assert found.notes == (
        "slides of another vial than the RNA, so of another piece of tissue: 1 "
        f"({BOTTOM} (B, RNA A))",
    )


def write_patients(folder: Path, *lines: str, header: str = "slide,patient") -> Path:
    path = folder / "patients.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_a_table_says_whose_slides_are(tmp_path):
    table = expression("R1", "R2", "P3", sample_types=("", "", ""))
    path = write_patients(
        tmp_path,
        "S7,P1,R1",
        "scans/S8.svs,P1,R1",
        "S9.ome.tif,P3,",
        header="slide,patient,profile",
    )
    found = match("S7.svs", "S8.svs", "S9.ome.tif", "S10.svs", table=table, patients=path)
    assert [(one.sample, one.patient, one.profile) for one in found.matched] == [
        ("S7", "P1", "R1"),
        ("S8", "P1", "R1"),
        ("S9", "P3", "P3"),
    ]
    assert found.left_out == {slides.NOT_LISTED: ("S10.svs",)}
    assert found.without_slide == ("R2",)


def test_a_table_does_not_make_normal_tissue_a_tumour(tmp_path):
    path = write_patients(tmp_path, f"{DX1},P1", f"{NORMAL},P1", "TCGA-38-6178-01A.svs,P1")
    found = match(DX1, NORMAL, "TCGA-38-6178-01A.svs", table=expression("P1"), patients=path)
    assert names_of(found) == ["TCGA-38-6178-01A", "TCGA-38-6178-01Z-00-DX1"]
    with pytest.raises(DataError, match="their names do not say the slide type"):
        match("TCGA-38-6178-01A.svs")


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        ("file,patient", ["S7,P1"], "no column slide; wanted a CSV with"),
        ("slide,patient", [], "no line; wanted a CSV"),
        ("slide,patient", ["S7,"], "row 2 lacks its slide or patient"),
        ("slide,patient", ["S7,P1", "S7.svs,P2"], "S7.svs is P1's in a row before and P2's"),
    ],
)
def test_a_table_that_does_not_hold_up_is_refused(tmp_path, header, lines, message):
    with pytest.raises(DataError, match=message):
        read_patients(write_patients(tmp_path, *lines, header=header))


def test_a_profile_of_two_patients_is_refused(tmp_path):
    path = write_patients(tmp_path, "S7,P1,R1", "S8,P2,R1", header="slide,patient,profile")
    with pytest.raises(DataError, match=r"profile R1 is P1's and, by S8.svs, P2's"):
        match("S7.svs", "S8.svs", table=expression("R1"), patients=path)


def test_samples_have_distinct_names_that_a_folder_can_have(tmp_path):
    names = ("a/HE.svs", "b/HE.svs", "c/HE.svs", "d/#1 (left).svs")
    path = write_patients(tmp_path, "HE,P 1", "#1 (left),P2")
    found = match(*names, table=expression("P 1", "P2"), patients=path)
    assert names_of(found) == ["P_1-HE", "P_1-HE-2", "P_1-HE-3", "1_left_"]


def test_slides_that_nothing_tells_are_refused_with_the_mend():
    with pytest.raises(
        DataError, match=r"Say whose they are in a CSV \(slide,patient\) with --pat"
    ):
        match("S7.svs")
    with pytest.raises(DataError, match="Name the slides and the expression of the same patients"):
        match(STRANGER)
