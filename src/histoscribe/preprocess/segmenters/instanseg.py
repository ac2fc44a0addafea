"""InstanSeg `brightfield_nuclei`: nuclei, and its encoder's maps from the same pass."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor

from histoscribe.errors import DataError
from histoscribe.preprocess import weights
from histoscribe.preprocess.segmenters.instanseg_instances import (
    InstanceConfig,
    PixelClassifier,
    find_instances,
)
from histoscribe.preprocess.segmenters.instanseg_network import STRIDE, InstanSegNetwork
from histoscribe.preprocess.segmenters.segmenter import (
    Calibration,
    NetworkOutput,
    Segmentation,
)

NAME = "instanseg-brightfield_nuclei-0.1.1"
MPP = 0.5  # the published model's
PERCENTILES = (0.1, 99.9)  # of each channel, as in training
CLAMP = (-2.0, 3.0)  # the published module clamps what it is given to this
MIN_RANGE = 20  # grey levels; empty glass with JPEG noise stays below, faint H&E is above
MIN_SIDE_PX = 32  # the published model card
FIELDS_AT_ONCE = 8  # on a GPU; 512-px fields take about 0.5 GB each


class InstanSegSegmenter:
    """Nuclei of H&E, with the published weights in our own network and post-processing.

    Source: Goldsborough et al. 2024, arXiv:2408.15954; it agrees with the published TorchScript
    module pixel by pixel up to rounding, except that it keeps one piece per nucleus and drops
    nuclei below 2.5 µm². The value range is fitted once per slide, not per field, so that a field
    of background is not stretched into nuclei.

    Attributes:
        identity: Name and hash of the published file, and the precision where it is not float32.
        mpp: 0.5 µm per pixel.
    """

    mpp = MPP

    def __init__(
        self,
        state: Mapping[str, Tensor],
        identity: str,
        device: str = "cpu",
        config: InstanceConfig | None = None,
    ) -> None:
        """Build from the converted weights.

        Args:
            state: Tensors by their published names.
            identity: What provenance records.
            device: PyTorch device of the network; the rest runs on the CPU.
            config: Thresholds of the post-processing; the published ones by default.
        """
        self.identity = identity
        self.device = torch.device(device)
        self.config = config or InstanceConfig()
        published = {
            key.removeprefix("fcn."): value for key, value in state.items() if key[:4] == "fcn."
        }
        self.network = InstanSegNetwork(published).to(self.device)
        self.classifier = PixelClassifier(
            tuple(
                (
                    state[f"pixel_classifier.fc{i}.weight"].numpy(),
                    state[f"pixel_classifier.fc{i}.bias"].numpy(),
                )
                for i in (1, 2, 3)
            )
        )

    def calibrate(self, pixels: UInt8[np.ndarray, "pixel 3"]) -> Calibration:
        """Fit the value range on tissue pixels of one slide; see `fit_range`."""
        return fit_range(pixels)

    def segment(
        self, images: UInt8[np.ndarray, "field y x 3"], calibration: Calibration
    ) -> list[Segmentation]:
        """Segment fields of one slide that were read at 0.5 µm per pixel.

        Args:
            images: 8-bit RGB, sides of at least 32 px.
            calibration: What `calibrate` answered for the slide.

        Returns:
            For each field its labels, and four maps (32, 64, 128, 256 channels) at stride
            1, 2, 4, 8: pixel (y, x) of the field is in (y // stride, x // stride) of a map.

        Raises:
            DataError: Not 8-bit RGB, or too small.
        """
        return [self.find_nuclei(one) for one in self.run_network(images, calibration)]

    def run_network(
        self, images: UInt8[np.ndarray, "field y x 3"], calibration: Calibration
    ) -> list[NetworkOutput]:
        """The first half of `segment`: the network, on its device."""
        check_image(images, n_axes=4)
        if min(images.shape[1:3]) < MIN_SIDE_PX:
            raise DataError(
                f"fields of {images.shape[2]} x {images.shape[1]} px came, InstanSeg wants at "
                f"least {MIN_SIDE_PX} px ({MIN_SIDE_PX * MPP:g} µm) a side. Use larger tiles."
            )
        at_once = 1 if self.device.type == "cpu" else FIELDS_AT_ONCE
        return [
            output
            for start in range(0, len(images), at_once)
            for output in self.look_at(images[start : start + at_once], calibration)
        ]

    @torch.inference_mode()
    def look_at(
        self, images: UInt8[np.ndarray, "field y x 3"], calibration: Calibration
    ) -> list[NetworkOutput]:
        """One pass of the network."""
        height, width = images.shape[1:3]
        scaled = pad_to_stride(scale(images, calibration, self.device))
        # On a GPU in half precision; float16, since the maps stay below 20 and bfloat16 would cost
        # them 2 % where this costs 0.3 %.
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            heads, stages = self.network(scaled)
        heads = heads[:, :, :height, :width].float().cpu().numpy()
        return [
            NetworkOutput(heads[index], crop_stages(stages, index, height, width))
            for index in range(len(images))
        ]

    def find_nuclei(self, output: NetworkOutput) -> Segmentation:
        """The post-processing of one field, on the CPU."""
        return Segmentation(find_instances(output.heads, self.classifier, self.config), output.maps)

    @torch.inference_mode()
    def encode(
        self, images: UInt8[np.ndarray, "field y x 3"], calibration: Calibration
    ) -> list[tuple[Float[Tensor, "_ _ _"], ...]]:
        """The maps of `segment` alone, for fields that were segmented by other means."""
        check_image(images, n_axes=4)
        height, width = images.shape[1:3]
        encoded = []
        for image in images:
            scaled = pad_to_stride(scale(image[None], calibration, self.device))
            is_gpu = self.device.type == "cuda"
            with torch.autocast(self.device.type, torch.float16, enabled=is_gpu):
                stages = self.network.encode(scaled)
            encoded.append(crop_stages(stages, 0, height, width))
        return encoded


def load_instanseg(device: str | None = None, cache_dir: Path | None = None) -> InstanSegSegmenter:
    """The segmenter with its published weights; they are fetched if the cache has none.

    Args:
        device: PyTorch device; by default the GPU if PyTorch sees one, else the CPU.
        cache_dir: Where the weights are kept; the default is `weights.default_cache()`.

    Raises:
        MissingExtra: The weights are not in the cache and cannot be fetched.
        DataError: What came is not what was published.
    """
    state = load_file(weights.fetch(NAME, cache_dir))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = precision_on(torch.device(device))
    identity = weights.identity_of(NAME) + ("" if precision == "float32" else f"/{precision}")
    return InstanSegSegmenter(state, identity, device)


def precision_on(device: torch.device) -> Literal["float16", "float32"]:
    """What the network multiplies in there."""
    return "float16" if device.type == "cuda" else "float32"


def fit_range(pixels: UInt8[np.ndarray, "pixel 3"]) -> Calibration:
    """Fit the value range: percentiles 0.1 and 99.9 of each channel.

    Args:
        pixels: Of tissue fields of one slide, the light between the cells included.

    Raises:
        DataError: Not 8-bit RGB, no pixels, or (nearly) constant.
    """
    check_image(pixels, n_axes=2)
    if not len(pixels):
        raise DataError(
            "no pixels to fit the value range on: wanted tissue. Check the tissue mask and "
            "that the spots lie on the slide."
        )
    low, high = np.percentile(pixels, PERCENTILES, axis=0)
    if (high - low).min() < MIN_RANGE:
        ranges = ", ".join(f"{value:.0f}" for value in high - low)
        raise DataError(
            f"the image is nearly constant (ranges of its channels: {ranges} of 255): wanted "
            f"stained tissue, {MIN_RANGE} grey levels in each channel at least. Check that "
            f"the slide is the H&E scan and that it could be read in full."
        )
    return Calibration(
        (float(low[0]), float(low[1]), float(low[2])),
        (float(high[0]), float(high[1]), float(high[2])),
    )


def crop_stages(
    stages: Sequence[Float[Tensor, "field _ _ _"]], index: int, height: int, width: int
) -> tuple[Float[Tensor, "_ _ _"], ...]:
    """The maps of one field without what its padding added."""
    return tuple(
        stage[index, :, : -(-height // 2**level), : -(-width // 2**level)].float()
        for level, stage in enumerate(stages)
    )


def check_image(image: np.ndarray, n_axes: int) -> None:
    """Refuse what is not 8-bit RGB: on unscaled or rescaled values the network finds nothing."""
    if image.dtype != np.uint8 or image.ndim != n_axes or image.shape[-1] != 3:
        raise DataError(
            f"an image of shape {image.shape} and type {image.dtype} came, InstanSeg wants RGB of "
            f"8 bits (uint8, 0 to 255), channels last. Convert it before."
        )


def scale(
    images: UInt8[np.ndarray, "field y x 3"], calibration: Calibration, device: torch.device
) -> Float[Tensor, "field 3 y x"]:
    """Bring each channel's fitted range to 0 to 1, clamped as the published module clamps."""
    low = torch.tensor(calibration.low, device=device)
    high = torch.tensor(calibration.high, device=device)
    pixels = torch.tensor(np.ascontiguousarray(images), device=device).float()
    scaled = pixels.sub_(low).div_(high - low + 1e-6).clamp_(*CLAMP)
    return scaled.permute(0, 3, 1, 2)  # which leaves the channels last in memory


def pad_to_stride(images: Float[Tensor, "field 3 y x"]) -> Float[Tensor, "field 3 y2 x2"]:
    """Mirror the lower and right border until both sides are multiples of 16."""
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE), mode="reflect")
