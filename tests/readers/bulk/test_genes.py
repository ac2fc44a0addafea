from pathlib import Path

import numpy as np
import pytest

from histoscribe.errors import DataError
from histoscribe.readers.bulk import genes
from histoscribe.readers.bulk.genes import tidy_genes

PATH = Path("table.tsv")
NAN = np.nan


def tidy(names, values=None, symbols=None):
    rows = np.arange(1.0, 2 * len(names) + 1).reshape(2, -1) if values is None else values
    return tidy_genes(names, symbols, np.asarray(rows, dtype=np.float64), PATH)


def test_versions_go_and_copies_of_a_gene_are_summed():
    names = (
        "N_unmapped",
        "ENSG00000002586.20",
        "ENSG00000000003.15",
        "ENSG00000002586.20_PAR_Y",
        "ENSGR0000124333.15",
        "ENSG00000124333.16",
    )
    found = tidy(names, symbols=("", "CD99", "TSPAN6", "CD99", "VAMP7", "VAMP7"))
    assert found.panel.ids == ("ENSG00000002586", "ENSG00000000003", "ENSG00000124333")
    assert found.panel.symbols == ("CD99", "TSPAN6", "VAMP7")
    assert found.panel.namespace == "ensembl"
    np.testing.assert_array_equal(found.values, [[2 + 4, 3, 5 + 6], [8 + 10, 9, 11 + 12]])
    assert found.summed == ("ENSG00000002586", "ENSG00000124333")
    assert found.dropped == {genes.TALLIES: ("N_unmapped",)}


def test_symbols_lose_their_entrez_id_and_what_is_none_is_left_out():
    names = ("?|100133144", "A1BG|1", "", "1-Mar", "Sep-02", "__no_feature", "A1BG", "tAKR", "NA")
    found = tidy(names)
    assert found.panel.ids == ("A1BG", "tAKR")
    assert found.panel.namespace == "symbol"
    np.testing.assert_array_equal(found.values, [[2 + 7, 8], [11 + 16, 17]])
    assert found.dropped == {
        genes.UNNAMED: ("?|100133144", "", "NA"),
        genes.DATES: ("1-Mar", "Sep-02"),
        genes.TALLIES: ("__no_feature",),
    }


def test_a_sum_with_a_part_not_measured_is_not_measured():
    values = [[1, NAN, NAN, 4, 5], [6, 7, NAN, NAN, 10]]
    found = tidy(("A", "A", "A", "B", "B"), values)
    np.testing.assert_array_equal(found.values, [[NAN, 9], [13, NAN]])
    assert found.dropped == {}  # the third row of A has nothing to add, the others are it


def test_a_gene_that_no_profile_has_is_left_out():
    found = tidy(("A", "B"), [[1, NAN], [2, NAN]])
    assert found.panel.ids == ("A",)
    assert found.dropped == {genes.UNMEASURED: ("B",)}


def test_what_is_no_ensembl_id_in_a_table_of_them_is_left_out():
    found = tidy(("ENSG00000000003", "ENSMUSG00000000001.5", "ERCC-00002"))
    assert found.panel.ids == ("ENSG00000000003", "ENSMUSG00000000001")
    assert found.dropped == {genes.NO_ENSEMBL: ("ERCC-00002",)}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("7157", "1", "2"), "genes are named by numbers .7157, 1, 2., Entrez ids perhaps"),
        (("?", "", "N_ambiguous"), "no row names a gene"),
        (("1-Mar", "2-Mar"), "no gene is left of 2 rows .2 symbols that a spreadsheet"),
    ],
)
def test_tables_without_genes_are_refused(names, message):
    with pytest.raises(DataError, match=message):
        tidy(names)
