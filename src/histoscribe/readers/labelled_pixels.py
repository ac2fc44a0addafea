"""Benchmarks of labelled nuclei: what their readers share once pixels and numbers are read."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from histoscribe.data.cells import Outlines
from histoscribe.data.nuclei import GivenNuclei, centroid_key
from histoscribe.data.provenance import Provenance
from histoscribe.errors import DataError
from histoscribe.readers.nuclei_labels import find_labels, trace_labels

SPLIT_NAME, SPLIT_SIDE = "sample_name", "train_test_val_split"


def label_nuclei(
    labels: Integer[np.ndarray, "y x"],
    class_of_number: Mapping[int, str],
    image_id: str,
    mpp: float,
    provenance: Provenance,
) -> GivenNuclei:
    """Nuclei of a map of numbers: outline, centroid and area of the largest piece of each.

    A number without a class gets the label "". Nuclei without an outline, or with the centroid of
    another, are left out.

    Args:
        labels: 0 for none, else the number of the nucleus.
        class_of_number: What each is.
        image_id: The image.
        mpp: µm per pixel.
        provenance: What read them; its first word after the program names the format.
    """
    found = find_labels(Path(image_id), labels)
    traced = trace_labels(labels, found)
    kept = np.flatnonzero(np.diff(traced.rings.start) >= 3)
    xy_um = (traced.centroid[kept] * mpp).astype(np.float32)
    first = np.sort(np.unique(centroid_key(xy_um), return_index=True)[1])
    kept, xy_um = kept[first], xy_um[first]
    rings = traced.rings.take(kept)
    return GivenNuclei(
        slide_id=image_id,
        outlines=Outlines((rings.xy * mpp).astype(np.float32), rings.start),
        xy_um=xy_um,
        area_um2=(traced.area[kept] * mpp**2).astype(np.float32),
        source=provenance.made_by.split()[-1].removeprefix("read_"),
        provenance=provenance,
        cell_type=tuple(class_of_number.get(int(n), "") for n in found.number[kept]),
    )


def majority_class(
    labels: Integer[np.ndarray, "y x"],
    classes: Integer[np.ndarray, "y x"],
    name_of_class: Mapping[int, str],
) -> dict[int, str]:
    """The class that most pixels of each nucleus have; the lower number of two that tie."""
    is_nucleus = labels > 0
    number, place = np.unique(labels[is_nucleus], return_inverse=True)
    n_classes = int(classes.max(initial=0)) + 1
    votes = np.zeros((len(number), n_classes), np.int64)
    np.add.at(votes, (place, classes[is_nucleus].astype(np.int64)), 1)
    best = votes.argmax(axis=1)
    return {
        int(one): name_of_class.get(int(code), "") for one, code in zip(number, best, strict=True)
    }


def read_split(path: Path, side: str) -> frozenset[str]:
    """Names of one side of a split of PathoCellBench, without endings.

    The file is CSV with the columns sample_name and train_test_val_split.

    Raises:
        DataError: Another file, or no such side.
    """
    rows = read_rows(path, (SPLIT_NAME, SPLIT_SIDE))
    names = {Path(row[SPLIT_NAME]).stem for row in rows if row[SPLIT_SIDE] == side}
    if not names:
        known = ", ".join(sorted({row[SPLIT_SIDE] for row in rows}))
        raise DataError(f"{path}: no sample of side {side!r}; it has {known or 'none'}")
    return frozenset(names)


def read_rows(path: Path, wanted: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV that has these columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f"{path}: cannot be read ({fault}); wanted a CSV") from fault
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise DataError(
            f"{path}: no column {missing[0]!r} among {', '.join(columns) or 'none'}; wanted "
            f"{', '.join(wanted)}"
        )
    return rows
