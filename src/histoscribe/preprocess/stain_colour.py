"""Reinhard's colour transfer in Ruderman's space, kept from touching the glass."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

from histoscribe.preprocess.stain_fit import DENSITY, LEAST_DENSITY

CONES = np.array(  # red, green, blue -> long, middle, short: Reinhard 2001, eq. 4
    [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]
)
OPPONENTS = np.array(  # -> lightness, yellow-blue, red-green: Reinhard 2001, eq. 6
    [
        [3**-0.5, 3**-0.5, 3**-0.5],
        [6**-0.5, 6**-0.5, -2 * 6**-0.5],
        [2**-0.5, -(2**-0.5), 0.0],
    ]
)


BRIGHTEST = 1.0  # ten times white, in powers of ten: keeps an absurd ratio of deviations finite


class ColourStatistics(NamedTuple):
    """Mean and deviation of Ruderman's l, alpha and beta over tissue."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


def opponent_colours(pixels: UInt8[np.ndarray, "pixel 3"]) -> Float[np.ndarray, "3 pixel"]:
    """Ruderman's l, alpha, beta: opponents of the logarithms of what the cones of the eye see.

    Source: Ruderman et al. 1998, JOSA A; Reinhard et al. 2001, IEEE CG&A, "Color transfer
    between images", eq. 4-6.
    Departs from it: (I + 1) / 256 for the light, as in eq. 17, so that black has a logarithm.
    """
    light = (pixels.T + 1.0) / 256
    return mix(np.log10(mix(light, CONES)), OPPONENTS)


def colour_statistics(pixels: UInt8[np.ndarray, "pixel 3"]) -> ColourStatistics:
    """Of tissue pixels."""
    colours = opponent_colours(pixels)
    mean, deviation = colours.mean(axis=1), colours.std(axis=1)
    return ColourStatistics(
        (float(mean[0]), float(mean[1]), float(mean[2])),
        (float(deviation[0]), float(deviation[1]), float(deviation[2])),
    )


def mix(
    rows: Float[np.ndarray, "3 pixel"], matrix: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "3 pixel"]:
    """`matrix @ rows`, the same bits however many pixels there are."""
    return np.stack(
        [rows[0] * float(a) + rows[1] * float(b) + rows[2] * float(c) for a, b, c in matrix]
    )


class ColourTransfer:
    r"""Gives pixels the mean and deviation of a reference.

    With x a pixel's l, alpha, beta:  x' = (x - mean) * deviation_ref / deviation + mean_ref
    (Reinhard 2001, eq. 10-11), which is one affine map of the cones' logarithms.

    Departs from it: glass stays glass, which the method would tint. With V the largest optical
    density of a pixel's channels, a pixel is moved not at all up to V = 0.15, wholly from 0.30,
    and by (V - 0.15) / 0.15 of the way between.
    """

    def __init__(self, of: ColourStatistics, to: ColourStatistics) -> None:
        ratio = np.array(to.deviation) / np.array(of.deviation)
        back = np.linalg.inv(OPPONENTS)
        self._linear = back @ (ratio[:, None] * OPPONENTS)
        self._constant = back @ (np.array(to.mean) - ratio * np.array(of.mean))
        self._to_light = np.linalg.inv(CONES)
        self._share = np.clip(DENSITY / LEAST_DENSITY - 1, 0, 1)

    def __call__(self, pixels: UInt8[np.ndarray, "pixel 3"]) -> Float32[np.ndarray, "3 pixel"]:
        """Grey levels, not rounded, not clipped."""
        grey = pixels.T.astype(np.float32)
        cones = np.log10(mix((grey + 1) / 256, CONES))
        moved = mix(cones, self._linear)
        moved += self._constant.astype(np.float32)[:, None]
        bounded = np.minimum(moved, np.float32(BRIGHTEST))
        light = mix(np.power(np.float32(10), bounded), self._to_light)
        share = self._share[pixels.min(axis=1)]
        return grey + share * (light * 256 - 1 - grey)
