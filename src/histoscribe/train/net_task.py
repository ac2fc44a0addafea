"""What the training of one net is told, and what it says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Int64
from torch import Tensor

from histoscribe.errors import MismatchError


class DivergenceError(MismatchError):
    """A net whose weights or answers are no longer numbers."""


@dataclass(frozen=True)
class Epoch:
    """One finished epoch, for progress bars."""

    net: int
    n_nets: int
    epoch: int
    max_epochs: int
    score: float


@dataclass(frozen=True)
class FitLog:
    """Where a fit writes beside its result, and whom it tells.

    Attributes:
        folder: For CSV and TensorBoard logs, and the state of an unfinished fit, from which the
            same call goes on; None writes nothing.
        on_epoch: Called after each epoch.
        every_s: Seconds between two writings of the state. What is lost by a kill is trained
            again to the same bits.
    """

    folder: Path | None = None
    on_epoch: Callable[[Epoch], None] | None = None
    every_s: float = 20.0


@dataclass(frozen=True, eq=False)
class NetTask:
    """One net to be trained.

    Attributes:
        net: Its place among all nets.
        n_nets: How many there are.
        seed: Its own seed.
        train: Bags it learns from.
        held_out: Bags it stops on.
        key: Names the whole fit: data, settings, version.
    """

    net: int
    n_nets: int
    seed: int
    train: Int64[Tensor, " train"]
    held_out: Int64[Tensor, " held_out"]
    key: str


@dataclass(frozen=True)
class FittedNet:
    """The weights of a net at its best epoch, and how it got there."""

    weights: Mapping[str, Tensor] = field(repr=False)
    best_epoch: int
    best_score: float
    n_epochs: int
