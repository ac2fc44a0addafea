"""Class maps: what a benchmark's labels are called here, and by which words they are asked for.

They are data files, frozen before the first test: a changed word is another benchmark.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from histoscribe.annotate.queries import WordClass
from histoscribe.annotate.word_model import TEMPLATES
from histoscribe.data.texts import Term, key_of
from histoscribe.errors import ConfigError, DataError

NAMES = ("pathocell", "lizard", "pannuke")


@dataclass(frozen=True)
class ClassMap:
    """Classes of a benchmark.

    Attributes:
        name: Of the map.
        classes: What is asked for.
        labels: For each class, the labels of the benchmark that count as it.
        dropped: Labels that count as none.
        templates: Prompt templates.
        composite: How a class of several terms is scored.
    """

    name: str
    classes: tuple[WordClass, ...]
    labels: tuple[tuple[str, ...], ...]
    dropped: tuple[str, ...]
    templates: tuple[str, ...]
    composite: str

    def count(
        self,
        label_of_cell: Sequence[str],
        unit_of_cell: Int64[np.ndarray, " cell"],
        n_units: int,
    ) -> Float64[np.ndarray, "unit class"]:
        """How many cells of each class each unit has.

        Args:
            label_of_cell: Labels of the benchmark.
            unit_of_cell: The unit that each is in, -1 for none.
            n_units: Number of units.

        Raises:
            DataError: A label that the map does not know.
        """
        class_of = {label: n for n, labels in enumerate(self.labels) for label in labels}
        unknown = set(label_of_cell) - set(class_of) - set(self.dropped)
        if unknown:
            raise DataError(
                f"class map {self.name} does not know label {sorted(unknown)[0]!r}; it has "
                f"{', '.join(class_of)}, and drops {', '.join(filter(None, self.dropped))}"
            )
        number = np.array([class_of.get(label, -1) for label in label_of_cell], dtype=np.int64)
        counts = np.zeros((n_units, len(self.classes)))
        is_counted = (number >= 0) & (unit_of_cell >= 0)
        np.add.at(counts, (unit_of_cell[is_counted], number[is_counted]), 1)
        return counts


def read_class_map(name: str | Path) -> ClassMap:
    """One of the frozen maps by name, or a file of the same form.

    Raises:
        ConfigError: No such map.
        DataError: A file that is no class map.
    """
    if str(name) in NAMES:
        text = files("histoscribe.evaluate.class_maps").joinpath(f"{name}.json").read_text("utf-8")
        return _from_record(json.loads(text), str(name))
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"no class map {name}; give {', '.join(NAMES)} or a JSON file")
    try:
        return _from_record(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise DataError(f"{path}: no JSON ({fault}); wanted a class map") from fault


def _from_record(record: Mapping[str, Any], where: str) -> ClassMap:
    try:
        classes = tuple(
            WordClass(
                one["name"],
                tuple(
                    Term(key_of(term["names"][0]), tuple(term["names"])) for term in one["terms"]
                ),
            )
            for one in record["classes"]
        )
        return ClassMap(
            name=record["name"],
            classes=classes,
            labels=tuple(tuple(one.get("labels", ())) for one in record["classes"]),
            dropped=tuple(record.get("dropped", ())),
            templates=tuple(record.get("templates", TEMPLATES)),
            composite=record.get("composite", "logsumexp"),
        )
    except (KeyError, TypeError, IndexError, AttributeError) as fault:
        raise DataError(
            f"{where}: no class map ({fault!r}); wanted name and classes, each with name, labels "
            "and terms"
        ) from fault
