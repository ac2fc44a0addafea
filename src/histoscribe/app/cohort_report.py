"""The summary of a cohort: what became of each sample, as JSON, CSV and a page for people.

STUDY/prepare-summary.json   all that is known
                     .csv    one row a sample, for spreadsheets
                     .html   the same to read; self-contained, asks nobody for anything

Beside the log these are the only files with times in them: reports of one run, no stores.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from histoscribe import __version__
from histoscribe.app.cohort import SampleRecord
from histoscribe.app.study import Study, write_json, write_text

NAME = "prepare-summary"
STATES = ("done", "kept", "failed", "not tried")


@dataclass(frozen=True)
class SummaryRow:
    """One sample.

    Attributes:
        sample: Its name.
        patient: Whose tissue it is.
        state: done, kept, failed or not tried.
        n_nuclei: Nuclei stored; None where nothing is.
        tissue_mm2: Tissue that was searched, mm².
        seconds: What it took, if it was done in this run; less what an earlier one had done.
        seconds_per_mm2: The same by area, if all was done in this run.
        cells_per_second: Nuclei by time, if all was done in this run.
        segmenter_id: What found the nuclei.
        encoder_id: What described them.
        attempts: How often it was begun in this run.
        worker: Who prepared it.
        error: Kind of the fault.
        message: What happened.
        mend: What to do about it.
        notes: What is to be known of it.
    """

    sample: str
    patient: str
    state: str
    n_nuclei: int | None
    tissue_mm2: float | None
    seconds: float | None
    seconds_per_mm2: float | None
    cells_per_second: float | None
    segmenter_id: str
    encoder_id: str
    attempts: int
    worker: str
    error: str
    message: str
    mend: str
    notes: tuple[str, ...]


def write_summary(study: Study, records: Mapping[str, SampleRecord], *, is_finished: bool) -> None:
    """Write the three files; each in one step, so that a reader never sees a part of one.

    Args:
        study: Its samples are the rows, whether this run was asked for them or not.
        records: What became of those that were asked for.
        is_finished: Whether the run came to its end; it is written after every sample, so that
            one that was killed leaves a summary, too.
    """
    rows = summarise(study, records)
    head = {
        "study": study.folder.resolve().name,
        "version": __version__,
        "is_finished": is_finished,
        "counts": count_states(rows),
    }
    write_json(study.folder / f"{NAME}.json", {**head, "samples": [asdict(row) for row in rows]})
    write_text(study.folder / f"{NAME}.csv", to_csv(rows))
    write_text(study.folder / f"{NAME}.html", to_html(head, rows))


def summarise(study: Study, records: Mapping[str, SampleRecord]) -> list[SummaryRow]:
    """A row a sample of the study; of those not tried, what is stored from before."""
    rows = []
    for sample in study.samples:
        record = records.get(sample.sample, SampleRecord(sample.sample, "not tried", {}))
        stored = record.stored
        if record.state == "not tried":
            stored = study.prepared_record(sample) or {}
        n_nuclei, tissue_mm2, fault = (
            stored.get("n_nuclei"),
            stored.get("tissue_mm2"),
            record.fault,
        )
        whole = None if record.taken_up else record.seconds
        rows.append(
            SummaryRow(
                sample=sample.sample,
                patient=sample.patient,
                state=record.state,
                n_nuclei=n_nuclei,
                tissue_mm2=tissue_mm2,
                seconds=_rounded(record.seconds, 1),
                seconds_per_mm2=_ratio(whole, tissue_mm2),
                cells_per_second=_ratio(n_nuclei, whole),
                segmenter_id=stored.get("segmenter_id", ""),
                encoder_id=stored.get("encoder_id", ""),
                attempts=record.attempts,
                worker=record.worker,
                error=fault.kind if fault else "",
                message=fault.message if fault else "",
                mend=fault.mend if fault else "",
                notes=record.notes,
            )
        )
    return rows


def as_records(study: Study, records: Sequence[SampleRecord]) -> list[dict[str, Any]]:
    """The rows of the samples that were asked for, for machines; `is_new` if made in this run."""
    rows = summarise(study, {record.sample: record for record in records})
    asked = {record.sample for record in records}
    return [{**asdict(row), "is_new": row.state == "done"} for row in rows if row.sample in asked]


def count_states(rows: list[SummaryRow]) -> dict[str, int]:
    """How many samples are in each state."""
    found = Counter(row.state for row in rows)
    return {state: found[state] for state in STATES}


def to_csv(rows: list[SummaryRow]) -> str:
    """One line a sample; what is not known is left empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(field.name for field in fields(SummaryRow))
    for row in rows:
        values = {**asdict(row), "notes": "; ".join(row.notes)}
        writer.writerow("" if value is None else value for value in values.values())
    return stream.getvalue()


def to_html(head: Mapping[str, Any], rows: list[SummaryRow]) -> str:
    """The page; failures stand first, with what mends them."""
    environment = Environment(
        loader=PackageLoader("histoscribe.app", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("cohort_report.html.jinja").render(
        head=head,
        rows=[row for row in rows if row.state != "failed"],
        failures=[row for row in rows if row.state == "failed"],
        totals=_totals(rows),
        identities=_identities(rows),
        number=_number,
    )


def _totals(rows: list[SummaryRow]) -> dict[str, float | int]:
    return {
        "n_nuclei": sum(row.n_nuclei or 0 for row in rows),
        "tissue_mm2": sum(row.tissue_mm2 or 0.0 for row in rows),
    }


def _identities(rows: list[SummaryRow]) -> list[tuple[str, str, int]]:
    """Which segmenter and encoder made how many: more than one pair is worth a second look."""
    found = Counter((row.segmenter_id, row.encoder_id) for row in rows if row.encoder_id)
    return [(*pair, n) for pair, n in sorted(found.items())]


def _number(value: float | int | None, n_digits: int = 0) -> str:
    """With thousands apart; a dash where nothing is known."""
    return "–" if value is None else f"{value:,.{n_digits}f}"


def _ratio(above: float | int | None, below: float | None) -> float | None:
    return _rounded(above / below, 2) if above is not None and below else None


def _rounded(value: float | None, n_digits: int) -> float | None:
    return None if value is None else round(value, n_digits)
