import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from histoscribe.app.console import Voice
from histoscribe.app.survival import (
    POOLED,
    SIGNATURES,
    DescribedPatients,
    SurvivalRequest,
    check_patients,
    mean_by_patient,
    read_tables,
    score_patients,
)
from histoscribe.app.survival_report import banner_of
from histoscribe.data.genes import GenePanel
from histoscribe.errors import ConfigError, DataError, MismatchError, MissingExtra
from histoscribe.evaluate.bootstrap import BootstrapConfig
from histoscribe.evaluate.covariates import PatientFeatures
from histoscribe.evaluate.survival import CONSTANT, SurvivalConfig
from histoscribe.readers.clinical import ClinicalConfig
from histoscribe.train.cox import CoxConfig
from histoscribe.train.cox_store import read_cox

pytest.importorskip("lifelines", reason="no lifelines: the extra 'survival'")

GENES = GenePanel(("STAT1", "IDO1", "GZMA", "PRF1"), ("STAT1", "IDO1", "GZMA", "PRF1"), "symbol")
GMT = "IFNG\tx\tSTAT1\tIDO1\tCXCL9\nCYT\tx\tGZMA\tPRF1\nnowhere\tx\tMKI67\n"
QUICK = SurvivalConfig(
    n_folds=3,
    cox=CoxConfig(penalties=(0.01, 1.0), n_folds=3),
    bootstrap=BootstrapConfig(n_draws=50),
)


@pytest.fixture
def world(tmp_path):
    """81 patients with slides, whose IFNG signature decides; a clinical table of some, and more."""
    rng = np.random.default_rng(0)
    names = tuple(f"TCGA-{i:03}" for i in range(81))
    y = rng.normal(size=(81, 4)) + 2
    death = rng.exponential(np.exp(-1.5 * y[:, :2].sum(axis=1))) * 40000
    censored = rng.exponential(900, 81)
    lines = ["bcr_patient_barcode,vital_status,death_days_to,last_contact_days_to,age"]
    for i, name in enumerate(names[:77]):
        days, has_died = min(death[i], censored[i]), death[i] <= censored[i]
        where = f"Dead,{days:.0f},[Not Available]" if has_died else f"Alive,,{days:.0f}"
        lines.append(f"{name},{where},{50 + i % 7 if i % 9 else '[Not Available]'}")
    lines += [f"{names[77]},Dead,[Discrepancy],,60", "TCGA-elsewhere,Alive,,12,44"]
    clinical = tmp_path / "clinical.csv"
    clinical.write_text("\n".join(lines) + "\n")
    signatures = tmp_path / "sets.gmt"
    signatures.write_text(GMT)
    described = DescribedPatients(
        representation=PatientFeatures(
            names, tuple("abcdef"), rng.normal(size=(81, 6)).astype(np.float32)
        ),
        not_described=frozenset({"TCGA-999"}),
        patient_id=names,
        genes=GENES,
        expression=y,
        model_id="bitro@0123",
        trained_on=frozenset(names[:30]),
    )
    request = SurvivalRequest(clinical, ClinicalConfig(covariates=("age",)), signatures, QUICK)
    return described, request


def test_everything_is_scored_and_written(world, tmp_path, capsys):
    described, request = world
    folder = tmp_path / "out"
    outcome = score_patients(
        described, read_tables(request), request, "study s, run r", folder, Voice()
    )
    methods = [row.method for row in outcome.table.rows]
    assert methods == [POOLED, SIGNATURES, "IFNG", "CYT", "age", CONSTANT]
    assert outcome.table.row("IFNG").c_index.low > 0.6
    assert len(outcome.table.follow_up) == 77
    record = json.loads((folder / "survival.json").read_text())
    assert record["model_id"] == "bitro@0123"
    assert record["n_trained_on"] == 30
    assert record["signature_genes"] == {"IFNG": [2, 3], "CYT": [2, 2], "nowhere": [0, 1]}
    assert record["clinical"]["dropped"] == {"TCGA-077": "the day of death is missing"}
    assert set(record["inputs"]) == {"clinical", "signatures"}
    said = " ".join(outcome.notes)
    assert "4 patient(s) with slides have no row in the clinical table: TCGA-078" in said
    assert "1 patient(s) have no follow-up and were dropped: TCGA-077" in said
    assert "1 patient(s) of the clinical table are not in the study: TCGA-elsewhere" in said
    assert "age is missing for 9 patient(s)" in said
    assert "nowhere: 0 of 1 genes are predicted; it is left out" in said
    assert "trained on the expression of 30 of these 77 patients" in said
    rows = list(csv.DictReader((folder / "risks.csv").read_text().splitlines()))
    assert len(rows) == 77
    assert (folder / "survival.csv").read_text().count("\n") == 7
    for name in ("pooled-representation", "signatures", "IFNG", "CYT"):
        assert (folder / f"kaplan-meier-{name}.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder / "survival.html").read_text()
    assert "Illustration" not in page  # there are 65 deaths
    assert "http" not in page.replace("http-equiv", "")
    head = read_cox(folder / "cox")
    assert head.names == tuple("abcdef")


def test_the_same_question_has_the_same_answer(world, tmp_path):
    described, request = world
    for name in ("one", "two"):
        score_patients(
            described, read_tables(request), request, "t", tmp_path / name, Voice(is_json=True)
        )
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        for name in ("one", "two")
    )
    assert first == second


def test_without_signatures_and_covariates_the_representation_is_scored_alone(world, tmp_path):
    described, request = world
    bare = replace(request, signatures=None, columns=ClinicalConfig())
    outcome = score_patients(
        described, read_tables(bare), bare, "t", tmp_path / "out", Voice(is_json=True)
    )
    assert [row.method for row in outcome.table.rows] == [POOLED, CONSTANT]
    few = replace(outcome.table, follow_up=outcome.table.follow_up.take(np.arange(20)))
    assert banner_of(few).startswith("Illustration, not evidence: n = ")


def test_patients_of_other_names_are_refused(world, tmp_path):
    described, request = world
    names = tuple(f"{name}-01A" for name in described.patient_id)
    renamed = replace(
        described,
        patient_id=names,
        representation=replace(described.representation, patient_id=names),
    )
    with pytest.raises(MismatchError, match="no patient is both"):
        score_patients(
            renamed, read_tables(request), request, "t", tmp_path / "out", Voice(is_json=True)
        )


def test_too_few_patients_are_refused_before_the_work(world):
    described, request = world
    tables = read_tables(request)
    some = {*described.patient_id[:3], "TCGA-080"}
    assert check_patients(tables, request, some) == set(described.patient_id[:3])
    with pytest.raises(ConfigError, match="2 patients cannot fill 3 folds"):
        check_patients(tables, request, set(described.patient_id[:2]))
    with pytest.raises(MismatchError, match=r"in the study \(x, y\)"):
        check_patients(tables, request, {"x", "y"})


def test_a_patient_is_the_mean_over_the_regions_that_have_nuclei():
    mean = np.array([[1.0, 2], [3, 4], [np.nan, np.nan], [5, 8], [np.nan, np.nan]])
    names, y = mean_by_patient(mean, ("b", "a", "a", "b", "c"))
    assert names == ("a", "b")
    np.testing.assert_array_equal(y, [[3, 4], [3, 5]])
    with pytest.raises(DataError, match="nothing is said of any"):
        mean_by_patient(mean[2:3], ("a",))


def test_without_lifelines_nothing_is_begun(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "lifelines", None)
    with pytest.raises(MissingExtra, match=r"histoscribe\[survival\]"):
        read_tables(world[1])
