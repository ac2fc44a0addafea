import gzip
import json

import pytest

from histoscribe.errors import DataError
from histoscribe.readers.signatures import Signature, read_signatures

IFNG = Signature("IFNG", ("STAT1", "IDO1", "CXCL9"))
CYT = Signature("CYT", ("GZMA", "PRF1"))


def test_three_forms_say_the_same(tmp_path):
    gmt = tmp_path / "a.gmt"
    gmt.write_text("IFNG\tAyers 2017\tSTAT1\tIDO1\tCXCL9\t\n\nCYT\tRooney 2015\tGZMA\tPRF1\tGZMA\n")
    as_json = tmp_path / "a.json"
    as_json.write_text(json.dumps({"IFNG": ["STAT1", "IDO1", "CXCL9"], "CYT": ["GZMA", "PRF1"]}))
    table = tmp_path / "a.csv"
    rows = [("IFNG", gene) for gene in IFNG.genes] + [("CYT", gene) for gene in CYT.genes]
    table.write_text("gene,signature\n" + "".join(f"{gene}, {name}\n" for name, gene in rows))
    tabbed = tmp_path / "a.tsv"
    tabbed.write_text(table.read_text().replace(",", "\t"))
    for path in (gmt, as_json, table, tabbed):
        assert read_signatures(path) == (IFNG, CYT), path.suffix


def test_a_gzip_behind_a_plain_name_is_read(tmp_path):
    path = tmp_path / "b.gmt"
    path.write_bytes(gzip.compress(b"CYT\tx\tGZMA\tPRF1\n"))
    assert read_signatures(path) == (CYT,)


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.txt", "x", "are read from .gmt"),
        ("a.gmt", " \n", "empty file"),
        ("a.gmt", "IFNG\tSTAT1\n", "line 1 has 2"),
        ("a.gmt", "IFNG\tx\tSTAT1\nIFNG\tx\tIDO1\n", "IFNG stands twice"),
        ("a.gmt", "IFNG\tx\t\t\n", "no genes"),
        ("a.json", "{", "no JSON"),
        ("a.json", "[1]", "wanted an object"),
        ("a.json", '{"IFNG": "STAT1"}', "wanted a list"),
        ("a.csv", "name,gene\nIFNG,STAT1\n", "no column signature"),
        ("a.csv", "signature,gene\n,STAT1\n", "no name"),
    ],
)
def test_what_is_no_signature_is_told(tmp_path, name, content, wanted):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=wanted):
        read_signatures(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_signatures(tmp_path / "none.gmt")
