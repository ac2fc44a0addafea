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
"""Blocks predicted at once while a net is scored, unless one region alone has more."""


class Draw(NamedTuple):
    """Some bags, and the seed by which their blocks are drawn."""

    bags: Int64[Tensor, " bag"]
    seed: int


class Bags(Dataset):
    """Bags by number, several at a time, each with some of its blocks.

    Args:
        batch: All bags.
        most_blocks: Blocks of a bag that are drawn at most; 0 takes all.
        share: Take only this process's share of what is drawn; None takes all of it.
    """

    def __init__(self, batch: BagBatch, most_blocks: int, share: Processes | None = None) -> None:
        self.batch, self.most_blocks, self.share = batch, most_blocks, share or Processes()

    def __getitem__(self, draw: Draw) -> BagBatch:
        bags = draw.bags[self.share.rank :: self.share.n]
        return draw_blocks(self.batch, bags, self.most_blocks, draw.seed)

    def __len__(self) -> int:
        return self.batch.n_bags


def draw_blocks(
    batch: BagBatch, bags: Int[Tensor, " bag"], most_blocks: int, seed: int
) -> BagBatch:
    """Some bags with some of their blocks, drawn by chance; a bag that has fewer is whole.

    What it costs does not depend on how many blocks a bag has. What is drawn of a bag does not
    depend on the bags beside it.

    Args:
        batch: All bags.
        bags: The bags that are wanted.
        most_blocks: Blocks of each at most; 0 takes all.
        seed: What draws them.
    """
    n_blocks = batch.n_blocks_of_bag[bags].tolist()
    if not most_blocks or max(n_blocks) <= most_blocks:
        return batch.take(bags)
    rows = []
    firsts = batch.first_block_of_bag[bags].tolist()
    for bag, first, n in zip(bags.tolist(), firsts, n_blocks, strict=True):
        some = np.arange(n)
        if n > most_blocks:
            generator = np.random.default_rng([seed, bag])
            some = np.sort(generator.choice(n, most_blocks, replace=False, shuffle=False))
        rows.append(torch.from_numpy(first + some))
    n_rows = torch.tensor([len(some) for some in rows])
    bag_of_block = torch.repeat_interleave(torch.arange(len(rows)), n_rows)
    drawn = batch.take_blocks(torch.cat(rows), bag_of_block, len(rows))
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


def in_portions(batch: BagBatch, most_blocks: int) -> list[Int64[Tensor, " bag"]]:
    """Bags in order, as many at once as have EVALUATED_AT_ONCE blocks together."""
    n_blocks = batch.n_blocks_of_bag
    if most_blocks:
        n_blocks = n_blocks.clamp(max=most_blocks)
    portion = (n_blocks.cumsum(0) - 1) // EVALUATED_AT_ONCE
    return list(
        torch.arange(batch.n_bags).split(torch.bincount(portion)[portion.unique()].tolist())
    )


def mix(seed: int, *numbers: int) -> int:
    """A 63-bit seed from several numbers."""
    low, high = np.random.SeedSequence([seed, *numbers]).generate_state(2)
    return int(low) | (int(high) & 0x7FFFFFFF) << 32
