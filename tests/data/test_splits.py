"""No patient on both sides of any split, unless the split says so."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoscribe.data.splits import Split, check_split, leave_one_out, strips
from histoscribe.errors import ConfigError, DataError


@given(st.lists(st.integers(0, 4), min_size=1, max_size=13))
def test_no_patient_stands_on_both_sides(patients):
    slides = [f"s{i}" for i in range(len(patients))]
    names = [f"p{patient}" for patient in patients]
    patient_of = dict(zip(slides, names, strict=True))
    if len(set(names)) < 2:
        with pytest.raises(DataError, match="one patient only"):
            leave_one_out(slides, names, "patient")
        return
    splits = leave_one_out(slides, names, "patient")
    tested = [slide for split in splits for slide in split.test]
    assert sorted(tested) == sorted(slides)
    for split in splits:
        sides = [{patient_of[s] for s in side} for side in (split.train, split.test)]
        assert not sides[0] & sides[1]
        assert sorted((*split.train, *split.test)) == sorted(slides)
        check_split(split, slides, names)


def test_sections_are_split_only_by_saying_so():
    slides, patients = ["C2", "C3", "C4"], ["C", "C", "C"]
    splits = leave_one_out(slides, patients, "section")
    assert [split.test for split in splits] == [("C2",), ("C3",), ("C4",)]
    assert all(split.unit == "section" for split in splits)
    with pytest.raises(DataError, match="say so"):
        leave_one_out(slides, patients, "patient")
    leaking = Split(("C2", "C3"), ("C4",), "patient")
    with pytest.raises(DataError, match="patient C is on both sides"):
        check_split(leaking, slides, patients)


def test_a_split_is_sound():
    with pytest.raises(DataError, match="both"):
        Split(("a", "b"), ("b",), "section")
    with pytest.raises(DataError, match="both sides"):
        Split((), ("b",), "patient")
    with pytest.raises(DataError, match="not in the data"):
        check_split(Split(("a",), ("z",), "patient"), ["a", "b"], ["1", "2"])
    with pytest.raises(DataError, match="patients"):
        leave_one_out(["a", "a"], ["1", "2"], "patient")


def test_all_can_be_trained_on_and_nothing_tested_only_by_saying_so():
    everything = Split(("a", "b"), (), "none")
    check_split(everything, ["a", "b"], ["1", "1"])
    for unit in ("patient", "section", "strip"):
        with pytest.raises(DataError, match="unit='none'"):
            Split(("a", "b"), (), unit)
    with pytest.raises(DataError, match="slide b is to be tested"):
        Split(("a",), ("b",), "none")
    with pytest.raises(DataError, match="both sides"):
        Split((), (), "none")


def test_strips_keep_their_distance():
    rng = np.random.default_rng(4)
    xy = rng.uniform(0, 5000, (307, 2))
    fold = strips(xy, 3, buffer_um=400.0)
    for a in range(3):
        for b in range(a):
            gap = np.abs(xy[fold == a, 0][:, None] - xy[fold == b, 0]).min()
            assert gap >= 400.0
    assert {-1, 0, 1, 2} == set(fold.tolist())
    assert (strips(xy, 5, 0.0) >= 0).all()


def test_a_buffer_that_swallows_a_strip_is_refused():
    xy = np.stack([np.arange(49) * 10.0, np.zeros(49)], axis=1)
    with pytest.raises(DataError, match="no region left"):
        strips(xy, 3, buffer_um=400.0)
    with pytest.raises(ConfigError):
        strips(xy, 1, 0.0)
