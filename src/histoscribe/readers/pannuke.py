"""PanNuke: 256 px tiles of H&E of 19 tissues with labelled nuclei (Gamper et al. 2020).

    FOLDER/images/fold2/images.npy      (tile, 256, 256, 3), 0 to 255
    FOLDER/images/fold2/types.npy       (tile,) tissue, text
    FOLDER/masks/fold2/masks.npy        (tile, 256, 256, 6): a channel a class, the numbers of its
                                        nuclei; the last is what is no nucleus

The three files may also lie side by side. 40x: 0.25 µm/px, not stated. Tiles are laid out on
white mosaics of 50, as SpatialWhisperer's evaluation groups them: scores need an image to be taken
within.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from histoscribe import __version__
from histoscribe.data.atomic import hash_file
from histoscribe.data.labelled_image import LabelledImage, check_mpp
from histoscribe.data.provenance import Provenance
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.labelled_pixels import label_nuclei

CLASSES = ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
"""Of the channels 0 to 4."""


def read_pannuke(
    folder: Path, mpp: float | None, n_tiles: int = 50, gap_um: float = 160.0
) -> Iterator[LabelledImage]:
    """Read a fold as mosaics, in the order of its tiles. Nobody says whose they are.

    Args:
        folder: The fold.
        mpp: µm per pixel, which no file states.
        n_tiles: Tiles of a mosaic.
        gap_um: White between tiles: wider than what a model looks at around a region.

    Raises:
        ConfigError: No scale, or no tiles.
        DataError: A file that is missing, pickled, or laid out otherwise.
    """
    mpp = check_mpp(mpp)
    if n_tiles < 1 or not gap_um >= 0:
        raise ConfigError(f"n_tiles = {n_tiles}, gap_um = {gap_um:g}; give 1 or more, 0 or more")
    paths = {name: _find(folder, name) for name in ("images", "masks", "types")}
    images, masks, types = (open_npy(path) for path in paths.values())
    side = images.shape[1] if images.ndim == 4 else 0
    is_sound = images.shape == (len(types), side, side, 3) and types.dtype.kind == "U"
    if not is_sound or masks.shape != (len(types), side, side, len(CLASSES) + 1):
        raise DataError(
            f"{folder}: images {images.shape}, masks {masks.shape}, types {types.shape} of "
            f"{types.dtype}; wanted (n, y, x, 3), (n, y, x, {len(CLASSES) + 1}) and n words"
        )
    provenance = Provenance(
        f"histoscribe {__version__} read_pannuke",
        {"mpp": mpp, "n_tiles": n_tiles, "gap_um": gap_um},
        {name: hash_file(path) for name, path in paths.items()},
    )
    gap = round(gap_um / mpp)
    for first in range(0, len(types), n_tiles):
        rows = range(first, min(first + n_tiles, len(types)))
        image_id = f"{folder.name.replace(' ', '')}-tiles-{rows[0]:04d}-{rows[-1]:04d}"
        pixels, numbers, class_of = _lay_out(images, masks, rows, gap)
        nuclei = label_nuclei(numbers, class_of, image_id, mpp, provenance)
        yield LabelledImage(image_id, None, pixels, mpp, nuclei, (side + gap) * mpp)


def read_tissues(folder: Path) -> tuple[str, ...]:
    """The tissue of each tile of a fold."""
    return tuple(map(str, open_npy(_find(folder, "types"))))


def open_npy(path: Path) -> np.ndarray:
    """An npy file, looked at where it lies.

    Raises:
        DataError: Missing, no array, or pickled objects, which are never read.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as fault:
        raise DataError(
            f"{path}: no array that can be read ({fault}); wanted numbers or text as npy, without "
            "pickled objects"
        ) from fault
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path}: an archive of arrays; wanted one array as npy")
    return found


def _find(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(f"{name}.npy"))
    if len(found) != 1:
        raise DataError(
            f"{folder}: {len(found)} files {name}.npy; wanted the folder of one fold, with one"
        )
    return found[0]


def _lay_out(
    images: np.ndarray, masks: np.ndarray, rows: range, gap: int
) -> tuple[UInt8[np.ndarray, "y x 3"], np.ndarray, dict[int, str]]:
    """Pixels and numbers of a mosaic, and the class of each number."""
    side = images.shape[1]
    pitch = side + gap
    n_wide = int(np.ceil(np.sqrt(len(rows))))
    n_high = -(-len(rows) // n_wide)
    pixels = np.full((n_high * pitch, n_wide * pitch, 3), 255, np.uint8)
    numbers = np.zeros(pixels.shape[:2], np.int64)
    class_of: dict[int, str] = {}
    for place, row in enumerate(rows):
        top, left = (at * pitch + gap // 2 for at in divmod(place, n_wide))
        window = slice(top, top + side), slice(left, left + side)
        pixels[window] = np.rint(np.asarray(images[row])).clip(0, 255).astype(np.uint8)
        _number_tile(np.asarray(masks[row]), numbers[window], class_of)
    return pixels, numbers, class_of


def _number_tile(masks: np.ndarray, numbers: np.ndarray, class_of: dict[int, str]) -> None:
    """Number the nuclei of a tile on, class by class; a pixel of two classes is of the first."""
    for channel, name in enumerate(CLASSES):
        own = masks[..., channel].astype(np.int64)
        for number in np.unique(own[own > 0]):
            class_of[len(class_of) + 1] = name
            numbers[(own == number) & (numbers == 0)] = len(class_of)
