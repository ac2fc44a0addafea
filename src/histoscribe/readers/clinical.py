"""Clinical tables: who was followed for how long, and who died.

Told by their columns, in this order:

- `OS` (0 or 1) and `OS.time` in days: Xena, and the curated resource of Liu et al. 2018
- `OS_STATUS` ("1:DECEASED") and `OS_MONTHS`: cBioPortal; lines of # above the header are skipped
- `vital_status` with `days_to_death` and `days_to_last_follow_up` (GDC), or `death_days_to` and
  `last_contact_days_to` (the tables of TCGA's clinical centre, which repeat the header)

What stands in square brackets ([Not Available], [Discrepancy]), dashes, and empty cells are
missing: a patient without follow-up is dropped and named, one with contradictions is refused.
"""

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.clinical_cells import (
    Outcome,
    event_of,
    is_missing,
    joined,
    number_of,
    value_of,
)
from histoscribe.readers.follow_up import FollowUp
from histoscribe.readers.packed import open_text

DAYS = {"days": 1.0, "months": 365.25 / 12, "years": 365.25}
PATIENT = (
    "bcr_patient_barcode",
    "case_submitter_id",
    "cases.submitter_id",
    "submitter_id",
    "_patient",
    "patient",
    "patient_id",  # last: TCGA's clinical centre has a short code of this name beside the barcode
)
DEATH_DAYS = ("days_to_death", "death_days_to")
CONTACT_DAYS = ("days_to_last_follow_up", "days_to_last_followup", "last_contact_days_to")
HEADER_AGAIN = ("bcr_patient_barcode", "CDE_ID:")
SHOWN = 5


@dataclass(frozen=True)
class ClinicalConfig:
    """Which columns say what, where the table follows none of the known conventions.

    Attributes:
        patient: Column of the patient.
        time: Column of the follow-up, with `event`.
        event: Column of death (1, dead, deceased, ...) or censoring (0, alive, living, ...).
        time_unit: Unit of `time`; the known conventions have their own.
        covariates: Columns to bring along: numbers, or stages (Stage IIA counts as 2).
    """

    patient: str | None = None
    time: str | None = None
    event: str | None = None
    time_unit: Literal["days", "months", "years"] = "days"
    covariates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.time is None) != (self.event is None):
            raise ConfigError("a column of time or of event is given without the other; give both")
        if self.time_unit not in DAYS:
            raise ConfigError(f"time_unit = {self.time_unit!r}; give one of {', '.join(DAYS)}")


@dataclass(frozen=True)
class ClinicalReport:
    """What was read of a clinical table.

    Attributes:
        convention: Which columns said what.
        n_rows: Rows of patients in the table.
        n_patients: Patients kept.
        n_deaths: Deaths among them.
        dropped: Patients without follow-up, and why.
        missing: Words that stood for a missing value in the columns used, and how often.
        without_value: For each covariate: in how many of the kept patients it is missing.
    """

    convention: str
    n_rows: int
    n_patients: int
    n_deaths: int
    dropped: Mapping[str, str]
    missing: Mapping[str, int]
    without_value: Mapping[str, int]


class _Table(NamedTuple):
    """A table as text; each row with its line number and a cell for each column.

    Columns of the same name are told apart by number, and refused when they are asked for.
    """

    path: Path
    columns: tuple[str, ...]
    repeated: frozenset[str]
    rows: list[tuple[int, dict[str, str]]]


@dataclass(frozen=True)
class _Convention:
    """How the outcome is read from a row.

    Attributes:
        name: For people.
        columns: The columns it uses.
        read: A row's outcome; ValueError, in our words, if it contradicts itself.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, str]], Outcome]


@dataclass
class _Patient:
    """What the rows of a patient say together."""

    outcome: Outcome = field(default_factory=Outcome)
    values: dict[str, float] = field(default_factory=dict)


def read_clinical(
    path: Path, config: ClinicalConfig | None = None
) -> tuple[FollowUp, ClinicalReport]:
    """Read the follow-up of patients from a CSV or TSV, plain, gzip or zip.

    Several rows of a patient (a row for each sample or treatment) are one if they agree; what one
    of them lacks, another may give. Rows stand in order of the patients' names.

    Raises:
        DataError: Missing, unreadable, of no known convention, without any follow-up, or with
            contradictions; the message lists them.
    """
    config = config or ClinicalConfig()
    table = _read(path)
    patient_column = _patient_column(table, config)
    convention = _find_convention(table, config)
    for name in config.covariates:
        _column(table, name)
    patients: dict[str, _Patient] = {}
    faults: list[str] = []
    for number, row in table.rows:
        name = row[patient_column]
        if is_missing(name):
            faults.append(f"line {number}: no patient in column {patient_column}")
            continue
        try:
            _add_row(patients.setdefault(name, _Patient()), row, convention, config)
        except ValueError as fault:
            faults.append(f"line {number}, patient {name}: {fault}")
    if faults:
        listed = "\n  ".join(faults[:SHOWN])
        raise DataError(
            f"{path}: {len(faults)} row(s) contradict themselves or others, the first are below; "
            f"correct or remove them:\n  {listed}"
        )
    return _collect(table, patients, convention, config)


def _collect(
    table: _Table,
    patients: Mapping[str, _Patient],
    convention: _Convention,
    config: ClinicalConfig,
) -> tuple[FollowUp, ClinicalReport]:
    dropped = {
        name: patient.outcome.lacks
        for name, patient in sorted(patients.items())
        if not patient.outcome.is_known
    }
    kept = sorted(set(patients) - set(dropped))
    if not kept:
        raise DataError(
            f"{table.path}: none of {len(dropped)} patients has follow-up ({convention.name}); "
            "name other columns"
        )
    outcomes = [patients[name].outcome for name in kept]
    values = [
        [patients[name].values.get(column, np.nan) for column in config.covariates] for name in kept
    ]
    follow_up = FollowUp(
        tuple(kept),
        np.array([outcome.time_days for outcome in outcomes], dtype=np.float64),
        np.array([outcome.has_died for outcome in outcomes], dtype=bool),
        config.covariates,
        np.array(values, dtype=np.float64).reshape(len(kept), len(config.covariates)),
    )
    used = (*convention.columns, *config.covariates)
    words = Counter(row[column] for _, row in table.rows for column in used)
    n_missing = np.isnan(follow_up.covariates).sum(axis=0)
    report = ClinicalReport(
        convention=convention.name,
        n_rows=len(table.rows),
        n_patients=len(kept),
        n_deaths=int(follow_up.event.sum()),
        dropped=dropped,
        missing={word: n for word, n in sorted(words.items()) if is_missing(word)},
        without_value=dict(zip(config.covariates, map(int, n_missing), strict=True)),
    )
    return follow_up, report


def _add_row(
    patient: _Patient, row: Mapping[str, str], convention: _Convention, config: ClinicalConfig
) -> None:
    """Add what a row says; ValueError if it says otherwise than an earlier one."""
    patient.outcome = joined(patient.outcome, convention.read(row))
    for column in config.covariates:
        value = value_of(column, row[column])
        if value is None:
            continue
        if patient.values.setdefault(column, value) != value:
            raise ValueError(
                f"{column} is {value:g} here and {patient.values[column]:g} in an earlier row"
            )


def _find_convention(table: _Table, config: ClinicalConfig) -> _Convention:
    if config.time is not None and config.event is not None:
        time, event = _column(table, config.time), _column(table, config.event)
        return _two_columns(time, event, config.time_unit)
    found = {name: _find(table, (name,)) for name in ("os", "os.time", "os_status", "os_months")}
    if found["os"] and found["os.time"]:
        return _two_columns(found["os.time"], found["os"], "days")
    if found["os_status"] and found["os_months"]:
        return _two_columns(found["os_months"], found["os_status"], "months")
    status = _find(table, ("vital_status",))
    death, contact = _find(table, DEATH_DAYS), _find(table, CONTACT_DAYS)
    if status and death and contact:
        return _status_and_days(status, death, contact)
    raise DataError(
        f"{table.path}: no follow-up is known by its columns ({', '.join(table.columns[:8])}, "
        f"...); wanted OS and OS.time, OS_STATUS and OS_MONTHS, or vital_status with "
        f"{' or '.join(DEATH_DAYS)} and {' or '.join(CONTACT_DAYS)}. Name the columns of time and "
        "event"
    )


def _two_columns(time: str, event: str, unit: str) -> _Convention:
    def read(row: Mapping[str, str]) -> Outcome:
        value = number_of(time, row[time])
        days = None if value is None else value * DAYS[unit]
        return Outcome(days, event_of(event, row[event]))

    return _Convention(f"{event} and {time} in {unit}", (event, time), read)


def _status_and_days(status: str, death: str, contact: str) -> _Convention:
    def read(row: Mapping[str, str]) -> Outcome:
        has_died = event_of(status, row[status])
        death_days, contact_days = number_of(death, row[death]), number_of(contact, row[contact])
        if has_died is False and death_days is not None:
            raise ValueError(f"{status} is {row[status]!r}, and {death} is {death_days:g}")
        if has_died is None and death_days is not None:
            raise ValueError(f"{status} is missing, and {death} is {death_days:g}")
        if death_days is not None and contact_days is not None and contact_days > death_days:
            raise ValueError(f"{contact} is {contact_days:g}, after {death}, {death_days:g}")
        return Outcome(death_days if has_died else contact_days, has_died)

    return _Convention(
        f"{status} with {death} and {contact} in days", (status, death, contact), read
    )


def _read(path: Path) -> _Table:
    with open_text(path) as text:
        lines = text.read().splitlines()
    n_comments = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    body = lines[n_comments:]
    if not body or not body[0].strip():
        raise DataError(f"{path}: an empty table; wanted a header and a row for each patient")
    separator = "\t" if body[0].count("\t") >= max(body[0].count(","), 1) else ","
    header, *rest = csv.reader(body, delimiter=separator)
    names = [name.strip() for name in header]
    repeated = frozenset(name for name, n in Counter(names).items() if n > 1)
    columns = tuple(f"{name} ({at})" if name in repeated else name for at, name in enumerate(names))
    rows = []
    for number, cells in enumerate(rest, start=n_comments + 2):
        if any(cell.strip() for cell in cells[len(columns) :]):
            raise DataError(
                f"{path}: {len(cells)} cells for {len(columns)} columns in line {number}; quote "
                "text that holds the separator"
            )
        padded = [*map(str.strip, cells), *[""] * len(columns)][: len(columns)]
        if any(padded) and not _is_header_again(padded):
            rows.append((number, dict(zip(columns, padded, strict=True))))
    if not rows:
        raise DataError(f"{path}: a header and no rows; wanted a row for each patient")
    return _Table(path, columns, repeated, rows)


def _is_header_again(cells: Sequence[str]) -> bool:
    return any(cell.startswith(HEADER_AGAIN) for cell in cells[:3])


def _patient_column(table: _Table, config: ClinicalConfig) -> str:
    if config.patient is not None:
        return _column(table, config.patient)
    by_name = {column.lower(): column for column in table.columns}
    for name in PATIENT:
        if name in by_name:
            return by_name[name]
    raise DataError(
        f"{table.path}: no column of patients ({', '.join(table.columns[:8])}, ...); wanted one "
        f"of {', '.join(PATIENT)}. Name the column"
    )


def _find(table: _Table, names: Sequence[str]) -> str:
    """The column of one of these names, with or without a table's name before it; "" if none."""
    for name in names:
        for column in (*table.columns, *table.repeated):
            if column.lower() == name or column.lower().endswith(f".{name}"):
                return _column(table, column)
    return ""


def _column(table: _Table, name: str) -> str:
    if name in table.repeated:
        raise DataError(f"{table.path}: column {name} stands twice; rename one")
    if name not in table.columns:
        raise DataError(
            f"{table.path}: no column {name}; there are {', '.join(table.columns[:12])}"
            f"{', ...' if len(table.columns) > 12 else ''}"
        )
    return name
