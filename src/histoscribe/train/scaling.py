"""All that is fitted beside the network, on training cells and regions only.

Four things, kept in the checkpoint and applied wherever bags are made: the principal components
of the cell features, the phenotypes, the principal components of the field descriptors, and the
mean and deviation of each gene.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from histoscribe.errors import DataError, MismatchError
from histoscribe.train.rows import CHUNK, Rows, draw_rows, in_chunks, regroup
from histoscribe.train.targets import TargetSpace

PHENOTYPE_CELLS = 1_000_000
"""Cells that K-means sees at most; of more, so many are drawn by its seed."""

FLAT = 1e-6
"""Deviation below which a feature or a gene is taken as constant (spec: sigma < 1e-6 -> 1)."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Pca:
    r"""Standardise, then rotate to the leading principal components.

        z = ((x - mean) / scale) components

    Components keep their relative spread (no whitening) and are divided by one number for all,
    so that their mean variance over the training rows is 1. The sign is such that the largest
    entry of each component is positive.

    Source: PCA to 128 of the paper's section 3.2. Departs from it: one PCA of all training cells
    where the paper fits one per sample, whose axes do not agree between samples.
    """

    mean: Float32[np.ndarray, " feature"]
    scale: Float32[np.ndarray, " feature"]
    components: Float32[np.ndarray, "feature component"]

    def apply(
        self, rows: Float[np.ndarray, "*row feature"]
    ) -> Float32[np.ndarray, "*row component"]:
        """Transform rows; NaN rows stay NaN.

        Raises:
            MismatchError: If the rows have another number of features.
        """
        if rows.shape[-1] != len(self.mean):
            raise MismatchError(
                f"the scaling was fitted on {len(self.mean)} features, these rows have "
                f"{rows.shape[-1]}; prepare the slides with the encoder of the checkpoint"
            )
        flat = rows.reshape(-1, rows.shape[-1])
        out = np.empty((len(flat), self.components.shape[1]), dtype=np.float32)
        for start in range(0, len(flat), CHUNK):
            some = flat[start : start + CHUNK].astype(np.float32)
            out[start : start + CHUNK] = ((some - self.mean) / self.scale) @ self.components
        return out.reshape(*rows.shape[:-1], -1)


@dataclass(frozen=True, eq=False)
class Transformed:
    """A table of rows that are transformed when they are asked for."""

    table: Rows
    pca: Pca

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, then of components."""
        return (len(self.table), self.pca.components.shape[1])

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, which: slice | Int64[np.ndarray, " row"]) -> np.ndarray:
        return self.pca.apply(self.table[which])


@dataclass(frozen=True)
class Phenotypes:
    """K-means centroids over the transformed cells (the paper's phenotypes, K = 8)."""

    centroids: Float32[np.ndarray, "phenotype component"]

    def assign(self, cells: Float32[np.ndarray, "cell component"]) -> Int64[np.ndarray, " cell"]:
        """Nearest centroid of each cell; ties go to the first."""
        square = (self.centroids**2).sum(axis=1)
        nearest = np.empty(len(cells), dtype=np.int64)
        for start in range(0, len(cells), CHUNK):
            some = cells[start : start + CHUNK]
            nearest[start : start + CHUNK] = (square - 2 * some @ self.centroids.T).argmin(axis=1)
        return nearest


@dataclass(frozen=True)
class FieldScaling:
    """Field descriptors, rotated and brought to one spread block by block.

    A descriptor is [tile features | mean nucleus features | log(1 + number of nuclei)]. The first
    two are rotated by a PCA each, the same for all rings; then each block of each ring is centred
    and multiplied by one weight, so that its mean variance over the training regions is 1 (rings
    are averages: their spread shrinks with their size). A weight of 0 leaves a block out.
    """

    tiles: Pca
    cells: Pca
    mean: Float32[np.ndarray, "ring component"]
    weight: Float32[np.ndarray, "ring component"]

    def apply(
        self, rows: Float[np.ndarray, "region ring feature"]
    ) -> Float32[np.ndarray, "region ring component"]:
        """Transform the descriptors of regions."""
        return (rotate_field(rows, self.tiles, self.cells) - self.mean) * self.weight


@dataclass(frozen=True)
class TargetScaling:
    """Eq. 21: z = (y - mu) / sigma for each gene over the training regions; sigma < 1e-6 -> 1.

    Attributes:
        space: What y is.
        mu: Mean of y over the training regions where the gene was measured.
        sigma: Its standard deviation (divided by n, as in numpy).
    """

    space: TargetSpace
    mu: Float32[np.ndarray, " gene"]
    sigma: Float32[np.ndarray, " gene"]

    def standardise(
        self, y: Float[np.ndarray, "region gene"]
    ) -> Float32[np.ndarray, "region gene"]:
        """Z-scores; NaN stays NaN."""
        return ((y - self.mu) / self.sigma).astype(np.float32)

    def restore(self, z: Float[np.ndarray, "region gene"]) -> Float32[np.ndarray, "region gene"]:
        """Give z sigma + mu, not clamped: clamping is for reports only (spec 1.5)."""
        return (z * self.sigma + self.mu).astype(np.float32)


@dataclass(frozen=True)
class Scaling:
    """Everything fitted beside the network."""

    cells: Pca
    phenotypes: Phenotypes
    field: FieldScaling
    target: TargetScaling

    def to_arrays(self) -> Arrays:
        """A flat dict of arrays; the target space is kept apart, as text."""
        return {
            **_to_arrays(self.cells, "cells"),
            **_to_arrays(self.field.tiles, "field.tiles"),
            **_to_arrays(self.field.cells, "field.cells"),
            "phenotypes.centroids": self.phenotypes.centroids,
            "field.mean": self.field.mean,
            "field.weight": self.field.weight,
            "target.mu": self.target.mu,
            "target.sigma": self.target.sigma,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], space: TargetSpace) -> "Scaling":
        """What `to_arrays` made.

        Raises:
            DataError: If an array is missing.
        """
        try:
            return cls(
                cells=_to_pca(arrays, "cells"),
                phenotypes=Phenotypes(arrays["phenotypes.centroids"]),
                field=FieldScaling(
                    _to_pca(arrays, "field.tiles"),
                    _to_pca(arrays, "field.cells"),
                    arrays["field.mean"],
                    arrays["field.weight"],
                ),
                target=TargetScaling(space, arrays["target.mu"], arrays["target.sigma"]),
            )
        except KeyError as error:
            raise DataError(f"the checkpoint lacks {error}; it is broken: fit again") from error


def fit_pca(parts: Sequence[Rows], n_components: int) -> Pca:
    """Fit on the rows of all parts, which are never held together.

    One pass over the rows sums them and their products in float64, shifted by the mean of the
    first rows so that nothing cancels; the correlation matrix is then solved by `eigh`. Where
    there are fewer rows than features the rows' own Gram matrix is solved: same answer, smaller.

    Args:
        parts: Blocks of rows, one a slide; NaN is not allowed.
        n_components: Wanted; fewer come back where features or rows are fewer.

    Raises:
        DataError: If there are fewer than two rows, or all features are constant.
    """
    n_rows = sum(len(part) for part in parts)
    if n_rows < 2:
        raise DataError(f"{n_rows} training rows; principal components need at least two")
    n_features = parts[0].shape[1]
    shift = parts[int(np.argmax([len(part) for part in parts]))][:CHUNK].mean(
        axis=0, dtype=np.float64
    )
    if n_rows <= n_features:
        mean, scale, vectors, values = _solve_by_rows(parts, shift)
    else:
        mean, scale, vectors, values = _solve_by_features(parts, shift)
    keep = min(n_components, n_features, int((values > values.max() * 1e-9).sum()))
    if values.max() <= 0 or keep < 1:
        raise DataError("all features are constant over the training rows; check the encoder")
    components = vectors[:, :keep]
    largest = components[np.abs(components).argmax(axis=0), np.arange(keep)]
    components = components * np.sign(largest) / np.sqrt(values[:keep].mean())
    return Pca(mean.astype(np.float32), scale.astype(np.float32), components.astype(np.float32))


def fit_phenotypes(parts: Sequence[Rows], n_phenotypes: int, seed: int) -> Phenotypes:
    """K-means over the transformed training cells, in mini-batches.

    Source: section C.2 of the paper (K = 8). Departs from its code, which fits each sample, test
    samples included, so that ids cannot be compared.

    Args:
        parts: Transformed cells, one part a slide. Of more than PHENOTYPE_CELLS so many are drawn,
            each alike.
        n_phenotypes: K; fewer come back where cells are fewer.
        seed: What draws the cells and the first centroids.
    """
    from sklearn.cluster import MiniBatchKMeans

    cells = draw_rows(parts, PHENOTYPE_CELLS, seed)
    wanted = min(n_phenotypes, len(cells))
    kmeans = MiniBatchKMeans(
        wanted,
        batch_size=4096,
        n_init=3,  # pyright: ignore[reportArgumentType] - an int is what its manual asks for
        random_state=seed,
    ).fit(cells)
    return Phenotypes(np.asarray(kmeans.cluster_centers_, dtype=np.float32))


def fit_field(
    parts: Sequence[Float32[np.ndarray, "_ ring feature"]],
    n_tile_features: int,
    n_components: int,
    *,
    has_cell_context: bool,
) -> FieldScaling:
    """Fit the rotations on ring 0 of the training regions, the weights on each ring.

    Args:
        parts: Descriptors of the regions of each slide.
        n_tile_features: Width of the first block.
        n_components: Components of each of the two rotated blocks.
        has_cell_context: Whether the rings around a region describe nuclei too; else only the
            region itself does.
    """
    tiles = fit_pca([part[:, 0, :n_tile_features] for part in parts], n_components)
    cells = fit_pca([part[:, 0, n_tile_features:-1] for part in parts], n_components)
    n_tile, n_cell = tiles.components.shape[1], cells.components.shape[1]
    mean, variance = _spread(parts, tiles, cells)
    weight = np.ones_like(variance)
    for block in (slice(0, n_tile), slice(n_tile, n_tile + n_cell), slice(n_tile + n_cell, None)):
        spread = np.sqrt(variance[:, block].mean(axis=1, keepdims=True))
        weight[:, block] = 1 / np.where(spread < FLAT, 1.0, spread)
    if not has_cell_context:
        weight[1:, n_tile:] = 0.0
    return FieldScaling(tiles, cells, mean.astype(np.float32), weight.astype(np.float32))


def rotate_field(
    rows: Float[np.ndarray, "region ring feature"], tiles: Pca, cells: Pca
) -> Float32[np.ndarray, "region ring component"]:
    """The two blocks of features in their principal components, the count behind them."""
    n_tile = len(tiles.mean)
    parts = [tiles.apply(rows[..., :n_tile]), cells.apply(rows[..., n_tile:-1]), rows[..., -1:]]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def fit_target(
    y: Float32[np.ndarray, "region gene"],
    is_observed: Bool[np.ndarray, "region gene"],
    space: TargetSpace,
) -> TargetScaling:
    """Mean and deviation of each gene over the regions where it was measured."""
    n = is_observed.sum(axis=0)
    unseen = np.flatnonzero(n == 0)
    if len(unseen):
        raise DataError(
            f"gene {unseen[0]} of the panel is measured in no training region; choose the panel "
            "from the training slides"
        )
    wide = np.where(is_observed, y, 0).astype(np.float64)
    mu = wide.sum(axis=0) / n
    sigma = np.sqrt((np.where(is_observed, wide - mu, 0) ** 2).sum(axis=0) / n)
    sigma = np.where(sigma < FLAT, 1.0, sigma)
    return TargetScaling(space, mu.astype(np.float32), sigma.astype(np.float32))


def _to_arrays(pca: Pca, prefix: str) -> Arrays:
    return {f"{prefix}.{f.name}": getattr(pca, f.name) for f in fields(pca)}


def _to_pca(arrays: Mapping[str, np.ndarray], prefix: str) -> Pca:
    return Pca(**{f.name: arrays[f"{prefix}.{f.name}"] for f in fields(Pca)})


Solved = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _spread(
    parts: Sequence[Float32[np.ndarray, "_ ring feature"]], tiles: Pca, cells: Pca
) -> tuple[Float[np.ndarray, "ring component"], Float[np.ndarray, "ring component"]]:
    """Mean and variance over the regions of all parts, rotated, in two passes over them.

    To the bit those of the parts put together: rotated in the same chunks of CHUNK tokens, and
    added up one region after another, as numpy adds along the first of several axes.
    """
    n_regions = sum(len(part) for part in parts)
    at_once = CHUNK // math.gcd(CHUNK, parts[0].shape[1])

    def add_up(centre: np.ndarray | None) -> np.ndarray:
        total = None
        for rows in regroup(parts, at_once):
            values = rotate_field(rows, tiles, cells).astype(np.float64)
            if centre is not None:
                values = (values - centre) ** 2
            total = (values if total is None else np.concatenate([total[None], values])).sum(axis=0)
        assert total is not None
        return total

    mean = add_up(None) / n_regions
    return mean, add_up(mean) / n_regions


def _solve_by_features(parts: Sequence[Rows], shift: np.ndarray) -> Solved:
    from scipy.linalg import eigh

    n_rows = sum(len(part) for part in parts)
    total = np.zeros(len(shift))
    products = np.zeros((len(shift), len(shift)))
    for rows in in_chunks(parts):
        rows -= shift
        total += rows.sum(axis=0)
        products += rows.T @ rows
    offset = total / n_rows
    covariance = products / n_rows - np.outer(offset, offset)
    deviation = np.sqrt(covariance.diagonal().clip(min=0))
    scale = np.where(deviation < FLAT, 1.0, deviation)
    values, vectors = eigh(covariance / np.outer(scale, scale))
    return shift + offset, scale, vectors[:, ::-1], values[::-1]


def _solve_by_rows(parts: Sequence[Rows], shift: np.ndarray) -> Solved:
    from scipy.linalg import eigh

    rows = np.concatenate(list(in_chunks(parts))) - shift
    offset = rows.mean(axis=0)
    rows -= offset
    deviation = np.sqrt((rows**2).mean(axis=0))
    scale = np.where(deviation < FLAT, 1.0, deviation)
    rows /= scale
    values, vectors = eigh(rows @ rows.T / len(rows))
    values, vectors = values[::-1], vectors[:, ::-1]
    is_real = values > values[0] * 1e-9
    values, vectors = values[is_real], vectors[:, is_real]
    return shift + offset, scale, rows.T @ vectors / np.sqrt(values * len(rows)), values
