"""Stain vectors of a slide from its pixels: Vahadane's sparse factors and Macenko's angles.

Arrays here are "3 pixel": one row a colour, so that every sum runs along memory and gives the
same bits on any number of threads (a matrix product does not).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from histoscribe.errors import DataError

DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)  # spec 1.10, eq. 17

LEAST_DENSITY = 0.15  # in every channel; Macenko 2009: below is glass
MOST_DENSITY = 4.0  # below 4 grey levels a scanner clips, and squares of it rule the fit
LEAST_PIXELS = 1_000  # a percentile of 1 then rests on ten pixels
LEAST_SPREAD = 0.1  # optical density between percentiles 1 and 99; camera noise stays below

PENALTY = 0.1  # Vahadane 2016, section III-A
SETTLED = 1e-6  # largest step of an entry of a unit vector: 6e-5 degrees
MOST_ROUNDS = 2_000  # 20 to 200 on real slides
SETTLED_WITHIN = 1e-8  # of the inner sweeps, on sums already made
TINY = 1e-12

ANGLE_PERCENTILE = 1.0  # Macenko 2009: alpha
LEAST_ANGLE = {"vahadane": 5.0, "macenko": 8.0}
"""Degrees between two stains. One stain with 2 grey levels of noise looks like two 2.7 and 5.0
apart; the least of 30 real images is 8.0 and 14.4."""

PUBLISHED = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])
"""Macenko's reference: densities of red, green and blue of haematoxylin and eosin."""

FARTHEST = 25.0  # degrees from any mixture of the published stains: green, turquoise, yellow ink
MOST_FOREIGN = 0.02  # share of such pixels; 0 to 0.006 in 30 real images
MOST_TURN = (25.0, 30.0)  # degrees of each stain from its published vector; 17 and 24 in those
INK = (
    "is there ink, or another stain than H&E? Leave the ink out of the tissue mask, or go on "
    "with stain method 'none'"
)

Matrix = Float64[np.ndarray, "3 2"]
Density = Float[np.ndarray, "3 pixel"]


class Tissue(NamedTuple):
    """Optical density of the pixels the vectors are found on, and which pixels are not glass."""

    density: Float64[np.ndarray, "3 kept"]
    is_stained: Bool[np.ndarray, " pixel"]


def find_tissue(pixels: UInt8[np.ndarray, "pixel 3"]) -> Tissue:
    r"""Pick the pixels that the stain vectors are found on, by their optical density.

    V = -ln((I + 1) / 256), kept where V > 0.15 in all three channels (spec 1.10, eq. 17).
    Departs from it: pixels with a channel above 4 are left out as well. The scanner has clipped
    them, so their colour is not the dye's; one in a hundred turned a fit by nine degrees. And how
    much stain there is, is not judged by these pixels but by all that have V > 0.15 in any
    channel: of a pale slide, the rule of all three keeps the dark pixels only, and its stain
    would be taken for stronger than it is.

    Raises:
        DataError: Too few are kept, all have one colour, or too many have a colour that no
            mixture of haematoxylin and eosin has.
    """
    density = DENSITY[pixels.T].astype(np.float64)
    is_stained: Bool[np.ndarray, " pixel"] = np.max(density, axis=0) > LEAST_DENSITY
    kept = np.flatnonzero(
        (np.min(density, axis=0) > LEAST_DENSITY) & (np.max(density, axis=0) < MOST_DENSITY)
    )
    if len(kept) < LEAST_PIXELS:
        raise DataError(
            f"{len(kept)} of {len(pixels)} pixels have an optical density of {LEAST_DENSITY} to "
            f"{MOST_DENSITY:g} in red, green and blue; at least {LEAST_PIXELS} are wanted to find "
            "the stains. Look at the tissue mask, or use stain method 'none'"
        )
    density = density[:, kept]
    low, high = np.percentile(density, [1, 99], axis=1)
    if (high - low).max() < LEAST_SPREAD:
        raise DataError(
            f"the tissue has one colour: its optical density spreads over {(high - low).max():.3f} "
            f"and at least {LEAST_SPREAD} is wanted to tell two stains apart; look at the slide, "
            "or use stain method 'none'"
        )
    share = float(is_foreign(density).mean())
    if share > MOST_FOREIGN:
        raise DataError(
            f"{share:.1%} of the tissue pixels have a colour that no mixture of haematoxylin and "
            f"eosin has, at most {MOST_FOREIGN:.0%} is usual; {INK}"
        )
    return Tissue(density, is_stained)


def is_foreign(density: Density) -> Bool[np.ndarray, " pixel"]:
    """Colours more than 25 degrees from every mixture of the published stains.

    Blue ink is as blue as some haematoxylins and red ink as red as eosin, so those are not seen
    here: the tissue mask has to leave them out.
    """
    matrix = PUBLISHED / np.linalg.norm(PUBLISHED, axis=0)
    first, second = separate(density, matrix)
    nearest = np.sqrt(first**2 + second**2 + 2 * cosine_of(matrix) * first * second)
    length = np.sqrt((density**2).sum(axis=0))
    return nearest < np.cos(np.radians(FARTHEST)) * length


def cosine_of(matrix: Float[np.ndarray, "3 2"]) -> float:
    """Of the angle between two unit vectors."""
    return float((matrix[:, 0] * matrix[:, 1]).sum())


def separate(
    density: Density, matrix: Float[np.ndarray, "3 2"], penalty: float = 0.0
) -> Float[np.ndarray, "2 pixel"]:
    r"""How much of each stain a pixel has, exactly.

    For every pixel v, with unit stain vectors W, the minimum over h >= 0 of

        1/2 |v - W h|^2 + penalty * (h_1 + h_2)

    Source: spec 1.10; the factor 1/2 is that of Mairal et al. 2010 and of spams. See `divide`.

    Args:
        density: Optical density.
        matrix: Stain vectors of unit length, no entry negative.
        penalty: 0 for the concentrations themselves, 0.1 while Vahadane's vectors are sought.
    """
    first, second = (
        density[0] * float(red) + density[1] * float(green) + density[2] * float(blue)
        for red, green, blue in matrix.T
    )
    return np.stack(divide(first - penalty, second - penalty, cosine_of(matrix)))


def divide(
    first: Float[np.ndarray, " pixel"], second: Float[np.ndarray, " pixel"], cosine: float
) -> tuple[Float[np.ndarray, " pixel"], Float[np.ndarray, " pixel"]]:
    r"""The non-negative lasso of two unit vectors in closed form.

    q = W'v - penalty and c = w_1'w_2 >= 0 say all. Both are active at (q_i - c q_j) / (1 - c^2);
    if one of these is negative, that stain is absent and the other is max(q, 0). For two vectors
    this is the only point that satisfies the Karush-Kuhn-Tucker conditions.
    """
    scale = 1.0 / (1.0 - cosine * cosine)
    both_first = (first - cosine * second) * scale
    both_second = (second - cosine * first) * scale
    return (
        np.maximum(np.where(both_second < 0, first, both_first), 0),
        np.maximum(np.where(both_first < 0, second, both_second), 0),
    )


def macenko(density: Density) -> Matrix:
    r"""Stain vectors as the extreme colours of the tissue.

    The plane of the two largest singular vectors of the densities is taken; in it the vectors
    lie at the 1st and 99th percentile of the angle. Negative entries become 0.

    Source: Macenko et al. 2009, ISBI, "A method for normalizing histology slides for
    quantitative analysis". The plane goes through the origin, as in the paper (singular vectors
    of the densities), and not through their mean (eigenvectors of a covariance), as in much code.

    Raises:
        DataError: See `check_stains`.
    """
    matrix = extremes(density)
    check_stains(matrix, "macenko")
    return matrix


def extremes(density: Density) -> Matrix:
    """Macenko's vectors, unchecked."""
    _, directions = np.linalg.eigh(products(density, density))
    plane = directions[:, :0:-1]  # of the largest, and of the second
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    along, across = (
        density[0] * axis[0] + density[1] * axis[1] + density[2] * axis[2] for axis in plane.T
    )
    angles = np.percentile(np.arctan2(across, along), [ANGLE_PERCENTILE, 100 - ANGLE_PERCENTILE])
    matrix = np.maximum(plane @ np.stack([np.cos(angles), np.sin(angles)]), 0)
    return haematoxylin_first(matrix / np.linalg.norm(matrix, axis=0))


def products(
    one: Float[np.ndarray, "a pixel"], other: Float[np.ndarray, "b pixel"]
) -> Float64[np.ndarray, "a b"]:
    """Sums over the pixels of every row times every row."""
    return np.array([[(x * y).sum() for y in other] for x in one], np.float64)


def vahadane(density: Density) -> Matrix:
    r"""Stain vectors as sparse non-negative factors of the densities.

        min over W, H of  mean over pixels of  1/2 |v - W h|^2 + 0.1 (h_1 + h_2)
        with H >= 0, W >= 0, |w_1| <= 1, |w_2| <= 1

    `separate` gives the exact H for a W; then the columns of W are improved in turn until they
    rest (Mairal et al. 2010, "Online learning for matrix factorization and sparse coding",
    algorithm 2, on all pixels at once); and again, until W rests.

    Source: Vahadane et al. 2016, IEEE TMI, "Structure-preserving color normalization and sparse
    stain separation for histological images", eq. 6; spec 1.10. The objective is the one that
    spams.trainDL(mode=2, posAlpha=True, posD=True) minimises.
    Departs from it: no random start, but Macenko's vectors of the same pixels; all pixels in
    every round; stopped by the step, not by a count.

    Raises:
        DataError: It did not settle, or see `check_stains`.
    """
    matrix = extremes(density)
    for _ in range(MOST_ROUNDS):
        amount = separate(density, matrix, PENALTY)
        improved = update(matrix, products(amount, amount), products(density, amount))
        step = np.abs(improved - matrix).max()
        matrix = improved
        if step < SETTLED:
            break
    else:
        raise DataError(
            f"the stain vectors did not settle in {MOST_ROUNDS} rounds; use stain method "
            "'macenko', or look at the tissue mask"
        )
    matrix = haematoxylin_first(matrix / np.linalg.norm(matrix, axis=0))
    check_stains(matrix, "vahadane")
    return matrix


def update(
    matrix: Matrix, within: Float64[np.ndarray, "2 2"], between: Float64[np.ndarray, "3 2"]
) -> Matrix:
    """Improve each column with the other fixed, until both rest; an unused one stays.

    Args:
        matrix: Stain vectors.
        within: H H'.
        between: V H'.
    """
    matrix = matrix.copy()
    for _ in range(MOST_ROUNDS):
        before = matrix.copy()
        for j in range(2):
            if within[j, j] <= TINY:
                continue
            column = (between[:, j] - (matrix * within[j]).sum(axis=1)) / within[j, j]
            column = np.maximum(column + matrix[:, j], 0)
            matrix[:, j] = column / max(np.sqrt((column**2).sum()), 1.0)
        if np.abs(matrix - before).max() < SETTLED_WITHIN:
            break
    return matrix


def haematoxylin_first(matrix: Matrix) -> Matrix:
    """Order the columns: haematoxylin is blue, so it takes more red for its blue than eosin."""
    red, blue = matrix[0], matrix[2]
    return matrix if red[0] * blue[1] >= red[1] * blue[0] else matrix[:, ::-1].copy()


def check_stains(matrix: Matrix, method: str) -> None:
    """Refuse vectors that are no haematoxylin and eosin.

    Raises:
        DataError: They are nearly one; or one is far from its published vector, or takes no more
            green than blue (both dyes do: at least 1.2 times as much in 30 real images).
    """
    between = degrees(matrix[:, 0], matrix[:, 1])
    if between < LEAST_ANGLE[method]:
        raise DataError(
            f"one stain found: the two vectors are {between:.1f} degrees apart, at least "
            f"{LEAST_ANGLE[method]:g} wanted; is the slide stained with both haematoxylin and "
            "eosin? If not, use stain method 'none'"
        )
    for j, name in enumerate(("haematoxylin", "eosin")):
        turn = degrees(matrix[:, j], PUBLISHED[:, j])
        if turn > MOST_TURN[j] or matrix[1, j] <= matrix[2, j]:
            density = ", ".join(f"{one:.2f}" for one in matrix[:, j])
            raise DataError(
                f"what was found for {name} takes red, green and blue as {density}, {turn:.0f} "
                f"degrees from the published dye; {INK}"
            )


def degrees(one: Float64[np.ndarray, " 3"], other: Float64[np.ndarray, " 3"]) -> float:
    """Angle between two vectors."""
    cosine = (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())
    return float(np.degrees(np.arccos(min(cosine, 1.0))))
