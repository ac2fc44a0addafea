"""A Vision Transformer as a `PatchNetwork`: its tokens, told apart."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from histoscribe.errors import MismatchError
from histoscribe.preprocess.encoders.networks.patch_network import (
    Looked,
    NetworkFacts,
    check_sides,
    choose_device,
    standardise,
)
from histoscribe.preprocess.segmenters.segmenter import Calibration

Tokens = Callable[[Float[Tensor, "b 3 y x"]], Float[Tensor, "b token d"]]


class TokenNetwork:
    """Shows pixels to a Vision Transformer and lays its patch tokens out as a map.

    Attributes:
        facts: What it is.
        device: Where it runs.
        n_prefix: Tokens before the patches: CLS, then the registers.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens_of: Tokens,
        n_prefix: int,
        facts: NetworkFacts,
        device: str | None = None,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: Moved to the device and set to `eval`.
            tokens_of: A pass through it: CLS, the registers, the patches of the last layer.
            n_prefix: CLS and registers.
            facts: What it is; on a GPU it becomes bfloat16.
            device: PyTorch device; by default the GPU if PyTorch sees one, else the CPU.
        """
        self.device = choose_device(device)
        self.facts = facts
        if self.device.type == "cuda":
            self.facts = replace(facts, precision="bfloat16")
        self.dtype: torch.dtype = getattr(torch, self.facts.precision)
        self.model = model.eval().requires_grad_(requires_grad=False)
        if self.dtype != torch.float32:
            store_products(self.model, self.dtype)
        self.model = self.model.to(self.device)
        self.tokens_of = tokens_of
        self.n_prefix = n_prefix

    def normalise(
        self,
        pixels: Float[Tensor, "b 3 y x"],
        calibration: Calibration | None = None,  # noqa: ARG002 - of the contract
    ) -> Float[Tensor, "b 3 y x"]:
        """Red, green and blue in 0 to 1, less the mean, by the deviation."""
        return standardise(pixels.to(self.device), self.facts)

    @torch.inference_mode()
    def look(self, pixels: Float[Tensor, "b 3 y x"]) -> Looked:
        """One pass: CLS, and the patches of the last layer.

        Raises:
            ConfigError: A side is no multiple of the patch.
            MismatchError: The model answers with another number of tokens.
        """
        check_sides(pixels, self.facts)
        height, width = (side // self.facts.patch_px for side in pixels.shape[2:])
        is_half = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=is_half):
            tokens = self.tokens_of(pixels.to(self.device)).float()
        n_tokens = self.n_prefix + height * width
        if tokens.shape[1] != n_tokens:
            raise MismatchError(
                f"{self.facts.name} answers with {tokens.shape[1]} tokens where CLS, registers "
                f"and patches are {n_tokens}: its tokens are laid out in another way"
            )
        patches = tokens[:, self.n_prefix :].transpose(1, 2)
        return Looked(tokens[:, 0], patches.unflatten(2, (height, width)))


def store_products(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of all products in half the memory.

    Autocast would cast them anew in every pass, to the same values.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
