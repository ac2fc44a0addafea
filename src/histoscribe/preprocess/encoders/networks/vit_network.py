"""A plain Vision Transformer, with the variants that published encoders need.

Written from the papers: Dosovitskiy et al. 2021 (arXiv:2010.11929), LayerScale of Touvron et al.
2021 (arXiv:2103.17239), SwiGLU of Shazeer 2020 (arXiv:2002.05202), registers of Darcet et al. 2024
(arXiv:2309.16588), rotary positions of DINOv3 (arXiv:2508.10104). Parameters carry the names that
pathology encoders publish theirs by (`blocks.0.attn.qkv.weight`), so that a checkpoint can be held
against `state_dict()` key by key.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from torch import Tensor, nn

ROPE_BASE = 100.0  # DINOv3


@dataclass(frozen=True, kw_only=True)
class VitShape:
    """All that is not in the weights' values.

    Attributes:
        depth: Number of blocks.
        width: Length d of a token.
        n_heads: Heads of each attention; each sees width / n_heads channels.
        patch_px: Side of a patch.
        native_px: Side of the input that the position table is for.
        mlp_rows: Rows of `mlp.fc1`; for SwiGLU both halves.
        mlp: "gelu" (exact), or "swiglu".
        n_registers: Tokens between CLS and the patches.
        positions: "table": one learned row per patch and one for CLS (and each register);
            "patch-table": for the patches alone; "rotary": none are learned.
        has_layer_scale: Each branch is multiplied by a learned vector.
        qkv_bias: "whole"; "query-value" has none for keys; or "none".
        eps: Of the LayerNorms.
    """

    depth: int
    width: int
    n_heads: int
    patch_px: int
    native_px: int
    mlp_rows: int
    mlp: Literal["gelu", "swiglu"] = "gelu"
    n_registers: int = 0
    positions: Literal["table", "patch-table", "rotary"] = "table"
    has_layer_scale: bool = True
    qkv_bias: Literal["whole", "query-value", "none"] = "whole"
    eps: float = 1e-6

    @property
    def n_prefix(self) -> int:
        """CLS and registers."""
        return 1 + self.n_registers

    @property
    def n_position_rows(self) -> int:
        """Rows of the position table."""
        n_patches = (self.native_px // self.patch_px) ** 2
        if self.positions == "rotary":
            return 0
        return n_patches + (self.n_prefix if self.positions == "table" else 0)


class PatchEmbedding(nn.Module):
    """A linear map of each patch."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, shape.patch_px, stride=shape.patch_px)

    def forward(self, pixels: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b patch d"]:
        """Row by row."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    r"""Self-attention over all tokens: softmax(q k^T / sqrt(d / heads)) v, then a linear map.

    The rows of `qkv` are the queries of head 0, 1, ..., then the keys, then the values.
    """

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.n_heads = shape.n_heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=shape.qkv_bias == "whole")
        self.has_split_bias = shape.qkv_bias == "query-value"
        if self.has_split_bias:
            self.q_bias = nn.Parameter(torch.zeros(shape.width))
            self.v_bias = nn.Parameter(torch.zeros(shape.width))
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(
        self, x: Float[Tensor, "b token d"], rotation: Float[Tensor, "2 patch e"] | None
    ) -> Float[Tensor, "b token d"]:
        """Mix the tokens."""
        qkv = self.qkv(x)
        if self.has_split_bias:
            no_bias = torch.zeros_like(self.q_bias)
            qkv = qkv + torch.cat([self.q_bias, no_bias, self.v_bias]).to(qkv.dtype)
        b, n_tokens, width = x.shape
        q, k, v = (
            qkv.reshape(b, n_tokens, 3, self.n_heads, width // self.n_heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        if rotation is not None:
            q, k = rotate_patches(q, rotation), rotate_patches(k, rotation)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(b, n_tokens, width))


class Mlp(nn.Module):
    r"""fc2(GELU(fc1 x)); or SwiGLU: (a, c) = halves of fc1 x, then fc2(SiLU(a) * c)."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.is_gated = shape.mlp == "swiglu"
        n_hidden = shape.mlp_rows // 2 if self.is_gated else shape.mlp_rows
        self.fc1 = nn.Linear(shape.width, shape.mlp_rows)
        self.fc2 = nn.Linear(n_hidden, shape.width)

    def forward(self, x: Float[Tensor, "b token d"]) -> Float[Tensor, "b token d"]:
        """Each token by itself."""
        y = self.fc1(x)
        if self.is_gated:
            gate, value = y.chunk(2, dim=-1)
            return self.fc2(F.silu(gate) * value)
        return self.fc2(F.gelu(y))


class LayerScale(nn.Module):
    """One learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "b token d"]) -> Float[Tensor, "b token d"]:
        """Multiply."""
        return x * self.gamma


class Block(nn.Module):
    """x += ls1(attention(norm1(x))), then x += ls2(mlp(norm2(x)))."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.attn = Attention(shape)
        self.ls1 = LayerScale(shape.width) if shape.has_layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.eps)
        self.mlp = Mlp(shape)
        self.ls2 = LayerScale(shape.width) if shape.has_layer_scale else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b token d"], rotation: Float[Tensor, "2 patch e"] | None
    ) -> Float[Tensor, "b token d"]:
        """One layer."""
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VitNetwork(nn.Module):
    """Patches, CLS and registers through all blocks and the last LayerNorm."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.shape = shape
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        if shape.n_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, shape.n_registers, shape.width))
        if shape.n_position_rows:
            self.pos_embed = nn.Parameter(torch.zeros(1, shape.n_position_rows, shape.width))
        self.patch_embed = PatchEmbedding(shape)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=shape.eps)

    def forward(self, pixels: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b token d"]:
        """CLS, the registers, then the patches row by row.

        Args:
            pixels: Normalised; sides are multiples of the patch.
        """
        shape = self.shape
        grid = (pixels.shape[2] // shape.patch_px, pixels.shape[3] // shape.patch_px)
        x = self.add_prefix(self.patch_embed(pixels), grid)
        rotation = None
        if shape.positions == "rotary":
            rotation = rotation_of(grid, shape.width // shape.n_heads, pixels.device)
        for block in self.blocks:
            x = block(x, rotation)
        return self.norm(x)

    def add_prefix(
        self, patches: Float[Tensor, "b patch d"], grid: tuple[int, int]
    ) -> Float[Tensor, "b token d"]:
        """Put CLS and registers before the patches, and add the learned positions."""
        shape = self.shape
        first = self.cls_token
        if shape.n_registers:
            first = torch.cat([first, self.reg_token], dim=1)
        first = first.expand(len(patches), -1, -1)
        if shape.positions == "rotary":
            return torch.cat([first, patches], dim=1)
        n_prefix = shape.n_prefix if shape.positions == "table" else 0
        table = resample_positions(self.pos_embed, n_prefix, grid)
        if not n_prefix:
            return torch.cat([first, patches + table], dim=1)
        return torch.cat([first, patches], dim=1) + table


def resample_positions(
    table: Float[Tensor, "1 row d"], n_prefix: int, grid: tuple[int, int]
) -> Float[Tensor, "1 row2 d"]:
    """Bring a learned table, of a square grid, to another grid.

    Bicubic with antialiasing in float32, the prefix rows as they are: what timm does, with which
    these encoders were published, and DINOv2 with registers. DINOv2 without registers does not
    antialias, neither its authors' code nor `transformers`: loaded as a folder it differs from the
    same weights loaded by name, but at its native size, and so do the identities. At the table's
    own size it is the table itself.
    """
    side = math.isqrt(table.shape[1] - n_prefix)
    if grid == (side, side):
        return table
    rows = table[:, n_prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    rows = F.interpolate(rows, size=grid, mode="bicubic", antialias=True)
    rows = rows.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1).to(table.dtype)
    return torch.cat([table[:, :n_prefix], rows], dim=1)


def rotation_of(
    grid: tuple[int, int], head_width: int, device: torch.device
) -> Float[Tensor, "2 patch e"]:
    r"""Cosines and sines of the angles by which DINOv3 turns queries and keys of each patch.

    With the patch's centre (y, x) in -1 to 1 and the e channels of a head, for k < e / 4:

        angle_k = 2 pi (y or x) / 100^(4 k / e)

    First those of y, then those of x, then all of them once more for the second half.
    Source: Siméoni et al. 2025, arXiv:2508.10104.
    """
    period = ROPE_BASE ** (torch.arange(head_width // 4, device=device) * (4 / head_width))
    y, x = (2 * (torch.arange(n, device=device) + 0.5) / n - 1 for n in grid)
    centre = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2)
    angle = (2 * math.pi * centre[:, :, None] / period).flatten(1).repeat(1, 2)
    return torch.stack([angle.cos(), angle.sin()])


def rotate_patches(
    x: Float[Tensor, "b head token e"], rotation: Float[Tensor, "2 patch e"]
) -> Float[Tensor, "b head token e"]:
    """Turn channel pairs (k, k + e / 2) of the patches; CLS and registers stay as they are."""
    cos, sin = rotation.to(x.dtype)
    n_prefix = x.shape[2] - cos.shape[0]
    prefix, patches = x[:, :, :n_prefix], x[:, :, n_prefix:]
    low, high = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-high, low], dim=-1) * sin
    return torch.cat([prefix, turned], dim=2)
