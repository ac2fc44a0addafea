"""From RNA-seq of whole samples and slides to a study, through the command line."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.app.conftest import TOY_PARTS, check, stores_of
from tests.readers.bulk.conftest import COUNTS, Download, star_text

from histoscribe.data.store import read_regions
from histoscribe.data.toy import MPP, toy_world
from histoscribe.readers.bulk.expression import read_expression

SLIDES = (
    "TCGA-38-6178-01Z-00-DX1.2b5b1fd2.png",
    "TCGA-38-6178-01Z-00-DX2.77aa01c4.png",
    "TCGA-49-4488-01Z-00-DX1.9c0ffee1.png",
    "TCGA-49-4488-11A-01-TS1.0badcafe.png",
    "TCGA-49-4488-01A-01-TS1.1badcafe.png",
)
TABLE = """gene_symbol,TCGA-38-6178-01A-11R-1755-07,TCGA-49-4488-01A-01R-1755-07,TCGA-49-4488-11A
ACTB,900,1300,4
ERBB2,17,,5
KRT8,0,3,6
"""


@pytest.fixture
def cohort(tmp_path) -> Path:
    """Counts, and slides in folders of their own as GDC's client lays them out."""
    home = tmp_path / "data"
    pixels = toy_world(5).slide.pixels
    for number, name in enumerate(SLIDES):
        folder = home / "slides" / f"id-{number}"
        (folder / "logs").mkdir(parents=True)
        (folder / "logs" / f"{name}.parcel").write_text("")
        x, y = 97 * number, 113 * number
        Image.fromarray(pixels[y : y + 341, x : x + 397]).save(folder / name)
    (home / "counts.csv").write_text(TABLE)
    return home


def run_match(call, cohort, *words, table="counts.csv", out="cohort"):
    return call(
        "match", cohort / table, cohort / "slides", "--mpp", MPP, "--out", cohort / out, *words
    )


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_cohort_is_matched_and_ingested(call, cohort):
    answer = run_match(call, cohort)
    check(answer, 0, ["unit counts: all values are whole", "3 slides of 2 patients", "Next: hist"])
    for left_out in ("TCGA-49-4488-11A", "11, solid tissue, normal", "TS, top section, frozen"):
        assert left_out in answer.message
    rows = rows_of(cohort / "cohort" / "manifest.csv")
    assert [(row["sample"], row["patient"], row["profile"]) for row in rows] == [
        ("TCGA-38-6178-01Z-00-DX1", "TCGA-38-6178", "TCGA-38-6178"),
        ("TCGA-38-6178-01Z-00-DX2", "TCGA-38-6178", "TCGA-38-6178"),
        ("TCGA-49-4488-01Z-00-DX1", "TCGA-49-4488", "TCGA-49-4488"),
    ]
    assert {row["platform"] for row in rows} == {"bulk"}
    assert rows[0]["slide"] == f"../slides/id-0/{SLIDES[0]}"
    assert float(rows[0]["mpp"]) == MPP
    study = cohort / "study"
    answer = call("ingest", cohort / "cohort" / "manifest.csv", study)
    check(answer, 0, ["profile TCGA-49-4488, 3 genes in counts, 1 not measured"])
    one, two, other = (read_regions(study / "samples" / row["sample"]) for row in rows)
    assert (one.region_id, one.patient_id) == (two.region_id, two.patient_id)
    assert one.expression.toarray().tolist() == two.expression.toarray().tolist() == [[900, 17, 0]]
    assert other.expression.toarray().tolist() == [[1300, 0, 3]]
    assert other.gene_observed.tolist() == [True, False, True]
    samples = json.loads((study / "study.json").read_text())["samples"]
    assert [sample["profile"] for sample in samples] == [row["profile"] for row in rows]
    assert samples[2]["report"]["n_missing"] == 1


def test_what_was_left_out_is_kept_for_machines(call, cohort):
    record = run_match(call, cohort, "--json").record
    assert record["unit"] == "counts"
    assert len(record["slides"]) == 3
    report = json.loads((cohort / "cohort" / "match.json").read_text())
    assert report["expression"]["unit_reason"] == "all values are whole numbers"
    left_out = {name for names in report["slides"]["left_out"].values() for name in names}
    assert left_out == set(SLIDES[3:])
    assert report["slides"]["matched"][0]["path"] == f"../slides/id-0/{SLIDES[0]}"


def test_data_and_manifest_move_together(call, cohort, tmp_path):
    run_match(call, cohort)
    moved = tmp_path / "elsewhere"
    shutil.move(cohort, moved)
    check(call("ingest", moved / "cohort" / "manifest.csv", tmp_path / "study"), 0, ["3 genes"])
    assert (tmp_path / "study" / "study.json").exists()


def test_other_slide_types_are_asked_for_by_commas_or_one_by_one(call, cohort):
    one = run_match(call, cohort, "--slide-type", "TS,DX", "--json", out="one").record
    words = ("--slide-type", "TS", "--slide-type", "DX", "--json")
    assert run_match(call, cohort, *words, out="two").record["slides"] == one["slides"]
    assert len(one["slides"]) == 4


def test_the_written_table_may_be_matched_to_other_slides(call, cohort):
    run_match(call, cohort)
    words = ("--slide-type", "TS")
    answer = run_match(call, cohort, *words, table="cohort/expression.parquet", out="frozen")
    check(answer, 0, ["1 slides of 1 patients", "'histoscribe match' wrote it so"])
    one, two = (cohort / name / "expression.parquet" for name in ("cohort", "frozen"))
    np.testing.assert_array_equal(read_expression(one).values, read_expression(two).values)
    again = ("cohort/expression.parquet", "again")
    answer = run_match(call, cohort, "--unit", "tpm", table=again[0], out=again[1])
    check(answer, 2, ["is in counts, linear; leave out --unit and --log"])
    answer = run_match(call, cohort, "--sample-type", "06", table=again[0], out=again[1])
    check(answer, 2, ["holds profiles of sample type 01; name them with --sample-type"])


def test_a_download_of_gdc_is_matched(call, cohort, tmp_path):
    made = Download(tmp_path)
    made.add("f1", "TCGA-38-6178-01A", "Primary Tumor", star_text(COUNTS["a"]))
    made.add("f2", "TCGA-49-4488-01A", "Primary Tumor", star_text(COUNTS["b"]))
    words = ("match", made.folder, cohort / "slides", "--mpp", MPP, "--out", tmp_path / "out")
    check(call(*words), 2, ["Give --sample-sheet, which the GDC portal writes"])
    words = (*words, "--sample-sheet", made.sheet(), "--gdc-manifest", made.manifest())
    check(call(*words, "--log", "log2p1"), 2, ["GDC's gene counts are linear"])
    check(call(*words), 0, ["unit tpm: the column tpm_unstranded", "gene model GENCODE v36"])
    check(call("ingest", tmp_path / "out" / "manifest.csv", tmp_path / "study"), 0, ["in tpm"])
    shutil.rmtree(tmp_path / "out")
    assert call(*words, "--unit", "counts", "--json").record["unit"] == "counts"


def test_a_table_of_patients_is_used(call, toy_files, tmp_path):
    (tmp_path / "counts.csv").write_text("gene,R1,R2\nACTB,3,4\nTP53,1,1\n")
    (tmp_path / "patients.csv").write_text("slide,patient,profile\na1,alice,R1\nb1.png,bob,R2\n")
    words = ("match", tmp_path / "counts.csv", toy_files, "--out", tmp_path / "out", "--mpp", MPP)
    check(call(*words), 3, ["Say whose they are in a CSV (slide,patient) with --patients"])
    check(call(*words, "--patients", tmp_path / "patients.csv"), 0, ["2 slides of 2 patients"])
    rows = rows_of(tmp_path / "out" / "manifest.csv")
    assert [(row["sample"], row["patient"], row["profile"]) for row in rows] == [
        ("a1", "alice", "R1"),
        ("b1", "bob", "R2"),
    ]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--sample-type", "01,11"), 2, "mix normal tissue (11) with tumour"),
        (("--sample-type", "06"), 3, "none of 3 samples is of type 06; there are 01"),
        (("--slide-type", "BS"), 3, "Choose with --slide-type DX --slide-type TS"),
        (("--slide-type", "frozen"), 2, "wanted one or more, each once, of DX"),
        (("--unit", "cpm"), 2, "unit = 'cpm': one of tpm, fpkm, rsem, counts is wanted"),
        (("--unit", "tpm", "--log", "log2p1"), 3, "given as log log2p1"),
        (("--mpp", "0"), 2, "--mpp 0.0: µm per pixel above 0 are wanted"),
        (("--sample-sheet", "sheet.tsv"), 2, "go with a folder of GDC's files"),
        (("--patients", "none.csv"), 3, "none.csv: no such file"),
    ],
)
def test_requests_that_cannot_be_met(call, cohort, words, code, message):
    check(run_match(call, cohort, *words), code, [message])
    assert not (cohort / "cohort").exists()


def test_places_that_are_not_there_or_taken(call, cohort, tmp_path):
    check(call("match", cohort / "x.csv", cohort / "slides", "--out", tmp_path / "o"), 3, ["x.csv"])
    words = ("match", cohort / "counts.csv", "--out", cohort / "cohort")
    check(call(*words, cohort / "none"), 3, ["none: no such slide or folder of slides"])
    (cohort / "empty").mkdir()
    check(call(*words, cohort / "empty"), 3, ["no slide in it"])
    run_match(call, cohort)
    check(run_match(call, cohort), 2, ["manifest.csv exists, and may be edited by hand"])


def test_a_manifest_by_hand_names_a_plain_matrix(call, cohort, tmp_path):
    (cohort / "table.csv").write_text("gene,P1,P2\nACTB,1.5,3\nTP53,0,2.25\n")
    manifest = cohort / "manifest.csv"
    header = "sample,patient,slide,mpp,expression,platform,profile"
    row = f"S1,alice,slides/id-0/{SLIDES[0]},{MPP},table.csv,bulk,P2"
    manifest.write_text(f"{header}\n{row}\n")
    check(call("ingest", manifest, tmp_path / "study"), 3, ["say which with --log", "column log"])
    manifest.write_text(f"{header},unit,log\n{row},fpkm,log2p1\n")
    check(call("ingest", manifest, tmp_path / "study"), 0, ["profile P2, 2 genes in fpkm"])
    regions = read_regions(tmp_path / "study" / "samples" / "S1")
    np.testing.assert_allclose(regions.expression.toarray(), [[7, 2**2.25 - 1]], rtol=1e-6)
    answer = call("doctor", manifest, "--json")
    found = [one["found"] for one in answer.record["findings"] if one["what"] == "S1"]
    assert "profile P2, 2 genes in fpkm" in found


@pytest.mark.slow
def test_around_a_bulk_region_is_the_whole_slide(call, cohort, tmp_path):
    for name in ("id-0", "id-1"):  # one slide will do
        shutil.rmtree(cohort / "slides" / name)
    run_match(call, cohort)
    for study in ("whole", "around"):
        call("ingest", cohort / "cohort" / "manifest.csv", tmp_path / study)
    assert call("prepare", tmp_path / "whole", *TOY_PARTS).code == 0
    answer = call("prepare", tmp_path / "around", *TOY_PARTS, "--around-regions", "--json")
    assert answer.code == 0, answer.err
    assert all(sample["n_nuclei"] > 3 for sample in answer.record["samples"])
    assert stores_of(tmp_path / "whole") == stores_of(tmp_path / "around")


def test_the_pairs_of_tcga_are_matched_and_ingested(call, data_dir, tmp_path):
    """Slides of every type, RNA as RSEM: the path, not a result."""
    pairs = data_dir / "tcga_pairs"
    words = ("match", pairs / "rsem_genes_x_patients.csv.gz", pairs / "tiles", "--mpp", "0.25")
    answer = call(*words, "--slide-type", "DX,TS,BS", "--out", tmp_path / "all", "--json")
    assert (answer.code, answer.record["unit"]) == (0, "rsem"), answer.err
    slides = answer.record["slides"]
    assert (len(slides), slides[0], slides[-1]) == (
        6,
        "TCGA-38-6178-01Z-00-DX1",
        "TCGA-AY-A8YK-01A-01-TS1",
    )
    only = call(*words, "--out", tmp_path / "diagnostic", "--json").record
    assert len(only["slides"]) == 2
    assert sorted(len(names) for names in only["left_out"].values()) == [2, 2]
    answer = call("ingest", tmp_path / "all" / "manifest.csv", tmp_path / "study")
    check(answer, 0, ["22459 genes in rsem, 1987 not measured"])
    regions = read_regions(tmp_path / "study" / "samples" / slides[-1])
    assert regions.gene_observed.sum() == 22459 - 1958


def test_another_vial_of_the_pairs_is_said(call, data_dir, tmp_path):
    """The frozen slide of TCGA-44-2665 is of vial B, its RNA of vial A."""
    pairs = data_dir / "tcga_pairs"
    with (pairs / "pairs.csv").open() as file:
        sample_of = {row["patient"]: row["rna_sample"] for row in csv.DictReader(file)}

    text = gzip.decompress((pairs / "rsem_genes_x_patients.csv.gz").read_bytes()).decode()
    header, rest = text.split("\n", 1)
    names = ",".join(sample_of.get(name, name) for name in header.split(","))
    (tmp_path / "rsem.csv").write_text(f"{names}\n{rest}")
    answer = call(
        "match", tmp_path / "rsem.csv", pairs / "tiles", "--slide-type", "DX,TS,BS",
        "--out", tmp_path / "out",
    )  # fmt: skip
    check(answer, 0, ["TCGA-44-2665-01B-06-BS6.tif (B, RNA A)", "6 slides of 6 patients"])
