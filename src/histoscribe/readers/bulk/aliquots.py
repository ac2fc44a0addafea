"""Columns or files of samples become patients: sample types chosen, aliquots averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from histoscribe.errors import DataError
from histoscribe.readers.bulk.expression import BulkExpression, tell
from histoscribe.readers.tcga_barcode import SAMPLE_TYPES, check_sample_types

OTHER_TYPE = "of a sample type that was not chosen"
LATER_TYPE = "of a sample type that comes later among those chosen, in patients who have both"


def choose_samples(
    names: Sequence[str],
    patients: Sequence[str],
    types: Sequence[str],
    wanted: Sequence[str],
) -> tuple[dict[str, list[int]], dict[str, tuple[str, ...]]]:
    """Which samples make up each patient's profile, and which are left out and why.

    The order of `wanted` counts: of a patient who has samples of several types, those of the first
    are taken. Samples whose type is not known are taken as they are.

    Args:
        names: Of the samples or aliquots.
        patients: Whose each is.
        types: Sample type of each, "" where it is not known.
        wanted: Sample types, the preferred first.

    Raises:
        ConfigError: Sample types that are none, or mix normal tissue with tumour.
        DataError: No sample is of these types, or only some of a patient's say theirs.
    """
    check_sample_types(wanted)
    rank = {code: place for place, code in enumerate(wanted)} | {"": 0}
    best: dict[str, int] = {}
    for patient, code in zip(patients, types, strict=True):
        if code in rank:
            best[patient] = min(rank[code], best.get(patient, len(rank)))
    if not best:
        raise DataError(_none_left(types, wanted))
    rows: dict[str, list[int]] = {patient: [] for patient in best}
    dropped: dict[str, list[str]] = {}
    for row, (patient, code) in enumerate(zip(patients, types, strict=True)):
        if rank.get(code) == best.get(patient, -1):
            rows[patient].append(row)
        else:
            why = LATER_TYPE if code in rank else f"{OTHER_TYPE}: {code}, {SAMPLE_TYPES[code]}"
            dropped.setdefault(why, []).append(names[row])
    for patient, taken in rows.items():
        if len({types[row] for row in taken}) > 1:
            raise DataError(
                f"patient {patient} has {tell([names[row] for row in taken])}: some say their "
                "sample type and some do not; remove those that are not wanted"
            )
    return rows, {why: tuple(left_out) for why, left_out in dropped.items()}


def average(samples: BulkExpression, rows: Mapping[str, Sequence[int]]) -> BulkExpression:
    """One profile a patient: the linear mean of its samples.

    Each gene's mean is over the samples in which it was measured; means of counts are rounded.

    Args:
        samples: A row a sample or aliquot.
        rows: Each patient's rows.
    """
    values = np.empty((len(rows), len(samples.genes)))
    for place, taken in enumerate(rows.values()):
        some = samples.values[list(taken)]
        n_measured = (~np.isnan(some)).sum(axis=0)
        total = np.where(n_measured > 0, np.nansum(some, axis=0), np.nan)
        values[place] = total / np.maximum(n_measured, 1)
        if samples.unit == "counts":
            values[place] = np.rint(values[place])
    return replace(
        samples,
        profile_id=tuple(rows),
        values=values,
        sample_type=tuple(samples.sample_type[taken[0]] for taken in rows.values()),
        aliquots=tuple(
            tuple(name for row in taken for name in samples.aliquots[row])
            for taken in rows.values()
        ),
    )


def averaged(
    samples: BulkExpression, rows: Mapping[str, Sequence[int]]
) -> dict[str, tuple[str, ...]]:
    """Patients of several samples, with the names of these."""
    return {
        patient: tuple(name for row in taken for name in samples.aliquots[row])
        for patient, taken in rows.items()
        if len(taken) > 1
    }


def notes_on(samples: BulkExpression, rows: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """What a user should know of the samples that were taken."""
    notes = []
    unknown = [patient for patient, taken in rows.items() if not samples.sample_type[taken[0]]]
    if unknown:
        notes.append(
            f"the names do not say the sample type of {tell(unknown)}: nothing tells tumour from "
            "normal tissue among them"
        )
    if samples.unit == "counts" and any(len(taken) > 1 for taken in rows.values()):
        notes.append("means of counts are rounded to whole counts")
    return tuple(notes)


def _none_left(types: Sequence[str], wanted: Sequence[str]) -> str:
    there = sorted(set(types))
    listed = ", ".join(
        f"{code} ({SAMPLE_TYPES[code]}; {sum(one == code for one in types)})" for code in there
    )
    return (
        f"none of {len(types)} samples is of type {', '.join(wanted)}; there are {listed}. "
        f"Choose with --sample-type {there[0]}"
    )
