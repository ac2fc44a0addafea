"""Attention in which every gene asks the cells of a bag its own question."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from histoscribe.nn.ragged import (
    gather_bags,
    pad,
    plan_padding,
    segment_softmax,
    segment_sum,
    unpad,
)


def pool_by_gene(
    cells: Float[Tensor, "cell d"],
    queries: Float[Tensor, "gene d"],
    is_inside: Bool[Tensor, " cell"],
    bag_of_cell: Int[Tensor, " cell"],
    n_bags: int,
    stands_for: Float[Tensor, " cell"] | None = None,
) -> tuple[Float[Tensor, "bag gene d"], Float[Tensor, "cell gene"]]:
    r"""Pool each bag's cells once per gene, with that gene's own attention.

    For gene g and bag b, over the cells c of b that lie inside the region:

        a[c, g] = softmax_c(h[c] . q[g] / sqrt(d) + log n[c])     z[b, g] = sum_c a[c, g] h[c]

    where n is 1, or, where cells were drawn from more, how many of them each stands for: a cell
    then weighs what n cells like it would.

    Source: eq. 7-8 of the BiTro paper; Vaswani et al. 2017, eq. 1, with one learned query per
    gene, one head, and the cells as both keys and values. Departs from it: the softmax runs over
    a bag's own cells only, never over padding, context cells get weight 0, and there is n.

    The fast form: bags of like length are padded together, so that both sums are matrix products.
    `pool_by_gene_plain` is the reference.

    Args:
        cells: Features of the cells: what they are compared by and what they contribute.
        queries: One row per gene, in the order of the gene panel.
        is_inside: The cell lies inside the region; others are context and are not pooled.
        bag_of_cell: Which bag each cell is in, 0 to n_bags - 1, ascending; every bag has a cell
            inside.
        n_bags: Number of bags.
        stands_for: n, above 0 for cells inside; None where each cell stands for itself.

    Returns:
        The pooled values, and the weights; a bag's weights sum to 1 for each gene.
    """
    inside = is_inside.nonzero()[:, 0]
    h = cells.index_select(0, inside)
    padding = plan_padding(bag_of_cell[inside], n_bags)
    extra = None if stands_for is None else stands_for[inside].log()[:, None]
    scaled = queries / queries.shape[1] ** 0.5
    pooled, weights = [], []
    for bucket in padding.buckets:
        own = pad(h, bucket)
        logits = scaled @ own.transpose(1, 2)
        if extra is not None:
            logits = logits + pad(extra, bucket).transpose(1, 2)
        if not bucket.is_full:
            logits = logits.masked_fill(~bucket.is_cell[:, None], -torch.inf)
        weight = logits.float().softmax(-1).to(h.dtype)
        pooled.append(weight @ own)
        weights.append(weight.transpose(1, 2))
    share = h.new_zeros(len(cells), len(queries))
    return gather_bags(pooled, padding), share.index_copy(0, inside, unpad(weights, padding))


def pool_by_gene_plain(
    cells: Float[Tensor, "cell d"],
    queries: Float[Tensor, "gene d"],
    is_inside: Bool[Tensor, " cell"],
    bag_of_cell: Int[Tensor, " cell"],
    n_bags: int,
    stands_for: Float[Tensor, " cell"] | None = None,
) -> tuple[Float[Tensor, "bag gene d"], Float[Tensor, "cell gene"]]:
    """The same as the equation is written; holds cell x gene x d at once."""
    inside = is_inside.nonzero()[:, 0]
    h, bag = cells[inside], bag_of_cell[inside]
    logits = h @ queries.T / queries.shape[1] ** 0.5
    if stands_for is not None:
        logits = logits + stands_for[inside].log()[:, None]
    a = segment_softmax(logits, bag, n_bags)
    z = segment_sum((a[..., None] * h[:, None]).flatten(1), bag, n_bags)
    share = h.new_zeros(len(cells), len(queries)).index_copy(0, inside, a)
    return z.unflatten(1, (len(queries), -1)), share


def share_evenly(
    stands_for: Float[Tensor, " cell"], bag_of_cell: Int[Tensor, " cell"], n_bags: int
) -> Float[Tensor, " cell"]:
    """Shares of the cells in their bag, in proportion to how many cells each stands for.

    With 1 for cells inside a region and 0 for context cells, those inside have equal shares.
    """
    n_inside = stands_for.new_zeros(n_bags).index_add(0, bag_of_cell, stands_for)
    return stands_for / n_inside[bag_of_cell]


def cell_expression(
    share: Float[Tensor, "cell gene"],
    region_counts: Float[Tensor, "bag gene"],
    bag_of_cell: Int[Tensor, " cell"],
) -> Float[Tensor, "cell gene"]:
    r"""Share out the counts of a region among its cells, so that they sum to the region.

        y[c, g] = a[c, g] n[b, g]                                    for each cell c of bag b

    Source: eq. 10 of the BiTro paper. Departs from it: n is in an additive unit (counts), where
    the paper shares out a z-score of a logarithm.

    Args:
        share: Attention of each cell; sums to 1 over a bag for each gene, 0 for context cells.
        region_counts: Non-negative, in an additive unit.
        bag_of_cell: Which bag each cell is in.
    """
    return share * region_counts[bag_of_cell]
