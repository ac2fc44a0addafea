"""How much of a text tower learns."""

from typing import Literal, get_args

from histoscribe.errors import ConfigError
from histoscribe.models.text_tower import TextTower
from histoscribe.train.lora import LoraSettings, insert_adapters

TextState = Literal["frozen", "unlocked", "lora"]


def set_text_state(tower: TextTower, state: TextState, lora: LoraSettings | None = None) -> None:
    """Let all of a text tower learn, adapters on its linear maps, or nothing; in place.

    Adapters are the identity at first: features are those of the frozen tower. They are drawn from
    PyTorch's random state, which the caller sets, and put in once; the rest is frozen.

    Source: SpatialWhisperer unlocks the text tower and finds that to be the largest gain of all
    its choices; Hu et al. 2022 for the adapters.

    Args:
        tower: As it was loaded.
        state: What learns.
        lora: Rank, weight and dropout of the adapters; ours by default.

    Raises:
        ConfigError: Unknown state, or adapters where there are some already.
    """
    if state not in get_args(TextState):
        raise ConfigError(f"text state {state!r} is unknown; give one of {get_args(TextState)}")
    has_adapters = any(".lora_" in name for name, _ in tower.named_parameters())
    if has_adapters:
        raise ConfigError("the text tower has adapters already; load it anew, or merge them first")
    tower.requires_grad_(False)
    if state == "unlocked":
        tower.unfreeze()
    elif state == "lora":
        insert_adapters(tower, lora or LoraSettings())
    tower.train(tower.training)
