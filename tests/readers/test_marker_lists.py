import json

import numpy as np
import pytest

from histoscribe.data.genes import GenePanel
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.readers.marker_lists import (
    AugmentConfig,
    MarkerSet,
    pseudo_profiles,
    read_marker_sets,
    rename_markers,
)

PANEL = GenePanel(
    ("ENSG00000000001", "ENSG00000000002", "ENSG00000000003", "ENSG00000000004", "ENSG00000000005"),
    ("CD19", "MS4A1", "CD3E", "TWIN", "TWIN"),
    "ensembl",
)
B = MarkerSet("B_cell", ("CD19", "ENSG00000000002.7", "NOGENE", "TWIN"), (1.0, 2.5, 1.0, 1.0))
T = MarkerSet("T cell", ("CD3E", "CD19"), (1.0, -1.0))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.gmt", "B\tabout\tCD19\tMS4A1\nT\t\tCD3E\n"),
        ("m.json", json.dumps({"B": ["CD19", "MS4A1"], "T": ["CD3E"]})),
        ("m.csv", "term,gene\nB,CD19\nT,CD3E\nB,MS4A1\n"),
        ("m.tsv", "cell_type\tgene\tweight\nB\tCD19\t\nB\tMS4A1\t1\nT\tCD3E\t1.0\n"),
    ],
)
def test_each_format_gives_the_same_sets(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    assert read_marker_sets(path) == (
        MarkerSet("B", ("CD19", "MS4A1"), (1.0, 1.0)),
        MarkerSet("T", ("CD3E",), (1.0,)),
    )


def test_weights_are_kept(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"B": {"CD19": 2, "CD3E": -0.5}}))
    (tmp_path / "m.csv").write_text("term,gene,weight\nB,CD19,2\nB,CD3E,-0.5\n")
    wanted = (MarkerSet("B", ("CD19", "CD3E"), (2.0, -0.5)),)
    assert read_marker_sets(tmp_path / "m.json") == wanted
    assert read_marker_sets(tmp_path / "m.csv") == wanted


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.csv", "term,gene\nB,CD19\nB,CD19\n", "line 3 repeats CD19"),
        ("m.csv", "term,gene\nB,\n", "line 2 lacks"),
        ("m.csv", "name,gene\nB,CD19\n", "wanted term, gene"),
        ("m.csv", "term,gene,weight\nB,CD19,much\n", "'much' is no number"),
        ("m.csv", "term,gene,weight\nB,CD19,0\n", "wanted no 0"),
        ("m.json", '{"B": [1]}', "markers of B"),
        ("m.json", "[]", "an object"),
        ("m.json", "{}", "no marker set"),
        ("m.txt", "B CD19", "read from"),
    ],
)
def test_what_is_no_marker_list_is_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        read_marker_sets(path)


def test_a_pseudo_profile_has_its_weights_on_its_markers_and_the_mean_elsewhere():
    made = pseudo_profiles([B, T], PANEL)
    np.testing.assert_array_equal(made.z, [[1, 2.5, 0, 0, 0], [-1, 0, 1, 0, 0]])
    assert made.is_observed.all()
    assert made.missing == {"B_cell": ("NOGENE", "TWIN")}
    assert made.profile_id == ("B_cell", "T cell")
    assert made.text_key == ("b cell", "t cell")
    assert made.text == ("B cell", "T cell")


CD19, CD79A = "ENSG00000177455", "ENSG00000105369"


@pytest.mark.parametrize(
    ("ids", "namespace", "genes", "wanted"),
    [
        ((CD19, CD79A), "ensembl", ("CD19", "CD79A"), (CD19, CD79A)),
        (("CD19", "CD79A"), "symbol", (CD19, f"{CD79A}.9"), ("CD19", "CD79A")),
        ((CD19,), "ensembl", (f"{CD19}.4", "CD79A", "NOGENE"), (CD19, "CD79A", "NOGENE")),
        (("Cd19",), "symbol", ("Cd19", "CD79A"), ("Cd19", "CD79A")),
    ],
)
def test_markers_are_named_as_what_they_meet(ids, namespace, genes, wanted):
    weights = tuple(1.0 + row for row in range(len(genes)))
    (made,) = rename_markers([MarkerSet("B", genes, weights)], ids, namespace)
    assert made == MarkerSet("B", wanted, weights)


def test_a_marker_of_two_names_counts_once():
    both = MarkerSet("B", ("CD19", CD19, "CD79A"), (2.0, 3.0, 4.0))
    (made,) = rename_markers([both], (CD19,), "ensembl")
    assert made == MarkerSet("B", (CD19, "CD79A"), (2.0, 4.0))


def test_markers_that_do_not_count_are_missing():
    observed = np.array([False, True, True, False, True])
    made = pseudo_profiles([B], PANEL, AugmentConfig(2, noise=0.3), observed)
    assert made.missing == {"B_cell": ("CD19", "NOGENE")}
    assert not made.z[:, ~observed].any()
    np.testing.assert_array_equal(made.z[0], [0, 2.5, 0, 0, 1])


def test_copies_are_drawn_by_seed_and_not_by_the_sets_beside():
    augment = AugmentConfig(4, dropout=0.5, noise=0.1, seed=3)
    both, alone = pseudo_profiles([B, T], PANEL, augment), pseudo_profiles([T], PANEL, augment)
    np.testing.assert_array_equal(both.z[4:], alone.z)
    np.testing.assert_array_equal(both.z[0], [1, 2.5, 0, 0, 0])
    other = pseudo_profiles([T], PANEL, AugmentConfig(4, dropout=0.5, noise=0.1, seed=4))
    assert (other.z[1:] != alone.z[1:]).any()
    assert both.profile_id[3:5] == ("B_cell #3", "T cell #0")


def test_a_copy_keeps_one_marker_at_least_and_loses_its_share():
    many = GenePanel(tuple(f"g{n}" for n in range(211)), ("",) * 211, "symbol")
    big = MarkerSet("x", many.ids, (1.0,) * 211)
    made = pseudo_profiles([big, MarkerSet("y", ("g3",), (1.0,))], many, AugmentConfig(41, 0.9))
    n_kept = (made.z != 0).sum(axis=1)
    assert n_kept[0] == 211
    assert 0.05 < n_kept[1:41].mean() / 211 < 0.15
    assert (n_kept[41:] == 1).all()


def test_the_heights_of_a_copy_are_spread_evenly_about_its_weights():
    many = GenePanel(tuple(f"g{n}" for n in range(211)), ("",) * 211, "symbol")
    half = MarkerSet("x", many.ids[:100], (1.0,) * 50 + (-2.0,) * 50)
    augment = AugmentConfig(41, dropout=0.3, spread=0.5, seed=3)
    z = pseudo_profiles([half], many, augment).z
    np.testing.assert_array_equal(z[0, :100], half.weights)
    ratio = z[1:, :100] / np.array(half.weights)
    kept = ratio[ratio != 0]
    np.testing.assert_allclose(np.quantile(kept, [0.25, 0.5, 0.75]), [0.75, 1, 1.25], atol=0.03)
    assert kept.min() >= 0.5
    assert kept.max() <= 1.5
    assert not z[:, 100:].any()
    plain = pseudo_profiles([half], many, AugmentConfig(41, dropout=0.3, seed=3)).z
    np.testing.assert_array_equal(z != 0, plain != 0)  # the spread changes no other draw


def test_sets_that_fit_no_panel_are_refused():
    with pytest.raises(MismatchError, match="none of the 1 markers of x"):
        pseudo_profiles([MarkerSet("x", ("NOGENE",), (1.0,))], PANEL)
    with pytest.raises(DataError, match="stands twice"):
        pseudo_profiles([T, T], PANEL)
    for wrong in ({"dropout": 1.0}, {"spread": 1.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} 1.0"):
            AugmentConfig(**wrong)
