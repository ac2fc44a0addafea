import json
from dataclasses import fields, replace

import numpy as np
import pyarrow.parquet
import pytest
from pandas import read_parquet

from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.errors import DataError
from histoscribe.readers.bulk.expression import (
    BulkExpression,
    is_ours,
    read_expression,
    write_expression,
)

NAN = np.nan
BULK = BulkExpression(
    profile_id=("P1", "P 2", "P3"),
    genes=GenePanel(("ENSG00000000003", "ENSG00000000419"), ("TSPAN6", "DPM1"), "ensembl"),
    values=np.array([[0.5, 0.0], [NAN, 118582.6833], [3.0, NAN]]),
    unit="rsem",
    sample_type=("01", "", "06"),
    aliquots=(("P1-01A", "P1-01B"), ("P 2",), ("P3-06A",)),
    provenance=Provenance("test", {"log": "none"}, {"table": "ab12"}),
)


def test_what_is_written_is_read(tmp_path):
    write_expression(BULK, tmp_path / "e.parquet")
    read = read_expression(tmp_path / "e.parquet")
    for one in fields(BULK):
        if one.name != "values":
            assert getattr(read, one.name) == getattr(BULK, one.name), one.name
    np.testing.assert_array_equal(read.values, BULK.values.astype(np.float32))
    assert is_ours(tmp_path / "e.parquet")


def test_counts_are_kept_to_the_last(tmp_path):
    counts = replace(BULK, unit="counts", values=np.array([[2.0**24 + 1, 0], [NAN, 7], [0, 1]]))
    write_expression(counts, tmp_path / "e.parquet")
    np.testing.assert_array_equal(read_expression(tmp_path / "e.parquet").values, counts.values)


def test_one_profile_is_read_alone(tmp_path):
    write_expression(BULK, tmp_path / "e.parquet")
    one = read_expression(tmp_path / "e.parquet", ["P3"])
    assert (one.profile_id, one.sample_type) == (("P3",), ("06",))
    np.testing.assert_array_equal(one.values, [[3.0, NAN]])
    with pytest.raises(DataError, match=r"no profile P4; it has 3 \(P1, P 2, P3\)"):
        read_expression(tmp_path / "e.parquet", ["P4"])


def test_other_programs_read_it_alone(tmp_path):
    write_expression(BULK, tmp_path / "e.parquet")
    frame = read_parquet(tmp_path / "e.parquet")
    assert list(frame.columns) == ["gene_id", "symbol", "P1", "P 2", "P3"]
    assert frame["P 2"].isna().tolist() == [True, False]
    facts = json.loads(pyarrow.parquet.read_schema(tmp_path / "e.parquet").metadata[b"histoscribe"])
    assert (facts["unit"], facts["log"], facts["namespace"]) == ("rsem", "none", "ensembl")
    assert facts["samples"]["P1"] == {"sample_type": "01", "aliquots": ["P1-01A", "P1-01B"]}
    assert facts["provenance"]["inputs"] == {"table": "ab12"}


def test_the_same_expression_gives_the_same_bytes(tmp_path):
    for name in ("one.parquet", "two.parquet"):
        write_expression(BULK, tmp_path / name)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_what_is_not_ours_or_broken_is_refused(tmp_path):
    path = tmp_path / "e.parquet"
    with pytest.raises(DataError, match="no such file"):
        is_ours(path)
    read_frame = tmp_path / "other.parquet"
    write_expression(BULK, path)
    read_parquet(path).to_parquet(read_frame)
    assert not is_ours(read_frame)
    with pytest.raises(DataError, match="no table of this version's 'histoscribe match'"):
        read_expression(read_frame)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_expression(path)


def test_profiles_have_one_mask_for_all():
    profiles = BULK.take(np.array([2, 0])).to_profiles()
    assert profiles.profile_id == ("P3", "P1")
    assert profiles.gene_observed.tolist() == [True, False]
    np.testing.assert_array_equal(profiles.expression.toarray(), [[3.0, 0], [0.5, 0]])


@pytest.mark.parametrize("value", [-0.5, np.inf])
def test_expression_is_neither_negative_nor_infinite(value):
    with pytest.raises(DataError, match="negative or infinite"):
        replace(BULK, values=np.where(BULK.values == 0.5, value, BULK.values))


def test_a_profile_named_as_a_column_of_genes_is_refused(tmp_path):
    with pytest.raises(DataError, match="a profile is called symbol"):
        write_expression(replace(BULK, profile_id=("P1", "symbol", "P3")), tmp_path / "e.parquet")
