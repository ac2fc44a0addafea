import gzip

import jaxtyping
import numpy as np
import pytest

from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.clinical import ClinicalConfig, read_clinical
from histoscribe.readers.follow_up import FollowUp

GDC = """case_submitter_id\tvital_status\tdays_to_death\tdays_to_last_follow_up\ttreatment
TCGA-B\tDead\t731\t'--\tdrug
TCGA-B\tDead\t731\t'--\tradiation
TCGA-A\tAlive\t'--\t158\tdrug
TCGA-C\tNot Reported\t'--\t'--\tdrug
TCGA-D\tAlive\t'--\t'--\tdrug
TCGA-D\tAlive\t'--\t90\tdrug
"""
BIOTAB = """id|bcr_patient_barcode|vital_status|last_contact_days_to|death_days_to|patient_id|dx|dx
id|bcr_patient_barcode|vital_status|days_to_last_followup|days_to_death|patient_id|dx|dx
CDE_ID:|CDE_ID:2003301|CDE_ID:5|CDE_ID:3008273|CDE_ID:3165475|CDE_ID:|CDE_ID:1|CDE_ID:2
u1|TCGA-05-4244|Alive|0|[Not Applicable]|4244|a|a
u2|TCGA-05-4245|Dead|[Not Available]|121|4245|a|b
u3|TCGA-05-4249|Dead|[Not Available]|[Discrepancy]|4249|a|b
""".replace("|", "\t")
CBIOPORTAL = """#Patient Identifier\tOverall Survival Status\tOverall Survival (Months)
#x\ty\tz
#STRING\tSTRING\tNUMBER
#1\t1\t1
PATIENT_ID\tOS_STATUS\tOS_MONTHS
P1\t1:DECEASED\t12
P2\t0:LIVING\t24.5
P3\t0:LIVING\t
P4\tLIVING\t2
"""
XENA = """sample,_PATIENT,OS,OS.time
TCGA-1-01,TCGA-1,1,400
TCGA-1-11,TCGA-1,1,400
TCGA-2-01,TCGA-2,0,77
TCGA-3-01,TCGA-3,,
"""


def write(folder, content: str, name: str = "table.tsv"):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def as_dict(follow_up: FollowUp) -> dict[str, tuple[float, bool]]:
    pairs = zip(follow_up.time_days.tolist(), follow_up.event.tolist(), strict=True)
    return dict(zip(follow_up.patient_id, pairs, strict=True))


def test_gdc_rows_of_a_patient_are_one(tmp_path):
    follow_up, report = read_clinical(write(tmp_path, GDC))
    assert as_dict(follow_up) == {
        "TCGA-A": (158.0, False),
        "TCGA-B": (731.0, True),
        "TCGA-D": (90.0, False),
    }
    assert report.dropped == {"TCGA-C": "whether the patient died is missing"}
    assert (report.n_rows, report.n_patients, report.n_deaths) == (6, 3, 1)
    assert report.missing == {"'--": 8, "Not Reported": 1}


def test_gdc_names_with_their_table_before_them(tmp_path):
    content = GDC.replace(
        "case_submitter_id\tvital_status", "cases.submitter_id\tdemographic.vital_status"
    )
    content = content.replace("days_to_death", "demographic.days_to_death")
    follow_up, _ = read_clinical(
        write(tmp_path, content.replace("days_to_last", "diagnoses.days_to_last"))
    )
    assert len(follow_up) == 3


def test_tables_of_the_clinical_centre(tmp_path):
    follow_up, report = read_clinical(write(tmp_path, BIOTAB, "nationwide_luad.txt"))
    assert as_dict(follow_up) == {"TCGA-05-4244": (0.0, False), "TCGA-05-4245": (121.0, True)}
    assert report.dropped == {"TCGA-05-4249": "the day of death is missing"}
    assert report.missing["[Discrepancy]"] == 1
    with pytest.raises(DataError, match="dx stands twice"):
        read_clinical(write(tmp_path, BIOTAB), ClinicalConfig(covariates=("dx",)))


def test_cbioportal_months_become_days(tmp_path):
    follow_up, report = read_clinical(write(tmp_path, CBIOPORTAL))
    assert follow_up.patient_id == ("P1", "P2", "P4")
    np.testing.assert_allclose(follow_up.time_days, [365.25, 24.5 * 30.4375, 60.875])
    np.testing.assert_array_equal(follow_up.event, [True, False, False])
    assert report.convention == "OS_STATUS and OS_MONTHS in months"
    assert list(report.dropped) == ["P3"]


@pytest.mark.parametrize("packed", [False, True])
def test_xena_samples_of_a_patient_are_one(tmp_path, packed):
    path = write(tmp_path, XENA, "survival.csv")
    if packed:
        path = tmp_path / "survival.csv.gz"
        path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + XENA.encode()))
    follow_up, _ = read_clinical(path)
    assert as_dict(follow_up) == {"TCGA-1": (400.0, True), "TCGA-2": (77.0, False)}


def test_named_columns_units_and_covariates(tmp_path):
    content = (
        "id,years,died,age,stage,sex\n"
        "b,2,yes,61,Stage IIIA,f\n"
        "a,1.5,no,[Not Available],Stage I,m\n"
        "c,0,0,44.5,Stage X,f\n"
    )
    config = ClinicalConfig("id", "years", "died", "years", ("age", "stage"))
    follow_up, report = read_clinical(write(tmp_path, content, "own.csv"), config)
    assert as_dict(follow_up) == {"a": (547.875, False), "b": (730.5, True), "c": (0.0, False)}
    wanted = [[np.nan, 1], [61, 3], [44.5, np.nan]]
    np.testing.assert_array_equal(follow_up.covariates, wanted)
    assert report.without_value == {"age": 1, "stage": 1}
    with pytest.raises(DataError, match="line 2, patient b: sex is 'f'; wanted a number"):
        read_clinical(
            tmp_path / "own.csv", ClinicalConfig("id", "years", "died", "years", ("sex",))
        )


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ("x\tAlive\t30\t12\n", "is 'Alive', and days_to_death is 30"),
        ("x\t\t30\t12\n", "vital_status is missing, and days_to_death is 30"),
        ("x\tDead\t30\t31\n", "days_to_last_follow_up is 31, after days_to_death, 30"),
        ("x\tDead\t30\t\nx\tAlive\t\t30\n", "dead in one row and alive in another"),
        ("x\tDead\t30\t\nx\tDead\t31\t\n", "31 days here and 30 in an earlier row"),
        ("x\tAlive\t\t-4\n", "'-4'; wanted a number of 0 or more"),
        ("x\tAlive\t\tsoon\n", "'soon'; wanted a number"),
        ("x\tAlive\t\tinf\n", "'inf'; wanted a number"),
        ("x\tperhaps\t\t3\n", "'perhaps'; wanted 0, 1, alive, dead"),
        ("\tAlive\t\t3\n", "no patient in column patient"),
    ],
)
def test_contradictions_are_refused_and_named(tmp_path, rows, wanted):
    header = "patient\tvital_status\tdays_to_death\tdays_to_last_follow_up\n"
    path = write(tmp_path, header + "w\tAlive\t\t5\n" + rows)
    with pytest.raises(DataError, match=wanted) as caught:
        read_clinical(path)
    assert "line " in str(caught.value)


@pytest.mark.parametrize("word", ["0:DECEASED", "1:LIVING", "2:DECEASED", "2"])
def test_codes_that_contradict_their_words_are_refused(tmp_path, word):
    path = write(tmp_path, f"PATIENT_ID\tOS_STATUS\tOS_MONTHS\nP1\t{word}\t3\n")
    with pytest.raises(DataError, match="OS_STATUS"):
        read_clinical(path)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", "empty table"),
        ("# only\n", "empty table"),
        ("patient,OS,OS.time\n", "no rows"),
        ("patient,OS,OS.time\na,1\t3,4,5\n", "4 cells for 3 columns in line 2"),
        ("name,OS,OS.time\na,1,3\n", "no column of patients"),
        ("patient,PFS,PFS.time\na,1,3\n", "no follow-up is known"),
        ("patient,OS,OS.time\na,,3\nb,1,\n", "none of 2 patients"),
    ],
)
def test_what_is_no_clinical_table_is_told(tmp_path, content, wanted):
    with pytest.raises(DataError, match=wanted):
        read_clinical(write(tmp_path, content, "a.csv"))


def test_wrong_requests_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run
    path = write(tmp_path, XENA, "a.csv")
    with pytest.raises(DataError, match="no column age; there are sample"):
        read_clinical(path, ClinicalConfig(covariates=("age",)))
    with pytest.raises(DataError, match="no column who"):
        read_clinical(path, ClinicalConfig(patient="who"))
    with pytest.raises(ConfigError, match="give both"):
        ClinicalConfig(time="OS.time")
    with pytest.raises(ConfigError, match="time_unit = 'weeks'"):
        ClinicalConfig(time_unit="weeks")
    with pytest.raises(DataError, match="no such file"):
        read_clinical(tmp_path / "none.csv")


def test_the_pairs_of_tcga(data_dir):
    path = data_dir / "tcga_pairs" / "pairs.csv"
    if not path.is_file():
        pytest.skip(f"no tcga_pairs at {path}")
    config = ClinicalConfig(covariates=("ajcc_pathologic_tumor_stage",))
    follow_up, report = read_clinical(path, config)
    assert as_dict(follow_up) == {
        "TCGA-38-6178": (158.0, False),
        "TCGA-44-2665": (400.0, False),
        "TCGA-49-4488": (869.0, True),
        "TCGA-69-7764": (414.0, False),
    }
    np.testing.assert_array_equal(follow_up.covariates[:, 0], [3, 2, 1, 1])
    assert list(report.dropped) == ["TCGA-A6-6782", "TCGA-AY-A8YK"]
    assert report.missing == {"": 8, "[Not Applicable]": 3, "[Not Available]": 1}


def test_follow_up_checks_itself():
    def make(**other):
        good = {
            "patient_id": ("a", "b"),
            "time_days": np.array([3.0, 4.0]),
            "event": np.array([True, False]),
            "covariate_names": (),
            "covariates": np.empty((2, 0)),
        }
        return FollowUp(**{**good, **other})

    assert make().take(np.array([1])).patient_id == ("b",)
    with pytest.raises(ValueError, match="read-only"):
        make().time_days[0] = 1.0
    with pytest.raises(DataError, match="patient b is -1 days"):
        make(time_days=np.array([3.0, -1.0]))
    with pytest.raises(DataError, match="repeats 'a'"):
        make(patient_id=("a", "a"))
    with pytest.raises(DataError, match="no patient with follow-up"):
        make(
            patient_id=(),
            time_days=np.empty(0),
            event=np.empty(0, bool),
            covariates=np.empty((0, 0)),
        )
