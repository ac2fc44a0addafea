"""Several processes that fit together, as `torchrun` starts them; one, where it does not.

They share each batch and come to the weights of one process, up to what is drawn by chance:
dropout, the cells of a block that enter, and the cluster loss, which compares the cells of a
process's share only.

PyTorch is imported only where there are several processes: every command asks here.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from histoscribe.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""What torchrun tells every process."""


@dataclass(frozen=True)
class Processes:
    """This process among those that fit together.

    Attributes:
        rank: Its number; 0 writes what is written.
        n: How many there are.
        n_here: How many of them are on this machine.
    """

    rank: int = 0
    n: int = 1
    n_here: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0


def find_processes() -> Processes:
    """What torchrun says in the environment.

    Raises:
        ConfigError: If it says only a part.
    """
    said = {name: os.environ[name] for name in NAMES if name in os.environ}
    if not said:
        return Processes()
    try:
        return Processes(*(int(said[name]) for name in NAMES))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"of {', '.join(NAMES)} the environment has {said}; start several processes with "
            "torchrun, or unset these"
        ) from error


def meet() -> bool:
    """Wait until all processes are here.

    Returns:
        Whether they were waited for: they know each other from the first net that they train.
    """
    if find_processes().n == 1:
        return True
    from torch import distributed

    if not distributed.is_initialized():
        return False
    distributed.barrier()
    return True


def from_first(value: T) -> T:
    """What the first process has for a value, if they have trained together; else the value.

    For choices that must be one, where a GPU can round a score differently in each process.
    """
    if find_processes().n == 1:
        return value
    from torch import distributed

    if not distributed.is_initialized():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def weigh_loss(loss: "Tensor", n_observed: "int | Tensor", processes: Processes) -> "Tensor":
    """The loss of a share of a batch, so that the mean over processes is that of the whole.

    Gradients are averaged over processes; a share with more measured values must weigh more.
    """
    if processes.n == 1:
        return loss
    import torch
    from torch import distributed

    own = torch.as_tensor(n_observed, dtype=torch.float64, device=loss.device)
    total = own.clone()
    distributed.all_reduce(total)
    return loss * (own * processes.n / total.clamp(min=1)).to(loss.dtype)
