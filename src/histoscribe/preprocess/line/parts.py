"""Parts: what runs of consecutive fields gave, kept on disk so that a killed run can go on.

A workspace is a folder of `part-<first field>-<one past the last>.safetensors`. A part is written
beside its place and renamed, carries the key of what is prepared and a hash of its content, and is
taken up again only if all of that is right: whatever moment a run was killed at, the next one finds
whole parts, and begins where one is missing. What a part holds does not depend on how the slide was
cut into parts, so neither does the result.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt64
from numpy.typing import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from histoscribe.data.atomic import replacing
from histoscribe.data.mapped import new_mapped
from histoscribe.preprocess.describe import FieldSquares
from histoscribe.preprocess.nuclei import FieldNuclei
from histoscribe.preprocess.quality import CropTally, is_finite

LOG = logging.getLogger(__name__)
LAYOUT = "1"
"""Of a part's file; parts of another layout are made anew."""


@dataclass(frozen=True)
class FieldResult:
    """What one field gives to its slide."""

    nuclei: FieldNuclei
    squares: FieldSquares
    crops: CropTally


@dataclass(frozen=True)
class Part:
    """What the fields `first` to `stop` - 1 of a plan gave, in their order.

    Attributes:
        first: First field.
        stop: One past the last.
        unreadable: Fields that the file did not give.
        field: The field of each nucleus.
        xy_um: Centroids.
        area_um2: Areas.
        excess_um: As `FieldNuclei` has it.
        n_vertices: Vertices of each outline.
        vertex_um: Outlines, one after another.
        features: Of nuclei.
        square_um: Centres of the squares of the tile grid.
        square_features: Of squares.
        square_colour: Of squares.
        crop_hashes: Of the images that nuclei were described by, one each.
        n_constant_crops: How many of those are of one colour.
    """

    first: int
    stop: int
    unreadable: Int64[np.ndarray, " unreadable"]
    field: Int64[np.ndarray, " nucleus"]
    xy_um: Float32[np.ndarray, "nucleus 2"]
    area_um2: Float32[np.ndarray, " nucleus"]
    excess_um: Float32[np.ndarray, " nucleus"]
    n_vertices: Int64[np.ndarray, " nucleus"]
    vertex_um: Float32[np.ndarray, "vertex 2"]
    features: Float16[np.ndarray, "nucleus feature"]
    square_um: Float32[np.ndarray, "square 2"]
    square_features: Float16[np.ndarray, "square square_feature"]
    square_colour: Float32[np.ndarray, "square 6"]
    crop_hashes: UInt64[np.ndarray, " crop"]
    n_constant_crops: Int64[np.ndarray, "1"]

    def __len__(self) -> int:
        return len(self.xy_um)


COLUMNS = tuple(one.name for one in fields(Part) if one.name not in ("first", "stop"))


def make_part(
    first: int, stop: int, results: Sequence[FieldResult], unreadable: Sequence[int]
) -> Part:
    """Put fields together, in any order.

    Squares without finite features are left out here, nuclei were before. Where no field could be
    read, features have no columns.
    """
    results = sorted(results, key=lambda one: one.nuclei.field)
    nuclei, squares = [one.nuclei for one in results], [one.squares for one in results]
    square_features = _stack([one.features for one in squares], (0, 0), np.float16)
    sound = is_finite(square_features.view(np.uint16))
    return Part(
        first=first,
        stop=stop,
        unreadable=np.sort(np.array(unreadable, np.int64)),
        field=_stack([np.full(len(one), one.field) for one in nuclei], (0,), np.int64),
        xy_um=_stack([one.xy_um for one in nuclei], (0, 2), np.float32),
        area_um2=_stack([one.area_um2 for one in nuclei], (0,), np.float32),
        excess_um=_stack([one.excess_um for one in nuclei], (0,), np.float32),
        n_vertices=_stack([np.diff(one.outlines.start) for one in nuclei], (0,), np.int64),
        vertex_um=_stack([one.outlines.xy_um for one in nuclei], (0, 2), np.float32),
        features=_stack([one.features for one in nuclei], (0, 0), np.float16),
        square_um=_stack([one.xy_um for one in squares], (0, 2), np.float32)[sound],
        square_features=square_features[sound],
        square_colour=_stack([one.colour for one in squares], (0, 6), np.float32)[sound],
        crop_hashes=_stack([one.crops.all_hashes() for one in results], (0,), np.uint64),
        n_constant_crops=np.array([sum(one.crops.n_constant for one in results)]),
    )


def _stack(arrays: list[np.ndarray], empty: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(empty, dtype)


@runtime_checkable
class Parts(Protocol):
    """The parts of a slide, in memory or on disk, and the room for what is made of them."""

    def __len__(self) -> int: ...

    def spans(self) -> list[tuple[int, int]]:
        """First field, and one past the last, of each part, rising."""
        ...

    def add(self, part: Part) -> None:
        """Keep a part; on disk it is safe from now on."""
        ...

    def column(self, name: str) -> Iterator[np.ndarray]:
        """An attribute of each part, in the order of the fields."""
        ...

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """The shape of that attribute of each part."""
        ...

    def new_array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """An array to be filled with what the parts hold."""
        ...


class PartList:
    """Parts in memory, for slides that nobody wants to take up again."""

    def __init__(self) -> None:
        self._parts: dict[int, Part] = {}

    def __len__(self) -> int:
        return len(self._parts)

    def spans(self) -> list[tuple[int, int]]:
        """As `Parts`."""
        return [(part.first, part.stop) for _, part in sorted(self._parts.items())]

    def add(self, part: Part) -> None:
        """As `Parts`."""
        self._parts[part.first] = part

    def column(self, name: str) -> Iterator[np.ndarray]:
        """As `Parts`."""
        for _, part in sorted(self._parts.items()):
            yield getattr(part, name)

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """As `Parts`."""
        return [values.shape for values in self.column(name)]

    def new_array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:  # noqa: ARG002
        """As `Parts`."""
        return np.empty(shape, dtype)


class PartFolder:
    """Parts in a workspace; sound ones of the same key are taken up, all others removed."""

    def __init__(self, folder: Path, key: str, n_fields: int) -> None:
        """Open a workspace, or begin one.

        Args:
            folder: Where; nobody else may work in it.
            key: Of the provenance of what is prepared.
            n_fields: Of its plan.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.key = key
        self._paths: dict[tuple[int, int], Path] = {}
        for path in sorted(folder.iterdir()):
            span = read_span(path, key) if path.suffix == ".safetensors" else None
            is_free = span and all(span[1] <= a or span[0] >= b for a, b in self._paths)
            if span and is_free and span[1] <= n_fields:
                self._paths[span] = path
            elif path.suffix in (".safetensors", ".new", ".old"):
                LOG.info("%s is of another request or was cut off; it is made anew", path.name)
                path.unlink()

    def __len__(self) -> int:
        return len(self._paths)

    def spans(self) -> list[tuple[int, int]]:
        """As `Parts`."""
        return sorted(self._paths)

    def add(self, part: Part) -> None:
        """Write a part, whole or not at all.

        Raises:
            MissingExtra: The disk is full.
        """
        path = self.folder / f"part-{part.first:06d}-{part.stop:06d}.safetensors"
        columns = {name: np.ascontiguousarray(getattr(part, name)) for name in COLUMNS}
        facts = {
            "layout": LAYOUT,
            "key": self.key,
            "first": str(part.first),
            "stop": str(part.stop),
        }
        content = hash_columns(columns, facts)
        with replacing(path) as (new,):
            new.write_bytes(save(columns, {**facts, "content": content}))
        self._paths[part.first, part.stop] = path

    def column(self, name: str) -> Iterator[np.ndarray]:
        """As `Parts`; one part is in memory at a time."""
        for span in self.spans():
            with safe_open(self._paths[span], "numpy") as file:
                yield file.get_tensor(name)

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """As `Parts`; read from the headers alone."""
        found = []
        for span in self.spans():
            with safe_open(self._paths[span], "numpy") as file:
                found.append(tuple(file.get_slice(name).get_shape()))
        return found

    def new_array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """As `Parts`: in a file of the workspace."""
        return new_mapped(self.folder / f"{name}.raw", shape, dtype)


def read_span(path: Path, key: str) -> tuple[int, int] | None:
    """First field and one past the last of a part that is whole, of this key; else None."""
    try:
        with safe_open(path, "numpy") as file:
            facts = dict(file.metadata() or {})
            content = facts.pop("content", None)
            if facts.get("layout") != LAYOUT or facts.get("key") != key:
                return None
            columns = {name: file.get_tensor(name) for name in COLUMNS}
            span = int(facts["first"]), int(facts["stop"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    return span if content == hash_columns(columns, facts) else None


def hash_columns(columns: dict[str, np.ndarray], facts: dict[str, str]) -> str:
    """SHA-256 over names, types, shapes and values of a part's columns, and what it says it is."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(columns):
        values = columns[name]
        digest.update(f"\n{name} {values.dtype} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
