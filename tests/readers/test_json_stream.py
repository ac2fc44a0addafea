import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoscribe.errors import DataError
from histoscribe.readers import json_stream
from histoscribe.readers.json_stream import JsonStream

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30
)


def walk(text: str, opens=lambda place: len(place) < 2):
    return list(JsonStream(io.StringIO(text), Path("f.json")).walk(opens))


def put_together(pieces):
    """What the pieces of a document say it is."""
    if len(pieces) == 1 and pieces[0][0] == ():
        return pieces[0][1]
    children: dict = {}
    for place, value in pieces:
        children.setdefault(place[0], []).append((place[1:], value))
    values = {key: put_together(some) for key, some in children.items()}
    return list(values.values()) if all(isinstance(key, int) for key in values) else values


@given(
    value=VALUES, block=st.integers(1, 40), depth=st.integers(0, 4), indent=st.none() | st.just(2)
)
def test_the_pieces_make_the_document_whatever_the_window(value, block, depth, indent):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "BLOCK", block)
        pieces = walk(json.dumps(value, indent=indent), lambda place: len(place) < depth)
    assert put_together(pieces) == value
    assert all(len(place) <= depth for place, _ in pieces)


def test_members_come_one_by_one_with_their_places():
    text = '{"mag": 40, "nuc": {"1": {"a": [1]}, "4": 2}, "cells": [[5], {}], "none": []}'
    opens = {(), ("nuc",), ("cells",), ("none",)}
    assert walk(text, lambda place: place in opens) == [
        (("mag",), 40),
        (("nuc", "1"), {"a": [1]}),
        (("nuc", "4"), 2),
        (("cells", 0), [5]),
        (("cells", 1), {}),
        (("none",), []),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends early"),
        ('{"a": [1, 2', "ends early"),
        ('{"a": 1', "ends early"),
        ('{"a" 1}', "colon is wanted"),
        ("{1: 2}", "name in quotes"),
        ("[1 2]", r"comma or \] is wanted"),
        ('{"a": tru}', "at character 6"),
        ("[1] [2]", "more text follows"),
        ('{"a": ' + "[" * 100_000, "nested too deep|ends early"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(text, message):
    with pytest.raises(DataError, match=message) as caught:
        walk(text, lambda place: len(place) < 1)
    assert "f.json" in str(caught.value)


def test_a_fault_far_ahead_of_the_window_is_told_at_its_place(monkeypatch):
    monkeypatch.setattr(json_stream, "BLOCK", 100)
    text = '{"cells": [' + ", ".join(["[1, 2]"] * 500) + ", [1; 2]]}"
    with pytest.raises(DataError, match=f"character {text.index(';')}"):
        walk(text)
