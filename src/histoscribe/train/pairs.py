"""Pairs of rows of two modalities, and the endless, seeded streams that steps draw from.

What a step draws follows from the seed, the kind of pair and the number of the step alone: a run
that is taken up at step n draws as one that never stopped, and streams do not know of each other.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Int64

from histoscribe.data.checks import check_length
from histoscribe.data.texts import Texts
from histoscribe.errors import ConfigError, DataError
from histoscribe.train.draw import mix

PairKind = Literal["image-gene", "gene-text", "image-text"]


class PairDraw(NamedTuple):
    """The pairs of one step.

    Attributes:
        left: Row of the first modality of each.
        right: Row of the second.
        key: Equal where one's left is right for another's right, too.
    """

    left: Int64[np.ndarray, " pair"]
    right: Int64[np.ndarray, " pair"]
    key: Int64[np.ndarray, " pair"]


@dataclass(frozen=True)
class Pairs:
    """All pairs of a kind.

    Attributes:
        kind: Which modalities.
        left: Row of the first modality of each pair.
        key: Number of what the pair is keyed by.
        first: Where in `choice` the rows of each key begin, and at last its length.
        choice: Rows of the second modality by key; one of its key's is drawn each time.
        source: Where each pair is from, by any number; None if all are from one source. Steps draw
            from all sources alike, however many pairs each has.
    """

    kind: PairKind
    left: Int64[np.ndarray, " pair"]
    key: Int64[np.ndarray, " pair"]
    first: Int64[np.ndarray, " bound"]
    choice: Int64[np.ndarray, " choice"]
    source: Int64[np.ndarray, " pair"] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(PairKind):
            raise ConfigError(f"pairs of kind {self.kind!r}; wanted one of {get_args(PairKind)}")
        check_length("keys of pairs", self.key, len(self.left))
        if self.source is not None:
            check_length("sources of pairs", self.source, len(self.left))
        if not len(self.left):
            raise DataError(f"there is no {self.kind} pair; give some, or leave the kind out")
        if (np.diff(self.first)[self.key] < 1).any():
            raise DataError(f"a key of the {self.kind} pairs has no row to draw from")

    def __len__(self) -> int:
        return len(self.left)

    def take(self, rows: Int64[np.ndarray, " row"] | Bool[np.ndarray, " pair"]) -> "Pairs":
        """These pairs, under the same keys."""
        source = None if self.source is None else self.source[rows]
        return replace(self, left=self.left[rows], key=self.key[rows], source=source)

    @cached_property
    def of_source(self) -> tuple[Int64[np.ndarray, " _"], ...]:
        """The pairs of each source that has some."""
        if self.source is None:
            return (np.arange(len(self), dtype=np.int64),)
        return tuple(np.flatnonzero(self.source == one) for one in np.unique(self.source))

    def cut(self, share: float, seed: int) -> "Pairs":
        """A share of the pairs, drawn by chance, one at least; a smaller share is part of a larger.

        Raises:
            ConfigError: If the share is not above 0 and up to 1.
        """
        if not 0 < share <= 1:
            raise ConfigError(f"a share of {share} of the pairs; wanted above 0, up to 1")
        order = np.random.default_rng(mix(seed, _number(self.kind), 5)).permutation(len(self))
        return self.take(np.sort(order[: math.ceil(share * len(self))]))


def pair_rows(
    kind: PairKind, left: Int64[np.ndarray, " pair"], right: Int64[np.ndarray, " right"]
) -> Pairs:
    """Pairs of one row and one row, as of a region's image and its expression; no two are alike."""
    check_length("right rows of pairs", right, len(left))
    number = np.arange(len(left) + 1, dtype=np.int64)
    return Pairs(kind, left, number[:-1], number, right)


def pair_texts(
    kind: PairKind,
    text_key: Sequence[str],
    texts: Texts,
    rows: Int64[np.ndarray, " row"],
    source: Int64[np.ndarray, " row"] | None = None,
) -> Pairs:
    """Pairs of rows and their texts; rows without a key have none.

    Args:
        kind: Which modality the rows are of.
        text_key: Key of every row of that modality, "" for none.
        texts: The wordings; one of a key's is drawn each time.
        rows: Rows that take part, as those of the training donors.
        source: Where each of these is from (see `Pairs`).

    Raises:
        DataError: If a key is not among the texts, or no row has one.
    """
    number_of = {key: number for number, key in enumerate(texts.keys)}
    names = [text_key[row] for row in rows.tolist()]
    lost = next((name for name in names if name and name not in number_of), None)
    if lost is not None:
        raise DataError(f"text key {lost!r} is not among the {len(number_of)} keys of the texts")
    is_said = np.array([name != "" for name in names], dtype=bool)
    key = np.array([number_of[str(name)] for name in names if name], dtype=np.int64)
    some = [texts.rows_of_key[one] for one in texts.keys]
    first = np.cumsum([0, *map(len, some)], dtype=np.int64)
    choice = np.concatenate([*some, np.zeros(0, dtype=np.int64)])
    if source is not None:
        source = source[is_said]
    return Pairs(kind, rows[is_said], key, first, choice, source)


@dataclass(frozen=True)
class PairStream:
    """An endless stream of pairs: epoch after epoch, each in its own order.

    Sources take turns, pair by pair, and each has epochs of its own.

    Attributes:
        pairs: What is drawn from.
        n_drawn: Pairs of a step; where there are fewer, a step has some twice.
        seed: What shuffles them and draws their wordings.
    """

    pairs: Pairs
    n_drawn: int
    seed: int

    def __post_init__(self) -> None:
        if self.n_drawn < 1:
            raise ConfigError(f"a step draws {self.n_drawn} pairs; wanted 1 or more")

    def draw(self, step: int) -> PairDraw:
        """The pairs of a step, the first being 0."""
        seed, of_source = mix(self.seed, _number(self.pairs.kind)), self.pairs.of_source
        turn, source = np.divmod(
            step * self.n_drawn + np.arange(self.n_drawn, dtype=np.int64), len(of_source)
        )
        rows = np.empty(self.n_drawn, dtype=np.int64)
        for number, own in enumerate(of_source):
            mine = source == number
            rows[mine] = own[_shuffled(turn[mine], len(own), mix(seed, number))]
        key = self.pairs.key[rows]
        chance = np.random.default_rng(mix(seed, step, 7)).random(self.n_drawn)
        first = self.pairs.first[key]
        n_choices = self.pairs.first[key + 1] - first
        right = self.pairs.choice[first + (chance * n_choices).astype(np.int64)]
        return PairDraw(self.pairs.left[rows], right, key)


def draw_step(streams: Sequence[PairStream], step: int) -> Mapping[PairKind, PairDraw]:
    """What a step draws: some pairs of each kind."""
    return {stream.pairs.kind: stream.draw(step) for stream in streams}


def split_by_donor(
    donor_id: Sequence[str], share: float, seed: int, *, unknown_in_training: bool = False
) -> tuple[Int64[np.ndarray, " training"], Int64[np.ndarray, " held_out"]]:
    """Rows to train on and rows held out, no donor on both sides.

    Args:
        donor_id: Donor of each row, "" where it is not known.
        share: Share of the donors that is held out; one at least is, and one stays.
        seed: What draws them.
        unknown_in_training: Put rows of no known donor into training. A held-out donor may be
            among them: right only where data come from elsewhere altogether.

    Raises:
        DataError: Rows of no known donor, unless they may be trained on; or fewer than two donors.
    """
    donors = sorted(set(donor_id) - {""})
    if "" in donor_id and not unknown_in_training:
        raise DataError(
            f"{list(donor_id).count('')} of {len(donor_id)} profiles have no donor, or several, so "
            "they cannot be split by donor; name the donor's column, take means by donor, or allow "
            "them in training"
        )
    if len(donors) < 2 or not 0 < share < 1:
        raise DataError(
            f"{len(donors)} donor(s), of whom a share of {share} is to be held out; wanted two or "
            "more, and a share between 0 and 1"
        )
    n_held_out = min(max(1, round(share * len(donors))), len(donors) - 1)
    order = np.random.default_rng(mix(seed, 11)).permutation(len(donors))
    held_out = {donors[number] for number in order[:n_held_out]}
    is_held_out = np.array([donor in held_out for donor in donor_id])
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def _shuffled(turn: Int64[np.ndarray, " pair"], n: int, seed: int) -> Int64[np.ndarray, " pair"]:
    """Which of n comes at each turn: each once an epoch."""
    epoch, place = np.divmod(turn, n)
    rows = np.empty(len(turn), dtype=np.int64)
    for number in np.unique(epoch).tolist():
        rows[epoch == number] = _order(n, seed, number)[place[epoch == number]]
    return rows


@lru_cache(maxsize=8)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch; kept for the steps that share it."""
    rows = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
    np.random.default_rng(mix(seed, epoch, 3)).shuffle(rows)
    rows.flags.writeable = False
    return rows


def _number(kind: str) -> int:
    return zlib.crc32(kind.encode())
