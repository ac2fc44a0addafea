"""Graph attention over a fixed number of neighbours, in plain PyTorch."""

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float, Int
from torch import Tensor, nn


class GraphAttention(nn.Module):
    r"""One layer of graph attention.

    With T heads of width d, N(i) the neighbours of cell i and i itself:

        u_i = W h_i            e_ij = LeakyReLU_0.2(a_src . u_j + a_dst . u_i)
        alpha_ij = softmax_{j in N(i)} e_ij          o_i = concat_heads sum_j alpha_ij u_j
        h'_i = ReLU(LN(W_o o_i + b))

    Source: Velickovic et al. 2018, and eq. 4-5 of the BiTro paper (concatenate, project,
    normalise, ReLU after every layer). Departs from it: edges are directed, k nearest plus the
    cell itself, a fixed number of columns; the softmax is in float32.

    Args:
        n_in: Width of the input.
        n_out: Width of the output; a multiple of the heads.
        n_heads: T.
        dropout: Of input features.
        attention_dropout: Of attention weights.
    """

    def __init__(
        self, n_in: int, n_out: int, n_heads: int, dropout: float, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.n_heads, self.dropout, self.attention_dropout = n_heads, dropout, attention_dropout
        self.project = nn.Linear(n_in, n_out, bias=False)
        self.from_source = nn.Parameter(torch.empty(n_heads, n_out // n_heads))
        self.from_target = nn.Parameter(torch.empty(n_heads, n_out // n_heads))
        self.join_heads = nn.Linear(n_out, n_out)
        self.norm = nn.LayerNorm(n_out)
        for weight in (
            self.project.weight, self.from_source, self.from_target, self.join_heads.weight
        ):  # fmt: skip
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.join_heads.bias)

    def forward(
        self, h: Float[Tensor, "cell n_in"], neighbours: Int[Tensor, "cell k1"]
    ) -> Float[Tensor, "cell n_out"]:
        """New features of every cell.

        Args:
            h: Features of the cells.
            neighbours: Rows of the neighbours, the cell itself first; -1 where there is none.
        """
        u = self.project(F.dropout(h, self.dropout, self.training))
        u = u.unflatten(1, (self.n_heads, -1))
        alpha = self.attend(u, neighbours)
        alpha = F.dropout(alpha, self.attention_dropout, self.training)
        o = sum_neighbours(u, alpha, neighbours)
        return F.relu(self.norm(self.join_heads(o.flatten(1))))

    def attend(
        self, u: Float[Tensor, "cell head d"], neighbours: Int[Tensor, "cell k1"]
    ) -> Float[Tensor, "cell k1 head"]:
        """Weights of the neighbours; 0 where there is none."""
        source = (u * self.from_source).sum(-1).float()
        target = (u * self.from_target).sum(-1).float()
        is_missing = neighbours < 0
        rows = neighbours.clamp(min=0).flatten()
        e = source.index_select(0, rows).unflatten(0, neighbours.shape) + target[:, None]
        e = F.leaky_relu(e, 0.2).masked_fill(is_missing[..., None], -torch.inf)
        return e.softmax(dim=1).to(u.dtype)


def sum_neighbours(
    u: Float[Tensor, "cell head d"],
    alpha: Float[Tensor, "cell k1 head"],
    neighbours: Int[Tensor, "cell k1"],
) -> Float[Tensor, "cell head d"]:
    """Sum of the neighbours' features by weight, heads apart.

    The fast form: heads become rows of an `embedding_bag`, which sums without ever holding
    cell x neighbour x d. `sum_neighbours_plain` is the reference.
    """
    n_cells, n_heads, _ = u.shape
    head = torch.arange(n_heads, device=u.device)
    # Missing neighbours have weight 0, so that any row does.
    rows = neighbours.clamp(min=0)[:, None] * n_heads + head[None, :, None]
    summed = F.embedding_bag(
        rows.flatten(0, 1),
        u.flatten(0, 1),
        mode="sum",
        per_sample_weights=alpha.transpose(1, 2).flatten(0, 1),
    )
    return summed.unflatten(0, (n_cells, n_heads))


def sum_neighbours_plain(
    u: Float[Tensor, "cell head d"],
    alpha: Float[Tensor, "cell k1 head"],
    neighbours: Int[Tensor, "cell k1"],
) -> Float[Tensor, "cell head d"]:
    """The same by gathering every neighbour's features."""
    return (alpha[..., None] * u[neighbours.clamp(min=0)]).sum(dim=1)
