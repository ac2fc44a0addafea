"""How Xenium's morphology image lies on an H&E slide: a matrix, or pairs of points."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from histoscribe.data.slide import Slide
from histoscribe.errors import DataError, MismatchError

MORPHOLOGY_MPP = 0.2125  # Xenium's; experiment.xenium beside the boundaries overrides it
SCALE_TOLERANCE = 0.05  # between the µm/px of the slide and what the alignment makes of it
KEYPOINTS = ("fixedX", "fixedY", "alignmentX", "alignmentY")
UNREADABLE = (OSError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError)


def read_alignment(
    path: Path, boundaries: Path, slide: Slide
) -> tuple[Float64[np.ndarray, "2 3"], dict[str, Any]]:
    """From µm of the morphology image to full-resolution pixels of the slide.

    The matrix M of the file brings pixels of the H&E image to pixels of the morphology image, of
    p = 0.2125 µm, so that

        (x_px, y_px, 1) = M^-1 (x_um / p, y_um / p, 1)

    Pairs of points, as Xenium Explorer keeps them (fixedX, fixedY, alignmentX, alignmentY), give M
    by least squares.

    Args:
        path: The CSV: three rows of three numbers, or pairs of points with a header.
        boundaries: The file of boundaries; `experiment.xenium` beside it says p.
        slide: The H&E slide.

    Returns:
        The 2 x 3 matrix, and what of it belongs into the settings of the provenance.

    Raises:
        DataError: No such file, or no matrix that can be inverted.
        MismatchError: It makes the slide's pixels of another size than they are.
    """
    matrix = _matrix(path)
    pixel_um = _pixel_um(boundaries.parent / "experiment.xenium")
    implied = pixel_um * float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    own = float(np.sqrt(slide.mpp[0] * slide.mpp[1]))
    if abs(implied / own - 1) > SCALE_TOLERANCE:
        raise MismatchError(
            f"{path} makes the slide's pixels {implied:.4g} µm wide, slide {slide.slide_id} has "
            f"{own:.4g}; give the alignment of this slide, its full-resolution image, or its --mpp"
        )
    inverse = np.linalg.inv(matrix)
    to_px = inverse[:2] @ np.diag([1 / pixel_um, 1 / pixel_um, 1.0])
    return to_px, {"morphology_mpp": pixel_um}


def _matrix(path: Path) -> Float64[np.ndarray, "3 3"]:
    try:
        table = pd.read_csv(path, header=None, dtype=str)
        if set(KEYPOINTS) <= set(table.iloc[0].astype(str).str.strip()):
            return _fitted(path, pd.read_csv(path).rename(columns=str.strip))
        matrix = table.to_numpy(dtype=np.float64)
    except UNREADABLE as fault:
        text = " ".join(str(fault).split())
        raise DataError(f"{path}: no alignment that can be read ({text}); {WANTED}") from fault
    is_matrix = matrix.shape == (3, 3) and bool(np.isfinite(matrix).all())
    if not is_matrix or not np.allclose(matrix[2], [0, 0, 1]):
        raise DataError(f"{path}: no alignment of two images; {WANTED}")
    if abs(np.linalg.det(matrix)) < 1e-9:
        raise DataError(f"{path}: its matrix cannot be inverted; {WANTED}")
    return matrix


WANTED = (
    "wanted three rows of three numbers, the last 0,0,1, or pairs of points with the columns "
    + ", ".join(KEYPOINTS)
)


def _fitted(path: Path, points: pd.DataFrame) -> Float64[np.ndarray, "3 3"]:
    """The affine matrix that brings the points of the H&E image onto the others."""
    fixed = points[["fixedX", "fixedY"]].to_numpy(dtype=np.float64)
    moving = points[["alignmentX", "alignmentY"]].to_numpy(dtype=np.float64)
    with_one = np.column_stack([moving, np.ones(len(moving))])
    if not np.isfinite([fixed, moving]).all() or np.linalg.matrix_rank(with_one) < 3:
        raise DataError(f"{path}: {len(moving)} pairs of points; wanted three, not on one line")
    solution = np.linalg.lstsq(with_one, fixed, rcond=None)[0]
    return np.vstack([solution.T, [0.0, 0.0, 1.0]])


def _pixel_um(experiment: Path) -> float:
    """Size of a morphology pixel."""
    if not experiment.is_file():
        return MORPHOLOGY_MPP
    try:
        size = float(json.loads(experiment.read_text(encoding="utf-8"))["pixel_size"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as fault:
        raise DataError(
            f"{experiment}: no pixel_size that can be read ({fault}); copy it again"
        ) from fault
    if not 0 < size < np.inf:
        raise DataError(f"{experiment}: pixel_size {size}; wanted µm above 0")
    return size
