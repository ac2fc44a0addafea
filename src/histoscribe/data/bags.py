"""Bag and BagBatch: regions ready for a model, concatenated and never padded."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class BagBatch:
    """Some regions, their cells one after another; a Bag is a batch of one.

    A bag's cells are consecutive rows; `neighbours` never leaves the bag. Cells of the context
    ring (`is_inside` False) are attended to, but are no part of the region: they are not pooled
    and get no expression.

    Attributes:
        features: Cell features after the fitted transform (PCA, scaling).
        offset_um: Cell position relative to the centre of its region.
        is_inside: The cell belongs to the region itself.
        neighbours: The k nearest cells of each cell within its bag as rows of this batch, the
            cell itself first; -1 where the bag has fewer.
        phenotype: K-means cluster of each cell.
        bag_of_cell: Which bag each cell is in, 0 to n_bags - 1, ascending; every bag has a cell.
        field: Region tokens: row 0 of each bag describes its own whole field, the others the
            mean over neighbouring regions in rings of growing radius, after the fitted transform.
        n_bags: Number of bags.
        target: Expression in training space, or None.
        is_observed: Which targets were measured, or None where all were.
    """

    features: Float[Tensor, "cell feature"]
    offset_um: Float[Tensor, "cell 2"]
    is_inside: Bool[Tensor, " cell"]
    neighbours: Int[Tensor, "cell k"]
    phenotype: Int[Tensor, " cell"]
    bag_of_cell: Int[Tensor, " cell"]
    field: Float[Tensor, "bag ring descriptor"]
    n_bags: int
    target: Float[Tensor, "bag gene"] | None = None
    is_observed: Bool[Tensor, "bag gene"] | None = None
