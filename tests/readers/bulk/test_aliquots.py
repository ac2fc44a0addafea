import numpy as np
import pytest

from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.bulk.aliquots import (
    LATER_TYPE,
    average,
    averaged,
    choose_samples,
    notes_on,
)
from histoscribe.readers.bulk.expression import BulkExpression

NAMES = ("a-01A", "b-11A", "c-06A", "a-01B", "a-11A", "d-01A", "d-06A", "e")
TYPES = ("01", "11", "06", "01", "11", "01", "06", "")
PATIENTS = tuple(name[0] for name in NAMES)


def choose(*wanted):
    return choose_samples(NAMES, PATIENTS, TYPES, wanted)


def samples(values, unit="tpm", types=TYPES):
    values = np.asarray(values, dtype=np.float64)
    names = NAMES[: len(values)]
    return BulkExpression(
        profile_id=names,
        genes=GenePanel(("A", "B", "C"), ("A", "B", "C"), "symbol"),
        values=values,
        unit=unit,
        sample_type=types[: len(values)],
        aliquots=tuple((name,) for name in names),
        provenance=Provenance("test"),
    )


def test_only_the_chosen_type_is_taken_and_normal_is_named():
    rows, dropped = choose("01")
    assert rows == {"a": [0, 3], "d": [5], "e": [7]}
    assert dropped == {
        "of a sample type that was not chosen: 11, solid tissue, normal": ("b-11A", "a-11A"),
        "of a sample type that was not chosen: 06, metastasis": ("c-06A", "d-06A"),
    }


def test_the_order_of_types_is_a_preference_and_types_are_never_averaged_together():
    rows, dropped = choose("01", "06")
    assert rows == {"a": [0, 3], "c": [2], "d": [5], "e": [7]}
    assert dropped[LATER_TYPE] == ("d-06A",)
    rows, dropped = choose("06", "01")
    assert rows["d"] == [6]
    assert dropped[LATER_TYPE] == ("d-01A",)


def test_normal_tissue_has_a_table_of_its_own():
    rows, _ = choose("11")
    assert rows == {"b": [1], "a": [4], "e": [7]}
    with pytest.raises(ConfigError, match="mix normal tissue"):
        choose("01", "11")


def test_what_is_not_there_is_said_with_what_is():
    with pytest.raises(DataError, match=r"none of 2 samples is of type 01; there are 03 .*2\)"):
        choose_samples(("x", "y"), ("x", "y"), ("03", "03"), ("01",))


def test_a_patient_with_and_without_a_type_is_refused():
    with pytest.raises(DataError, match=r"patient a has 2 .a-01A, a.: some say their sample type"):
        choose_samples(("a-01A", "a"), ("a", "a"), ("01", ""), ("01",))


def test_aliquots_are_averaged_where_they_were_measured():
    values = np.arange(24.0).reshape(8, 3)
    values[0, 1] = values[5, 2] = values[0, 2] = values[3, 2] = np.nan
    some = samples(values)
    rows, _ = choose("01")
    mean = average(some, rows)
    assert mean.profile_id == ("a", "d", "e")
    np.testing.assert_array_equal(
        mean.values, [[(0 + 9) / 2, 10, np.nan], [15, 16, np.nan], [21, 22, 23]]
    )
    assert mean.sample_type == ("01", "01", "")
    assert mean.aliquots == (("a-01A", "a-01B"), ("d-01A",), ("e",))
    assert averaged(some, rows) == {"a": ("a-01A", "a-01B")}
    (note,) = notes_on(some, rows)
    assert "do not say the sample type of 1 (e)" in note


def test_means_of_counts_are_whole_and_it_is_said():
    some = samples([[1, 2, 3], [9, 9, 9], [9, 9, 9], [2, 2, 6]], "counts")
    mean = average(some, {"a": [0, 3]})
    np.testing.assert_array_equal(mean.values, [[2, 2, 4]])  # 1.5, 2, 4.5: to the even one
    assert notes_on(some, {"a": [0, 3]}) == ("means of counts are rounded to whole counts",)
