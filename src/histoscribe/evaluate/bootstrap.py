"""How sure a score is: the bootstrap over regions, of a method or of its gain over another."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from histoscribe.errors import ConfigError, MismatchError
from histoscribe.evaluate.metrics import CONSTANT, pearson, usable

AT_ONCE = 250
"""Draws handled at once; bounds memory at draws x genes x 5 numbers."""


@dataclass(frozen=True)
class BootstrapConfig:
    """How intervals are drawn.

    Attributes:
        n_draws: Times the regions of each slide are drawn with replacement.
        level: Share of draws inside the interval, cut equally at both ends.
        seed: What draws them.
    """

    n_draws: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_draws < 2 or not 0 < self.level < 1 or self.seed < 0:
            raise ConfigError(
                f"n_draws = {self.n_draws}, level = {self.level}, seed = {self.seed}; give two or "
                "more draws, a level between 0 and 1, a seed of 0 or more"
            )


@dataclass(frozen=True)
class Interval:
    """A score with its interval: percentiles of the draws."""

    value: float
    low: float
    high: float


def bootstrap_gene_pcc(
    predictions: Mapping[str, Float[np.ndarray, "region gene"]],
    measured: Float[np.ndarray, "region gene"],
    config: BootstrapConfig,
    block_of_region: Int[np.ndarray, " region"] | None = None,
) -> dict[str, Float64[np.ndarray, " draw"]]:
    """Mean per-gene PCC of each method over the same draws of the regions of one slide.

    As the draws are shared, the difference of two methods is a paired draw of their gain.

    Args:
        predictions: Predicted values by method.
        measured: Measured values; genes that are constant in a draw do not count in it.
        config: Number of draws, seed.
        block_of_region: Draw whole blocks instead of regions, where neighbours are alike.

    Returns:
        For each method one mean PCC a draw.

    Raises:
        MismatchError: If shapes differ.
    """
    masks = [usable(predicted, measured) for predicted in predictions.values()]
    if not masks:
        raise MismatchError("no predictions to bootstrap; give at least one method")
    rows = np.logical_and.reduce([rows for rows, _ in masks])
    columns = masks[0][1]
    kept = np.flatnonzero(columns)
    kept = kept[~np.isnan(pearson(measured[rows][:, kept], measured[rows][:, kept]))]
    y = measured[rows][:, kept].astype(np.float64)
    weights = _draw(len(y), config, None if block_of_region is None else block_of_region[rows])
    return {
        name: _weighted_mean_pcc(predicted[rows][:, kept].astype(np.float64), y, weights)
        for name, predicted in predictions.items()
    }


def interval(
    value: float, draws: Float64[np.ndarray, " draw"], config: BootstrapConfig
) -> Interval:
    """The percentile interval of the draws beside the value on all regions."""
    tail = (1 - config.level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _draw(
    n_regions: int, config: BootstrapConfig, block: Int[np.ndarray, " region"] | None
) -> Float64[np.ndarray, "draw region"]:
    """How often each region is in each draw."""
    generator = np.random.default_rng(config.seed)
    if block is None:
        block, n_blocks = np.arange(n_regions), n_regions
    else:
        names, block = np.unique(block, return_inverse=True)
        n_blocks = len(names)
    counts = generator.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=config.n_draws)
    return counts[:, block].astype(np.float64)


def _weighted_mean_pcc(
    x: Float64[np.ndarray, "region gene"],
    y: Float64[np.ndarray, "region gene"],
    weights: Float64[np.ndarray, "draw region"],
) -> Float64[np.ndarray, " draw"]:
    # Centred on the whole, sums of squares do not cancel when centred again in each draw.
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    n_genes, spread = x.shape[1], (x**2).mean(axis=0)
    table = np.concatenate([x, y, x * x, y * y, x * y], axis=1)
    means = np.empty(len(weights))
    for start in range(0, len(weights), AT_ONCE):
        some = weights[start : start + AT_ONCE]
        moments = some @ table / some.sum(axis=1, keepdims=True)
        mx, my, xx, yy, xy = (moments[:, i * n_genes : (i + 1) * n_genes] for i in range(5))
        xx, yy, xy = xx - mx**2, yy - my**2, xy - mx * my
        is_answer = xx > CONSTANT * spread  # less is rounding: the same value in the whole draw
        norm = np.sqrt(np.where(is_answer & (yy > 0), xx * yy, 1.0))
        r = np.where(is_answer, xy / norm, 0.0)
        varies = yy >= CONSTANT
        means[start : start + AT_ONCE] = np.where(varies, r, 0).sum(1) / varies.sum(1).clip(min=1)
    return means
