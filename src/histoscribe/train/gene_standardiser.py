"""What the gene tower reads: expression on one panel, standardised gene by gene and platform.

Platforms see genes with unlike efficiency: an offset and a factor of each gene that says nothing of
the tissue, and that a net would take for biology. In the toy world it is worth more than any choice
of loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from scipy.sparse import csr_array, vstack

from histoscribe.data.checks import check_length
from histoscribe.data.genes import GenePanel
from histoscribe.data.profiles import Profiles
from histoscribe.data.regions import Regions
from histoscribe.errors import DataError, MismatchError
from histoscribe.train.scaling import FLAT, Arrays

PER_10K = 1e4
PRIOR_ROWS = 10.0
"""Rows that the mean of the platforms counts as, beside a platform's own."""

OWN_ROWS = 50
"""Rows from which an unknown platform is standardised by itself, as a section's spots are."""

FLOOR = 0.5
"""Share of a platform's median deviation that is added, in squares, where profiles are labelled."""

CLIP = 5.0
"""Deviations beyond which a value is cut: a gene that few rows have gives one any size. Five, as
where the settings of `AlignConfig` were found."""


@dataclass(frozen=True)
class GeneValues:
    """Expression of several sources on one panel, not yet standardised.

        v = log1p(1e4 x / sum of x over all genes that the source observed)

    Genes beside the panel are in the sum. Over a panel of markers and variable genes alone a few
    strong genes would rule it: on her2st, where the plasma cells of a spot then make all its other
    genes look low, that cost .045 of AUROC with a ridge from the same features. Sources of unlike
    gene sets differ by a factor, which is the platform's and is standardised away with it.

    Attributes:
        values: v, profile x gene.
        is_observed: Which genes each source could have seen.
        source: Row of `is_observed` of each profile.
        platform: Platform of each profile.
        genes: Columns.
    """

    values: csr_array
    is_observed: Bool[np.ndarray, "source gene"]
    source: Int64[np.ndarray, " profile"]
    platform: tuple[str, ...]
    genes: GenePanel

    def __len__(self) -> int:
        return len(self.platform)

    @property
    def has_values(self) -> Bool[np.ndarray, " profile"]:
        """Profiles with any expression on the panel; leave the others out."""
        return np.diff(self.values.indptr) > 0

    def take(self, rows: Int64[np.ndarray, " row"]) -> "GeneValues":
        """These profiles, in this order."""
        return replace(
            self,
            values=csr_array(self.values[rows]),
            source=self.source[rows],
            platform=tuple(self.platform[row] for row in rows),
        )


class Standardised(NamedTuple):
    """What the gene tower reads.

    Attributes:
        z: Deviations from the mean of the platform; 0 where not observed.
        is_observed: Genes that were observed, and whose mean is known.
    """

    z: Float32[np.ndarray, "profile gene"]
    is_observed: Bool[np.ndarray, "profile gene"]


def gene_values(parts: Sequence[Profiles | Regions], panel: GenePanel) -> GeneValues:
    """Put profiles and regions, which name genes as the panel does, one below the other.

    Raises:
        DataError: If regions have no expression.
        MismatchError: If a part names genes differently, or shares none with the panel.
    """
    values, platform, n_rows = [], [], []
    observed = np.zeros((len(parts), len(panel)), dtype=bool)
    for number, part in enumerate(parts):
        same, is_log = part.align(panel), part.expression_unit == "log1p_cp10k"
        if same.expression is None or part.expression is None:
            raise DataError("regions without expression cannot be standardised; leave them out")
        observed[number] = same.gene_observed
        total = to_linear(part.expression, is_log=is_log).sum(axis=1)
        values.append(log_cp10k(same.expression, np.asarray(total).ravel(), is_log=is_log))
        n_rows.append(len(part))
        names = part.platform
        platform += [names] * len(part) if isinstance(names, str) else names
    return GeneValues(
        values=csr_array(vstack(values))
        if values
        else csr_array((0, len(panel)), dtype=np.float32),
        is_observed=observed,
        source=np.repeat(np.arange(len(parts)), n_rows).astype(np.int64),
        platform=tuple(platform),
        genes=panel,
    )


def to_linear(expression: csr_array, *, is_log: bool) -> csr_array:
    """A copy in double precision, a log1p undone if `is_log`."""
    linear = csr_array(expression, dtype=np.float64, copy=True)
    if is_log:
        linear.data = np.expm1(linear.data)
    return linear


def log_cp10k(
    expression: csr_array, total: Float[np.ndarray, " profile"], *, is_log: bool = False
) -> csr_array:
    """log1p of 10,000 times each row's shares of its total, float32; a row of zeros stays one.

    Args:
        expression: profile x gene, linear, or log1p if `is_log`.
        total: Of each row, linear, over these genes and all others.
        is_log: Whether a logarithm is to be undone first.
    """
    linear = to_linear(expression, is_log=is_log)
    factor = PER_10K / np.where(total > 0, total, 1.0)
    linear.data = np.log1p(linear.data * np.repeat(factor, np.diff(linear.indptr)))
    return csr_array(linear, dtype=np.float32)


@dataclass(frozen=True)
class GeneStandardiser:
    r"""Mean and deviation of each gene on each platform, fitted on training rows.

        z = (v - mean[platform]) / deviation[platform],   cut at +-CLIP

    With n rows of a platform in which the gene was observed, m and s2 their mean and variance, and
    m0, s02 the means of these over the platforms:

        mean = (n m + k m0) / (n + k)        d^2 = (n s2 + k s02) / (n + k)

    so that a platform of few rows leans on the others; k = PRIOR_ROWS. Regions, and profiles of
    which nothing is said, have deviation = d. Labelled profiles are as many of each label as
    somebody happened to collect, and few: there each label counts the same in m and s2,

        m = sum_i w[i] v[i] / n              s2 = sum_i w[i] (v[i] - m)^2 / n
        w[i] = rows with a label / (labels x rows of the label of i),   1 for a row without one

    with sums over the n = sum_i w[i] rows, and a gene that hardly varies among them has no say:

        deviation^2 = d^2 + (FLOOR median over genes of d)^2

    Attributes:
        genes: Columns.
        platforms: Rows of `mean` and `deviation`; those of `mean0` are none of them.
        mean: Of v.
        deviation: Of v; 1 where the gene does not vary.
        mean0: For platforms that are not known.
        deviation0: Likewise.
        is_known: Genes that were observed in some training row; others count as not observed.
    """

    genes: GenePanel
    platforms: tuple[str, ...]
    mean: Float32[np.ndarray, "platform gene"]
    deviation: Float32[np.ndarray, "platform gene"]
    mean0: Float32[np.ndarray, " gene"]
    deviation0: Float32[np.ndarray, " gene"]
    is_known: Bool[np.ndarray, " gene"]

    def apply(self, some: GeneValues) -> Standardised:
        """Standardise; an unknown platform by the mean of the training platforms.

        Raises:
            MismatchError: If the values are on another panel.
        """
        self._check(some)
        row_of = {name: row for row, name in enumerate(self.platforms)}
        rows = np.array([row_of.get(name, len(row_of)) for name in some.platform], dtype=np.int64)
        mean = np.vstack([self.mean, self.mean0])
        deviation = np.vstack([self.deviation, self.deviation0])
        observed = some.is_observed[some.source] & self.is_known
        z = some.values.toarray()
        z -= mean[rows]
        z /= deviation[rows]
        np.clip(z, -CLIP, CLIP, out=z)
        z[~observed] = 0.0
        return Standardised(z, observed)

    def know(
        self, some: GeneValues, own_rows: int = OWN_ROWS
    ) -> tuple["GeneStandardiser", tuple[str, ...]]:
        """The same, with the platforms of new data; and how each of them is standardised.

        An unknown platform of `own_rows` rows or more gets its own pooled mean and deviation,
        shrunk as in training. Standardised by itself, a cohort loses what sets it apart as a whole.

        Raises:
            MismatchError: If the values are on another panel.
        """
        self._check(some)
        known, notes = self, []
        names = np.array(some.platform, dtype=object)
        for name in dict.fromkeys(some.platform):
            rows = np.flatnonzero(names == name)
            if name in self.platforms:
                notes.append(f"platform {name!r}: as in training")
            elif len(rows) < own_rows:
                notes.append(
                    f"platform {name!r} was not in training: {len(rows)} rows are too few for its "
                    "own mean, it is standardised by the mean of the training platforms"
                )
            else:
                notes.append(
                    f"platform {name!r} was not in training: standardised by its own {len(rows)} "
                    "rows"
                )
                own = _moments(some.take(rows))
                mean, deviation = _shrink(own, self.mean0, self.deviation0.astype(np.float64) ** 2)
                known = replace(
                    known,
                    platforms=(*known.platforms, name),
                    mean=np.vstack([known.mean, mean]),
                    deviation=np.vstack([known.deviation, deviation]),
                )
        return known, tuple(notes)

    def to_arrays(self) -> Arrays:
        """The numbers, for a checkpoint; genes and platforms are for its record."""
        names = ("mean", "deviation", "mean0", "deviation0", "is_known")
        return {f"gene_standardiser.{name}": getattr(self, name) for name in names}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], genes: GenePanel, platforms: Sequence[str]
    ) -> "GeneStandardiser":
        """What `to_arrays` gave.

        Raises:
            MismatchError: If the numbers are not of so many genes and platforms.
        """
        names = ("mean", "deviation", "mean0", "deviation0", "is_known")
        parts = {name: arrays[f"gene_standardiser.{name}"] for name in names}
        if parts["mean"].shape != (len(platforms), len(genes)):
            raise MismatchError(
                f"the standardiser is of {parts['mean'].shape} platforms and genes; wanted "
                f"{(len(platforms), len(genes))}. Take the checkpoint whole"
            )
        return cls(genes, tuple(platforms), **parts)

    def _check(self, some: GeneValues) -> None:
        if some.genes.ids != self.genes.ids:
            raise MismatchError(
                f"the standardiser is of {len(self.genes)} genes, these values of "
                f"{len(some.genes)} others; align them to its panel first"
            )


class _Moments(NamedTuple):
    n: Float64[np.ndarray, " gene"]
    mean: Float64[np.ndarray, " gene"]
    variance: Float64[np.ndarray, " gene"]


def fit_gene_standardiser(
    training: GeneValues, label: Sequence[str] | None = None
) -> GeneStandardiser:
    """Fit on training rows, which the caller has taken: no other is to be among them.

    Args:
        training: The rows.
        label: What each is said to be, "" for nothing; None says nothing of any.

    Raises:
        DataError: If there is no row, or labels are not one for each.
    """
    if not len(training):
        raise DataError("no training row to standardise genes by; check the split")
    said = np.array([""] * len(training) if label is None else list(label), dtype=object)
    check_length("labels of training rows", said, len(training))
    names = np.array(training.platform, dtype=object)
    platforms = tuple(sorted(set(training.platform)))
    rows_of = [np.flatnonzero(names == name) for name in platforms]
    parts = [_moments(training.take(rows), _balance(said[rows])) for rows in rows_of]
    is_there = np.stack([part.n > 0 for part in parts])
    n_platforms = np.maximum(is_there.sum(axis=0), 1)
    mean0 = np.sum([part.mean * (part.n > 0) for part in parts], axis=0) / n_platforms
    variance0 = np.sum([part.variance * (part.n > 0) for part in parts], axis=0) / n_platforms
    shrunk = [
        _shrink(part, mean0, variance0, has_floor=bool((said[rows] != "").any()))
        for part, rows in zip(parts, rows_of, strict=True)
    ]
    return GeneStandardiser(
        genes=training.genes,
        platforms=platforms,
        mean=np.stack([mean for mean, _ in shrunk]),
        deviation=np.stack([deviation for _, deviation in shrunk]),
        mean0=mean0.astype(np.float32),
        deviation0=_deviation(variance0),
        is_known=np.asarray(is_there.any(axis=0)),
    )


def _balance(label: Shaped[np.ndarray, " row"]) -> Float64[np.ndarray, " row"]:
    """Weights by which each label counts the same, and the rows with a label as many as they are.

    A row without a label weighs 1.
    """
    _, number, n_rows = np.unique(label.astype(str), return_inverse=True, return_counts=True)
    is_said = label != ""
    n_labels = len(set(label[is_said]))
    return np.where(is_said, is_said.sum() / (max(n_labels, 1) * n_rows[number]), 1.0)


def _moments(some: GeneValues, weight: Float64[np.ndarray, " profile"] | None = None) -> _Moments:
    """Mean and variance of each gene over the rows of a platform in which it was observed."""
    weight = np.ones(len(some)) if weight is None else weight
    n = np.bincount(some.source, weight, len(some.is_observed)) @ some.is_observed
    wide = csr_array(some.values, dtype=np.float64)
    own = np.repeat(weight, np.diff(wide.indptr))
    rows = np.where(n > 0, n, 1.0)
    mean = np.bincount(wide.indices, own * wide.data, len(n)) / rows
    # of what is not 0 the deviations, and of the zeros theirs: no difference of large numbers
    n_stored = np.bincount(wide.indices, own, len(n))
    squares = np.bincount(wide.indices, own * (wide.data - mean[wide.indices]) ** 2, len(n))
    squares += (n - n_stored) * mean**2
    return _Moments(n, mean, np.maximum(squares, 0) / rows)


def _shrink(
    own: _Moments, mean0: np.ndarray, variance0: np.ndarray, *, has_floor: bool = False
) -> tuple[Float32[np.ndarray, " gene"], Float32[np.ndarray, " gene"]]:
    weight = own.n + PRIOR_ROWS
    mean = (own.n * own.mean + PRIOR_ROWS * mean0) / weight
    variance = (own.n * own.variance + PRIOR_ROWS * variance0) / weight
    if has_floor and (own.n > 0).any():
        variance = variance + (FLOOR * np.median(np.sqrt(variance[own.n > 0]))) ** 2
    return mean.astype(np.float32), _deviation(variance)


def _deviation(variance: np.ndarray) -> Float32[np.ndarray, " gene"]:
    deviation = np.sqrt(variance)
    return np.where(deviation < FLAT, 1.0, deviation).astype(np.float32)
