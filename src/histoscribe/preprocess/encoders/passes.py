"""Images through a network, as many at once as its device takes."""

from collections.abc import Iterator

import numpy as np
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float, UInt8
from torch import Tensor

from histoscribe.errors import ConfigError
from histoscribe.preprocess.encoders.networks.patch_network import (
    Looked,
    NetworkFacts,
    PatchNetwork,
)
from histoscribe.preprocess.encoders.view import Pooling, ViewConfig
from histoscribe.preprocess.segmenters.instanseg import fit_range
from histoscribe.preprocess.segmenters.segmenter import Calibration

# InstanSeg keeps about 2 kB a pixel while it looks; on CPUs no network gains by more.
PIXELS_AT_ONCE = {"cpu": 4 * 224**2, "cuda": 128 * 224**2}


def look_at(
    network: PatchNetwork,
    images: UInt8[Tensor, "image y x 3"],
    calibration: Calibration | None,
    input_px: int | None = None,
) -> Iterator[Looked]:
    """What a network sees in images of one size, batch by batch.

    Args:
        network: The network.
        images: Red, green and blue.
        calibration: The slide's, for networks that need it.
        input_px: Side they are resized to (bilinear, antialiased); as they are if none.
    """
    side_px = input_px or max(images.shape[1:3])
    at_once = max(1, PIXELS_AT_ONCE[network.device.type] // side_px**2)
    for batch in images.split(at_once) if len(images) else ():
        pixels = batch.to(network.device).permute(0, 3, 1, 2).float() / 255
        if input_px is not None:
            pixels = F.interpolate(pixels, (input_px, input_px), mode="bilinear", antialias=True)
        yield network.look(network.normalise(pixels, calibration))


def spread(
    values: Float[Tensor, "image d my mx"],
) -> tuple[Float[Tensor, "image d"], Float[Tensor, "image d"]]:
    """Mean and standard deviation of the vectors of each map."""
    return values.mean(dim=(2, 3)), values.std(dim=(2, 3), correction=0)


def check_input(facts: NetworkFacts, input_px: int) -> None:
    """ConfigError if tiles cannot be shown to a network at this size."""
    if input_px % facts.step_px or input_px < facts.least_px:
        wanted = -(-max(input_px, facts.least_px) // facts.step_px) * facts.step_px
        raise ConfigError(
            f"{facts.name} takes multiples of {facts.step_px} px from {facts.least_px} px on, and "
            f"prepare.view.input_px = {input_px} is none; give one, such as {wanted}"
        )


def pooling_of(facts: NetworkFacts, view: ViewConfig) -> Pooling:
    """How its map becomes features: as asked for, or as goes with it.

    Raises:
        ConfigError: CLS is asked of a network that has none.
    """
    if view.pooling == "cls+mean" and not facts.has_cls:
        raise ConfigError(
            f"prepare.view.pooling = 'cls+mean', but {facts.name} has no CLS token; "
            "give 'mean' or 'mean+std'"
        )
    return view.pooling or ("mean" if facts.has_cls else "mean+std")


def fit_calibration(
    facts: NetworkFacts, pixels: UInt8[np.ndarray, "pixel 3"]
) -> Calibration | None:
    """The value range of a slide's tissue, for networks that need it."""
    return fit_range(pixels) if facts.needs_calibration else None
