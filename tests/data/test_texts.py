import numpy as np
import pytest

from histoscribe.data.metadata_text import describe, metadata_texts, rekey_texts
from histoscribe.data.texts import Term, Texts, ids_of_names, join_texts, key_of, read_terms
from histoscribe.errors import ConfigError, DataError

CELLS = {
    "CL:0000236": ("B cell", "B lymphocyte", "B-cell"),
    "CL:0000084": ("T cell", "T lymphocyte"),
    "CL:1": ("naive cell", "lymphocyte"),
    "CL:2": ("other cell", "lymphocyte"),
}


def terms(tmp_path, text, names_of=None):
    path = tmp_path / "terms.txt"
    path.write_text(text, encoding="utf-8")
    return read_terms(path, names_of)


def test_terms_of_every_way_of_writing_them(tmp_path):
    text = (
        "\ufeff# lymphocytes\n\nB cells | B lymphocytes # CL:0000236\n CL:0000084 \n"
        "plasma_cell|  plasmablast | plasma_cell  # a remark\nt  Cell of mine\n"
    )
    assert terms(tmp_path, text, CELLS) == (
        Term("CL:0000236", ("B cells", "B lymphocytes"), "CL:0000236"),
        Term("CL:0000084", ("T cell", "T lymphocyte"), "CL:0000084"),
        Term("plasma cell", ("plasma_cell", "plasmablast"), None),
        Term("t cell of mine", ("t  Cell of mine",), None),
    )


def test_a_name_of_the_ontology_gets_its_id_and_keeps_its_own_synonyms(tmp_path):
    (term,) = terms(tmp_path, "b-CELL | bursa cell", CELLS)
    assert term == Term("CL:0000236", ("b-CELL", "bursa cell"), "CL:0000236")
    assert term.name == "b-CELL"


def test_a_synonym_of_two_terms_has_no_id():
    ids = ids_of_names(CELLS)
    assert "lymphocyte" not in ids
    assert ids["b lymphocyte"] == "CL:0000236"


def test_a_name_goes_before_the_synonym_of_another():
    assert ids_of_names({"A:1": ("x", "y"), "A:2": ("y",)}) == {"x": "A:1", "y": "A:2"}


@pytest.mark.parametrize(
    ("text", "names_of", "said"),
    [
        ("CL:0000236", None, "give the ontology"),
        ("CL:0000999", CELLS, "CL:0000999 is not in the ontology"),
        (" | # CL:0000236", None, "line 1"),
        ("# nothing\n", None, "no term"),
        ("B cell\nT cell\nb_cell", None, "lines 1 and 3"),
        ("B cell\nCL:0000236", CELLS, "lines 1 and 2"),
    ],
)
def test_terms_that_are_none(tmp_path, text, names_of, said):
    with pytest.raises(DataError, match=said):
        terms(tmp_path, text, names_of)


def test_no_file_of_terms(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt"):
        read_terms(tmp_path / "none.txt")


def test_wordings_by_key():
    texts = Texts(("b", "a", "b"), ("B cell", "A cell", "B lymphocyte"))
    assert texts.keys == ("b", "a")
    assert texts.wordings("b") == ("B cell", "B lymphocyte")
    assert texts.wordings("c") == ()
    np.testing.assert_array_equal(texts.rows_of_key["b"], [0, 2])


@pytest.mark.parametrize(
    ("keys", "texts"), [(("a", "b"), ("x", "x")), (("a", "a"), ("x", "x")), (("",), ("x",))]
)
def test_one_wording_has_one_key(keys, texts):
    with pytest.raises(DataError):
        Texts(keys, texts)


def test_joined_texts_stand_once():
    one, two = Texts(("a",), ("x",)), Texts(("a", "b"), ("x", "y"))
    assert join_texts([one, two]) == two
    with pytest.raises(DataError, match="of keys 'a' and 'c'"):
        join_texts([one, Texts(("c",), ("x",))])


def test_keys_fold_case_and_gaps_and_prefer_ids():
    assert key_of("CD8+  T_cell") == "cd8+ t cell"
    assert key_of("B cell", "CL:0000236") == "CL:0000236"
    assert key_of("B cell", "unknown") == "b cell"


def test_templates_from_short_to_full():
    record = {"cell_type": "B cell", "tissue": "lung", "disease": "adenocarcinoma", "assay": "10x"}
    assert describe(record) == (
        "B cell",
        "B cell from lung",
        "B cell from lung, adenocarcinoma",
    )
    assert describe({"cell_type": "B cell", "tissue": "lung", "disease": "normal"}) == (
        "B cell",
        "B cell from healthy lung",
    )
    assert describe({"tissue": "lung", "disease": "fibrosis"}) == ("lung", "lung, fibrosis")
    assert describe({"cell_type": "unknown", "tissue": "nan"}) == ()


def test_all_cells_of_a_type_share_a_key_whatever_their_tissue():
    said = metadata_texts(
        {"cell_type": ["B cell", "B cell", "T cell", "na"], "tissue": ["lung", "skin", "lung", ""]},
        ["CL:0000236", "", "", ""],
        Texts(("b_cell", "t cell"), ("lymphocytes of the B line", "thymocyte")),
    )
    assert said.text_key == ("CL:0000236", "CL:0000236", "t cell", "")
    assert said.text == ("B cell from lung", "B cell from skin", "T cell from lung", "")
    assert said.texts.wordings("CL:0000236") == (
        "B cell",
        "B cell from lung",
        "B cell from skin",
        "lymphocytes of the B line",
    )


def test_keyed_by_annotation_the_fullest_wording_is_the_only_one():
    said = metadata_texts(
        {"cell_type": ["B cell", "B cell"], "tissue": ["lung", "skin"]}, keyed_by="annotation"
    )
    assert said.text_key == ("b cell from lung", "b cell from skin")
    assert said.texts.text == ("B cell from lung", "B cell from skin")


def test_metadata_that_no_text_can_speak_of():
    with pytest.raises(ConfigError, match="assay"):
        metadata_texts({"assay": ["10x"]})
    with pytest.raises(DataError, match="'NK cell'"):
        rekey_texts(Texts(("NK cell",), ("a killer",)), ["B cell"], ["b cell"])
