from dataclasses import replace

import numpy as np
import pytest

from histoscribe.data.texts import Texts
from histoscribe.data.toy import toy_world
from histoscribe.errors import DataError, MismatchError
from histoscribe.readers.image_text import read_image_texts
from histoscribe.readers.text_table import read_texts

REGIONS = toy_world(5).regions.take(np.arange(3))
SLIDE, FIRST, THIRD = REGIONS.slide_id[0], REGIONS.region_id[0], REGIONS.region_id[2]
BULK = replace(
    REGIONS.take(np.array([0])),
    kind="bulk",
    xy_um=np.full((1, 2), np.nan, np.float32),
    radius_um=np.inf,
    pitch_um=np.nan,
)


def read(tmp_path, content):
    path = tmp_path / "texts.csv"
    path.write_text(content)
    return read_image_texts(path)


def test_texts_are_attached_to_their_regions(tmp_path):
    said = read(
        tmp_path,
        f"slide_id,region_id,text\n{SLIDE},{FIRST},Invasive  tumour\n{SLIDE},{THIRD},Fat\n"
        "elsewhere,1,Fat\n",
    )
    assert said.attach(REGIONS).text_key == ("invasive tumour", "", "fat")
    assert said.texts == Texts(("invasive tumour", "fat"), ("Invasive tumour", "Fat"))


def test_several_texts_of_an_image_are_wordings_of_one_key(tmp_path):
    said = read(tmp_path, "image,text\ns1,Tumour\ns1,A carcinoma\ns2,A carcinoma\ns2,Tumour\n")
    assert said.texts.keys == ("a carcinoma | tumour",)
    assert said.texts.wordings("a carcinoma | tumour") == ("Tumour", "A carcinoma")


def test_given_keys_are_taken(tmp_path):
    said = read(tmp_path, "image,text,text_key\ns1,Tumour,neo\ns2,A carcinoma,neo\n")
    assert said.key_of_place == {("s1", ""): "neo", ("s2", ""): "neo"}


def test_a_text_of_a_slide_is_one_of_the_whole_sample_only(tmp_path):
    said = read(tmp_path, f"image,text\n{SLIDE},Tumour\n")
    assert said.attach(BULK).text_key == ("tumour",)
    with pytest.raises(MismatchError, match="the whole of"):
        said.attach(REGIONS)


def test_texts_of_nothing_in_the_study_are_refused(tmp_path):
    with pytest.raises(MismatchError, match="no text is of"):
        read(tmp_path, "image,text\nelsewhere,Tumour\n").attach(REGIONS)
    with pytest.raises(MismatchError, match="region nowhere"):
        read(tmp_path, f"image,region,text\n{SLIDE},nowhere,Tumour\n").attach(REGIONS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image,words\ns1,Tumour\n", "no column text"),
        ("file,text\ns1,Tumour\n", "no column of images"),
        ("image,text\ns1,\n", "line 2 lacks"),
        ("image,text,text_key\ns1,Tumour,a\ns1,Fat,b\n", "wanted one"),
        ("image,text,text_key\ns1,Tumour,a\ns2,Tumour,b\n", "of keys 'a' and 'b'"),
        ("image,text\ns1,Tumour\ns2,Tumour\ns2,Fat\n", "of keys"),
    ],
)
def test_tables_that_say_two_things_or_none_are_refused(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        read(tmp_path, content)


def test_own_texts_by_key_or_label(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text("label\ttext\nB cell\ta lymphocyte  of B line\nT cell\tfrom the thymus\n")
    assert read_texts(path) == Texts(
        ("B cell", "T cell"), ("a lymphocyte of B line", "from the thymus")
    )
    path.write_text("what\ttext\nB cell\tx\n")
    with pytest.raises(DataError, match="wanted one of text_key"):
        read_texts(path)
    path.write_text("label\ttext\nB cell\t\n")
    with pytest.raises(DataError, match=r"own\.tsv"):
        read_texts(path)
