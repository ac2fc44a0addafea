"""Small networks, and a toy slide described by an encoder, whatever its fields."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from torch import Tensor, nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from histoscribe.data.toy import ToyWorld, toy_world
from histoscribe.preprocess.describe import describe_nuclei, describe_squares, look_at_fields
from histoscribe.preprocess.describe import read_field as read
from histoscribe.preprocess.encoders.encoder import Encoder
from histoscribe.preprocess.encoders.networks.patch_network import (
    Looked,
    NetworkFacts,
    check_sides,
    standardise,
)
from histoscribe.preprocess.encoders.networks.token_network import TokenNetwork
from histoscribe.preprocess.fields import plan_grid
from histoscribe.preprocess.nuclei import take_owned
from histoscribe.preprocess.quality import CropTally
from histoscribe.preprocess.segmenters.segmenter import Calibration
from histoscribe.preprocess.segmenters.toy import ToySegmenter
from histoscribe.preprocess.tissue import sample_tissue_pixels, tissue_mask

Rows = dict[tuple[float, float], np.ndarray]


def facts_of(name: str, patch_px: int, n_channels: int, *, has_cls: bool) -> NetworkFacts:
    return NetworkFacts(
        name=name,
        weights_sha256="5eed" * 16,
        licence="Apache-2.0",
        mean=(0.7, 0.5, 0.7),
        std=(0.2, 0.2, 0.2),
        patch_px=patch_px,
        step_px=patch_px,
        n_channels=n_channels,
        native_mpp=0.5,
        native_px=16 * patch_px,
        least_px=patch_px,
        has_cls=has_cls,
    )


class ConvNetwork:
    """Patches of 7 px, then convolutions of 3 x 3: a vector sees `n_convs` patches either way."""

    device = torch.device("cpu")

    def __init__(self, n_convs: int) -> None:
        generator = torch.Generator().manual_seed(8)
        sizes = [(3, 11, 7)] + [(11, 11, 3)] * n_convs
        self.kernels = [
            torch.randn(d, c, k, k, generator=generator) / (c * k * k) ** 0.5 for c, d, k in sizes
        ]
        self.facts = facts_of("conv", 7, 11, has_cls=False)

    def normalise(self, pixels: Tensor, calibration: Calibration | None = None) -> Tensor:
        return standardise(pixels, self.facts)

    def look(self, pixels: Tensor) -> Looked:
        check_sides(pixels, self.facts)
        x = F.conv2d(pixels, self.kernels[0], stride=7)
        for kernel in self.kernels[1:]:
            x = F.gelu(F.conv2d(x, kernel, padding=1)) + x
        return Looked(None, x)


@pytest.fixture(scope="session")
def world() -> ToyWorld:
    return toy_world(11)


@pytest.fixture(scope="session")
def make_conv() -> Callable[[int], ConvNetwork]:
    return ConvNetwork


@pytest.fixture(scope="session")
def vit() -> TokenNetwork:
    """A DINOv3 of random weights whose registers would show in a mean."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = DINOv3ViTConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_register_tokens=4,
            patch_size=16,
        )
        model = DINOv3ViTModel(config)
        nn.init.normal_(model.embeddings.register_tokens, std=5.0)
    model = model.eval()

    def tokens_of(pixels: Tensor) -> Tensor:
        return model(pixel_values=pixels).last_hidden_state

    return TokenNetwork(model, tokens_of, 5, facts_of("vit", 16, 48, has_cls=True), "cpu")


@pytest.fixture(scope="session")
def describe(world: ToyWorld) -> Callable[..., tuple[Rows, Rows]]:
    """Features of nuclei and of squares by where they are, for fields of a given size."""
    mask = tissue_mask(world.slide)
    segmenter = ToySegmenter()
    pixels = sample_tissue_pixels(world.slide, mask, 9999, 0.5, np.random.default_rng(0))
    calibration = segmenter.calibrate(pixels)

    def by_place(encoder: Encoder, field_px: int, within_um: float = 384.0) -> tuple[Rows, Rows]:
        corner = np.zeros_like(mask.mask)
        corner[: int(within_um / mask.mpp), : int(within_um / mask.mpp)] = True
        some = replace(mask, mask=mask.mask & corner)
        plan = plan_grid(world.slide, some, 0.5, field_px, 64)
        encoder = encoder.calibrated(pixels)
        sight = encoder.sight(plan, 32.0)
        nuclei: Rows = {}
        squares: Rows = {}
        tally = CropTally()
        size_um = (world.slide.size_px[0] * 0.5, world.slide.size_px[1] * 0.5)
        for number in range(len(plan)):
            field = read(world.slide, plan, number, sight)
            segmented = segmenter.segment(field.image[None], calibration)
            (look,) = look_at_fields(encoder, [field], segmented, "toy@none", plan, sight)
            found = take_owned(segmented[0].labels, plan, number)
            rows = describe_nuclei(encoder, look, found, tally)
            described = describe_squares(look, field, plan, 64, size_um)
            nuclei |= dict(zip(map(tuple, found.xy_um.tolist()), rows, strict=True))
            places = map(tuple, described.xy_um.tolist())
            squares |= dict(zip(places, described.features.astype(np.float32), strict=True))
        tally.check("the toy slide")
        return near(nuclei, within_um), near(squares, within_um)

    return by_place


def near(rows: Rows, within_um: float) -> Rows:
    """Those that fields of any size own."""
    return {place: row for place, row in rows.items() if max(place) < within_um}
