import pytest

from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.tcga_barcode import (
    Barcode,
    check_sample_types,
    check_slide_types,
    find_barcode,
    parse_barcode,
)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("TCGA-38-6178", Barcode("TCGA-38-6178")),
        ("TCGA-A6-6782-01", Barcode("TCGA-A6-6782", "01")),
        ("TCGA-38-6178-01A", Barcode("TCGA-38-6178", "01", "A")),
        ("TCGA-38-6178-01A-11R-1755-07", Barcode("TCGA-38-6178", "01", "A", "11")),
        ("TCGA.AB.2803.03A", Barcode("TCGA-AB-2803", "03", "A")),
        ("TCGA_DD_AAVP.tsv", Barcode("TCGA-DD-AAVP")),
        ("TCGA-38-6178-01Z-00-DX1.tif", Barcode("TCGA-38-6178", "01", "Z", "00", "DX1")),
        (
            "TCGA-G9-6385-11A-01-TS1.2b5b1fd2-0b2a-4b1c-9a38-1f2f3b4c5d6e.svs",
            Barcode("TCGA-G9-6385", "11", "A", "01", "TS1"),
        ),
        ("tcga-cr-7395-01a-01-ts1.svs", Barcode("TCGA-CR-7395", "01", "A", "01", "TS1")),
        ("TCGA-44-2665-01B-06-BS6", Barcode("TCGA-44-2665", "01", "B", "06", "BS6")),
        ("normalized_TCGA-EE-A2M5-06A-01-TSA.tif", Barcode("TCGA-EE-A2M5", "06", "A", "01", "TSA")),
    ],
)
def test_every_published_form_is_read(name, wanted):
    assert parse_barcode(name) == wanted


def test_a_slide_knows_its_type_and_normal_tissue_is_known():
    assert parse_barcode("TCGA-44-2665-01B-06-BS6").slide_type == "BS"
    assert parse_barcode("TCGA-G9-6385-11A-01-TS1").is_normal
    assert not parse_barcode("TCGA-44-2665-01B-06-BS6").is_normal
    assert parse_barcode("TCGA-38-6178-01A-11R-1755-07").slide_type == ""


@pytest.mark.parametrize("name", ["", "S1.svs", "TCGA", "TCGA-38-61789", "XTCGA-38-6178"])
def test_what_is_no_barcode_is_refused(name):
    assert find_barcode(name) is None
    with pytest.raises(DataError, match="holds no TCGA barcode; wanted one such as TCGA-38"):
        parse_barcode(name)


def test_an_unknown_sample_type_is_refused():
    with pytest.raises(DataError, match="sample type 77, which TCGA has not got"):
        parse_barcode("TCGA-38-6178-77A")


@pytest.mark.parametrize("chosen", [["01"], ["11"], ["01", "06", "02"], ["10", "11"]])
def test_tumour_alone_and_normal_alone_may_be_chosen(chosen):
    check_sample_types(chosen)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["01", "11"], r"mix normal tissue \(11\) with tumour"),
        (["03", "10", "11"], r"mix normal tissue \(10, 11\) with tumour"),
        (["1"], "sample types 1: wanted one or more"),
        (["01", "01"], "each once"),
        ([], "sample types none"),
    ],
)
def test_sample_types_that_cannot_be(chosen, message):
    with pytest.raises(ConfigError, match=message):
        check_sample_types(chosen)


@pytest.mark.parametrize("chosen", [[], ["XX"], ["DX", "DX"], ["dx"]])
def test_slide_types_that_cannot_be(chosen):
    check_slide_types(["DX", "TS"])
    with pytest.raises(ConfigError, match=r"wanted one or more, each once, of DX \(diagnostic"):
        check_slide_types(chosen)
