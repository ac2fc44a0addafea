"""Survival of a study's patients: what a run says of their slides, held against their follow-up."""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from histoscribe.app.console import Voice
from histoscribe.app.study import write_json, write_text
from histoscribe.app.survival_report import draw_methods, report_survival
from histoscribe.data.atomic import hash_file
from histoscribe.data.genes import GenePanel
from histoscribe.errors import DataError, MismatchError
from histoscribe.evaluate.covariates import (
    Covariates,
    PatientFeatures,
    SignatureScores,
    score_signatures,
)
from histoscribe.evaluate.lifelines_extra import import_lifelines
from histoscribe.evaluate.survival import (
    SurvivalConfig,
    clinical_covariates,
    fit_head,
    score_survival,
    share_patients,
)
from histoscribe.evaluate.survival_table import SurvivalTable
from histoscribe.readers.clinical import ClinicalConfig, ClinicalReport, read_clinical
from histoscribe.readers.follow_up import FollowUp
from histoscribe.readers.signatures import Signature, read_signatures
from histoscribe.train.cox import deal_patients
from histoscribe.train.cox_store import write_cox

POOLED = "pooled representation"
SIGNATURES = "signatures"
SHOWN = 5


@dataclass(frozen=True)
class SurvivalRequest:
    """What is asked for.

    Attributes:
        clinical: Table of follow-up.
        columns: How it is to be read; its covariates together are a baseline.
        signatures: File of gene lists, or None.
        config: Folds, penalties, draws.
    """

    clinical: Path
    columns: ClinicalConfig = field(default_factory=ClinicalConfig)
    signatures: Path | None = None
    config: SurvivalConfig = field(default_factory=SurvivalConfig)


@dataclass(frozen=True, eq=False)
class SurvivalTables:
    """What the files of a request say.

    Attributes:
        follow_up: Of all patients of the clinical table that have any.
        report: What was read of it.
        signatures: Gene lists; none if no file was given.
    """

    follow_up: FollowUp
    report: ClinicalReport
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, eq=False)
class DescribedPatients:
    """What a run says of the slides of patients.

    Attributes:
        representation: Pooled representation of each patient.
        patient_id: Patients whose expression is predicted, each once.
        genes: Columns of the expression.
        expression: Predicted, in the log space of the model.
        model_id: What predicted it.
        trained_on: Patients whose slides the model was trained on.
        not_described: Patients of the study without follow-up, whom nobody asked about.
        notes: What else is to be known of how they were described.
    """

    representation: PatientFeatures
    patient_id: tuple[str, ...]
    genes: GenePanel
    expression: Float[np.ndarray, "patient gene"]
    model_id: str
    trained_on: frozenset[str]
    not_described: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SurvivalOutcome:
    """What was found and written.

    Attributes:
        table: The scores.
        notes: What is to be known of patients, signatures and scores.
        folder: Where survival.json, .csv, .html, risks.csv, the curves and the Cox head are.
    """

    table: SurvivalTable
    notes: tuple[str, ...]
    folder: Path


def read_tables(request: SurvivalRequest) -> SurvivalTables:
    """Read all files of a request, and see that lifelines is there: before any slide is looked at.

    Raises:
        DataError: A table does not hold up.
        MissingExtra: lifelines is not installed.
    """
    import_lifelines()
    follow_up, report = read_clinical(request.clinical, request.columns)
    given = request.signatures
    return SurvivalTables(follow_up, report, () if given is None else read_signatures(given))


def check_patients(
    tables: SurvivalTables, request: SurvivalRequest, with_slides: Set[str]
) -> frozenset[str]:
    """The patients that have both slides and follow-up; refused here, before the work, if too few.

    Raises:
        MismatchError: There are none.
        ConfigError: They cannot fill the folds.
    """
    follow_up = tables.follow_up
    is_known = np.array([name in with_slides for name in follow_up.patient_id], dtype=bool)
    if not is_known.any():
        raise MismatchError(
            f"no patient is both in the study ({_first(with_slides)}) and in the clinical table "
            f"({_first(set(follow_up.patient_id))}); call patients the same in both"
        )
    deal_patients(follow_up.event[is_known], request.config.n_folds, request.config.seed)
    return frozenset(with_slides & set(follow_up.patient_id))


def score_patients(
    described: DescribedPatients,
    tables: SurvivalTables,
    request: SurvivalRequest,
    title: str,
    folder: Path,
    voice: Voice,
) -> SurvivalOutcome:
    """Score what a run says of patients by their follow-up; write everything to a folder.

    Args:
        described: Of the patients of a study.
        tables: Follow-up and signatures.
        request: What was asked for.
        title: Study and run.
        folder: Where to write.
        voice: Told what happens.

    Raises:
        DataError: Too few died, or nothing that is said of patients varies.
        MismatchError: Patients or genes have no name in common.
    """
    follow_up, report = tables.follow_up, tables.report
    signatures, found = _signatures(described, tables.signatures)
    asked: list[Covariates] = [described.representation, *signatures.values()]
    shared, parts = share_patients(follow_up, asked)
    methods = dict(zip([POOLED, *signatures], parts, strict=True))
    baselines = {}
    if shared.covariate_names:
        baselines[" + ".join(shared.covariate_names)] = clinical_covariates(shared)
    voice.say(f"{len(shared)} patients, {int(shared.event.sum())} deaths ({report.convention})")
    table = score_survival(shared, methods, baselines, request.config)
    notes = _notes(described, follow_up, shared, report, found)
    for note in notes:
        voice.say(note)
    facts = _facts(described, request, report, shared, found)
    write_json(folder / "survival.json", {**json.loads(table.to_json()), **facts})
    write_text(folder / "survival.csv", table.to_csv())
    write_text(folder / "risks.csv", table.risks_to_csv())
    everybody = np.ones(len(shared), dtype=bool)
    head, _ = fit_head(shared, methods[POOLED], everybody, request.config.cox)
    write_cox(head, folder / "cox")
    pictures = draw_methods(table)
    for name, png in pictures.items():
        path = folder / f"kaplan-meier-{_as_file_name(name)}.png"
        path.write_bytes(png)
    report_survival(title, table, pictures, notes, facts, folder / "survival.html")
    return SurvivalOutcome(table, notes, folder)


def mean_by_patient(
    values: Float[np.ndarray, "region d"], patient_of_region: Sequence[str]
) -> tuple[tuple[str, ...], Float64[np.ndarray, "patient d"]]:
    """The mean over each patient's regions of what is said of them (of expression: in log space).

    A whole sample is one region of its patient and stands as it is. Regions without a nucleus are
    NaN and do not count; a patient without any other is left out.

    Raises:
        DataError: If no patient is left.
    """
    patients = np.array(patient_of_region, dtype=object)
    is_known = np.isfinite(values).all(axis=1)
    names = sorted(set(patients[is_known]))
    if not names:
        raise DataError("nothing is said of any patient's regions; prepare slides with nuclei")
    rows = [values[is_known & (patients == name)].mean(axis=0, dtype=np.float64) for name in names]
    return tuple(names), np.stack(rows)


def _signatures(
    described: DescribedPatients, given: Sequence[Signature]
) -> tuple[dict[str, SignatureScores], dict[str, tuple[int, int]]]:
    """All signatures together and each alone; how many genes of each were found, of how many."""
    if not given:
        return {}, {}
    both, found = score_signatures(
        described.patient_id, described.genes, described.expression, given
    )
    alone = {both.names[i]: both.alone(i) for i in range(len(both.names))}
    together = {SIGNATURES: both} if len(alone) > 1 else {}
    n_listed = {one.name: len(one.genes) for one in given}
    return {**together, **alone}, {name: (n, n_listed[name]) for name, n in found.items()}


def _notes(
    described: DescribedPatients,
    follow_up: FollowUp,
    shared: FollowUp,
    report: ClinicalReport,
    found: Mapping[str, tuple[int, int]],
) -> tuple[str, ...]:
    notes = list(described.notes)
    known, usable = set(follow_up.patient_id), set(shared.patient_id)
    with_slides = {*described.representation.patient_id, *described.not_described}
    groups = {
        "with slides have no row in the clinical table": with_slides - known - set(report.dropped),
        "have no follow-up and were dropped": set(report.dropped),
        "of the clinical table are not in the study": known - usable,
    }
    for text, names in groups.items():
        if names:
            notes.append(f"{len(names)} patient(s) {text}: {_first(names)}.")
    n_gaps = np.isnan(shared.covariates).sum(axis=0)
    for covariate, n in zip(shared.covariate_names, n_gaps, strict=True):
        if n:
            notes.append(f"{covariate} is missing for {n} patient(s): filled by the training mean.")
    for name, (n, n_listed) in found.items():
        left_out = "" if n else "; it is left out"
        notes.append(f"{name}: {n} of {n_listed} genes are predicted{left_out}.")
    seen = usable & described.trained_on
    if seen:
        notes.append(
            f"The model was trained on the expression of {len(seen)} of these {len(usable)} "
            "patients, though not on their survival: it may describe them better than new ones."
        )
    return tuple(notes)


def _facts(
    described: DescribedPatients,
    request: SurvivalRequest,
    report: ClinicalReport,
    shared: FollowUp,
    found: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    """What the scores were made from; for survival.json."""
    inputs = {"clinical": hash_file(request.clinical)}
    if request.signatures is not None:
        inputs["signatures"] = hash_file(request.signatures)
    return {
        "model_id": described.model_id,
        "clinical": asdict(report),
        "config": asdict(request.config),
        "inputs": inputs,
        "signature_genes": {name: list(pair) for name, pair in found.items()},
        "n_trained_on": len(described.trained_on.intersection(shared.patient_id)),
    }


def _first(names: Set[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _as_file_name(name: str) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in name)
