"""Spots against their own lattice: pixel size, diameter, pitch, axes and slide must agree."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64
from scipy.spatial import KDTree

from histoscribe.data.slide import Slide
from histoscribe.errors import DataError

PITCH_TOLERANCE = 0.10
OFF_LATTICE = 0.5  # of the pitch: farther from its place, a spot would be its neighbour
NEIGHBOUR_STEPS = ((1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2))


def check_sizes(diameter_um: float, pitch_um: float) -> None:
    """Refuse a diameter above the pitch (HEST has the two swapped for some sets).

    Raises:
        DataError: Either is no positive length, or the diameter is above the pitch.
    """
    if not 0 < diameter_um <= pitch_um < np.inf:
        msg = (
            f"spots of {diameter_um:.4g} µm diameter {pitch_um:.4g} µm apart; wanted a diameter "
            "above 0 and at most the pitch. Are the two swapped?"
        )
        raise DataError(msg)


def check_finite(xy_px: Float64[np.ndarray, "spot 2"], names: Sequence[str], path: Path) -> None:
    """Refuse missing coordinates.

    Raises:
        DataError: Naming the first spot.
    """
    is_lost = ~np.isfinite(xy_px).all(axis=1)
    if is_lost.any():
        msg = (
            f"{path}: {is_lost.sum()} spots have no pixel coordinates, NaN or infinite (first: "
            f"{names[int(np.argmax(is_lost))]}); wanted a position for every selected spot. "
            "Remove those rows."
        )
        raise DataError(msg)


def check_on_slide(
    xy_px: Float64[np.ndarray, "spot 2"], names: Sequence[str], slide: Slide, path: Path
) -> None:
    """Refuse spots whose centre is off the slide.

    Raises:
        DataError: Naming the first spot.
    """
    is_off = ((xy_px < 0) | (xy_px >= np.array(slide.size_px))).any(axis=1)
    if is_off.any():
        first = int(np.argmax(is_off))
        msg = (
            f"{path}: {is_off.sum()} of {len(names)} spots lie off the slide (first: "
            f"{names[first]} at pixel {xy_px[first, 0]:.0f}, {xy_px[first, 1]:.0f}; "
            f"{slide.path.name} has {slide.size_px[0]} x {slide.size_px[1]}). Wanted pixels of "
            "the full-resolution image: is it the right image, at its full size, x before y?"
        )
        raise DataError(msg)


def nearest_distance_px(xy_px: Float64[np.ndarray, "spot 2"], path: Path) -> float:
    """Median distance of a spot to its nearest neighbour, in pixels.

    Raises:
        DataError: A single spot, or two at one place.
    """
    if len(xy_px) < 2:
        msg = (
            f"{path}: {len(xy_px)} selected spot(s); wanted at least two, since the distance of "
            "neighbours is what the pixel size is checked by. Give the whole section."
        )
        raise DataError(msg)
    distance = float(np.median(KDTree(xy_px).query(xy_px, k=2)[0][:, 1]))
    if distance == 0:
        msg = f"{path}: most spots share their pixel position. Give one row per spot."
        raise DataError(msg)
    return distance


def lattice_distance_px(
    array_xy: Int64[np.ndarray, "spot 2"], xy_px: Float64[np.ndarray, "spot 2"], path: Path
) -> float:
    """Distance of neighbouring spots, from the affine map of array to pixels.

    Robust where spots were placed by eye: each of them is some pixels off, which makes the
    nearest neighbour nearer than the pitch (by 6 % in her2st).

    Args:
        array_xy: Place of each spot on the array, x and y.
        xy_px: Its pixel.
        path: The file, for the messages.

    Raises:
        DataError: x and y swapped between array and pixels, or pixels that do not follow the
            array.
    """
    design = np.column_stack([array_xy, np.ones(len(array_xy))]).astype(np.float64)
    if len(array_xy) < 4 or np.linalg.matrix_rank(design - design.mean(0)) < 2:
        return nearest_distance_px(xy_px, path)  # too few, or in one line
    fitted = np.linalg.lstsq(design, xy_px, rcond=None)[0]
    jacobian = fitted[:2].T  # pixel = jacobian @ array
    straight, crossed = np.abs(np.diag(jacobian)).sum(), np.abs(jacobian[[0, 1], [1, 0]]).sum()
    if crossed > straight and np.linalg.det(jacobian) < 0:
        msg = (
            f"{path}: pixel_x grows with the array's y and pixel_y with its x: the axes are "
            "swapped. Wanted pixel_x along x and pixel_y along y. Swap the two columns."
        )
        raise DataError(msg)
    known = {tuple(place) for place in array_xy.tolist()}
    steps = [
        step
        for step in NEIGHBOUR_STEPS
        if any((x + step[0], y + step[1]) in known for x, y in known)
    ]
    if not steps:
        return nearest_distance_px(xy_px, path)
    pitch_px = min(float(np.linalg.norm(jacobian @ step)) for step in steps)
    miss_px = np.linalg.norm(design @ fitted - xy_px, axis=1)
    if (miss_px > OFF_LATTICE * pitch_px).mean() > 0.1:
        msg = (
            f"{path}: {(miss_px > OFF_LATTICE * pitch_px).sum()} of {len(miss_px)} spots lie over "
            f"half a pitch ({OFF_LATTICE * pitch_px:.0f} px) from where their place on the array "
            "puts them. Wanted the pixel coordinates of these very spots: are rows shuffled or "
            "columns of another section?"
        )
        raise DataError(msg)
    return pitch_px


def check_pitch(distance_px: float, mpp: tuple[float, float], pitch_um: float, path: Path) -> float:
    """Hold the spots' distance on the image to the platform's pitch.

    Args:
        distance_px: Measured distance of neighbours.
        mpp: µm per pixel of the slide, (x, y); pixels that are not square count by their mean.
        pitch_um: What the platform has.
        path: The file, for the message.

    Returns:
        The measured pitch in µm.

    Raises:
        DataError: More than 10 % apart, with the mpp that would make them agree.
    """
    mean_mpp = float(np.sqrt(mpp[0] * mpp[1]))
    measured_um = distance_px * mean_mpp
    if abs(measured_um / pitch_um - 1) > PITCH_TOLERANCE:
        msg = (
            f"{path}: neighbouring spots are {distance_px:.1f} px = {measured_um:.4g} µm apart at "
            f"{mean_mpp:.4g} µm/px; the platform has {pitch_um:.4g} µm. Is the slide's mpp "
            f"{pitch_um / distance_px:.3g}? Give it (--mpp, or the column mpp of the manifest), "
            "or the full-resolution image these pixels belong to."
        )
        raise DataError(msg)
    return measured_um
