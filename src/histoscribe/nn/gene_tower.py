"""Expression profiles of any set of genes, read by attention over a table of genes."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from histoscribe.errors import DataError

WEIGHTS_AT_ONCE = 1 << 24  # profiles x genes x heads of a chunk: 64 MiB in float32


class GeneTower(nn.Module):
    r"""Turn profiles into vectors, whatever genes were measured.

    With q_g the rows of a table of genes, v_pg the standardised expression, and O(p) the genes
    that were measured in profile p:

        q~_g     = LN(q_g)
        a[p,g,k] = softmax_{g in O(p)} (w_k . q~_g + v_pg (u_k . q~_g))
        out_k[p] = V_k sum_g a[p,g,k] v_pg q~_g + V'_k sum_g a[p,g,k] q~_g
        y_p      = LN(concat_k out_k[p])

    So each head attends to genes for what they are (w) and for how far they are off their mean
    (u), and reports how far (V) and which (V'). No parameter is sized by gene: the table is an
    argument, and is to be the one that holds the gene queries of BiTro, so that a predicted and a
    measured expression are read alike. What was not measured has weight 0 exactly.

    V' starts at zero: which genes were attended to is nearly the same for all profiles of a panel
    and would at first drown what tells them apart. Source: ours; the value-weighted sum over gene
    embeddings is that of GenePT (Chen & Zou 2024), with attention in the place of its weights.

    Args:
        table_width: Width of a row of the table.
        width: Of the answer; a multiple of the heads.
        n_heads: K.
        gene_dropout: Share of the measured genes that is hidden in training, drawn for each
            profile, so that panels that lack some are read as well; below 1.
        weights_at_once: Of profile x gene x head. Beyond it profiles are read in chunks, whose
            weights are computed a second time for the gradient instead of being kept.
    """

    def __init__(
        self,
        table_width: int,
        width: int,
        n_heads: int = 4,
        gene_dropout: float = 0.0,
        *,
        weights_at_once: int = WEIGHTS_AT_ONCE,
    ) -> None:
        super().__init__()
        self.n_heads, self.gene_dropout = n_heads, gene_dropout
        self.weights_at_once = weights_at_once
        self.table_norm = nn.LayerNorm(table_width)
        self.by_gene = nn.Linear(table_width, n_heads, bias=False)
        self.by_value = nn.Linear(table_width, n_heads, bias=False)
        self.how_far = nn.Parameter(torch.empty(n_heads, width // n_heads, table_width))
        self.which = nn.Parameter(torch.zeros(n_heads, width // n_heads, table_width))
        # Sums over thousands of genes are small; the usual 1e-5 would be of their variance's size.
        self.norm = nn.LayerNorm(width, eps=1e-8)
        for head in self.how_far:
            nn.init.xavier_uniform_(head)

    def forward(
        self,
        values: Float[Tensor, "profile gene"],
        is_observed: Bool[Tensor, "profile gene"],
        table: Float[Tensor, "gene d"],
    ) -> Float[Tensor, "profile width"]:
        """A vector of each profile.

        Args:
            values: Standardised expression; what stands at genes that were not measured is never
                looked at.
            is_observed: Which genes were measured; in each profile, one at least.
            table: Rows of these genes.

        Raises:
            DataError: If a profile has no measured gene (on the CPU; elsewhere it becomes NaN).
        """
        if values.device.type == "cpu" and not bool(is_observed.any(1).all()):
            row = int((~is_observed.any(1)).nonzero()[0])
            raise DataError(
                f"profile {row} has no gene that was measured and is in the table of "
                f"{len(table)} genes; drop it, or name genes by Ensembl id as the table does"
            )
        if self.training and self.gene_dropout:
            is_observed = hide_some(is_observed, self.gene_dropout)
        v = torch.where(is_observed, values, 0.0)
        q = self.table_norm(table)
        size = max(1, self.weights_at_once // (len(table) * self.n_heads))
        chunks = zip(v.split(size), is_observed.split(size), strict=True)
        out = [self._read(own, seen, q, is_whole=len(own) == len(v)) for own, seen in chunks]
        return self.norm(torch.cat(out))

    def _read(
        self,
        v: Float[Tensor, "profile gene"],
        is_observed: Bool[Tensor, "profile gene"],
        q: Float[Tensor, "gene d"],
        *,
        is_whole: bool,
    ) -> Float[Tensor, "profile width"]:
        parts = (v, is_observed, q, self.by_gene(q), self.by_value(q))
        if is_whole or not torch.is_grad_enabled():
            far, which = attend_to_genes(*parts)
        else:
            far, which = checkpoint(attend_to_genes, *parts, use_reentrant=False)
        out = torch.einsum("pkd,ked->pke", far, self.how_far)
        return (out + torch.einsum("pkd,ked->pke", which, self.which)).flatten(1)


def attend_to_genes(
    v: Float[Tensor, "profile gene"],
    is_observed: Bool[Tensor, "profile gene"],
    q: Float[Tensor, "gene d"],
    by_gene: Float[Tensor, "gene head"],
    by_value: Float[Tensor, "gene head"],
) -> tuple[Float[Tensor, "profile head d"], Float[Tensor, "profile head d"]]:
    r"""Both sums over genes of each head: sum_g a v q, and sum_g a q.

    The fast form: head by head, so that each sum is one matrix product.
    `attend_to_genes_plain` is the reference.

    Args:
        v: Expression, 0 where not measured.
        is_observed: Which genes were measured.
        q: Rows of the genes.
        by_gene: w_k . q_g.
        by_value: u_k . q_g.
    """
    far, which = [], []
    for base, slope in zip(by_gene.unbind(1), by_value.unbind(1), strict=True):
        logits = torch.addcmul(base, v, slope).masked_fill(~is_observed, -torch.inf)
        a = logits.softmax(1, dtype=_wide(logits)).to(q.dtype)
        far.append((a * v) @ q)
        which.append(a @ q)
    return torch.stack(far, 1), torch.stack(which, 1)


def attend_to_genes_plain(
    v: Float[Tensor, "profile gene"],
    is_observed: Bool[Tensor, "profile gene"],
    q: Float[Tensor, "gene d"],
    by_gene: Float[Tensor, "gene head"],
    by_value: Float[Tensor, "gene head"],
) -> tuple[Float[Tensor, "profile head d"], Float[Tensor, "profile head d"]]:
    """The same, profile by profile and over its measured genes alone."""
    far, which = [], []
    for one, seen in zip(v, is_observed, strict=True):
        rows = seen.nonzero()[:, 0]
        a = (by_gene[rows] + one[rows, None] * by_value[rows]).softmax(0)
        far.append((a[..., None] * one[rows, None, None] * q[rows, None]).sum(0))
        which.append((a[..., None] * q[rows, None]).sum(0))
    return torch.stack(far), torch.stack(which)


def hide_some(
    is_observed: Bool[Tensor, "profile gene"], share: float
) -> Bool[Tensor, "profile gene"]:
    """Hide a share of the measured genes by chance; a profile that would lose all keeps all."""
    kept = is_observed & (torch.rand(is_observed.shape, device=is_observed.device) >= share)
    return torch.where(kept.any(1, keepdim=True), kept, is_observed)


def _wide(values: Tensor) -> torch.dtype:
    return torch.float64 if values.dtype == torch.float64 else torch.float32
