from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.data.profiles import Profiles, to_linear
from histoscribe.data.provenance import Provenance
from histoscribe.data.store import read_profiles, write_profiles
from histoscribe.data.texts import texts_of
from histoscribe.errors import DataError, MismatchError

COUNTS = np.array([[1, 0, 4, 2], [0, 3, 0, 5], [7, 1, 0, 0.0]])
PROFILES = Profiles(
    profile_id=("a", "b", "c"),
    expression=csr_array(COUNTS),
    expression_unit="counts",
    genes=GenePanel(("g1", "g2", "g3", "g4"), ("S1", "S2", "S3", "S4"), "symbol"),
    gene_observed=np.ones(4, dtype=bool),
    provenance=Provenance("test"),
    label=("B", "", "T"),
    text=("B cell", "", "T cell"),
    text_key=("b", "", "t"),
    platform=("10x", "10x", ""),
    donor_id=("d1", "", "d2"),
)


def test_all_fields_come_back_from_disk(tmp_path):
    write_profiles(PROFILES, tmp_path)
    back = read_profiles(tmp_path)
    for name in ("profile_id", "label", "text", "text_key", "platform", "donor_id", "genes"):
        assert getattr(back, name) == getattr(PROFILES, name), name
    np.testing.assert_array_equal(back.expression.toarray(), COUNTS)


def test_what_is_not_known_is_empty_and_stays_so_on_disk(tmp_path):
    bare = replace(PROFILES, platform=(), donor_id=(), text_key=None)
    assert bare.platform == bare.donor_id == ("", "", "")
    write_profiles(bare, tmp_path)
    back = read_profiles(tmp_path)
    assert back.platform == back.donor_id == ("", "", "")
    assert back.text_key is None


@pytest.mark.parametrize("name", ["platform", "donor_id", "text_key", "label"])
def test_a_field_of_another_length_is_refused(name):
    with pytest.raises(DataError, match=name):
        replace(PROFILES, **{name: ("x", "y")})


def test_rows_are_taken_with_all_that_is_said_of_them():
    some = PROFILES.take(np.array([2, 0]))
    assert some.profile_id == ("c", "a")
    assert some.donor_id == ("d2", "d1")
    assert some.text_key == ("t", "b")
    np.testing.assert_array_equal(some.expression.toarray(), COUNTS[[2, 0]])


def test_aligned_genes_are_moved_and_those_it_lacks_are_not_observed():
    panel = GenePanel(("g4", "new", "g1"), ("", "x", "y"), "symbol")
    some = PROFILES.align(panel)
    np.testing.assert_array_equal(some.gene_observed, [True, False, True])
    np.testing.assert_array_equal(some.expression.toarray()[:, [0, 2]], COUNTS[:, [3, 0]])
    assert not some.expression.toarray()[:, 1].any()
    with pytest.raises(MismatchError, match="none of the 1"):
        PROFILES.align(GenePanel(("z",), ("z",), "symbol"))
    with pytest.raises(MismatchError, match="ensembl"):
        PROFILES.align(GenePanel(("g1",), ("z",), "ensembl"))


@pytest.mark.parametrize("is_log", [False, True])
def test_genes_of_one_new_name_are_added_in_linear_units(is_log):
    profiles = PROFILES
    if is_log:
        logs = csr_array(np.log1p(COUNTS))
        profiles = replace(PROFILES, expression=logs, expression_unit="log1p_cp10k")
    same = profiles.rename(("E1", "E2", "E1", "E3"), "ensembl")
    assert same.genes == GenePanel(("E1", "E2", "E3"), ("S1", "S2", "S4"), "ensembl")
    wanted = np.stack([COUNTS[:, 0] + COUNTS[:, 2], COUNTS[:, 1], COUNTS[:, 3]], axis=1)
    np.testing.assert_allclose(to_linear(same).toarray(), wanted, rtol=1e-5)


def test_a_gene_is_observed_where_all_of_its_names_were():
    seen = replace(
        PROFILES,
        expression=csr_array(COUNTS * [1, 1, 0, 1]),
        gene_observed=np.array([True, True, False, True]),
    )
    same = seen.rename(("E1", "E2", "E1", "E3"), "ensembl")
    np.testing.assert_array_equal(same.gene_observed, [False, True, True])
    np.testing.assert_array_equal(same.expression.toarray()[:, 0], [0, 0, 0])


def test_texts_of_profiles_stand_once_and_gaps_are_none():
    twice = PROFILES.take(np.array([0, 0, 1, 2]).astype(int)[1:])
    assert texts_of(twice).text == ("B cell", "T cell")
    assert texts_of(replace(PROFILES, text_key=None)).text_key == ("b cell", "t cell")


def test_vectors_of_another_model_go_along(tmp_path):
    vectors = np.array([[1, 2], [np.nan, np.nan], [3, 4]], np.float32)
    some = replace(PROFILES, features=vectors, features_by="X_other").take(np.array([2, 1]))
    np.testing.assert_array_equal(some.features, vectors[[2, 1]])
    write_profiles(some, tmp_path)
    back = read_profiles(tmp_path)
    np.testing.assert_array_equal(back.features, some.features)
    assert back.features_by == "X_other"
    renamed = back.rename(("g1", "g2", "g2", "g4"), "symbol")
    np.testing.assert_array_equal(renamed.features, some.features)


@pytest.mark.parametrize(
    ("features", "by", "match"),
    [
        (np.ones((3, 2), np.float32), None, "together"),
        (None, "X_other", "together"),
        (np.ones((2, 2), np.float32), "X_other", "shape"),
        (np.array([[1, 2], [np.nan, 1], [0, 0]], np.float32), "X_other", "vector 1"),
    ],
)
def test_vectors_that_are_none_are_refused(features, by, match):
    with pytest.raises(DataError, match=match):
        replace(PROFILES, features=features, features_by=by)
