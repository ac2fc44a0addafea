"""One vector from the cells of a bag, by gated attention."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from histoscribe.nn.ragged import segment_softmax, segment_sum
from histoscribe.nn.streaming import GenePool


class AttentionPool(nn.Module):
    r"""Gated attention over the cells of each bag.

        l_c = w . (tanh(V h_c) * sigmoid(U h_c))
        a_c = softmax_{c in b} (l_c + log n_c)               z_b = sum_{c in b} a_c h_c

    where n is how many cells each stands for: 1, or 0 for context cells, which are not pooled, or
    more where cells were drawn from many. A bag of one cell is that cell, exactly.

    Source: Ilse et al. 2018, eq. 9. Departs from it: there is n, and w starts at zero, so that
    pooling starts as the mean.

    Args:
        width: Of a cell.
        hidden: Rows of V and U.
    """

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.what = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.weigh = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.weigh.weight)

    def forward(
        self,
        cells: Float[Tensor, "cell d"],
        stands_for: Float[Tensor, " cell"],
        bag_of_cell: Int[Tensor, " cell"],
        n_bags: int,
    ) -> tuple[Float[Tensor, "bag d"], Float[Tensor, " cell"]]:
        """The vector of each bag, and the weights, which sum to 1 over a bag.

        Args:
            cells: Features of the cells.
            stands_for: n.
            bag_of_cell: Which bag each cell is in, 0 to n_bags - 1; every bag has a cell with n
                above 0.
            n_bags: Number of bags.
        """
        inside = (stands_for > 0).nonzero()[:, 0]
        h, bag = cells.index_select(0, inside), bag_of_cell[inside]
        logits = self.logits(h) + stands_for[inside].log()
        a = segment_softmax(logits[:, None], bag, n_bags)
        pooled = segment_sum(a * h, bag, n_bags)
        return pooled, a.new_zeros(len(cells)).index_copy(0, inside, a[:, 0])

    def logits(self, cells: Float[Tensor, "cell d"]) -> Float[Tensor, " cell"]:
        """Before the softmax: l of each cell."""
        return self.weigh(self.what(cells).tanh() * self.gate(cells).sigmoid())[:, 0]


class RunningPool:
    """The same over bags that come in portions, in any cut; for prediction.

    It is `GenePool`, whose attention is a product of cells with queries: with the logit put before
    a cell's features and a query that looks at it alone, the product is the logit.

    Args:
        pool: Whose attention.
        n_bags: Number of bags.
    """

    def __init__(self, pool: AttentionPool, n_bags: int) -> None:
        self.pool = pool
        width = pool.what.in_features + 1
        weight = pool.weigh.weight
        self.query = weight.new_zeros(1, width)
        self.query[0, 0] = width**0.5  # GenePool divides by it
        self.state = GenePool.start(n_bags, 1, width, dtype=weight.dtype, device=weight.device)

    @torch.no_grad()
    def add(
        self,
        cells: Float[Tensor, "cell d"],
        stands_for: Float[Tensor, " cell"],
        bag_of_cell: Int[Tensor, " cell"],
    ) -> None:
        """Some more cells; see `AttentionPool.forward`."""
        logits = self.pool.logits(cells) + stands_for.log()
        seen = torch.cat([logits[:, None], cells], dim=1)
        self.state = self.state.add(seen, self.query, stands_for > 0, bag_of_cell)

    def pooled(self) -> Float[Tensor, "bag d"]:
        """The vector of each bag; NaN for a bag of which no cell was seen."""
        return self.state.pooled()[:, 0, 1:]


def attention_pool_plain(
    pool: AttentionPool,
    cells: Float[Tensor, "cell d"],
    stands_for: Float[Tensor, " cell"],
    bag_of_cell: Int[Tensor, " cell"],
    n_bags: int,
) -> tuple[Float[Tensor, "bag d"], Float[Tensor, " cell"]]:
    """What `AttentionPool` is, bag by bag and as its equation is written."""
    pooled, share = [], torch.zeros_like(stands_for)
    for bag in range(n_bags):
        own = ((bag_of_cell == bag) & (stands_for > 0)).nonzero()[:, 0]
        h = cells[own]
        gated = (h @ pool.what.weight.T + pool.what.bias).tanh() * (
            h @ pool.gate.weight.T + pool.gate.bias
        ).sigmoid()
        weight = stands_for[own] * (gated @ pool.weigh.weight[0]).exp()
        a = weight / weight.sum()
        pooled.append(a @ h)
        share = share.index_copy(0, own, a)
    return torch.stack(pooled), share
