"""The summary of a cohort: what its three files say."""

import csv
import json
import re
from pathlib import Path

import pytest

from histoscribe.app.cohort import CohortError, SampleRecord, raise_failures
from histoscribe.app.cohort_report import as_records, write_summary
from histoscribe.app.faults import explain, worker_died
from histoscribe.app.study import Sample, Study, write_json
from histoscribe.errors import ConfigError, DataError

STORED = {"n_nuclei": 1200, "tissue_mm2": 0.5, "segmenter_id": "seg@1", "encoder_id": "enc@2"}
NAMES = ("C2", "D1", "E1", "F1")


@pytest.fixture
def study(tmp_path) -> Study:
    rows = [Sample(name, name[0], f"{name}.svs", *[None] * 5, {}, {}) for name in NAMES]
    return Study(tmp_path, tuple(rows))


@pytest.fixture
def records() -> dict[str, SampleRecord]:
    fault = explain(DataError("slide <i>D1</i> is torn; fetch it again"))
    return {
        "C2": SampleRecord("C2", "done", STORED, 8.04, 1, notes=("a; note", "b")),
        "D1": SampleRecord("D1", "failed", {}, attempts=2, fault=fault),
        "E1": SampleRecord("E1", "kept", STORED, attempts=1),
    }


def page_of(study: Study) -> str:
    return (study.folder / "prepare-summary.html").read_text()


def test_json_has_every_sample_and_what_time_means(study, records):
    write_summary(study, records, is_finished=True)
    record = json.loads((study.folder / "prepare-summary.json").read_text())
    assert record["counts"] == {"done": 1, "kept": 1, "failed": 1, "not tried": 1}
    rows = {row["sample"]: row for row in record["samples"]}
    assert list(rows) == list(NAMES)
    assert (rows["C2"]["seconds"], rows["C2"]["seconds_per_mm2"]) == (8.0, 16.08)
    assert rows["C2"]["cells_per_second"] == pytest.approx(149.25)
    assert rows["E1"]["seconds"] is None
    assert rows["D1"]["error"] == "DataError"
    assert rows["D1"]["mend"]


def test_csv_reads_back(study, records):
    write_summary(study, records, is_finished=True)
    with (study.folder / "prepare-summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["state"] for row in rows] == ["done", "failed", "kept", "not tried"]
    assert rows[0]["notes"] == "a; note; b"
    assert rows[1]["message"] == "slide <i>D1</i> is torn; fetch it again"
    assert rows[3]["n_nuclei"] == ""


def test_the_page_needs_nothing_asks_nobody_and_runs_nothing(study, records):
    write_summary(study, records, is_finished=True)
    page = page_of(study)
    assert not re.search(r"<script|<link|<iframe|<img|url\(|@import|(?:src|href)\s*=", page)
    assert "default-src 'none'" in page
    assert "<i>" not in page
    assert "slide &lt;i&gt;D1&lt;/i&gt; is torn" in page
    assert page.index("is torn") < page.index("1,200")
    assert "What to do:" in page
    assert "still going on" not in page


def test_an_unfinished_run_is_called_one(study, records):
    write_summary(study, records, is_finished=False)
    assert "still going on" in page_of(study)


def test_two_encoders_are_pointed_out(study, records):
    other = SampleRecord("F1", "done", {**STORED, "encoder_id": "enc@3"}, 1.0, 1)
    write_summary(study, {**records, "F1": other}, is_finished=True)
    assert "cannot meet in one fit" in page_of(study)


def test_of_samples_not_tried_the_store_speaks(study):
    write_json(study.folder_of(study.samples[3]) / "prepare.json", STORED)
    write_summary(study, {}, is_finished=True)
    rows = json.loads((study.folder / "prepare-summary.json").read_text())["samples"]
    assert [(row["state"], row["n_nuclei"]) for row in rows] == [
        ("not tried", None), ("not tried", None), ("not tried", None), ("not tried", 1200),
    ]  # fmt: skip


def test_machines_get_the_samples_asked_for(study, records):
    rows = as_records(study, list(records.values()))
    assert [(row["sample"], row["is_new"]) for row in rows] == [
        ("C2", True), ("D1", False), ("E1", False),
    ]  # fmt: skip


def test_some_failed(records):
    with pytest.raises(CohortError, match=r"1 of 3 samples failed \(D1\), 2 are done") as caught:
        raise_failures(list(records.values()))
    assert caught.value.exit_code == 6
    assert [record.sample for record in caught.value.records] == ["C2", "D1", "E1"]


def test_none_failed(records):
    raise_failures([records["C2"], records["E1"]])


def test_the_only_one_failed(records):
    with pytest.raises(DataError, match="torn"):
        raise_failures([records["D1"]])
    died = SampleRecord("D1", "failed", {}, fault=worker_died(1))
    with pytest.raises(Exception, match="worker process died") as caught:
        raise_failures([died])
    assert not isinstance(caught.value, ConfigError)
    assert caught.value.exit_code == 5


def test_the_summary_lies_where_the_docs_say(study, records):
    write_summary(study, records, is_finished=True)
    text = (Path(__file__).parents[2] / "docs" / "outputs.md").read_text()
    for path in study.folder.glob("prepare-summary.*"):
        assert path.name in text
