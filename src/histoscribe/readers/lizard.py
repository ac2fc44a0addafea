"""Lizard: H&E of colon with labelled nuclei (Graham et al. 2021).

FOLDER/**/NAME.png                                     images, 20x: 0.5 µm/px, not stated
FOLDER/**/Labels/NAME.mat                              inst_map, id, class, bbox, centroid
FOLDER/**/info.csv                                     Filename, Source, Split (1 to 3)
"""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy.io import loadmat, whosmat

from histoscribe import __version__
from histoscribe.data.atomic import hash_file
from histoscribe.data.labelled_image import LabelledImage, check_mpp
from histoscribe.data.provenance import Provenance
from histoscribe.errors import DataError
from histoscribe.readers.labelled_pixels import label_nuclei, read_rows

CLASSES = (
    "Neutrophil", "Epithelial", "Lymphocyte", "Plasma", "Eosinophil", "Connective tissue",
)  # fmt: skip
"""Of the numbers 1 to 6."""

NUMBERS = {
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "single",
    "double",
}
"""Classes of MATLAB arrays that are read: no objects, no functions."""


def read_lizard(
    folder: Path,
    mpp: float | None,
    only: Collection[str] | None = None,
    split: int | None = None,
) -> Iterator[LabelledImage]:
    """Read the images that have labels, by name. Nobody says whose they are.

    Args:
        folder: Where the published archives were unpacked.
        mpp: µm per pixel, which no file states.
        only: Names of those that are wanted; None for all.
        split: One of the three folds of info.csv; None for all.

    Raises:
        ConfigError: No scale.
        DataError: No labels, a label file that is not laid out so, or an image that is missing or
            of another size.
    """
    mpp = check_mpp(mpp)
    wanted = None if split is None else _fold(folder, split)
    labels = {
        path.stem: path
        for path in sorted(folder.rglob("*.mat"))
        if (only is None or path.stem in only) and (wanted is None or path.stem in wanted)
    }
    if not labels:
        raise DataError(f"{folder}: no labels of Lizard (*.mat) that are wanted; check the folder")
    images = {path.stem: path for path in sorted(folder.rglob("*.png"))}
    for name, path in labels.items():
        if name not in images:
            raise DataError(f"{path}: there is no image {name}.png below {folder}; unpack both")
        yield _read_image(images[name], path, mpp)


def _read_image(image: Path, path: Path, mpp: float) -> LabelledImage:
    numbers, class_of = _read_labels(path)
    pixels = _read_pixels(image)
    if pixels.shape[:2] != numbers.shape:
        raise DataError(
            f"{path}: labels of {numbers.shape[1]} x {numbers.shape[0]} px, image "
            f"{image.name} has {pixels.shape[1]} x {pixels.shape[0]}"
        )
    provenance = Provenance(
        f"histoscribe {__version__} read_lizard",
        {"mpp": mpp},
        {"nuclei": hash_file(path), "image": hash_file(image)},
    )
    nuclei = label_nuclei(numbers, class_of, path.stem, mpp, provenance)
    return LabelledImage(path.stem, None, pixels, mpp, nuclei)


def _read_labels(path: Path) -> tuple[np.ndarray, dict[int, str]]:
    wanted = ("inst_map", "id", "class")
    try:
        kinds = {name: kind for name, _, kind in whosmat(path)}
        if any(kinds.get(name) not in NUMBERS for name in wanted):
            raise ValueError(f"arrays {kinds}")
        content = loadmat(path, variable_names=wanted)
        numbers = np.asarray(content["inst_map"]).astype(np.int64)
        ids, codes = (np.asarray(content[name]).ravel().astype(int) for name in wanted[1:])
        if numbers.ndim != 2 or len(ids) != len(codes):
            raise ValueError(f"a map of {numbers.shape}, {len(ids)} ids, {len(codes)} classes")
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as fault:
        raise DataError(
            f"{path}: no labels of Lizard ({fault}); wanted inst_map (y, x), id and class"
        ) from fault
    if len(codes) and (codes.min() < 1 or codes.max() > len(CLASSES)):
        raise DataError(f"{path}: classes {codes.min()} to {codes.max()}; wanted 1 to 6")
    return numbers, {int(i): CLASSES[code - 1] for i, code in zip(ids, codes, strict=True)}


def _read_pixels(path: Path) -> UInt8[np.ndarray, "y x 3"]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as fault:
        raise DataError(f"{path}: no image that can be read ({fault}); copy it again") from fault


def _fold(folder: Path, split: int) -> frozenset[str]:
    tables = sorted(folder.rglob("info.csv"))
    if not tables:
        raise DataError(f"{folder}: no info.csv, which says the split; leave the split out")
    rows = read_rows(tables[0], ("Filename", "Split"))
    return frozenset(row["Filename"] for row in rows if row["Split"] == str(split))
