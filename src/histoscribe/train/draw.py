"""Which bags, and which of their blocks, enter a step; drawn from seeds alone."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from histoscribe.data.bags import BagBatch
from histoscribe.errors import ConfigError
from histoscribe.train.processes import Processes

EVALUATED_AT_ONCE = 256
"""Blocks predicted at once while a net is scored; a region of more comes in portions, or whole
where the model cannot be shown portions."""


class Draw(NamedTuple):
    """Some bags, and the seed by which their blocks are drawn."""

    bags: Int64[Tensor, " bag"]
    seed: int


class Bags(Dataset):
    """Some bags of a batch by number, several at a time, each with some of its blocks.

    Nothing is copied but what is drawn.

    Args:
        batch: Bags, these among them.
        most_blocks: Blocks of a bag that are drawn at most; 0 takes all.
        share: Take only this process's share of what is drawn; None takes all of it.
        rows: Where these bags are in the batch, in the order in which they are numbered; None for
            all as they are.
    """

    def __init__(
        self,
        batch: BagBatch,
        most_blocks: int,
        share: Processes | None = None,
        rows: Int64[Tensor, " bag"] | None = None,
    ) -> None:
        self.batch, self.most_blocks, self.share = batch, most_blocks, share or Processes()
        self.rows = torch.arange(batch.n_bags) if rows is None else rows

    def __getitem__(self, draw: Draw) -> BagBatch:
        bags = draw.bags[self.share.rank :: self.share.n]
        return draw_blocks(self.batch, self.rows[bags], self.most_blocks, draw.seed, bags)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_drawn(self) -> Int64[Tensor, " bag"]:
        """Blocks that are drawn of each."""
        n_blocks = self.batch.n_blocks_of_bag[self.rows]
        return n_blocks.clamp(max=self.most_blocks) if self.most_blocks else n_blocks


class Portion(NamedTuple):
    """Some bags to be scored, or some blocks of one bag that is too large to be seen at once.

    Attributes:
        batch: The bags; the blocks of one, in a batch with its target.
        is_whole: These are all blocks of the bags that are drawn.
        is_last: No more blocks of its bag will come.
    """

    batch: BagBatch
    is_whole: bool = True
    is_last: bool = True


class HeldOut(Dataset):
    """Bags to be scored, in order and in portions of about EVALUATED_AT_ONCE blocks.

    Args:
        bags: The bags.
        seed: What draws their blocks.
        is_streamed: A larger bag may come in several portions, each some of the blocks drawn of
            it; else it comes whole, whatever its size.
    """

    def __init__(self, bags: Bags, seed: int, *, is_streamed: bool) -> None:
        self.bags, self.n_drawn = bags, bags.n_drawn.tolist()
        self.plan: list[tuple[Draw, slice | None]] = []
        for number, portion in enumerate(in_portions(bags)):
            for some in self._set_apart(portion) if is_streamed else [portion]:
                draw, n_drawn = Draw(some, mix(seed, 4, number)), self.n_drawn[int(some[0])]
                if is_streamed and n_drawn > EVALUATED_AT_ONCE:
                    starts = range(0, n_drawn, EVALUATED_AT_ONCE)
                    self.plan += [(draw, slice(a, a + EVALUATED_AT_ONCE)) for a in starts]
                else:
                    self.plan.append((draw, None))

    def _set_apart(self, portion: Int64[Tensor, " bag"]) -> list[Int64[Tensor, " _"]]:
        """The bags in order and together, but for those that are too large: each by itself."""
        is_large = torch.tensor([self.n_drawn[bag] > EVALUATED_AT_ONCE for bag in portion.tolist()])
        is_border = is_large[1:] | is_large[:-1]
        return list(portion.tensor_split((is_border.nonzero()[:, 0] + 1).tolist()))

    def __getitem__(self, item: int) -> Portion:
        draw, blocks = self.plan[item]
        if blocks is None:
            return Portion(self.bags[draw])
        batch, number = self.bags.batch, int(draw.bags[0])
        row = self.bags.rows[draw.bags]
        drawn = choose_blocks(batch, int(row[0]), self.bags.most_blocks, draw.seed, number)[blocks]
        part = batch.take_blocks(drawn, torch.zeros_like(drawn), 1)
        is_last = blocks.stop >= self.n_drawn[number]
        return Portion(_with_targets(part, batch, row), is_whole=False, is_last=is_last)

    def __len__(self) -> int:
        return len(self.plan)


def choose_blocks(
    batch: BagBatch, bag: int, most_blocks: int, seed: int, number: int
) -> Int64[Tensor, " block"]:
    """Rows of the blocks drawn of a bag, in order; all where it has no more than `most_blocks`."""
    first, n = int(batch.first_block_of_bag[bag]), int(batch.n_blocks_of_bag[bag])
    some = np.arange(n)
    if most_blocks and n > most_blocks:
        generator = np.random.default_rng([seed, number])
        some = np.sort(generator.choice(n, most_blocks, replace=False, shuffle=False))
    return torch.from_numpy(first + some)


def draw_blocks(
    batch: BagBatch,
    bags: Int[Tensor, " bag"],
    most_blocks: int,
    seed: int,
    numbers: Int[Tensor, " bag"] | None = None,
) -> BagBatch:
    """Some bags with some of their blocks, drawn by chance; a bag that has fewer is whole.

    What it costs does not depend on how many blocks a bag has. What is drawn of a bag does not
    depend on the bags beside it.

    Args:
        batch: All bags.
        bags: The bags that are wanted.
        most_blocks: Blocks of each at most; 0 takes all.
        seed: What draws them.
        numbers: The number of each bag, which draws its blocks together with the seed; None takes
            its row in the batch.
    """
    numbers = bags if numbers is None else numbers
    if not most_blocks or int(batch.n_blocks_of_bag[bags].max()) <= most_blocks:
        return batch.take(bags)
    rows = [
        choose_blocks(batch, bag, most_blocks, seed, number)
        for bag, number in zip(bags.tolist(), numbers.tolist(), strict=True)
    ]
    n_rows = torch.tensor([len(some) for some in rows])
    bag_of_block = torch.repeat_interleave(torch.arange(len(rows)), n_rows)
    return _with_targets(batch.take_blocks(torch.cat(rows), bag_of_block, len(rows)), batch, bags)


def _with_targets(drawn: BagBatch, batch: BagBatch, bags: Int[Tensor, " bag"]) -> BagBatch:
    return replace(
        drawn,
        target=None if batch.target is None else batch.target[bags],
        is_observed=None if batch.is_observed is None else batch.is_observed[bags],
    )


class BagOrder(Sampler[Draw]):
    """Batches of bags, shuffled by the seed and the epoch alone.

    Batches of an epoch differ in size by at most one, so that no step hangs on a rest.

    Args:
        n_bags: Number of bags.
        batch_regions: Bags of a batch, at most, unless processes are more.
        seed: What shuffles them.
        n_processes: Processes that share each batch.
    """

    def __init__(self, n_bags: int, batch_regions: int, seed: int, n_processes: int = 1) -> None:
        if n_bags < n_processes:
            raise ConfigError(
                f"{n_processes} processes share {n_bags} training regions; start fewer of them"
            )
        self.n_bags, self.seed, self.epoch = n_bags, seed, 0
        wanted = math.ceil(n_bags / batch_regions)
        self.n_batches = max(1, min(wanted, n_bags // n_processes))

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch, 1))
        order = torch.randperm(self.n_bags, generator=generator)
        for number, bags in enumerate(order.tensor_split(self.n_batches)):
            yield Draw(bags, mix(self.seed, self.epoch, 3, number))

    def __len__(self) -> int:
        return self.n_batches


def in_portions(bags: Bags) -> list[Int64[Tensor, " _"]]:
    """Numbers in order, as many at once as have EVALUATED_AT_ONCE blocks together."""
    portion = (bags.n_drawn.cumsum(0) - 1) // EVALUATED_AT_ONCE
    return list(torch.arange(len(bags)).split(torch.bincount(portion)[portion.unique()].tolist()))


def mix(seed: int, *numbers: int) -> int:
    """A 63-bit seed from several numbers."""
    low, high = np.random.SeedSequence([seed, *numbers]).generate_state(2)
    return int(low) | (int(high) & 0x7FFFFFFF) << 32
