import numpy as np
import pytest

from histoscribe.errors import DataError
from histoscribe.readers.bulk.units import FLOOR, find_scale, to_linear

LOGGED = {
    "log2p1": lambda x: np.log2(x + 1),
    "ln1p": np.log1p,
    "log10p1": lambda x: np.log10(x + 1),
    "log2p0.001": lambda x: np.log2(x + 0.001),
}
N_GENES = 1511


def expression(total: float | None = 1e6) -> np.ndarray:
    """7 profiles of 1511 genes with zeros, as heavy-tailed as expression is."""
    rng = np.random.default_rng(11)
    values = rng.lognormal(1.5, 2.5, (7, N_GENES)) * (rng.random((7, N_GENES)) < 0.8)
    return values if total is None else values / values.sum(axis=1, keepdims=True) * total


def counts() -> np.ndarray:
    return np.rint(expression(None))


@pytest.mark.parametrize("log", LOGGED)
def test_a_log_undone_is_what_it_was(log):
    values = expression()
    values[2, 3] = np.nan
    again = to_linear(LOGGED[log](values), log)
    np.testing.assert_allclose(again, values, rtol=1e-9, atol=1e-9)
    assert np.isnan(again[2, 3])
    assert (again[values == 0] == 0).all()


@pytest.mark.parametrize("log", LOGGED)
def test_tpm_are_told_whatever_their_log(log):
    scale = find_scale(np.round(LOGGED[log](expression()), 4), "table.tsv")
    assert (scale.unit, scale.log) == ("tpm", log)


def test_linear_tpm_are_told_by_their_sum():
    scale = find_scale(np.round(expression(), 4), "table.tsv")
    assert (scale.unit, scale.log) == ("tpm", "none")
    assert scale.unit_reason == "every sample sums to 1e6"
    assert "no logarithms" in scale.log_reason
    assert scale.notes == ("CPM sum to 1e6, too, and are not told from TPM by their values",)
    assert find_scale(expression(), "x_tpm.tsv").notes == ()


def test_counts_are_told_by_being_whole():
    assert find_scale(counts(), "table.tsv")[:2] == ("counts", "none")
    assert find_scale(counts() % 31, "table.tsv")[:2] == ("counts", "none")


@pytest.mark.parametrize("log", ["log2p1", "ln1p", "log10p1"])
def test_logs_of_counts_are_told_by_coming_back_whole(log):
    values = np.round(LOGGED[log](counts()), 5)
    scale = find_scale(values, "table.tsv")
    assert (scale.unit, scale.log) == ("counts", log)
    np.testing.assert_array_equal(
        np.rint(to_linear(values, log))[counts() < 1000], counts()[counts() < 1000]
    )


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("rsem_genes_x_patients.csv.gz", "rsem"),
        ("data_mrna_seq_v2_rsem.txt", "rsem"),
        ("LUAD.rnaseqv2.txt", "rsem"),
        ("tcga_gene_expected_count.tsv", "rsem"),
        ("cohort_FPKM.csv", "fpkm"),
    ],
)
def test_what_only_a_name_can_say_is_taken_from_it(name, unit):
    scale = find_scale(expression(3.7e6), name)
    assert (scale.unit, scale.log) == (unit, "none")
    assert "the file's name says so" in scale.unit_reason


def test_a_part_of_tpm_is_told_by_name_and_by_summing_to_less():
    scale = find_scale(expression(0.81e6), "protein_coding_tpm.tsv")
    assert scale.unit == "tpm"
    assert "a part of the genes" in scale.unit_reason
    with pytest.raises(DataError, match=r"its name says tpm, .* samples sum to 3\.7e\+06"):
        find_scale(expression(3.7e6), "x_tpm.tsv")


def test_tables_of_xena_are_what_their_hub_says():
    fpkm = np.log2(expression(0.4e6) + 1)
    scale = find_scale(fpkm, "TCGA-LUAD.star_fpkm.tsv.gz")
    assert (scale.unit, scale.log) == ("fpkm", "log2p1")
    assert "UCSC Xena" in scale.log_reason
    rsem = np.log2(expression(2e7) + 1)
    assert find_scale(rsem, "HiSeqV2.gz")[:2] == ("rsem", "log2p1")
    with pytest.raises(DataError, match="its name says no unit"):  # the rank of a gene, no RSEM
        find_scale(expression(1e5) / 1e3, "HiSeqV2_percentile.gz")
    with pytest.raises(DataError, match="its name says no unit"):  # no FPKM
        find_scale(fpkm, "TCGA-LUAD.star_fpkm-uq.tsv.gz")


def test_rsem_is_never_called_tpm():
    with pytest.raises(DataError, match="its name says rsem"):
        find_scale(expression(), "rsem.tsv")
    with pytest.raises(DataError, match="given as TPM, and a sample sums to 2e"):
        find_scale(expression(2e7), "rsem.tsv", unit="tpm")
    assert find_scale(expression(2e7), "rsem.tsv").unit == "rsem"


def test_what_is_given_counts_and_a_contradiction_is_said():
    assert find_scale(expression(2e7), "table.tsv", unit="rsem")[:3] == ("rsem", "none", "as given")
    scale = find_scale(expression(), "table.tsv", unit="fpkm", log="none")
    assert scale.notes == ("given as fpkm, though every sample sums to 1e6 as TPM do",)
    small = find_scale(expression()[:, :7] / 1e6 + 0.3, "table.tsv", unit="rsem", log="none")
    assert "given as log none, though the largest value is" in small.notes[0]


@pytest.mark.parametrize(
    ("values", "given", "message"),
    [
        (
            np.log2(expression(2e7) + 1),
            {},
            "which may be linear or a logarithm.*say which with --log",
        ),
        (np.log2(expression(2e7) + 1), {"unit": "rsem"}, "say which with --log"),
        (
            expression(2e7),
            {},
            r"the unit cannot be told.*--unit, in a manifest column unit \(tpm, fpkm, rsem",
        ),
        (expression() - 3, {}, "negative values are z-scores"),
        (expression() - 3, {"log": "none"}, "cannot be; negative values are z-scores"),
        (expression() - 20, {"log": "log2p0.001"}, "cannot be; negative values are z-scores"),
        (expression(2e7), {"log": "log2p1"}, "given as log log2p1, and holds .* which cannot be"),
        (counts() % 17, {"log": "ln1p"}, "logarithms are no whole numbers"),
        (np.log2(expression() + 1), {"log": "none"}, "no linear unit has so little"),
        (expression(), {"unit": "counts"}, "holds fractions once linear"),
        (
            np.log1p(expression()),
            {"unit": "tpm", "log": "log2p1"},
            "read as ln1p every sample sums to",
        ),
        (expression() * 0, {}, "all values are 0"),
        (expression() * np.nan, {}, "no value at all"),
        (np.where(expression() == 0, np.inf, 1.0), {}, "an infinite value"),
    ],
)
def test_what_cannot_be_told_is_refused(values, given, message):
    with pytest.raises(DataError, match=message):
        find_scale(values, "table.tsv", **given)


def test_names_that_contradict_the_values_are_refused():
    with pytest.raises(DataError, match="its name says counts"):
        find_scale(expression(2e7), "normalized_counts.tsv")
    with pytest.raises(DataError, match="its name says fpkm"):
        find_scale(counts(), "fpkm.tsv")


def test_the_floor_of_toil_is_told_from_other_negatives():
    values = np.round(np.log2(expression(2e7) + 0.001), 4)
    assert abs(values.min() - FLOOR) < 1e-3
    assert find_scale(values, "tcga_RSEM_gene_fpkm.gz")[:2] == ("fpkm", "log2p0.001")
