"""Frozen class maps: nobody changes a word without this test saying so."""

import hashlib
import json
from importlib.resources import files

import numpy as np
import pytest

from histoscribe.errors import ConfigError, DataError
from histoscribe.evaluate.class_map import NAMES, read_class_map
from histoscribe.readers import lizard, pannuke, pathocell

FROZEN = {
    "lizard": "a73f9d05989785075754c13a7fcbd24504734ede8fb47ff037ab20c97529feb2",
    "pannuke": "3e53e0698f11c9c0155d9989eca260904b56d52df143b05fad0c513be6b33f74",
    "pathocell": "ce6d6d8139e13a11908d4ec693629b75437c0cba1546972b8a7eb5d4c5e41981",
}
LABELS = {
    "lizard": lizard.CLASSES,
    "pannuke": pannuke.CLASSES,
    "pathocell": pathocell.COARSE,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_maps_are_frozen(name):
    content = files("histoscribe.evaluate.class_maps").joinpath(f"{name}.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == FROZEN[name]


@pytest.mark.parametrize(("name", "n"), [("pathocell", 13), ("lizard", 3), ("pannuke", 4)])
def test_each_label_of_the_benchmark_has_one_place(name, n):
    known = read_class_map(name)
    assert len(known.classes) == n
    placed = [label for labels in known.labels for label in labels]
    assert sorted([*placed, *(d for d in known.dropped if d)]) == sorted(LABELS[name])


def test_cells_are_counted_by_class():
    leukocytes = read_class_map("lizard")
    labels = ("Neutrophil", "Plasma", "Lymphocyte", "Epithelial", "", "Eosinophil")
    counts = leukocytes.count(labels, np.array([0, 0, 1, 1, 1, -1]), 3)
    assert counts.tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]
    with pytest.raises(DataError, match="'Glia'"):
        leukocytes.count(("Glia",), np.array([0]), 1)


def test_a_map_of_ones_own(tmp_path):
    record = {"name": "mine", "classes": [{"name": "B", "terms": [{"names": ["B cell", "b"]}]}]}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(record))
    mine = read_class_map(path)
    assert mine.classes[0].members[0].names == ("B cell", "b")
    assert mine.composite == "logsumexp"
    path.write_text('{"name": "mine", "classes": [{"name": "B"}]}')
    with pytest.raises(DataError, match="no class map"):
        read_class_map(path)
    path.write_text("{")
    with pytest.raises(DataError, match="JSON"):
        read_class_map(path)
    with pytest.raises(ConfigError, match="pathocell"):
        read_class_map("lizzard")
