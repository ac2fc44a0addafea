"""Matrices by hand, in each published layout: rows, columns, first and last names."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoscribe.errors import DataError
from histoscribe.readers.bulk.table import read_gene_table

XENA = """Ensembl_ID\tTCGA-38-6178-01A\tTCGA-49-4488-01A\tTCGA-44-2665-11A
ENSG00000000003.15\t3.1\t0\t7.25
ENSG00000000005.6\t0\t1.5\t
ENSG00000000419.13\t4\t4.5\t5
ENSG00000291317.1\t0\t0\t0.5
"""
XENA_OLD = """sample\tTCGA-38-6178-01\tTCGA-49-4488-01
ARHGEF10L\t9.9\t9.1
?|100133144\t0\t1
RNF10|9921\t11.2\t12
"""
CBIOPORTAL = """# a line that is passed over
Hugo_Symbol\tEntrez_Gene_Id\tTCGA-38-6178-01\tTCGA-A6-6782-01\tTCGA-AY-A8YK-01
LOC100130426\t100130426\t0\tNA\t0.5
UBE2Q2P3\t100133144\t16.4\t9.3\t11
\t10357\t52.2\t62.6\t80
NA\t9\t1\t2\t3
"""
RSEM = """,TCGA-38-6178,TCGA-44-2665
A1BG,69.8518,124.1888
A2BP1,,
tAKR,0.0,0.4644
"""
WIDE = """patient,ACTB,GAPDH,RARE1
P1,10.5,20,0
P2,1,,2.25
"""
R_TABLE = """"S 1"\t"S 2"
"ACTB"\t1\t2.5
"NA"\t3\t4
"""
STAR = "gene_id\tgene_name\ttpm_unstranded\nENSG00000000003.15\tTSPAN6\t5\n"
NAMED = """gene_symbol,S1,S2
gene-a,1,2
gene-b,3,4
"""


def write(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    if name.endswith(".gz"):
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(text)
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "name", "genes", "profiles"),
    [
        (
            XENA,
            "star_tpm.tsv.gz",
            (4, "ENSG00000000003.15", "ENSG00000291317.1"),
            (3, "TCGA-38-6178-01A", "TCGA-44-2665-11A"),
        ),
        (
            XENA_OLD,
            "HiSeqV2",
            (3, "ARHGEF10L", "RNF10|9921"),
            (2, "TCGA-38-6178-01", "TCGA-49-4488-01"),
        ),
        (
            CBIOPORTAL,
            "data_mrna_seq_v2_rsem.txt",
            (4, "LOC100130426", "NA"),
            (3, "TCGA-38-6178-01", "TCGA-AY-A8YK-01"),
        ),
        (RSEM, "rsem.csv.gz", (3, "A1BG", "tAKR"), (2, "TCGA-38-6178", "TCGA-44-2665")),
        (WIDE, "wide.csv", (3, "ACTB", "RARE1"), (2, "P1", "P2")),
        (R_TABLE, "r.tsv", (2, "ACTB", "NA"), (2, "S 1", "S 2")),
        (NAMED, "named.csv", (2, "gene-a", "gene-b"), (2, "S1", "S2")),
        (
            "\ufeff" + NAMED.replace("\n", "\r\n"),
            "windows.csv",
            (2, "gene-a", "gene-b"),
            (2, "S1", "S2"),
        ),
    ],
)
def test_each_layout_is_read_whole(tmp_path, text, name, genes, profiles):
    table = read_gene_table(write(tmp_path, text, name))
    assert (len(table.gene), table.gene[0], table.gene[-1]) == genes
    assert (len(table.profile), table.profile[0], table.profile[-1]) == profiles
    assert table.values.shape == (profiles[0], genes[0])


def test_values_stand_where_they_stood(tmp_path):
    xena = read_gene_table(write(tmp_path, XENA, "x.tsv"))
    np.testing.assert_array_equal(xena.values[:, 0], [3.1, 0, 7.25])
    np.testing.assert_array_equal(xena.values[2], [7.25, np.nan, 5, 0.5])  # empty is not 0
    portal = read_gene_table(write(tmp_path, CBIOPORTAL, "c.txt"))
    np.testing.assert_array_equal(portal.values[:, 0], [0, np.nan, 0.5])
    assert (portal.gene[2], portal.is_gene_in_row) == ("", True)
    wide = read_gene_table(write(tmp_path, WIDE, "w.csv"))
    np.testing.assert_array_equal(wide.values, [[10.5, 20, 0], [1, np.nan, 2.25]])
    assert not wide.is_gene_in_row


@pytest.mark.parametrize("text", [XENA, WIDE, RSEM])
def test_a_transposed_table_is_the_same(tmp_path, text):
    separator = "\t" if "\t" in text else ","
    lines = [line.split(separator) for line in text.strip("\n").split("\n")]
    turned = "\n".join(separator.join(line) for line in zip(*lines, strict=True)) + "\n"
    one = read_gene_table(write(tmp_path, text, "one.csv"))
    other = read_gene_table(write(tmp_path, turned, "other.csv"))
    assert (one.gene, one.profile) == (other.gene, other.profile)
    np.testing.assert_array_equal(one.values, other.values)
    assert one.is_gene_in_row != other.is_gene_in_row


@pytest.mark.parametrize("is_indexed", [True, False])
def test_parquet_is_the_same_as_text(tmp_path, is_indexed):
    text = read_gene_table(write(tmp_path, RSEM, "rsem.csv"))
    frame = pd.DataFrame(
        text.values.T, index=pd.Index(text.gene, name="gene"), columns=text.profile
    )
    path = tmp_path / "rsem.parquet"
    (frame if is_indexed else frame.reset_index()).to_parquet(path)
    table = read_gene_table(path)
    assert (table.gene, table.profile) == (text.gene, text.profile)
    np.testing.assert_array_equal(table.values, text.values)


def test_symbols_beside_ids_are_kept(tmp_path):
    text = "gene_id\tgene_name\tgene_type\tS1\nENSG00000000003.15\tTSPAN6\tprotein_coding\t5\n"
    table = read_gene_table(write(tmp_path, text, "t.tsv"))
    assert (table.gene, table.symbol) == (("ENSG00000000003.15",), ("TSPAN6",))
    text = "Entrez_Gene_Id\tHugo_Symbol\tS1\n7105\tTSPAN6\t5\n"
    assert read_gene_table(write(tmp_path, text, "e.tsv")).gene == ("TSPAN6",)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("gene,S1\nACTB,one\n", "t.csv", "'one' in column 'S1' is no number"),
        ("gene\tS1\nACTB\t1,5\n", "t.tsv", "'1,5' in column 'S1' is no number .decimal point"),
        ("gene,S1,S2\nACTB,1,2\nTP53,3\n", "t.csv", "3 columns in the .*, 2 in the line 'TP53,3'"),
        ("gene,S1,S1\nACTB,1,2\n", "t.csv", r"1 profiles occur more than once"),
        ("id,ACTB,TP53\nS1,1,2\nS1,1,2\n", "t.csv", r"1 profiles occur more than once"),
        ("gene,S1,note\nACTB,1,good\n", "t.csv", "'good' in column 'note' is no number"),
        ("", "t.csv", "empty, no line of numbers"),
        ("gene,S1\n", "t.csv", "empty, no line of numbers"),
        ("gene S1\nACTB 1\n", "t.txt", "one column .gene S1.; wanted a name and numbers"),
        ("id,a,b\nx,1,2\ny,3,4\n", "t.csv", r"neither its rows \(x, y, ...\) nor its"),
        ("id,length,ACTB\nS1,1,2\n", "t.csv", "column length names something else; remove it"),
        ("PK\x03\x04", "t.xlsx", "a spreadsheet; save it as CSV"),
        (STAR, "t.tsv", "GDC's gene counts of one sample; give the folder"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, name, message):
    with pytest.raises(DataError, match=message):
        read_gene_table(write(tmp_path, text, name))


def test_files_that_are_broken_or_not_there_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_gene_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no such file"):
        read_gene_table(tmp_path / "none.parquet")
    for name in ("t.csv", "t.csv.gz", "t.parquet"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00junk")
        with pytest.raises(DataError, match="cannot be read as a table"):
            read_gene_table(tmp_path / name)
    whole = write(tmp_path, XENA * 50, "torn.tsv.gz").read_bytes()
    (tmp_path / "torn.tsv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"torn\.tsv\.gz: cannot be read"):
        read_gene_table(tmp_path / "torn.tsv.gz")


def test_parquet_without_names_is_refused(tmp_path):
    pd.DataFrame({"S1": [1.0], "S2": [2.0]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="no first column of text"):
        read_gene_table(tmp_path / "t.parquet")
    frame = pd.DataFrame({"gene": ["ACTB"], "S1": [1.0], "note": ["good"]})
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'note' holds no numbers"):
        read_gene_table(tmp_path / "t.parquet")
