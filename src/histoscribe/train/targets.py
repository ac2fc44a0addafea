"""What a model is trained to say: expression of regions in one of some log spaces."""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.data.regions import Regions
from histoscribe.errors import ConfigError, DataError

TargetSpace = Literal["log1p_cp10k", "log1p_counts", "log1p_tpm", "log1p_rsem"]
"""log(1 + x), where x is counts per 10,000 of the region; counts, as in the paper's code; or, for
bulk, transcripts per million, or the estimated counts of RSEM (which are no TPM)."""

LINEAR_UNIT = {
    "log1p_cp10k": "cp10k",
    "log1p_counts": "counts",
    "log1p_tpm": "tpm",
    "log1p_rsem": "rsem",
}
"""The additive unit behind each space."""

WAYS: dict[TargetSpace, dict[str, float]] = {
    "log1p_cp10k": {"counts": 1e4},
    "log1p_counts": {"counts": 0.0},
    "log1p_tpm": {"tpm": 0.0, "fpkm": 1e6},
    "log1p_rsem": {"rsem": 0.0},
}
"""From which units each space is reached, and to which sum over all genes a region is brought on
the way; 0 leaves it as it is. TPM is FPKM brought to a million (Li and Dewey 2011, eq. 4)."""


def library_size(regions: Regions) -> Float[np.ndarray, " region"]:
    """Sum of each region over *all* genes that were measured, not over a panel."""
    return np.asarray(_expression(regions).sum(axis=1), dtype=np.float64).ravel()


def measure(
    regions: Regions, panel: GenePanel, space: TargetSpace
) -> tuple[Float32[np.ndarray, "region gene"], Bool[np.ndarray, "region gene"]]:
    """Expression of the panel's genes in a space, and which of it was measured.

    CP10k divides by the library size over the whole transcriptome of the region, so that its
    values do not depend on the panel; so does TPM that is made from FPKM. Genes the platform could
    not see, and whole regions of unknown library size (no counts at all, in CP10k), are not
    measured: NaN, never zero.

    Raises:
        DataError: If there is no expression, or its unit does not lead to the space.
        MismatchError: If the panel's genes are not those of the regions.
    """
    if space not in get_args(TargetSpace):
        raise ConfigError(f"target space {space!r}; give one of {get_args(TargetSpace)}")
    aligned = regions.align(panel)
    values = _expression(aligned).toarray().astype(np.float64)
    is_known = np.ones(len(regions), dtype=bool)
    unit = regions.expression_unit
    if unit != space:
        if unit not in WAYS[space]:
            raise DataError(
                f"expression is in {unit}, {space} is wanted, which is made from "
                f"{' or '.join(WAYS[space])}; set fit.target_space, or give such expression"
            )
        if WAYS[space][unit]:
            size = library_size(regions)
            is_known = size > 0
            values *= (WAYS[space][unit] / np.where(is_known, size, 1.0))[:, None]
        values = np.log1p(values)
    is_observed = is_known[:, None] & aligned.gene_observed[None]
    return np.where(is_observed, values, np.nan).astype(np.float32), is_observed


def _expression(regions: Regions) -> csr_array:
    if regions.expression is None:
        raise DataError(
            f"the regions of {', '.join(sorted(set(regions.slide_id))[:3])} have no expression; "
            "training and scoring need measured counts"
        )
    return regions.expression
