"""What must not pass in silence: crops that are black or the same, nuclei that cannot be."""

import hashlib
import logging
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float16, Float32, UInt8, UInt16, UInt64

from histoscribe.data.mapped import release
from histoscribe.errors import DataError

MAX_SHARE = 0.01  # spec 1.10: more than 1 % of constant or repeated crops is a fault
MIN_DENSITY = 100.0  # nuclei per mm²; fatty tissue has some hundreds
MAX_DENSITY = 25_000.0  # densest lymphoid tissue about 20 000
MIN_AREA_MM2 = 0.05  # below this, density says little
# Nuclei of human and mouse tissue measure about 4 to 14 µm across; a median outside is suspicious.
PLAUSIBLE_AREA_UM2 = (12.0, 150.0)
USUAL_AREA_UM2 = 40.0  # 7 µm across
# Slide scanners end at about 0.12 µm/px. A finer slide is more often one whose mpp is a tenth of
# the truth: a learned segmenter then outlines glands of nuclear size (160 to 560 per mm² on her2st,
# whose nuclei are 4,400 per mm²), so there the nuclei must be as dense as nuclei are.
FINEST_SCAN_MPP = 0.1
MIN_DENSITY_FINE = 1000.0
MIN_AREA_FINE_MM2 = 0.01  # 100 µm square: a section at a tenth of its mpp may be less
CHUNK = 4096  # rows looked at together: 30 MB of the widest features

LOG = logging.getLogger(__name__)


@dataclass
class CropTally:
    """Counts constant and repeated images over all fields of a slide.

    Only a hash of 64 bits is kept of each image. A tally can be made of many, in any order.

    Attributes:
        n_images: How many were added.
        n_constant: How many of them are of one colour.
        hashes: One for each.
    """

    n_images: int
    n_constant: int
    hashes: list[UInt64[np.ndarray, " image"]]

    def __init__(self) -> None:
        self.n_images = self.n_constant = 0
        self.hashes = []

    def add(self, images: UInt8[np.ndarray, "image y x 3"]) -> None:
        """Count the crops of a field."""
        if not len(images):
            return
        flat = images.reshape(len(images), -1, 3)
        n_constant = int((np.ptp(flat, axis=1).max(axis=1, initial=0) == 0).sum())
        digests = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in flat]
        self.merge(n_constant, np.frombuffer(b"".join(digests), np.uint64))

    def merge(self, n_constant: int, hashes: UInt64[np.ndarray, " image"]) -> None:
        """Count images whose hashes are known already."""
        self.n_images += len(hashes)
        self.n_constant += n_constant
        self.hashes.append(hashes)

    def all_hashes(self) -> UInt64[np.ndarray, " image"]:
        """The hashes of all images, as they were added."""
        return np.concatenate([np.zeros(0, np.uint64), *self.hashes])

    def check(self, what: str) -> None:
        """DataError if more than 1 % are constant or repeat another."""
        n_different = len(np.unique(self.all_hashes()))
        check_shares(what, self.n_images, self.n_constant, self.n_images - n_different)


def check_features(features: Float16[np.ndarray, "row feature"], what: str) -> None:
    """Refuse features that are constant or repeat each other in more than 1 % of the rows.

    Black or wrongly placed crops give the same features again and again; the model would then see
    nothing but the number of cells and where they are. Rows are compared bit by bit, by a hash of
    64 bits each, so that a million cells need no second copy.

    Args:
        features: As they are stored.
        what: What the rows are, for the message.

    Raises:
        DataError: There are too many of them, or a value is not finite.
    """
    odd = np.random.default_rng(0).integers(2**63, size=features.shape[1], dtype=np.uint64) * 2 + 1
    n_constant, hashes = 0, [np.zeros(0, np.uint64)]
    for start in range(0, len(features), CHUNK):
        bits = np.ascontiguousarray(features[start : start + CHUNK]).view(np.uint16)
        if not is_finite(bits).all():
            raise DataError(
                f"{what}: features that are not finite; the encoder's weights are broken"
            )
        n_constant += int((bits == bits[:, :1]).all(axis=1).sum())
        hashes.append((bits * odd).sum(axis=1, dtype=np.uint64))
        release(features)
    n_different = len(np.unique(np.concatenate(hashes)))
    check_shares(what, len(features), n_constant, len(features) - n_different)


def is_finite(bits: UInt16[np.ndarray, "row feature"]) -> Bool[np.ndarray, " row"]:
    """Which rows of float16, given by their bits, hold neither NaN nor infinity.

    NumPy has no fast float16; a value is finite unless all bits of its exponent are set.
    """
    return ((bits & 0x7C00) != 0x7C00).all(axis=1)


def check_shares(what: str, n: int, n_constant: int, n_repeated: int) -> None:
    """DataError if more than 1 % are constant or repeated."""
    for count, fault in ((n_constant, "constant"), (n_repeated, "the same as another")):
        if count > MAX_SHARE * n:
            raise DataError(
                f"{what}: {count} of {n} ({100 * count / n:.1f} %) are {fault}, at most "
                f"{100 * MAX_SHARE:g} % may be; the image is not where the nuclei are. Check that "
                "the slide opens ('histoscribe doctor SLIDE') and that --mpp is right"
            )


def check_nuclei(
    slide_id: str,
    area_um2: Float32[np.ndarray, " nucleus"],
    searched_mm2: float,
    slide_mpp: float,
) -> None:
    """Refuse nuclei that cannot be: none, of impossible size or density.

    A wrong mpp shows here: at a tenth of the truth, nuclei have a hundredth of their area.

    Args:
        slide_id: For the message.
        area_um2: Areas of all nuclei of the slide.
        searched_mm2: Area of the tissue that was searched.
        slide_mpp: What the slide is said to have, µm per pixel; at `FINEST_SCAN_MPP` and below
            the least density is higher, and is asked of little tissue too.

    Raises:
        DataError: None found, the median area is outside 12 to 150 µm², the density is outside
            100 (1,000) to 25,000 per mm², or less than 0.01 mm² was searched at so fine an mpp.
    """
    check_size(slide_id, float(np.median(area_um2)) if len(area_um2) else float("nan"))
    density = len(area_um2) / searched_mm2 if searched_mm2 > 0 else float("nan")
    is_fine = slide_mpp <= FINEST_SCAN_MPP * (1 + 1e-6)
    least = MIN_DENSITY_FINE if is_fine else MIN_DENSITY
    if is_fine and searched_mm2 < MIN_AREA_FINE_MM2:
        raise DataError(
            f"slide {slide_id}: {slide_mpp:.4g} µm/px is finer than scanners give, and "
            f"{searched_mm2:.2g} mm² of tissue is too little to tell whether it is so; at least "
            f"{MIN_AREA_FINE_MM2:g} mm² are wanted. Most likely the mpp is wrong: give --mpp"
        )
    if searched_mm2 < MIN_AREA_MM2 and not is_fine:
        LOG.warning(
            "slide %s: only %.3f mm² of tissue searched; that its nuclei are sound is not checked",
            slide_id,
            searched_mm2,
        )
    elif not least <= density <= MAX_DENSITY:
        raise DataError(
            f"slide {slide_id}: {len(area_um2)} nuclei in {searched_mm2:.3g} mm² of tissue are "
            f"{density:.3g} per mm², {least:g} to {MAX_DENSITY:g} are usual at {slide_mpp:.4g} "
            "µm/px: the stain is not H&E, the slide is out of focus, or the mpp is wrong. Check it "
            "and give --mpp"
        )


def check_size(slide_id: str, median_um2: float) -> None:
    """DataError if the median nucleus is none (NaN), or of a size that nuclei do not have."""
    low, high = PLAUSIBLE_AREA_UM2
    if np.isnan(median_um2):
        raise DataError(
            f"slide {slide_id}: no nuclei were found: wanted H&E tissue in focus. Check the mpp "
            "(--mpp) and the stain."
        )
    if low <= median_um2 <= high:
        return
    factor = (median_um2 / USUAL_AREA_UM2) ** 0.5
    raise DataError(
        f"slide {slide_id}: the median nucleus measures {median_um2:.3g} µm², {low:g} to {high:g} "
        f"µm² is usual: the mpp may be too {'large' if factor > 1 else 'small'} by a factor of "
        f"about {max(factor, 1 / factor):.2g}. Check it and give the right one with --mpp."
    )
