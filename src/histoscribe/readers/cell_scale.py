"""Whether a matrix of single cells is counts, normalised, or a logarithm: told, found, or refused.

A cell's counts are whole numbers, and normalising multiplies them by one number for each cell. So
in the scale where a cell's values are whole multiples of its least, they are linear. It needs no
library size, and holds for a part of the genes.
"""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64

from histoscribe.errors import DataError

CellScale = Literal["counts", "linear", "ln1p", "log2p1", "log10p1"]

BASE: dict[CellScale, float] = {"ln1p": np.e, "log2p1": 2.0, "log10p1": 10.0}
LARGEST = 1e12  # beyond any cell's reads: a logarithm that gives more is none
MULTIPLES = 8  # of the least value: beyond them few decimals no longer tell whole from not
NEAR = 0.04  # from a whole number; three decimals of a logarithm leave .01
MOST, FEW = 0.95, 0.8  # shares of such values that lie so near: a scale, and no scale
ENOUGH = 50  # values that are not the least of their cell


class FoundScale(NamedTuple):
    """The scale of a matrix, and how it is known."""

    scale: CellScale
    reason: str


def find_cell_scale(
    cells: list[Float64[np.ndarray, " _"]], where: str, told: CellScale | None = None
) -> FoundScale:
    """The scale of a matrix, from some of its cells.

    Args:
        cells: What is not 0 of each.
        where: The matrix, for messages.
        told: What the user says it is, or None to find it.

    Raises:
        DataError: The values are negative or not finite, fit no scale, fit several, or contradict
            what was told.
    """
    values = np.concatenate(cells) if cells else np.zeros(0)
    if not len(values):
        raise DataError(f"{where}: no value but 0; wanted expression")
    if not np.isfinite(values).all() or values.min() < 0:
        raise DataError(
            f"{where}: values from {values.min():.4g} to {values.max():.4g} are scaled or "
            "corrected ones; give counts, or normalised values of 0 or more, in X, raw or a layer"
        )
    is_whole = bool((values == np.rint(values)).all())
    if told is not None:
        _check_told(told, values, where, is_whole=is_whole)
        other = None if is_whole else _only_likely(cells)
        if other not in (None, told):
            raise DataError(
                f"{where}: given as {told}, and only read as {other} its values are multiples of a "
                "count; correct scale, or read this file by itself"
            )
        return FoundScale(told, "as given")
    if is_whole and values.max() > 1:
        return FoundScale("counts", "all values are whole numbers")
    likely = _only_likely(cells)
    if likely is not None:
        share = _share_of_multiples(cells, likely)
        return FoundScale(likely, f"so read, {share:.0%} of a cell's values are multiples of one")
    raise DataError(
        f"{where}: values from {values.min():.4g} to {values.max():.4g} may be linear or a "
        f"logarithm, and not in one scale alone are they multiples of "
        f"a count; say which it is with scale ({', '.join(get_args(CellScale))})"
    )


def _only_likely(cells: list[Float64[np.ndarray, " _"]]) -> CellScale | None:
    """The one scale in which values are multiples of a count; None where there is not just one."""
    shares = {scale: _share_of_multiples(cells, scale) for scale in get_args(CellScale)[1:]}
    likely = [scale for scale, share in shares.items() if share >= MOST]
    if len(likely) == 1 and all(share <= FEW for s, share in shares.items() if s != likely[0]):
        return likely[0]
    return None


def to_linear(
    values: Float64[np.ndarray, "*shape"], scale: CellScale
) -> Float64[np.ndarray, "*shape"]:
    """Values without their log; 0 stays 0."""
    if scale == "ln1p":
        return np.expm1(values)
    if scale == "log2p1":
        return np.exp2(values) - 1
    if scale == "log10p1":
        return 10.0**values - 1
    return values


def _share_of_multiples(cells: list[Float64[np.ndarray, " _"]], scale: CellScale) -> float:
    """Share of small values that are whole multiples of their cell's least; 0 where few tell."""
    if _is_too_large(max(float(cell.max(initial=0.0)) for cell in cells), scale):
        return 0.0
    ratios = []
    for cell in cells:
        if len(cell):
            linear = to_linear(cell, scale)
            ratio = linear / linear.min()
            ratios.append(ratio[(ratio > 1 + NEAR) & (ratio <= MULTIPLES)])
    small = np.concatenate(ratios)
    if len(small) < ENOUGH:
        return 0.0
    return float((np.abs(small - np.rint(small)) <= NEAR).mean())


def _check_told(
    told: CellScale, values: Float64[np.ndarray, " _"], where: str, *, is_whole: bool
) -> None:
    if told == "counts" and not is_whole:
        raise DataError(f"{where}: given as counts, and holds fractions; correct scale")
    if _is_too_large(float(values.max()), told):
        raise DataError(
            f"{where}: given as {told}, and holds {values.max():.4g}, which is no logarithm; "
            "correct scale"
        )
    if told in BASE and is_whole and values.max() > 1:
        raise DataError(f"{where}: given as {told}, and holds whole numbers; correct scale")


def _is_too_large(value: float, scale: CellScale) -> bool:
    """Whether a value is too large to be on that scale."""
    return scale in BASE and value * math.log(BASE[scale]) > math.log(LARGEST)
