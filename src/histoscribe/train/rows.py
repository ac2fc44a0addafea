"""Tables of more rows than memory holds: what is fitted on them asks for some at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from histoscribe.data.in_file import new_array
from histoscribe.data.mapped import release

CHUNK = 8192
"""Rows widened to float64 at once; bounds memory whatever the number of cells."""


@runtime_checkable
class Rows(Protocol):
    """A table of rows of which some are asked for at a time: an array, or what stands for one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, then of features."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, which: slice | Int64[np.ndarray, " row"], /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class SomeRows:
    """Some rows of an array, in an order of their own, without a copy of them all.

    The memory of an array in a file is given back each time.
    """

    array: np.ndarray
    rows: Int64[np.ndarray, " row"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, then of features."""
        return (len(self.rows), *self.array.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: slice | Int64[np.ndarray, " row"]) -> np.ndarray:
        some = self.array[self.rows[which]]
        release(self.array)
        return some


def gather(part: Rows, which: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row feature"]:
    """These rows of a table as one array, asked for CHUNK by CHUNK."""
    gathered = np.empty((len(which), part.shape[1]), dtype=np.float32)
    for start in range(0, len(which), CHUNK):
        gathered[start : start + CHUNK] = part[which[start : start + CHUNK]]
    return gathered


def draw_rows(parts: Sequence[Rows], most: int, seed: int) -> Float32[np.ndarray, "row feature"]:
    """All rows of all parts; where they are more than `most`, so many by chance, in order.

    They lie in a file if they are many.
    """
    ends = np.cumsum([len(part) for part in parts])
    n_rows = int(ends[-1])
    chosen = None
    if n_rows > most:
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(n_rows, most, replace=False, shuffle=False))
    drawn = new_array((min(n_rows, most), parts[0].shape[1]), np.float32)
    done = 0
    for part, end in zip(parts, ends, strict=True):
        which = np.arange(len(part))
        if chosen is not None:
            first, last = np.searchsorted(chosen, [end - len(part), end])
            which = chosen[first:last] - (end - len(part))
        drawn[done : done + len(which)] = gather(part, which)
        done += len(which)
        release(drawn)
    return drawn


def in_chunks(parts: Iterable[Rows]) -> Iterator[np.ndarray]:
    """The rows of all parts in float64, CHUNK of a part at once."""
    for part in parts:
        for start in range(0, len(part), CHUNK):
            yield part[start : start + CHUNK].astype(np.float64)
            if isinstance(part, np.ndarray):
                release(part)


def regroup(parts: Iterable[np.ndarray], n_rows: int) -> Iterator[np.ndarray]:
    """The rows of all parts as if they were one, so many at once, the last fewer."""
    held: list[np.ndarray] = []
    for part in parts:
        start = 0
        while start < len(part):
            room = n_rows - sum(len(rows) for rows in held)
            held.append(part[start : start + room])
            start += room
            if len(held[-1]) == room:
                yield np.concatenate(held)
                held = []
                release(part)
    if held:
        yield np.concatenate(held)
