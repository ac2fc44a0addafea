"""Attention by gene over a bag that comes in chunks: an exact online softmax."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from histoscribe.errors import MismatchError

CHUNK_BYTES = 2 << 20  # a tile as large as a core's own cache: smaller or larger, it is slower
MOST_GENES = 128  # in a tile; the rest of its size goes to cells, so that tiles are merged less


@dataclass(frozen=True, eq=False)
class GenePool:
    r"""What is known of the cells seen so far, enough to go on, or to stop and pool.

    With logits l[c, g] = h[c] . q[g] / sqrt(d), over the cells c of bag b that were added:

        m[b, g] = max_c l[c, g]        t[b, g] = sum_c exp(l[c, g] - m[b, g])
        w[b, g] = sum_c exp(l[c, g] - m[b, g]) h[c]                 z[b, g] = w[b, g] / t[b, g]

    Two such states over different cells become one, exactly, in any order and grouping:

        m = max(m', m'')               t = exp(m' - m) t' + exp(m'' - m) t''         w likewise

    `histoscribe.nn.gene_query.pool_by_gene` is the same in one shot. Source: Milakov and
    Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3; with the weighted
    sum beside it, Rabe and Staats 2021.

    Sums within a tile are in the type of the cells, those over tiles in float64: a slide has
    thousands of tiles, and adding so many numbers in float32, each a little rounded, would by
    itself come near the 1e-5 that streaming may differ from one shot. (In float32 on Apple's GPUs,
    which have no float64.) Gradients flow, but then the weights of all cells are kept.

    Attributes:
        largest: m, in the type of the answer; -inf for a bag without a cell.
        total: t, in float64; 0 for a bag without a cell.
        weighted: w, in float64; 0 for a bag without a cell.
    """

    largest: Float[Tensor, "bag gene"]
    total: Float[Tensor, "bag gene"]
    weighted: Float[Tensor, "bag gene d"]

    @classmethod
    def start(
        cls,
        n_bags: int,
        n_genes: int,
        d: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "GenePool":
        """No cell yet.

        Args:
            n_bags: Number of bags.
            n_genes: Number of genes.
            d: Width of a cell.
            dtype: Of the logits, the weights and the answer.
            device: Where the cells will be.
        """
        largest = torch.full((n_bags, n_genes), -torch.inf, dtype=dtype, device=device)
        total = torch.zeros(n_bags, n_genes, dtype=_wide(largest), device=device)
        return cls(largest, total, total.new_zeros(n_bags, n_genes, d))

    def add(
        self,
        cells: Float[Tensor, "cell d"],
        queries: Float[Tensor, "gene d"],
        is_inside: Bool[Tensor, " cell"],
        bag_of_cell: Int[Tensor, " cell"],
        *,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> "GenePool":
        """The state after these cells too; this one stays as it is.

        The work is done in tiles of cells x genes: two matrix products and an exponential each.
        Cells of a bag should be consecutive, since each run of them is a tile or more of its own;
        for thousands of small bags `pool_by_gene` is faster.

        Args:
            cells: Features of the cells, any number of them, none too.
            queries: One row per gene, the same in every call.
            is_inside: The cell is pooled; others are passed over.
            bag_of_cell: Which bag each cell is in; not all bags need to occur.
            chunk_bytes: The weights of a tile take no more than this (yet one weight at least).
                More than the default helps on a GPU.
        """
        dtype, n_genes = self.largest.dtype, len(queries)
        scaled = (queries / queries.shape[1] ** 0.5).to(dtype)
        n_weights = max(1, chunk_bytes // dtype.itemsize)
        genes_of_tile = min(n_genes, MOST_GENES, n_weights)
        cells_of_tile = n_weights // genes_of_tile
        state = GenePool(self.largest.clone(), self.total.clone(), self.weighted.clone())
        for first in range(0, len(cells), cells_of_tile):
            rows = slice(first, first + cells_of_tile)
            inside = is_inside[rows]
            h = cells[rows][inside].to(dtype)
            bags, n_cells = bag_of_cell[rows][inside].unique_consecutive(return_counts=True)
            for bag, own in zip(bags.tolist(), h.split(n_cells.tolist()), strict=True):
                for gene in range(0, n_genes, genes_of_tile):
                    part = slice(bag, bag + 1), slice(gene, gene + genes_of_tile)
                    _absorb(state, part, _pool_tile(scaled[part[1]], own))
        return state

    def merge(self, other: "GenePool") -> "GenePool":
        """The state after the cells of both.

        Raises:
            MismatchError: If the two are of other bags, genes or widths.
        """
        if self.weighted.shape != other.weighted.shape:
            raise MismatchError(
                f"pools of bags x genes x width {tuple(self.weighted.shape)} and "
                f"{tuple(other.weighted.shape)} cannot be merged; start both with one size"
            )
        largest = torch.maximum(self.largest, other.largest)
        # Without a cell on either side both are -inf, and -inf - -inf would be NaN.
        level = largest.masked_fill(largest == -torch.inf, 0).to(self.total.dtype)
        a, b = (self.largest - level).exp(), (other.largest - level).exp()
        return GenePool(
            largest,
            a * self.total + b * other.total,
            a[..., None] * self.weighted + b[..., None] * other.weighted,
        )

    def pooled(self) -> Float[Tensor, "bag gene d"]:
        """z, the values pooled for each gene; NaN for a bag without a cell, never zeros."""
        return (self.weighted / self.total[..., None]).to(self.largest.dtype)

    def share(
        self,
        cells: Float[Tensor, "cell d"],
        queries: Float[Tensor, "gene d"],
        bag_of_cell: Int[Tensor, " cell"],
    ) -> Float[Tensor, "cell gene"]:
        """Weights of some cells in a second pass; over all that were added they sum to 1.

        Args:
            cells: Cells that were added. A cell that was passed over has weight 0: leave it out.
            queries: Those of the first pass.
            bag_of_cell: Which bag each cell is in.
        """
        scaled = (queries / queries.shape[1] ** 0.5).to(self.largest.dtype)
        logits = cells.to(scaled.dtype) @ scaled.T
        weight = (logits - self.largest[bag_of_cell]).exp()
        return weight / self.total.to(weight.dtype)[bag_of_cell]


def _pool_tile(scaled: Float[Tensor, "gene d"], cells: Float[Tensor, "cell d"]) -> GenePool:
    """State after some cells of one bag, for some genes; `scaled` are queries over sqrt(d)."""
    logits = scaled @ cells.T
    largest = logits.detach().amax(1)
    # Where each logit is -inf, level 0 gives weight 0. A NaN stays one: it must not be hidden.
    level = largest.masked_fill(largest == -torch.inf, 0)
    weight = logits.sub_(level[:, None]).exp_()
    wide = _wide(weight)
    total, weighted = weight.sum(1), weight @ cells
    return GenePool(largest[None], total[None].to(wide), weighted[None].to(wide))


def _absorb(state: GenePool, part: tuple[slice, slice], tile: GenePool) -> None:
    """Merge a tile into its part of a state that no one else holds yet."""
    old = GenePool(state.largest[part], state.total[part], state.weighted[part])
    new = old.merge(tile)
    state.largest[part], state.total[part] = new.largest, new.total
    state.weighted[part] = new.weighted


def _wide(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64
