"""Metrics of the paper (eq. 14-16), in float64, with what each of them leaves out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from histoscribe.errors import DataError, MismatchError

CONSTANT = 1e-12
"""Variance below which a target counts as constant (spec 1.7)."""

Matrix = Float[np.ndarray, "region gene"]
Other = Float[np.ndarray, "_ _"]
"""Held against the first in our own words."""


@dataclass(frozen=True)
class Metrics:
    """Scores of one slide, or means over slides.

    Attributes:
        gene_pcc: Mean over genes of the Pearson correlation over the regions of a slide.
        region_pcc: Mean over regions of the Pearson correlation over genes; the means of the
            genes alone make it high, so it stands beside the training mean.
        flat_pcc: Pearson correlation over all regions and genes; the same caveat.
        rmse: Root of the mean squared error, in the space of the prediction.
        js: Jensen-Shannon divergence of the compositions, natural log; 0 to ln 2.
        js_bits: The same, log base 2; 0 to 1.
        n_genes: Genes that count in gene_pcc.
        n_constant: Genes that do not, as they do not vary in the slide.
        n_regions: Regions that count: measured, and predicted at all.
    """

    gene_pcc: float
    region_pcc: float
    flat_pcc: float
    rmse: float
    js: float
    js_bits: float
    n_genes: int
    n_constant: int
    n_regions: int


def measure_all(predicted: Matrix, measured: Other) -> Metrics:
    """All metrics of the regions of one slide, in a log1p space.

    Rows with NaN in either (regions without a nucleus, or without counts) are left out; columns
    that are NaN throughout (genes not measured) too. Compositions are exp(y) - 1, clipped at 0.

    Raises:
        MismatchError: If the shapes differ.
        DataError: If fewer than two regions or no gene is left.
    """
    predicted, measured = _usable(predicted, measured)
    by_gene = pearson(predicted, measured)
    by_region = pearson(predicted.T, measured.T)
    flat = pearson(predicted.reshape(-1, 1), measured.reshape(-1, 1))
    js = jensen_shannon(np.expm1(predicted), np.expm1(measured))
    return Metrics(
        gene_pcc=_mean(by_gene),
        region_pcc=_mean(by_region),
        flat_pcc=_mean(flat),
        rmse=float(np.sqrt(np.mean((predicted - measured) ** 2))),
        js=float(np.nanmean(js)) if np.isfinite(js).any() else float("nan"),
        js_bits=float(np.nanmean(js) / np.log(2)) if np.isfinite(js).any() else float("nan"),
        n_genes=int(np.isfinite(by_gene).sum()),
        n_constant=int(np.isnan(by_gene).sum()),
        n_regions=len(predicted),
    )


def gene_pcc(predicted: Matrix, measured: Other) -> Float64[np.ndarray, " gene"]:
    """Pearson correlation of each gene over the regions of one slide; NaN where it is constant.

    Rows with NaN are left out, as in `measure_all`; a gene that was not measured gets NaN.
    """
    keep, columns = usable(predicted, measured)
    scores = np.full(measured.shape[1], np.nan)
    scores[columns] = pearson(predicted[keep][:, columns], measured[keep][:, columns])
    return scores


def pearson(
    predicted: Float[np.ndarray, "row column"], measured: Float[np.ndarray, "row column"]
) -> Float64[np.ndarray, " column"]:
    """Pearson correlation of each column, in two passes.

    A column whose measured values are constant gives NaN: there is nothing to correlate with. A
    constant prediction of a column that varies gives 0: it was asked and knew nothing.
    """
    x = predicted.astype(np.float64)
    y = measured.astype(np.float64)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    xx, yy = (x**2).mean(axis=0), (y**2).mean(axis=0)
    norm = np.sqrt(xx * yy)
    is_answer = xx > CONSTANT**2  # a prediction may be tiny and still right; only rounding is 0
    r = np.where(is_answer, (x * y).mean(axis=0) / np.where(norm > 0, norm, 1.0), 0.0)
    return np.where(yy < CONSTANT, np.nan, r)


def jensen_shannon(
    predicted: Float[np.ndarray, "region gene"], measured: Float[np.ndarray, "region gene"]
) -> Float64[np.ndarray, " region"]:
    r"""Jensen-Shannon divergence of each region's composition, natural log.

        JS = KL(p | m) / 2 + KL(q | m) / 2,    m = (p + q) / 2,    0 ln 0 = 0

    Both are clipped at 0 and closed over the same genes. A region whose measured genes sum to 0
    gives NaN; a prediction that sums to 0 is taken as even over the genes.

    Departs from the paper, whose eq. 16 as printed is the Kullback-Leibler divergence.
    """
    p = measured.astype(np.float64).clip(min=0)
    q = predicted.astype(np.float64).clip(min=0)
    q = np.where(q.sum(axis=1, keepdims=True) > 0, q, 1.0)
    is_empty = p.sum(axis=1) <= 0
    p = np.where(is_empty[:, None], 1.0, p)
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    m = (p + q) / 2
    divergence = (_relative(p, m) + _relative(q, m)) / 2
    return np.where(is_empty, np.nan, divergence.clip(0, np.log(2)))


def usable(
    predicted: Matrix, measured: Other
) -> tuple[Bool[np.ndarray, " region"], Bool[np.ndarray, " gene"]]:
    """Rows and columns that can be scored.

    Raises:
        MismatchError: If the shapes differ.
        DataError: If nothing is left.
    """
    if predicted.shape != measured.shape:
        raise MismatchError(
            f"predicted {predicted.shape} and measured {measured.shape} differ in shape; align "
            "regions and genes first"
        )
    columns = ~np.isnan(measured).all(axis=0)
    rows = np.isfinite(predicted[:, columns]).all(axis=1)
    rows &= np.isfinite(measured[:, columns]).all(axis=1)
    if rows.sum() < 2 or not columns.any():
        raise DataError(
            f"{int(rows.sum())} regions and {int(columns.sum())} genes can be scored; at least two "
            "regions with nuclei and counts, and one gene, are wanted"
        )
    return np.asarray(rows), np.asarray(columns)


def _usable(
    predicted: Matrix, measured: Other
) -> tuple[Float64[np.ndarray, "kept kept_gene"], Float64[np.ndarray, "kept kept_gene"]]:
    rows, columns = usable(predicted, measured)
    return (
        predicted[rows][:, columns].astype(np.float64),
        measured[rows][:, columns].astype(np.float64),
    )


def _relative(p: np.ndarray, m: np.ndarray) -> Float64[np.ndarray, " region"]:
    ratio = np.where(p > 0, p / np.where(m > 0, m, 1.0), 1.0)
    return (p * np.log(ratio)).sum(axis=1)


def _mean(values: Float64[np.ndarray, " n"]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
