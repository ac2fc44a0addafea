"""A pre-norm Transformer in which the cells of a bag attend to each other and to no one else."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from torch import Tensor, nn

from histoscribe.nn.ragged import Padding, pad, unpad


class TransformerBlock(nn.Module):
    r"""One pre-norm block.

        x <- x + Attention(LN(x))            x <- x + W_2 GELU(W_1 LN(x))

    Source: Vaswani et al. 2017 with the norm first (Xiong et al. 2020). Departs from the BiTro
    authors' code, which is post-norm with ReLU. Projections are separate `nn.Linear`s and the
    block never takes the fast path of `nn.TransformerEncoderLayer`, which skips adapters that are
    put on a Linear.

    Args:
        width: Of the cells; a multiple of the heads.
        n_heads: Number of heads.
        expansion: Width of the feed-forward part, in units of `width`.
        dropout: Of what each part adds. Attention weights are not dropped: with few cells in a
            bag it changes little, and on a CPU it would take a third of the time.
    """

    def __init__(self, width: int, n_heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        # It adds the same to all logits of a query: its gradient is rounding, which AdamW would
        # scale up to steps of full length, others on every machine.
        self.key.bias.requires_grad_(False)
        self.value = nn.Linear(width, width)
        self.join_heads = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, expansion * width)
        self.narrow = nn.Linear(expansion * width, width)

    def forward(self, x: Float[Tensor, "cell d"], padding: Padding) -> Float[Tensor, "cell d"]:
        """New features of every cell."""
        h = self.attention_norm(x)
        qkv = self.query(h), self.key(h), self.value(h)
        o = attend_within_bags(qkv, padding, self.n_heads)
        x = x + F.dropout(self.join_heads(o), self.dropout, self.training)
        h = self.narrow(F.gelu(self.widen(self.feed_norm(x))))
        return x + F.dropout(h, self.dropout, self.training)


class Transformer(nn.Module):
    """Several blocks and a last norm."""

    def __init__(
        self, width: int, n_layers: int, n_heads: int, expansion: int, dropout: float
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TransformerBlock(width, n_heads, expansion, dropout) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "cell d"], padding: Padding) -> Float[Tensor, "cell d"]:
        """New features of every cell."""
        for block in self.blocks:
            x = block(x, padding)
        return self.norm(x)


def attend_within_bags(
    qkv: Sequence[Float[Tensor, "cell d"]], padding: Padding, n_heads: int
) -> Float[Tensor, "cell d"]:
    r"""Attend from each cell to the cells of its bag, by heads of width d.

        o_i = sum_{j in bag of i} softmax_j(q_i . k_j / sqrt(d)) v_j

    The fast form: bags of like length are padded together and masked exactly.
    `attend_within_bags_plain` is the reference.
    """
    parts = []
    for bucket in padding.buckets:
        q, k, v = (pad(x, bucket).unflatten(-1, (n_heads, -1)).transpose(1, 2) for x in qkv)
        mask = None if bucket.is_full else bucket.is_cell[:, None, None]
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        parts.append(o.transpose(1, 2).flatten(2))
    return unpad(parts, padding)


def attend_within_bags_plain(
    qkv: Sequence[Float[Tensor, "cell d"]], padding: Padding, n_heads: int
) -> Float[Tensor, "cell d"]:
    """The same, bag by bag."""
    out = torch.empty_like(qkv[0])
    for bucket in padding.buckets:
        for rows, is_cell in zip(bucket.rows, bucket.is_cell, strict=True):
            own = rows[is_cell]
            q, k, v = (x[own].unflatten(1, (n_heads, -1)).transpose(0, 1) for x in qkv)
            weight = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
            out = out.index_copy(0, own, (weight @ v).transpose(0, 1).flatten(1))
    return out
