import gzip
import json

import pyarrow as pa
import pytest

from histoscribe.errors import DataError, MissingExtra
from histoscribe.readers.cell_ontology import PACKAGE, installed_cell_ontology, read_ontology

OBO = """format-version: 1.2

[Term]
id: CL:0000236
name: B cell
synonym: "B lymphocyte" EXACT []
synonym: "a \\"B\\" cell" EXACT [x]
synonym: "bursa cell" RELATED []

[Term]
id: CL:0000001
name: old cell
is_obsolete: true

[Term]
id: UBERON:0000006
name: islet

[Typedef]
id: CL:0000002
name: is a
"""
GRAPHS = {
    "graphs": [
        {
            "nodes": [
                {
                    "id": "http://purl.obolibrary.org/obo/CL_0000236",
                    "lbl": "B cell",
                    "meta": {
                        "synonyms": [
                            {"pred": "hasExactSynonym", "val": "B lymphocyte"},
                            {"pred": "hasRelatedSynonym", "val": "bursa cell"},
                            {"pred": "hasExactSynonym", "val": 'a "B" cell'},
                        ]
                    },
                },
                {
                    "id": "http://purl.obolibrary.org/obo/CL_0000001",
                    "lbl": "old cell",
                    "meta": {"deprecated": True},
                },
                {"id": "http://purl.obolibrary.org/obo/CL_0000003"},
            ]
        }
    ]
}
GUIDE = {
    "CL:0000236": {"label": "B cell", "synonyms": ["B lymphocyte", 'a "B" cell']},
    "CL:0000001": {"label": "old cell", "deprecated": True},
}
WANTED = {"CL:0000236": ("B cell", "B lymphocyte", 'a "B" cell')}


@pytest.mark.parametrize("content", [OBO, json.dumps(GRAPHS), json.dumps(GUIDE)])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_names_and_exact_synonyms_of_each_format(tmp_path, content, packed):
    path = tmp_path / f"cl.any{packed}"
    if packed == ".zst":
        with pa.output_stream(path, compression="zstd") as file:
            file.write(content.encode())
    else:
        path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert read_ontology(path) == WANTED


def test_terms_of_another_ontology_are_read_when_asked_for(tmp_path):
    path = tmp_path / "cl.obo"
    path.write_text(OBO)
    assert read_ontology(path, "UBERON") == {"UBERON:0000006": ("islet",)}


@pytest.mark.parametrize("content", ["", "name,id\nB cell,CL:1\n", '{"a": 1}', "{", "[1]"])
def test_what_is_no_ontology_is_refused(tmp_path, content):
    path = tmp_path / "cl.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"cl\.json"):
        read_ontology(path)


def test_the_newest_ontology_of_the_package_is_found(tmp_path, monkeypatch):
    folder = tmp_path / PACKAGE / "data"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    for version in ("v2025-02-13", "v2026-03-26", "v2025-07-30"):
        (folder / f"CL-ontology-{version}.json").write_text(json.dumps(GUIDE))
    monkeypatch.syspath_prepend(tmp_path)
    path = installed_cell_ontology()
    assert path.name == "CL-ontology-v2026-03-26.json"
    assert read_ontology(path) == WANTED


def test_a_machine_without_the_package_says_what_to_give(tmp_path, monkeypatch):
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtra, match=r"cl\.obo"):
        installed_cell_ontology()
