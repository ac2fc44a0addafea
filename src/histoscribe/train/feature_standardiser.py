"""Vectors that another model made of expression, standardised number by number and platform."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from histoscribe.data.profiles import Profiles
from histoscribe.errors import DataError, MismatchError
from histoscribe.train.gene_standardiser import CLIP, OWN_ROWS, PRIOR_ROWS
from histoscribe.train.rows import CHUNK
from histoscribe.train.scaling import FLAT, Arrays

NUMBERS = ("mean", "deviation", "mean0", "deviation0")

Vectors = Float32[np.ndarray, "row feature"]


@dataclass(frozen=True)
class FeatureStandardiser:
    r"""Mean and deviation of each number of a vector on each platform, fitted on training rows.

        z = (x - mean[platform]) / deviation[platform],   cut at +-CLIP

    As `GeneStandardiser` does it to genes, and for its reason: what a platform does to all its
    cells reaches the vectors too, and tells spots from cells better than tissues. In the toy world
    with a strong shift of platforms, AUROC is .87 so, .79 with one mean of all rows, .80 without
    (.90, .89, .86 without a shift). With n rows, m and s2 their mean and variance, m0 and s02 the
    means of these over the platforms, k = PRIOR_ROWS:

        mean = (n m + k m0) / (n + k)        deviation^2 = (n s2 + k s02) / (n + k)

    All rows weigh the same.

    Attributes:
        by: What the vectors are called.
        platforms: Rows of `mean` and `deviation`.
        mean: Of the vectors.
        deviation: Likewise; 1 where a number does not vary.
        mean0: For platforms that are not known.
        deviation0: Likewise.
    """

    by: str
    platforms: tuple[str, ...]
    mean: Float32[np.ndarray, "platform feature"]
    deviation: Float32[np.ndarray, "platform feature"]
    mean0: Float32[np.ndarray, " feature"]
    deviation0: Float32[np.ndarray, " feature"]

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return len(self.mean0)

    def vectors_of(self, profiles: Profiles) -> Vectors:
        """The vectors of profiles, which must be those that this was fitted on.

        Raises:
            MismatchError: There are none, or they are called otherwise or of another width.
        """
        if profiles.features is None or profiles.features_by != self.by:
            said = "none" if profiles.features is None else f"those of {profiles.features_by}"
            raise MismatchError(
                f"the model reads profiles by their vectors {self.by}, these have {said}; read "
                f"them with the embedding {self.by} of the model that made it"
            )
        self._check(profiles.features)
        return profiles.features

    def apply(self, features: Vectors, platform: Sequence[str]) -> Vectors:
        """Standardise; an unknown platform by the mean of the training platforms.

        Raises:
            MismatchError: If the vectors are of another width.
        """
        self._check(features)
        row_of = {name: row for row, name in enumerate(self.platforms)}
        rows = np.array([row_of.get(name, len(row_of)) for name in platform], dtype=np.int64)
        mean = np.vstack([self.mean, self.mean0])
        deviation = np.vstack([self.deviation, self.deviation0])
        return np.clip((features - mean[rows]) / deviation[rows], -CLIP, CLIP)

    def know(
        self, features: Vectors, platform: Sequence[str], own_rows: int = OWN_ROWS
    ) -> "FeatureStandardiser":
        """The same, with new platforms of so many rows, each by its own mean and deviation.

        Raises:
            MismatchError: If the vectors are of another width.
        """
        self._check(features)
        known = self
        is_there = np.isfinite(features[:, 0])
        for name in dict.fromkeys(platform):
            rows = np.flatnonzero(_is(platform, name) & is_there)
            if name in self.platforms or len(rows) < own_rows:
                continue
            variance0 = self.deviation0.astype(np.float64) ** 2
            mean, deviation = _shrink(_moments(features, rows), self.mean0, variance0)
            known = replace(
                known,
                platforms=(*known.platforms, name),
                mean=np.vstack([known.mean, mean]),
                deviation=np.vstack([known.deviation, deviation]),
            )
        return known

    def to_arrays(self) -> Arrays:
        """The numbers, for a checkpoint; names are for its record."""
        return {f"feature_standardiser.{name}": getattr(self, name) for name in NUMBERS}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], by: str, platforms: Sequence[str]
    ) -> "FeatureStandardiser":
        """What `to_arrays` gave.

        Raises:
            MismatchError: If the numbers are not of so many platforms.
        """
        parts = {name: arrays[f"feature_standardiser.{name}"] for name in NUMBERS}
        if len(parts["mean"]) != len(platforms):
            raise MismatchError(
                f"the standardiser is of {len(parts['mean'])} platforms, wanted {len(platforms)}; "
                "take the checkpoint whole"
            )
        return cls(by, tuple(platforms), **parts)

    def _check(self, features: Vectors) -> None:
        if features.shape[1] != self.width:
            raise MismatchError(
                f"vectors {self.by} have {features.shape[1]} numbers, the model takes "
                f"{self.width}; embed with the model that it was fitted with"
            )


class _Moments(NamedTuple):
    n: int
    mean: Float64[np.ndarray, " feature"]
    variance: Float64[np.ndarray, " feature"]


def fit_feature_standardiser(
    by: str, features: Vectors, platform: Sequence[str], rows: Int64[np.ndarray, " training"]
) -> FeatureStandardiser:
    """Fit on training rows; no other is looked at, nor one without a vector.

    Args:
        by: What the vectors are called.
        features: Of all rows.
        platform: Of each.
        rows: Those of training.

    Raises:
        DataError: If no training row has a vector.
    """
    rows = rows[np.isfinite(features[rows, 0])]
    names = sorted({str(platform[row]) for row in rows.tolist()})
    if not names:
        raise DataError(f"no training row has a vector {by}; check the names of regions and cells")
    parts = [_moments(features, rows[_is(platform, name)[rows]]) for name in names]
    mean0 = np.mean([part.mean for part in parts], axis=0)
    variance0 = np.mean([part.variance for part in parts], axis=0)
    shrunk = [_shrink(part, mean0, variance0) for part in parts]
    return FeatureStandardiser(
        by=by,
        platforms=tuple(names),
        mean=np.stack([mean for mean, _ in shrunk]),
        deviation=np.stack([deviation for _, deviation in shrunk]),
        mean0=mean0.astype(np.float32),
        deviation0=_deviation(variance0),
    )


def _is(platform: Sequence[str], name: str) -> np.ndarray:
    return np.array([one == name for one in platform], dtype=bool)


def _moments(features: Vectors, rows: Int64[np.ndarray, " some"]) -> _Moments:
    """Mean and variance over these rows, looked at some at once."""
    parts = np.split(rows, range(CHUNK, len(rows), CHUNK))
    n = len(rows)
    mean = np.sum([features[some].sum(axis=0, dtype=np.float64) for some in parts], axis=0) / n
    squares = np.sum([((features[some] - mean) ** 2).sum(axis=0) for some in parts], axis=0)
    return _Moments(n, mean, squares / n)


def _shrink(
    own: _Moments, mean0: np.ndarray, variance0: np.ndarray
) -> tuple[Float32[np.ndarray, " feature"], Float32[np.ndarray, " feature"]]:
    weight = own.n + PRIOR_ROWS
    mean = (own.n * own.mean + PRIOR_ROWS * mean0) / weight
    variance = (own.n * own.variance + PRIOR_ROWS * variance0) / weight
    return mean.astype(np.float32), _deviation(variance)


def _deviation(variance: np.ndarray) -> Float32[np.ndarray, " feature"]:
    deviation = np.sqrt(variance)
    return np.where(deviation < FLAT, 1.0, deviation).astype(np.float32)
