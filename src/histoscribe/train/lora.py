r"""Low-rank adapters through `peft`, in its own file format.

    W' = W + (alpha / r) B A      A [r, in] Kaiming uniform, B [out, r] zero: the identity at first

Source: Hu et al. 2022. `peft` is imported only where a net is trained with adapters or a folder is
written; merging is the product above and needs nothing.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from histoscribe.errors import ConfigError

PREFIX = "base_model.model."
"""Before every name in peft's files."""
IN_NET, IN_FILE = (".lora_A.default.weight", ".lora_B.default.weight"), (
    ".lora_A.weight",
    ".lora_B.weight",
)  # fmt: skip
BASE = ".base_layer."


@dataclass(frozen=True)
class LoraSettings:
    """The paper's adapters.

    Attributes:
        rank: r.
        alpha: The adapter's product is weighed by alpha / r.
        dropout: Of what enters an adapter, in training.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"transfer.lora: rank = {self.rank}, alpha = {self.alpha}, dropout = "
                f"{self.dropout}; give a rank of 1 or more, an alpha above 0, a dropout below 1"
            )


def adapted_layers(net: nn.Module) -> list[str]:
    """Names of the linear maps of a net that get an adapter.

    Raises:
        ConfigError: If the model does not say, or has none of them.
    """
    wanted = getattr(type(net), "ADAPTED", ())
    names = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(tuple(wanted))
    ]
    if not names:
        raise ConfigError(
            f"{type(net).__name__} has no layer that takes an adapter; set transfer.mode to full "
            "or frozen"
        )
    return names


def insert_adapters(net: nn.Module, settings: LoraSettings) -> None:
    """Put adapters into a net, in place; everything else of it is frozen.

    They are drawn from PyTorch's random state, which the caller sets.
    """
    from peft import inject_adapter_in_model

    inject_adapter_in_model(_peft_config(net, settings, base=None), net)


def take_out(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state of a net with adapters as that without, and the adapters by peft's names."""
    plain, adapters = {}, {}
    for name, tensor in state.items():
        for inside, in_file in zip(IN_NET, IN_FILE, strict=True):
            if name.endswith(inside):
                adapters[PREFIX + name.removesuffix(inside) + in_file] = tensor
                break
        else:
            plain[name.replace(BASE, ".")] = tensor
    return plain, adapters


def merge(
    weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor], settings: LoraSettings
) -> dict[str, Tensor]:
    """Weights with the adapters' products added."""
    merged = dict(weights)
    for name, down in adapters.items():
        if not name.endswith(IN_FILE[0]):
            continue
        layer = name.removeprefix(PREFIX).removesuffix(IN_FILE[0])
        up = adapters[name.removesuffix(IN_FILE[0]) + IN_FILE[1]]
        product = (up.double() @ down.double()) * (settings.alpha / settings.rank)
        old = merged[f"{layer}.weight"]
        merged[f"{layer}.weight"] = (old.double() + product).to(old.dtype)
    return merged


def write_config(net: nn.Module, settings: LoraSettings, base: str) -> str:
    """The adapter_config.json of peft, of the same bytes for the same settings.

    Args:
        net: The net without adapters.
        settings: Of the adapters.
        base: Identity of the checkpoint that they belong to.
    """
    record: dict[str, Any] = _peft_config(net, settings, base).to_dict()
    plain = {key: sorted(v) if isinstance(v, set) else v for key, v in record.items()}
    return json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n"


def _peft_config(net: nn.Module, settings: LoraSettings, base: str | None) -> Any:  # noqa: ANN401
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] - a float does as well
        lora_dropout=settings.dropout,
        target_modules=adapted_layers(net),
        bias="none",
        base_model_name_or_path=base,
    )
