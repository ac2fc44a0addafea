"""Parts come back bit by bit, or not at all."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from histoscribe.data.cells import Outlines
from histoscribe.preprocess.describe import FieldSquares
from histoscribe.preprocess.line.gather import gather_nuclei, gather_squares
from histoscribe.preprocess.line.parts import (
    COLUMNS,
    FieldResult,
    Part,
    PartFolder,
    PartList,
    Parts,
    make_part,
)
from histoscribe.preprocess.line.status import NAME, Status, read_status
from histoscribe.preprocess.nuclei import FieldNuclei
from histoscribe.preprocess.quality import CropTally
from histoscribe.preprocess.run import missing_runs

N_FIELDS = 23


def result(field: int) -> FieldResult:
    """Some nuclei and squares of a field, all distinct, 100 µm from those of others."""
    rng = np.random.default_rng(field)
    n = int(rng.integers(0, 7))
    xy = rng.uniform(0, 90, (n, 2)).astype(np.float32) + np.float32(100 * field)
    sizes = rng.integers(3, 9, n)
    outlines = Outlines(
        rng.uniform(0, 99, (int(sizes.sum()), 2)).astype(np.float32),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    )
    nuclei = FieldNuclei(
        field,
        xy,
        rng.uniform(9, 99, n).astype(np.float32),
        np.full(n, -20, np.float32),
        outlines,
        rng.normal(size=(n, 5)).astype(np.float16),
    )
    squares = FieldSquares(
        rng.uniform(0, 2300, (3, 2)).astype(np.float32),
        rng.normal(size=(3, 4)).astype(np.float16),
        rng.uniform(0, 255, (3, 6)).astype(np.float32),
    )
    crops = CropTally()
    crops.add(rng.integers(0, 255, (n, 4, 4, 3), dtype=np.uint8))
    return FieldResult(nuclei, squares, crops)


def part(first: int, stop: int, unreadable: tuple[int, ...] = ()) -> Part:
    fields = [field for field in range(first, stop) if field not in unreadable]
    return make_part(first, stop, [result(field) for field in reversed(fields)], unreadable)


def fill(parts: Parts, cuts: list[int], unreadable: tuple[int, ...] = ()) -> Parts:
    for first, stop in itertools.pairwise([0, *cuts, N_FIELDS]):
        parts.add(part(first, stop, tuple(one for one in unreadable if first <= one < stop)))
    return parts


def columns_of(parts: Parts) -> dict[str, np.ndarray]:
    """All that parts hold, one after another."""
    joined = {}
    for name in COLUMNS:
        values = [one for one in parts.column(name) if len(one)]
        joined[name] = np.concatenate(values) if values else np.zeros(0)
    joined["n_constant_crops"] = joined["n_constant_crops"].sum(keepdims=True)
    return joined


def assert_alike(one: Parts, other: Parts) -> None:
    left, right = columns_of(one), columns_of(other)
    for name in COLUMNS:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    for gather in (gather_nuclei, gather_squares):
        for a, b in zip(gather(one, 64), gather(other, 10**9), strict=True):
            if isinstance(a, Outlines):
                np.testing.assert_array_equal(a.start, b.start)
                a, b = a.xy_um, b.xy_um
            np.testing.assert_array_equal(a, b)
            assert not a.flags.writeable or a.base is None


@pytest.mark.parametrize("cuts", [[], [1, 2, 9, 22], list(range(1, N_FIELDS))])
def test_the_cut_into_parts_and_the_disk_change_nothing(tmp_path: Path, cuts: list[int]) -> None:
    unreadable = (0, 9, 10)
    held = fill(PartList(), [5, 11], unreadable)
    folder = tmp_path / "parts"
    fill(PartFolder(folder, "key", N_FIELDS), cuts, unreadable)
    again = PartFolder(folder, "key", N_FIELDS)
    assert again.spans() == list(itertools.pairwise([0, *cuts, N_FIELDS]))
    assert again.shapes("field") == [(len(x),) for x in again.column("xy_um")]
    assert_alike(held, again)
    assert columns_of(again)["unreadable"].tolist() == [0, 9, 10]


def harm_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def harm_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def harm_empty(path: Path) -> None:
    path.write_bytes(b"")


def rewrite(path: Path, **facts: str) -> None:
    """The same values under another name: the hash must tell."""
    with safe_open(path, "numpy") as file:
        metadata = {**file.metadata(), **facts}
    save_file(load_file(path), path, metadata)


def harm_span(path: Path) -> None:
    rewrite(path, first="6", stop="12")


def harm_key(path: Path) -> None:
    rewrite(path, key="other")


def harm_column(path: Path) -> None:
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    columns = load_file(path)
    del columns["area_um2"]
    save_file(columns, path, metadata)


HARMS = [harm_truncate, harm_flip, harm_empty, harm_span, harm_key, harm_column, Path.unlink]


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_part_is_made_anew(tmp_path: Path, harm: object) -> None:
    fill(PartFolder(tmp_path, "key", N_FIELDS), [5, 11])
    harm(tmp_path / "part-000005-000011.safetensors")  # type: ignore[operator]
    again = PartFolder(tmp_path, "key", N_FIELDS)
    assert again.spans() == [(0, 5), (11, N_FIELDS)]
    assert len(list(tmp_path.iterdir())) == 2
    assert list(missing_runs(again.spans(), N_FIELDS, 4)) == [
        range(5, 8),
        range(8, 11),
    ]
    for run in missing_runs(again.spans(), N_FIELDS, 4):
        again.add(part(run.start, run.stop))
    assert_alike(again, fill(PartList(), []))


def test_what_a_kill_left_and_what_is_of_others_is_removed(tmp_path: Path) -> None:
    fill(PartFolder(tmp_path, "key", N_FIELDS), [5])
    (tmp_path / ".part-000011-000016.safetensors.new").write_bytes(b"half")
    assert PartFolder(tmp_path, "key", N_FIELDS).spans() == [(0, 5), (5, N_FIELDS)]
    assert len(list(tmp_path.iterdir())) == 2
    assert PartFolder(tmp_path, "key", 11).spans() == [(0, 5)]  # of a plan of fewer fields
    assert PartFolder(tmp_path, "another key", N_FIELDS).spans() == []
    assert list(tmp_path.iterdir()) == []


def test_parts_that_overlap_are_not_both_taken(tmp_path: Path) -> None:
    parts = PartFolder(tmp_path, "key", N_FIELDS)
    for first, stop in ((0, 5), (3, 8), (8, 9)):
        parts.add(part(first, stop))
    assert PartFolder(tmp_path, "key", N_FIELDS).spans() == [(0, 5), (8, 9)]


def test_missing_runs_end_at_multiples() -> None:
    assert list(missing_runs([], 10, 4)) == [range(4), range(4, 8), range(8, 10)]
    assert list(missing_runs([(0, 4), (6, 9)], 10, 4)) == [range(4, 6), range(9, 10)]
    assert list(missing_runs([(0, 10)], 10, 4)) == []


def test_squares_without_finite_features_are_left_out() -> None:
    one = result(3)
    features = one.squares.features.copy()
    features[1, 2] = np.inf
    squares = dataclasses.replace(one.squares, features=features)
    made = make_part(3, 4, [dataclasses.replace(one, squares=squares)], [])
    np.testing.assert_array_equal(made.square_um, one.squares.xy_um[[0, 2]])
    np.testing.assert_array_equal(made.square_colour, one.squares.colour[[0, 2]])


def test_status_is_whole_at_any_moment(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    status = Status(tmp_path / "new", {"key": "k", "n_fields": 7})
    sizes = set()
    for n in (0, 1, 1000):
        status.tell({"reading": list(range(n)), "writing": []})
        told = read_status(tmp_path / "new")
        assert told["reading"] == list(range(min(n, 16)))
        sizes.add((tmp_path / "new" / NAME).stat().st_size)
    status.close()
    assert len(sizes) == 1
    assert {"key", "n_fields", "pid", "writing"} <= set(told)
    (tmp_path / "new" / NAME).write_text(json.dumps([1]))
    assert read_status(tmp_path / "new") == {}
