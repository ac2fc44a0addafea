"""The text tower of an alignment: where it comes from, and what a checkpoint keeps of it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from histoscribe.errors import MismatchError
from histoscribe.models.text_tower import MOST_TOKENS, Pooling, TextTower, load_text_tower
from histoscribe.preprocess.weights import verify
from histoscribe.preprocess.weights_sources import WEIGHTS
from histoscribe.train.lora import LoraSettings, merge, take_out
from histoscribe.train.text_state import TextState

BESIDE = "text_tower"
"""A folder of this name within a checkpoint is looked into first."""


def find_text_tower(
    source: str, pooling: Pooling = "mean", most_tokens: int = MOST_TOKENS
) -> TextTower:
    """A text tower by the name of fetched weights, a folder, or a hub id; frozen.

    Raises:
        MissingExtra: It is not to be had.
        DataError, MismatchError: It is broken.
    """
    if source in WEIGHTS:
        return load_text_tower(verify(source).parent, pooling, most_tokens, name=source)
    return load_text_tower(source, pooling, most_tokens)


@dataclass(frozen=True, eq=False)
class TextPart:
    """What a checkpoint keeps of its text tower.

    Attributes:
        source: As it was named for the fit.
        identity: Of the tower that it gave.
        pooling: How tokens become a text.
        most_tokens: Longer texts were to be cut.
        state: How much of it learned.
        lora: Of its adapters, where it has some.
        nets: For each net what learned: nothing, weights, or adapters by peft's names.
    """

    source: str
    identity: str
    pooling: Pooling = "mean"
    most_tokens: int = MOST_TOKENS
    state: TextState = "frozen"
    lora: LoraSettings = field(default_factory=LoraSettings)
    nets: tuple[Mapping[str, Tensor], ...] = ()

    def find(self, home: Path | None) -> TextTower:
        """The tower as it was before the fit.

        Args:
            home: Folder of the checkpoint; a folder `text_tower` in it is taken before the source.

        Raises:
            MissingExtra: It is not to be had.
            MismatchError: What is found is another tower.
        """
        beside = None if home is None else home / BESIDE
        source = str(beside) if beside is not None and beside.is_dir() else self.source
        tower = find_text_tower(source, self.pooling, self.most_tokens)
        if tower.identity.partition("@")[2] != self.identity.partition("@")[2]:
            raise MismatchError(
                f"the checkpoint was fitted with the text tower {self.identity}, {source} is "
                f"{tower.identity}; put the folder of the right one into the checkpoint as "
                f"'{BESIDE}'"
            )
        return tower

    def learned(self, tower: TextTower, net: int) -> TextTower:
        """The tower of one net, in eval mode: a copy with what that net learned."""
        if self.state == "frozen":
            return tower
        own = copy.deepcopy(tower)
        weights = dict(self.nets[net])
        if self.state == "lora":
            weights = merge(own.state_dict(), weights, self.lora)
        own.load_state_dict(weights, strict=False)
        return own.eval()


def keep_text(weights: Mapping[str, Tensor], state: TextState) -> dict[str, Tensor]:
    """What of a learned tower's parameters is kept.

    Args:
        weights: Those that learned, by their names in the tower.
        state: How they learned.
    """
    return take_out(weights)[1] if state == "lora" else dict(weights)
