"""Stain normalisation: one slide's dyes to a common reference (spec 1.10, eq. 17-18)."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from histoscribe.data.slide import Slide
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.preprocess.stain_colour import ColourStatistics, ColourTransfer, colour_statistics
from histoscribe.preprocess.stain_fit import (
    DENSITY,
    PUBLISHED,
    cosine_of,
    divide,
    find_tissue,
    macenko,
    separate,
    vahadane,
)
from histoscribe.types import Box

HIGH_PERCENTILE = 99.0  # Macenko 2009: a robust maximum
LEAST_AMOUNT = 0.05  # of p99; less is a stain that is not there
LEAST_APART = 0.01  # of two unit vectors: half a degree, for references from elsewhere
UNIT = 1e-3  # published vectors are rounded to four places
SHAPES = {  # the methods, and the lengths of matrix, p99, mean and deviation they give
    "none": ((), 0, 0, 0),
    "vahadane": ((2, 2, 2), 2, 0, 0),
    "macenko": ((2, 2, 2), 2, 0, 0),
    "reinhard": ((), 0, 3, 3),
}
BLOCK_PX = 32_768  # its arrays stay in the cache


@dataclass(frozen=True)
class StainConfig:
    """How the stain of slides is normalised.

    Attributes:
        method: "none" leaves the pixels as they are. "vahadane" and "macenko" find two stains
            and give each the reference's colour and amount; "reinhard" moves mean and deviation
            of the colours.
        n_pixels: Tissue pixels the fit rests on, at most.
        seed: Draws them.
    """

    method: str = "none"
    n_pixels: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in SHAPES:
            raise ConfigError(
                f"no stain method is called {self.method!r}; there are {', '.join(SHAPES)}"
            )
        for name, least in {"n_pixels": 1_000, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"stain.{name} = {getattr(self, name)}; give {least} or more")


@dataclass(frozen=True)
class StainFit:
    """What is found once of a slide: its two stains, or the statistics of its colours.

    Attributes:
        method: How it was found; "none" holds nothing.
        matrix: Rows red, green, blue; columns haematoxylin, eosin, of unit length. Empty for
            "none" and "reinhard".
        p99: 99th percentile of each stain's concentration over tissue; empty with `matrix`.
        mean: Of Ruderman's l, alpha, beta over tissue; of "reinhard" alone.
        deviation: Of the same.
    """

    method: str
    matrix: tuple[tuple[float, float], ...] = ()
    p99: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """DataError unless the numbers are those its method needs."""
        shapes = (
            tuple(len(row) for row in self.matrix),
            *(len(one) for one in (self.p99, self.mean, self.deviation)),
        )
        if shapes != SHAPES.get(self.method) or not self._is_sound():
            raise DataError(f"not a stain fit: {asdict(self)}; fit the slide again")

    def _is_sound(self) -> bool:
        columns = list(zip(*self.matrix, strict=True))
        entries = [*(one for column in columns for one in column), *self.mean]
        positive = [*self.p99, *self.deviation]
        return (
            all(math.isfinite(one) for one in (*entries, *positive))
            and all(one > 0 for one in positive)
            and all(min(column) >= 0 for column in columns)
            and all(abs(math.hypot(*column) - 1) < UNIT for column in columns)
            and (not columns or math.dist(*columns) > LEAST_APART)
        )

    def to_record(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        record = asdict(self)
        record["matrix"] = [list(row) for row in self.matrix]
        return record | {name: list(record[name]) for name in ("p99", "mean", "deviation")}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "StainFit":
        """What `to_record` gave.

        Raises:
            DataError: It is not that.
        """
        try:
            rows = [(float(first), float(second)) for first, second in record["matrix"]]
            p99, mean, deviation = (
                tuple(float(one) for one in record[name]) for name in ("p99", "mean", "deviation")
            )
            return cls(record["method"], tuple(rows), p99, mean, deviation)
        except (KeyError, TypeError, ValueError) as fault:
            raise DataError(f"not a stain fit ({fault}): {record}; fit the slide again") from fault


def _stains(method: str, matrix: Float[np.ndarray, "3 2"], p99: tuple[float, ...]) -> StainFit:
    rows = tuple((float(first), float(second)) for first, second in matrix)
    return StainFit(method, matrix=rows, p99=p99)


REFERENCE = _stains("macenko", PUBLISHED, (1.9705, 1.0308))
"""Macenko's published reference, for both methods that find stains."""

REINHARD_REFERENCE = StainFit(
    "reinhard", mean=(-0.4182, -0.0383, 0.0172), deviation=(0.2003, 0.0299, 0.0071)
)
"""Statistics of `REFERENCE` as a picture: gamma-distributed haematoxylin (shape 1.4) and eosin
(shape 5), independent, with the 99th percentiles of `REFERENCE`: near the spread of 30 images."""


def reference_of(method: str) -> StainFit:
    """The reference slides are normalised to."""
    return {"none": StainFit("none"), "reinhard": REINHARD_REFERENCE}.get(method, REFERENCE)


def fit_stain(pixels: UInt8[np.ndarray, "pixel 3"], config: StainConfig) -> StainFit:
    r"""Find the stains of a slide.

    The vectors W come from its tissue pixels (see `find_tissue`, `vahadane`, `macenko`); then
    the concentrations of all that is not glass from min |V - W H|^2 over H >= 0, and of these
    the 99th percentiles.
    Departs from spec 1.10: no penalty on H once W is found. One of 0.1 takes 4 to 14 % of the
    density of real tissue away, so that a slide normalised to itself comes out 4 to 10 grey
    levels lighter.

    Args:
        pixels: Pixels of the slide's tissue, of any number; glass among them is left out.
        config: How.

    Raises:
        DataError: Too few pixels, one colour, one stain, or ink; see `find_tissue` and
            `check_stains`.
    """
    if config.method == "none":
        return StainFit("none")
    if len(pixels) > config.n_pixels:
        generator = np.random.default_rng(config.seed)
        pixels = pixels[generator.choice(len(pixels), config.n_pixels, replace=False)]
    density, is_stained = find_tissue(pixels)
    stained = pixels[is_stained]
    if config.method == "reinhard":
        mean, deviation = colour_statistics(stained)
        return StainFit("reinhard", mean=mean, deviation=deviation)
    matrix = vahadane(density) if config.method == "vahadane" else macenko(density)
    p99 = np.percentile(separate(DENSITY[stained.T], matrix), HIGH_PERCENTILE, axis=1)
    if p99.min() < LEAST_AMOUNT:
        raise DataError(
            f"one stain found: the 99th percentiles of haematoxylin and eosin are {p99[0]:.3f} "
            f"and {p99[1]:.3f}, at least {LEAST_AMOUNT} wanted of both; use stain method 'none'"
        )
    return _stains(config.method, matrix, (float(p99[0]), float(p99[1])))


class StainNormaliser:
    """Recolours pixels of one slide; each pixel by itself, so how an image is cut is no matter.

    Attributes:
        fit: The slide's.
        reference: What it is brought to.
    """

    def __init__(self, fit: StainFit, reference: StainFit | None = None) -> None:
        """Prepare the tables.

        Args:
            fit: The slide's.
            reference: That of the method if none is given.

        Raises:
            MismatchError: Stains on one side, statistics of colours on the other.
        """
        self.fit = fit
        self.reference = reference or reference_of(fit.method)
        self._recolour = make_recolouring(self.fit, self.reference)

    def apply(self, image: UInt8[np.ndarray, "*rest 3"]) -> UInt8[np.ndarray, "*rest 3"]:
        """The image in the reference's stain; white stays white. Never the array given."""
        pixels = np.ascontiguousarray(image).reshape(-1, 3)
        if self._recolour is None:
            return pixels.reshape(image.shape).copy()
        result = np.empty_like(pixels)
        for start in range(0, len(pixels), BLOCK_PX):
            block = slice(start, start + BLOCK_PX)
            grey = self._recolour(pixels[block])
            result[block] = np.clip(np.rint(grey, out=grey), 0, 255, out=grey).T
        return result.reshape(image.shape)


class StainTransfer:
    r"""Gives each stain the reference's colour and amount.

    H = argmin over H >= 0 of |V - W H|^2,  I' = 256 exp(-W_ref (p99_ref / p99 * H)) - 1
    (spec 1.10, eq. 18). What no mixture of the two stains explains is lost: 1.5 to 4 grey levels
    on average in H&E images, more in pigment, ink and folds.
    """

    def __init__(self, of: StainFit, to: StainFit) -> None:
        matrix = np.array(of.matrix)
        self._cosine = cosine_of(matrix)
        self._tables = (matrix.T[:, :, None] * DENSITY.astype(np.float64)).astype(np.float32)
        self._colours = np.array(to.matrix) * (np.array(to.p99) / np.array(of.p99))

    def __call__(self, pixels: UInt8[np.ndarray, "pixel 3"]) -> Float32[np.ndarray, "3 pixel"]:
        """Grey levels, not rounded, not clipped."""
        red, green, blue = pixels.T.astype(np.intp)
        one, other = (table[0][red] + table[1][green] + table[2][blue] for table in self._tables)
        first, second = divide(one, other, self._cosine)
        density = np.stack([first * float(a) + second * float(b) for a, b in self._colours])
        return np.exp(-density) * 256 - 1


def make_recolouring(of: StainFit, to: StainFit) -> StainTransfer | ColourTransfer | None:
    """What turns pixels of one into the other; None if nothing does.

    Raises:
        MismatchError: They are of different kinds.
    """
    if (bool(of.matrix), bool(of.mean)) != (bool(to.matrix), bool(to.mean)):
        raise MismatchError(
            f"a fit by {of.method!r} cannot be brought to a reference by {to.method!r}: stains "
            "and statistics of colours do not go together; fit both with one method"
        )
    if of.matrix:
        return StainTransfer(of, to)
    if of.mean:
        return ColourTransfer(_statistics(of), _statistics(to))
    return None


def _statistics(fit: StainFit) -> ColourStatistics:
    (a, b, c), (d, e, f) = fit.mean, fit.deviation
    return ColourStatistics((a, b, c), (d, e, f))


class NormalisedSlide:
    """A slide whose pixels come normalised; all else is the slide's own.

    The pixels are recoloured after they were brought to the resolution asked for. What a slide
    has beyond the protocol (levels, notes, a thumbnail as it was scanned) is handed through.
    """

    def __init__(self, slide: Slide, normaliser: StainNormaliser) -> None:
        self._slide = slide
        self._normaliser = normaliser

    def __repr__(self) -> str:
        return f"<{self._slide!r} normalised by {self._normaliser.fit.method}>"

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the slide has
        if name.startswith("_"):  # asked for while unpickling, before there is a slide
            raise AttributeError(name)
        return getattr(self._slide, name)

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self._slide.slide_id

    @property
    def path(self) -> Path:
        """The file."""
        return self._slide.path

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the full-resolution level."""
        return self._slide.size_px

    @property
    def mpp(self) -> tuple[float, float]:
        """µm per pixel of the full-resolution level, (x, y)."""
        return self._slide.mpp

    def read(self, box: Box, mpp: float) -> UInt8[np.ndarray, "y x 3"]:
        """The box at `mpp` µm per pixel, normalised; see `Slide.read`."""
        return self._normaliser.apply(self._slide.read(box, mpp))
