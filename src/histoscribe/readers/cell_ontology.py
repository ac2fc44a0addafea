"""Names and synonyms of an ontology's terms by id: OBO, OBO Graphs JSON, or CELLxGENE's JSON."""

import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from histoscribe.data.texts import ONTOLOGY_ID
from histoscribe.errors import DataError, MissingExtra
from histoscribe.readers.packed import open_packed

PACKAGE = "cellxgene_ontology_guide"
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"\s+(\w+)')
"""The value and the scope of an OBO synonym: "B-cell" EXACT []."""

Named = tuple[str, str, list[str]]
"""Id, name, exact synonyms."""


def read_ontology(path: Path, prefix: str = "CL") -> dict[str, tuple[str, ...]]:
    """Name and exact synonyms of each term, by id; the name is the first.

    Read are .obo (exact synonyms only: related ones often mean something else), .json of OBO
    Graphs (as cl.json of the OBO foundry), and .json of CELLxGENE's ontology guide; each also
    packed by gzip, and with .zst by Zstandard. Obsolete terms are left out.

    Args:
        path: The file.
        prefix: Of the ids that are wanted; terms of other ontologies in the file are left out.

    Raises:
        DataError: Missing, of another format, or without a term of that prefix.
    """
    text = _text(path)
    found = _of_json(path, text) if text.lstrip()[:1] in ("{", "[") else _of_obo(text)
    names_of = {
        term_id: tuple(dict.fromkeys(name for name in (label, *synonyms) if name.strip()))
        for term_id, label, synonyms in found
        if term_id.startswith(f"{prefix}:") and label.strip()
    }
    if not names_of:
        raise DataError(
            f"{path}: no term {prefix}:...; wanted an ontology as .obo, or as .json of OBO Graphs "
            "or of CELLxGENE's ontology guide"
        )
    return names_of


def installed_cell_ontology() -> Path:
    """The newest Cell Ontology of the package cellxgene-ontology-guide, if that is installed.

    Raises:
        MissingExtra: If it is not.
    """
    spec = find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    paths = [path for folder in folders for path in Path(folder).glob("data/CL-ontology-*.json*")]
    if not paths:
        raise MissingExtra(
            "no Cell Ontology on this machine; give one (cl.obo or cl.json of the OBO foundry), or "
            "'pip install cellxgene-ontology-guide' (98 MB)"
        )
    return max(paths, key=lambda path: path.name)


def _text(path: Path) -> str:
    try:
        if path.suffix == ".zst":
            import pyarrow as pa

            with open_packed(path) as packed, pa.input_stream(packed, compression="zstd") as plain:
                return plain.read().decode()
        with open_packed(path) as plain:
            return plain.read().decode("utf-8-sig")
    except (UnicodeDecodeError, ValueError, OSError) as fault:
        raise DataError(f"{path}: no text ({fault}); give an ontology as .obo or .json") from fault


def _of_obo(text: str) -> Iterator[Named]:
    for stanza in re.split(r"^\[", text, flags=re.MULTILINE)[1:]:
        head, _, body = stanza.partition("]")
        if head != "Term":
            continue
        tags = [line.partition(": ")[::2] for line in body.splitlines()]
        values: dict[str, list[str]] = {}
        for tag, value in tags:
            values.setdefault(tag, []).append(value.strip())
        if "id" not in values or "name" not in values or values.get("is_obsolete") == ["true"]:
            continue
        quoted = [QUOTED.match(value) for value in values.get("synonym", ())]
        synonyms = [m[1].replace('\\"', '"') for m in quoted if m and m[2] == "EXACT"]
        yield values["id"][0].split(" ")[0], values["name"][0], synonyms


def _of_json(path: Path, text: str) -> Iterator[Named]:
    try:
        record = json.loads(text)
        yield from _of_graphs(record) if "graphs" in record else _of_guide(record)
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise DataError(
            f"{path}: neither OBO Graphs nor CELLxGENE's JSON ({fault!r}); copy it again"
        ) from fault


def _of_graphs(record: Mapping[str, Any]) -> Iterator[Named]:
    """Nodes have an IRI: http://purl.obolibrary.org/obo/CL_0000236 is CL:0000236."""
    for graph in record["graphs"]:
        for node in graph.get("nodes", ()):
            meta = node.get("meta", {})
            if "lbl" not in node or meta.get("deprecated"):
                continue
            term_id = node["id"].rpartition("/")[2].replace("_", ":", 1)
            synonyms = [
                one["val"] for one in meta.get("synonyms", ()) if one["pred"] == "hasExactSynonym"
            ]
            yield term_id, node["lbl"], synonyms


def _of_guide(record: Mapping[str, Any]) -> Iterator[Named]:
    for term_id, term in record.items():
        if ONTOLOGY_ID.fullmatch(term_id) and not term.get("deprecated"):
            yield term_id, term["label"], list(term.get("synonyms", ()))
