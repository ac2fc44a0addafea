r"""Context among the blocks of a bag, at a cost linear in their number.

The blocks of a slide are ordered along a Hilbert curve and cut into windows of W blocks that
attend to each other. In every other layer the cuts lie half a window earlier, so that what a
window knows reaches the next ones:

    even layers  window of the i-th block = floor(i / W)
    odd layers   window of the i-th block = floor((i + floor(W / 2)) / W)

No number of blocks is special: one more at the end of the curve is a new key for the last window
of a layer, or a window of its own, and takes no key from any other block. Up to ceil(W / 2) blocks
all see all in each layer, up to W in every other layer.

Source: ours, after the shifted windows of Liu et al. 2021 (Swin) and the serialised points of
Wu et al. 2024 (Point Transformer V3). Departs from both: windows are runs of a curve of any
length, without padding or wrapping round, and never hold blocks of two slides or bags.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from histoscribe.nn.ragged import Padding, plan_padding, segment_max
from histoscribe.nn.transformer import TransformerBlock

N_BITS = 24  # 16 million cells a side: no slide has more, and every slide gets the same curve


@dataclass(frozen=True, eq=False)
class BlockOrder:
    """Blocks of a batch as sequences: one for each slide of each bag.

    Attributes:
        rows: The blocks, sequence by sequence, each along its curve.
        sequence: Which sequence each of `rows` is in, 0 and up, ascending, none left out.
    """

    rows: Int[Tensor, " block"]
    sequence: Int[Tensor, " block"]


def order_blocks(
    xy_um: Float[Tensor, "block 2"],
    bag_of_block: Int[Tensor, " block"],
    slide_of_block: Int[Tensor, " block"],
    cell_um: float,
) -> BlockOrder:
    """Put the blocks of each slide of each bag along a Hilbert curve of their positions.

        cell = round((xy - least xy of the sequence) / cell_um)

    The curve starts at the sequence's own upper left corner. So an order does not change when the
    slide's origin is moved, whatever the way (by whole cells exactly; otherwise unless rounding
    moves a block over the edge of a cell), nor with the order in which blocks come, nor with what
    else is in the batch. It does change when the slide is turned or mirrored, and may when the
    block that is furthest left or up is taken away.

    Args:
        xy_um: Centres of the blocks. Two in one cell are ordered by y, then x.
        bag_of_block: Which bag each block is in.
        slide_of_block: Which slide each block is on; a bag may have several, a slide several bags.
        cell_um: Side of a cell of the curve; for blocks on a grid, the pitch of the grid.
    """
    pairs = torch.stack([bag_of_block, slide_of_block], dim=1)
    found, sequence = pairs.unique(dim=0, return_inverse=True)
    corner = -segment_max(-xy_um, sequence, len(found))
    cell = ((xy_um - corner[sequence]) / cell_um).round().long()
    rows = torch.arange(len(xy_um), device=xy_um.device)
    for key in (xy_um[:, 0], xy_um[:, 1], hilbert_index(cell), sequence):
        rows = rows[key[rows].argsort(stable=True)]
    return BlockOrder(rows, sequence[rows])


def hilbert_index(cell: Int[Tensor, "block 2"]) -> Int[Tensor, " block"]:
    """How far along the Hilbert curve each cell of a grid lies.

    At each scale the curve goes through the quadrants down the left side and up the right one (x
    to the right, y down). It enters the first and leaves the last sideways: there it is mirrored
    on the diagonal, or on the other one. Cells that follow each other are neighbours on the grid.
    Source: Hilbert 1891.

    Args:
        cell: Column and row, 0 to 2^24 - 1.
    """
    x, y = cell.long().unbind(1)
    index = torch.zeros_like(x)
    for bit in reversed(range(N_BITS)):
        right, down = (x >> bit) & 1, (y >> bit) & 1
        index = 4 * index + (3 * right ^ down)
        # Of the new x and y only the lower bits are looked at, and -1 turns them all over.
        turn = -(right & (1 - down))
        x, y = torch.where(down == 0, y, x) ^ turn, torch.where(down == 0, x, y) ^ turn
    return index


def plan_windows(sequence: Int[Tensor, " block"], window: int, shift: int) -> Padding:
    """Cut each sequence into windows, the first shorter by `shift`, as bags for attention.

    Args:
        sequence: As in `BlockOrder`.
        window: Most blocks in a window.
        shift: 0 to window - 1.
    """
    length = torch.bincount(sequence)
    first = length.cumsum(0) - length
    place = torch.arange(len(sequence), device=sequence.device) - first[sequence]
    pairs = torch.stack([sequence, (place + shift) // window], dim=1)
    found, window_of_block = pairs.unique_consecutive(dim=0, return_inverse=True)
    return plan_padding(window_of_block, len(found))


class WindowedTransformer(nn.Module):
    """Pre-norm blocks whose attention stays in windows of the curve, and a last norm.

    Where a block lies is told to the network only by who shares its window: add a code of the
    position to the tokens where it should know more.

    Args:
        width: Of a token; a multiple of the heads.
        n_layers: Two are needed for windows to hear of each other.
        n_heads: Number of heads.
        expansion: Width of the feed-forward part, in units of `width`.
        dropout: Of what each part adds.
        window: W, most blocks in a window; at least 1.
    """

    def __init__(
        self,
        width: int,
        n_layers: int,
        n_heads: int,
        expansion: int,
        dropout: float,
        window: int,
    ) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            TransformerBlock(width, n_heads, expansion, dropout) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, tokens: Float[Tensor, "block d"], order: BlockOrder
    ) -> Float[Tensor, "block d"]:
        """New token of every block, in the order in which they came."""
        plans = [plan_windows(order.sequence, self.window, s) for s in (0, self.window // 2)]
        h = tokens.index_select(0, order.rows)
        for layer, block in enumerate(self.blocks):
            h = block(h, plans[layer % 2])
        return self.norm(h).index_select(0, order.rows.argsort())
