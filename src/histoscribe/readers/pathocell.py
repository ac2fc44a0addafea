"""PathoCell: H&E of tissue microarrays whose nuclei CODEX has typed (PathoCellBench, 2025).

    FOLDER/[pathocell_hdf/]reg001_A.hdf    img (3, y, x) uint16; gt_inst, gt_ct_coarse, gt_ct
                                           (1, y, x): nucleus, coarse and fine class of each pixel

As the repository Kainmueller-Lab/PathoCell (or phenobench) on Hugging Face lays it out: 109 fields
of 1440 x 1920 px. The files do not state their scale; the cohort's microscope had 0.377 µm/px.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from jaxtyping import Shaped, UInt8

from histoscribe import __version__
from histoscribe.data.atomic import hash_file
from histoscribe.data.labelled_image import LabelledImage, check_mpp
from histoscribe.data.provenance import Provenance
from histoscribe.errors import DataError
from histoscribe.readers.labelled_pixels import label_nuclei, majority_class, read_rows

COARSE = (
    "Background", "B cells", "Macrophages/Monocytes", "Adipocytes", "Dendritic cells", "T cells",
    "Granulocytes", "NK cells", "Nerves", "Plasma cells", "Smooth muscle", "Stroma", "Tumor cells",
    "Vasculature/Lymphatics", "Other cells",
)  # fmt: skip
FINE = (
    "background", "B cells", "CD11b+ monocytes", "CD11b+CD68+ macrophages", "CD11c+ DCs",
    "CD163+ macrophages", "CD3+ T cells", "CD4+ T cells", "CD4+ T cells CD45RO+",
    "CD4+ T cells GATA3+", "CD68+ macrophages", "CD68+ macrophages GzmB+",
    "CD68+CD163+ macrophages", "CD8+ T cells", "NK cells", "Tregs", "adipocytes", "dirt",
    "granulocytes", "immune cells", "immune cells / vasculature", "lymphatics", "nerves",
    "plasma cells", "smooth muscle", "stroma", "tumor cells", "tumor cells / immune cells",
    "undefined", "vasculature",
)  # fmt: skip
CLASSES = {"coarse": ("gt_ct_coarse", COARSE), "fine": ("gt_ct", FINE)}

WHITE = 99.0
"""Percentile of a channel that is taken as white: images are 16-bit, each of its own brightness."""


def read_pathocell(
    folder: Path,
    mpp: float | None,
    only: Collection[str] | None = None,
    patients: Path | None = None,
    classes: Literal["coarse", "fine"] = "coarse",
) -> Iterator[LabelledImage]:
    """Read the fields of view, by name.

    Args:
        folder: The folder of .hdf files, or the one above it.
        mpp: µm per pixel, which no file states.
        only: Names of those that are wanted; None for all.
        patients: CSV of region and patient (or the columns Region, patients of the cohort's table
            of cells); without it no patient is known.
        classes: Which of the two lists of classes.

    Raises:
        ConfigError: No scale.
        DataError: No such files, a field that is not laid out so, or one without a patient.
    """
    mpp = check_mpp(mpp)
    home = folder / "pathocell_hdf" if (folder / "pathocell_hdf").is_dir() else folder
    paths = sorted(path for path in home.glob("*.hdf") if only is None or path.stem in only)
    if not paths:
        raise DataError(f"{folder}: no field of PathoCell (*.hdf) that is wanted; check the folder")
    patient_of = None if patients is None else read_patients(patients)
    for path in paths:
        yield _read_field(path, mpp, patient_of, classes)


def read_patients(path: Path) -> dict[str, str]:
    """The patient of each region, from a CSV of one row a region, or a cell.

    Raises:
        DataError: Another file, or a region of two patients.
    """
    try:
        rows, columns = read_rows(path, ("region", "patient")), ("region", "patient")
    except DataError:
        rows, columns = read_rows(path, ("Region", "patients")), ("Region", "patients")
    patient_of: dict[str, str] = {}
    for row in rows:
        region, patient = row[columns[0]], row[columns[1]]
        if patient_of.setdefault(region, patient) != patient:
            raise DataError(f"{path}: region {region} is of two patients; correct the table")
    return patient_of


def _read_field(
    path: Path, mpp: float, patient_of: Mapping[str, str] | None, classes: str
) -> LabelledImage:
    key, names = CLASSES[classes]
    try:
        with h5py.File(path, "r") as file:
            image, labels, codes = (_array(file, name, path) for name in ("img", "gt_inst", key))
    except OSError as fault:
        raise DataError(
            f"{path}: no HDF5 file that can be read ({fault}); copy it again"
        ) from fault
    if (
        image.ndim != 3
        or len(image) != 3
        or not image.shape[1:] == labels.shape[1:] == codes.shape[1:]
    ):
        raise DataError(
            f"{path}: img {image.shape}, gt_inst {labels.shape}, {key} {codes.shape}; wanted "
            "(3, y, x) and twice (1, y, x)"
        )
    if int(codes.max(initial=0)) >= len(names) or int(codes.min(initial=0)) < 0:
        raise DataError(f"{path}: class {int(codes.max())} of {key}; wanted 0 to {len(names) - 1}")
    numbers = labels[0].astype(np.int64)
    name_of = dict(enumerate(names))
    if patient_of is not None and path.stem not in patient_of:
        raise DataError(f"the table of patients does not name region {path.stem}")
    return LabelledImage(
        image_id=path.stem,
        patient_id=None if patient_of is None else patient_of[path.stem],
        pixels=to_8_bit(image),
        mpp=mpp,
        nuclei=label_nuclei(
            numbers,
            majority_class(numbers, codes[0], name_of),
            path.stem,
            mpp,
            Provenance(
                f"histoscribe {__version__} read_pathocell",
                {"mpp": mpp, "classes": classes},
                {"nuclei": hash_file(path)},
            ),
        ),
    )


def to_8_bit(image: Shaped[np.ndarray, "3 y x"]) -> UInt8[np.ndarray, "y x 3"]:
    """8-bit colour: as it is, or each channel stretched so that its 99th percentile is white."""
    moved = np.moveaxis(image, 0, -1)
    if moved.dtype == np.uint8:
        return np.ascontiguousarray(moved)
    white = np.maximum(np.percentile(moved, WHITE, axis=(0, 1)), np.finfo(np.float32).tiny)
    return np.rint((moved / white).clip(0, 1) * 255).astype(np.uint8)


def _array(file: h5py.File, name: str, path: Path) -> np.ndarray:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "iuf":
        raise DataError(f"{path}: no array {name!r} of numbers; this is no field of PathoCell")
    return np.asarray(found[()])
