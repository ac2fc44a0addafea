import numpy as np
import pytest

from histoscribe.data.store import hash_file, read_regions, write_regions
from histoscribe.errors import DataError
from histoscribe.readers.bulk.expression import write_expression
from histoscribe.readers.bulk.matrix import read_bulk_matrix
from histoscribe.readers.bulk.whole_sample import read_whole_sample

TABLE = "gene,TCGA-38-6178-01A,TCGA-38-6178-11A,P2\nACTB,3,4,5\nTP53,0,7,\nEGFR,1,2,9\n"


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text(TABLE)
    return path


def test_a_slide_is_one_region_of_its_patient(blank_slide, table):
    regions, report = read_whole_sample(table, blank_slide, patient_id="p", profile="P2")
    assert (regions.kind, regions.region_id, regions.platform) == ("bulk", ("P2",), "bulk")
    assert (regions.slide_id, regions.patient_id) == (("S1",), ("p",))
    assert np.isnan(regions.xy_um).all()
    assert np.isinf(regions.radius_um)
    assert np.isnan(regions.pitch_um)
    assert regions.genes.ids == ("ACTB", "TP53", "EGFR")
    assert regions.expression.toarray().tolist() == [[5, 0, 9]]
    assert regions.gene_observed.tolist() == [True, False, True]  # empty, so masked
    assert regions.expression_unit == "counts"
    assert regions.provenance.inputs == {"expression": hash_file(table)}
    assert regions.provenance.settings["mpp"] == [0.25, 0.25]
    assert report.describe() == "profile P2, 3 genes in counts, 1 not measured"
    other, _ = read_whole_sample(table, blank_slide, patient_id="p", profile="TCGA-38-6178-01A")
    assert other.gene_observed.all()  # what one profile lacks, another may have


def test_it_comes_back_from_the_store(blank_slide, table, tmp_path):
    regions, _ = read_whole_sample(table, blank_slide, patient_id="p", profile="P2")
    write_regions(regions, tmp_path)
    read = read_regions(tmp_path)
    np.testing.assert_array_equal(read.xy_um, regions.xy_um)
    assert np.isinf(read.radius_um)
    assert np.isnan(read.pitch_um)
    assert read.gene_observed.tolist() == [True, False, True]
    assert read.expression.toarray().tolist() == [[5, 0, 9]]
    assert read.provenance == regions.provenance


def test_the_written_table_gives_the_same_region(blank_slide, table, tmp_path):
    expression, _ = read_bulk_matrix(table)
    path = tmp_path / "expression.parquet"
    write_expression(expression, path)
    for name, column in (("P2", "P2"), ("TCGA-38-6178", "TCGA-38-6178-01A")):
        one, report = read_whole_sample(path, blank_slide, patient_id="p", profile=name)
        other, _ = read_whole_sample(table, blank_slide, patient_id="p", profile=column)
        assert (one.expression != other.expression).nnz == 0
        assert one.gene_observed.tolist() == other.gene_observed.tolist()
        assert one.expression_unit == "counts"
    assert report.aliquots == ("TCGA-38-6178-01A",)
    with pytest.raises(DataError, match=r"wrote it in counts, linear\. Leave unit and log empty"):
        read_whole_sample(path, blank_slide, patient_id="p", profile="P2", unit="tpm")
    with pytest.raises(DataError, match="wrote it in counts, linear"):
        read_whole_sample(path, blank_slide, patient_id="p", profile="P2", log="log2p1")
    with pytest.raises(DataError, match="no profile P3; it has 2"):
        read_whole_sample(path, blank_slide, patient_id="p", profile="P3")


def test_unit_and_log_are_taken_as_given(blank_slide, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("gene,P1\nACTB,1.5\nTP53,3\n")
    given = {"patient_id": "p", "profile": "P1", "unit": "rsem", "log": "log2p1"}
    regions, report = read_whole_sample(path, blank_slide, **given)
    np.testing.assert_allclose(regions.expression.toarray(), [[2**1.5 - 1, 7]], rtol=1e-6)
    assert (report.unit, report.log, report.reasons) == ("rsem", "log2p1", ("as given", "as given"))
    with pytest.raises(DataError, match="say which with --log"):
        read_whole_sample(path, blank_slide, patient_id="p", profile="P1")


def test_a_profile_that_is_not_there_is_refused(blank_slide, table, tmp_path):
    with pytest.raises(DataError, match=r"no profile is called P7. It has 3 \(TCGA-38-6178-01A"):
        read_whole_sample(table, blank_slide, patient_id="p", profile="P7")
    with pytest.raises(DataError, match=r"Name one of 2 \(TCGA-38-6178-01A, TCGA-38-6178-11A\)"):
        read_whole_sample(table, blank_slide, patient_id="p", profile="TCGA-38-6178")
    empty = tmp_path / "empty_counts.csv"
    empty.write_text("gene,P1,P2\nACTB,3,\nTP53,1,\n")
    with pytest.raises(DataError, match="profile P2 holds no value"):
        read_whole_sample(empty, blank_slide, patient_id="p", profile="P2")
