import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoscribe.errors import DataError
from histoscribe.readers.bulk.expression import PLATFORM
from histoscribe.readers.bulk.matrix import read_bulk_matrix, read_matrix

N_GENES = 61
GENES = (
    "ENSG00000002586.20",
    "ENSG00000002586.20_PAR_Y",
    *(f"ENSG{number:011d}.{number % 7}" for number in range(1, N_GENES - 1)),
)
COLUMNS = ("TCGA-38-6178-01A", "TCGA-38-6178-01B", "TCGA-38-6178-11A", "TCGA-49-4488-01A")


def counts() -> np.ndarray:
    """Genes x columns, heavy-tailed, with zeros."""
    return np.rint(np.random.default_rng(3).lognormal(2.0, 2.0, (N_GENES, len(COLUMNS))))


def write(path: Path, values: np.ndarray, header: str = "Ensembl_ID") -> Path:
    frame = pd.DataFrame(values, index=pd.Index(GENES, name=header), columns=COLUMNS)
    frame.to_csv(path, sep="," if path.suffix == ".csv" else "\t", float_format="%.6f")
    return path


def test_a_table_of_xena_becomes_patients(tmp_path):
    path = write(tmp_path / "TCGA-LUAD.star_counts.tsv", np.log2(counts() + 1))
    expression, report = read_bulk_matrix(path)
    assert (report.unit, report.log) == ("counts", "log2p1")
    assert expression.profile_id == ("TCGA-38-6178", "TCGA-49-4488")
    assert (expression.genes.ids[0], expression.genes.ids[-1]) == (
        "ENSG00000002586",
        f"ENSG{N_GENES - 2:011d}",
    )
    assert len(expression.genes) == N_GENES - 1
    whole = counts()
    np.testing.assert_array_equal(expression.values[1, 1:], whole[2:, 3])
    np.testing.assert_array_equal(expression.values[1, 0], whole[:2, 3].sum())
    np.testing.assert_array_equal(expression.values[0, 1:], np.rint(whole[2:, :2].mean(axis=1)))
    assert report.averaged == {"TCGA-38-6178": ("TCGA-38-6178-01A", "TCGA-38-6178-01B")}
    assert report.summed == ("ENSG00000002586",)
    assert list(report.dropped.values()) == [("TCGA-38-6178-11A",)]
    assert (report.n_listed, report.layout) == (4, "matrix, genes as rows")
    text = "\n".join(report.lines())
    for words in ("unit counts:", "log log2p1:", "TCGA-38-6178 is the mean of", "11, solid tissue"):
        assert words in text


def test_aliquots_are_averaged_after_the_log_is_undone(tmp_path):
    tpm = counts() / counts().sum(axis=0) * 1e6
    expression, _ = read_bulk_matrix(write(tmp_path / "table.csv", np.log2(tpm + 1)))
    wanted = tpm[2:, :2].mean(axis=1)
    np.testing.assert_allclose(expression.values[0, 1:], wanted, rtol=1e-4, atol=1e-2)


def test_profiles_say_whose_they_are_and_meet_the_regions_of_whole_samples(tmp_path):
    path = write(tmp_path / "counts.tsv", counts())
    read, _ = read_bulk_matrix(path)
    profiles = read.to_profiles()
    assert profiles.donor_id == profiles.profile_id == read.profile_id
    assert set(profiles.platform) == {PLATFORM} == {"bulk"}
    aliquots = read_matrix(path).samples.to_profiles()
    assert aliquots.profile_id[0] != aliquots.donor_id[0] == "TCGA-38-6178"
    assert set(aliquots.donor_id) >= set(read.profile_id)


def test_missing_is_masked_in_its_profile_only(tmp_path):
    values = counts()
    values[5, 3] = np.nan
    path = tmp_path / "counts.tsv.gz"
    with gzip.open(path, "wt") as file:
        file.write(write(tmp_path / "counts.tsv", values).read_text())
    expression, report = read_bulk_matrix(path)
    assert np.isnan(expression.values[1, 4])
    assert not np.isnan(expression.values[0]).any()
    assert report.n_missing == 1
    assert not expression.to_profiles().gene_observed[4]


def test_names_that_are_no_barcodes_are_patients(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("gene,P1,P2\nACTB,3,4\nTP53,0,7\n")
    expression, report = read_bulk_matrix(path)
    assert (expression.profile_id, expression.sample_type) == (("P1", "P2"), ("", ""))
    assert "do not say the sample type of 2 (P1, P2)" in report.notes[0]


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("gene,P1\nACTB,3\n")
    first = read_matrix(path)
    assert read_matrix(path) is first
    path.write_text("gene,P1\nACTB,14\n")
    assert read_matrix(path).samples.values[0, 0] == 14


def test_what_was_said_is_in_the_provenance(tmp_path):
    path = write(tmp_path / "table_counts.tsv", counts())
    one, _ = read_bulk_matrix(path)
    assert one.provenance.settings == {"unit": "counts", "log": "none", "sample_types": ["01"]}
    other, _ = read_bulk_matrix(path, unit="rsem")
    assert other.provenance.key != one.provenance.key


def test_rsem_of_the_pairs(data_dir):
    """Six patients as published: 22,459 genes, of which 1,987 and 1,958 were not measured."""
    path = data_dir / "tcga_pairs" / "rsem_genes_x_patients.csv.gz"
    expression, report = read_bulk_matrix(path)
    assert expression.profile_id[0] == "TCGA-38-6178"
    assert expression.profile_id[-1] == "TCGA-AY-A8YK"
    assert (expression.genes.ids[0], expression.genes.ids[-1]) == ("A1BG", "tAKR")
    assert (len(expression), len(expression.genes)) == (6, 22459)
    assert (report.unit, report.log) == ("rsem", "none")
    n_missing = np.isnan(expression.values).sum(axis=1)
    assert n_missing.tolist() == [1987, 1987, 1987, 1987, 1958, 1958]
    assert report.n_missing == 4 * 1987 + 2 * 1958
    np.testing.assert_allclose(expression.values[:, 0].round(4)[:2], [69.8518, 124.1888])
    for unit in ("tpm", "counts"):
        with pytest.raises(DataError, match="rsem"):
            read_bulk_matrix(path, unit=unit)
