"""The contract of a network that encoders show pixels to: tensors in, tensors out.

A network knows nothing of cells, tiles or slides. It says what it is (`NetworkFacts`), brings
pixels to the values it was trained on (`normalise`), and turns them into one summary vector and
one map of local vectors (`look`).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from histoscribe.errors import ConfigError
from histoscribe.preprocess.segmenters.segmenter import Calibration

Triple = tuple[float, float, float]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What identifies a network, and how pixels are shown to it.

    Attributes:
        name: E.g. "uni2-h", "dinov3-vitl16".
        weights_sha256: Of the published file, in full; of a folder over its weights, what its
            `config.json` says of the network, and its normalisation where that is not ImageNet's.
        licence: SPDX name where there is one, with "non-commercial" where it is; what the model's
            folder states, or "not stated".
        mean: Of red, green and blue in 0 to 1; the network sees (pixel / 255 - mean) / std.
        std: The same of the deviations.
        patch_px: Stride of its map: the vector at (y, x) of the map describes the square of this
            side from (patch_px * y, patch_px * x), and is centred on that square's centre.
        step_px: The sides of an input are multiples of this; a multiple of `patch_px`.
        n_channels: Length d of a vector of its map.
        native_mpp: Resolution its authors show tissue at, µm per pixel.
        native_px: Side of what its authors show.
        least_px: Smallest side it takes.
        has_cls: `Looked.cls` is there.
        needs_calibration: Its values are scaled by the slide's own range (InstanSeg): `normalise`
            wants a `Calibration`; mean and std are then 0 and 1 and not used.
        precision: Of its products; the values that go from layer to layer and its answer are
            float32.
    """

    name: str
    weights_sha256: str
    licence: str
    mean: Triple
    std: Triple
    patch_px: int
    step_px: int
    n_channels: int
    native_mpp: float
    native_px: int
    least_px: int
    has_cls: bool = True
    needs_calibration: bool = False
    precision: Precision = "float32"


class Looked(NamedTuple):
    """What a network answers: float32, on its device.

    Attributes:
        cls: One vector for the whole input, None if the network has none.
        map: One vector for each square of `patch_px`; registers are dropped.
    """

    cls: Float[Tensor, "b d"] | None
    map: Float[Tensor, "b d my mx"]


@runtime_checkable
class PatchNetwork(Protocol):
    """Looks at pixels: `network.look(network.normalise(pixels))`."""

    @property
    def facts(self) -> NetworkFacts: ...  # noqa: D102 - the name says it

    @property
    def device(self) -> torch.device:
        """Where it runs; `normalise` and `look` bring their input there."""
        ...

    def normalise(
        self, pixels: Float[Tensor, "b 3 y x"], calibration: Calibration | None = None
    ) -> Float[Tensor, "b 3 y x"]:
        """From red, green and blue in 0 to 1 to what the network was trained on.

        Args:
            pixels: Of any size, resized already.
            calibration: The slide's, for networks that need it; others do not look at it.

        Raises:
            ConfigError: The network needs a calibration and none came.
        """
        ...

    def look(self, pixels: Float[Tensor, "b 3 y x"]) -> Looked:
        """One pass over normalised pixels, in `facts.precision`.

        Raises:
            ConfigError: A side is no multiple of `facts.step_px`, or below `facts.least_px`.
        """
        ...


def choose_device(device: str | None) -> torch.device:
    """The one that was asked for, else the GPU if PyTorch sees one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def standardise(pixels: Float[Tensor, "b 3 y x"], facts: NetworkFacts) -> Float[Tensor, "b 3 y x"]:
    """(x - mean) / std of each channel, x in 0 to 1."""
    mean, std = (
        torch.tensor(values, device=pixels.device)[:, None, None]
        for values in (facts.mean, facts.std)
    )
    return (pixels - mean) / std


def check_sides(pixels: Float[Tensor, "b 3 y x"], facts: NetworkFacts) -> None:
    """ConfigError if the network cannot take pixels of this size."""
    height, width = pixels.shape[2:]
    if min(height, width) < facts.least_px or height % facts.step_px or width % facts.step_px:
        raise ConfigError(
            f"{facts.name} was shown {width} x {height} px; wanted sides that are multiples of "
            f"{facts.step_px} px, {facts.least_px} px or more"
        )
