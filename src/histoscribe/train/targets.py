"""What a model is trained to say: expression of regions in one of two log spaces."""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.data.regions import Regions
from histoscribe.errors import ConfigError, DataError

TargetSpace = Literal["log1p_cp10k", "log1p_counts"]
"""log(1 + counts per 10,000 of the region), or log(1 + counts) as in the paper's code."""

LINEAR_UNIT = {"log1p_cp10k": "cp10k", "log1p_counts": "counts"}
"""The additive unit behind each space."""


def library_size(regions: Regions) -> Float[np.ndarray, " region"]:
    """Counts of each region over *all* genes that were measured, not over a panel."""
    return np.asarray(_expression(regions).sum(axis=1), dtype=np.float64).ravel()


def measure(
    regions: Regions, panel: GenePanel, space: TargetSpace
) -> tuple[Float32[np.ndarray, "region gene"], Bool[np.ndarray, "region gene"]]:
    """Expression of the panel's genes in a space, and which of it was measured.

    CP10k divides by the library size over the whole transcriptome of the region, so that its
    values do not depend on the panel. Genes the platform could not see, and whole regions of
    unknown library size (no counts at all, in CP10k), are not measured: NaN, never zero.

    Raises:
        DataError: If there is no expression, or its unit does not lead to the space.
        MismatchError: If the panel's genes are not those of the regions.
    """
    if space not in get_args(TargetSpace):
        raise ConfigError(f"target space {space!r}; give one of {get_args(TargetSpace)}")
    aligned = regions.align(panel)
    values = _expression(aligned).toarray().astype(np.float64)
    is_known = np.ones(len(regions), dtype=bool)
    if regions.expression_unit == "counts":
        if space == "log1p_cp10k":
            size = library_size(regions)
            is_known = size > 0
            values *= (1e4 / np.where(is_known, size, 1.0))[:, None]
        values = np.log1p(values)
    elif regions.expression_unit != space:
        raise DataError(
            f"expression is in {regions.expression_unit}, {space} is wanted; give raw counts"
        )
    is_observed = is_known[:, None] & aligned.gene_observed[None]
    return np.where(is_observed, values, np.nan).astype(np.float32), is_observed


def _expression(regions: Regions) -> csr_array:
    if regions.expression is None:
        raise DataError(
            f"the regions of {', '.join(sorted(set(regions.slide_id))[:3])} have no expression; "
            "training and scoring need measured counts"
        )
    return regions.expression
