"""The encoder half of InstanSeg by itself, as a `PatchNetwork`.

`InstansegEncoder` pools the maps that finding the nuclei leaves over; here the same four stages
look at pixels of their own, which is what describing each nucleus by a crop of it asks for.
"""

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from histoscribe.errors import ConfigError
from histoscribe.preprocess import weights
from histoscribe.preprocess.encoders.networks.patch_network import (
    Looked,
    NetworkFacts,
    check_sides,
    choose_device,
)
from histoscribe.preprocess.segmenters.instanseg import (
    CLAMP,
    MIN_SIDE_PX,
    MPP,
    NAME,
    precision_on,
)
from histoscribe.preprocess.segmenters.instanseg_network import STAGES, InstanSegNetwork
from histoscribe.preprocess.segmenters.segmenter import Calibration

STRIDE = 4  # of the map; the stages have 1, 2, 4 and 8


class InstansegPatches:
    """Four stages of InstanSeg's encoder as one map of stride 4 (32, 64, 128, 256 channels).

    The two finer ones are averaged over the squares of the map, the coarsest is interpolated
    linearly, so that the mean over a crop is the mean of each stage over it. There is no CLS.

    Its value range is the slide's own (`facts.needs_calibration`): `normalise` takes the
    `Calibration` that `InstanSegSegmenter.calibrate` fits once per slide.
    """

    def __init__(self, network: InstanSegNetwork, sha256: str, device: str | None = None) -> None:
        """Take the encoder of a built network.

        Args:
            network: Its decoder is not used.
            sha256: Of the published file.
            device: PyTorch device; by default the GPU if PyTorch sees one, else the CPU.
        """
        self.device = choose_device(device)
        self.stages = network.encoder.eval().to(self.device)
        self.facts = NetworkFacts(
            name=NAME,
            weights_sha256=sha256,
            licence=weights.find_source(NAME).licence,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            patch_px=STRIDE,
            step_px=2 ** (len(STAGES) - 1),
            n_channels=sum(STAGES),
            native_mpp=MPP,
            native_px=256,
            least_px=MIN_SIDE_PX,
            has_cls=False,
            precision=precision_on(self.device),
            needs_calibration=True,
        )

    def normalise(
        self, pixels: Float[Tensor, "b 3 y x"], calibration: Calibration | None = None
    ) -> Float[Tensor, "b 3 y x"]:
        """Bring each channel's fitted range to 0 to 1, clamped as the segmenter clamps.

        Raises:
            ConfigError: No calibration came.
        """
        if calibration is None:
            raise ConfigError(
                f"{self.facts.name} sees the slide's own value range; fit it first, with "
                "InstanSegSegmenter.calibrate"
            )
        low, high = (
            torch.tensor(values, device=self.device)[:, None, None] for values in calibration
        )
        return ((pixels.to(self.device) * 255 - low) / (high - low + 1e-6)).clamp_(*CLAMP)

    @torch.inference_mode()
    def look(self, pixels: Float[Tensor, "b 3 y x"]) -> Looked:
        """One pass over scaled pixels; float16 inside on GPUs, as in the segmenter.

        Raises:
            ConfigError: A side is no multiple of 8, or below 32 px.
        """
        check_sides(pixels, self.facts)
        is_gpu = self.device.type == "cuda"
        x = pixels.to(self.device).contiguous(memory_format=torch.channels_last)
        placed: list[Tensor] = []
        with torch.autocast(self.device.type, torch.float16, enabled=is_gpu):
            for level, stage in enumerate(self.stages):
                x = stage(x)
                placed.append(place(x, 2**level))
        return Looked(None, torch.cat(placed, dim=1))


def place(stage: Float[Tensor, "b c y x"], stride: int) -> Float[Tensor, "b c my mx"]:
    """A stage at the stride of the map."""
    if stride < STRIDE:
        return F.avg_pool2d(stage.float(), STRIDE // stride)
    if stride == STRIDE:
        return stage.float()
    return F.interpolate(stage.float(), scale_factor=stride / STRIDE, mode="bilinear")


def load_instanseg_patches(
    device: str | None = None, cache_dir: Path | None = None
) -> InstansegPatches:
    """The published encoder; its weights are fetched if the cache has none.

    Raises:
        MissingExtra: The weights are not in the cache and cannot be fetched.
        DataError: What came is not what was published.
    """
    state = load_file(weights.fetch(NAME, cache_dir))
    network = InstanSegNetwork(
        {key.removeprefix("fcn."): value for key, value in state.items() if key[:4] == "fcn."}
    )
    return InstansegPatches(network, next(iter(weights.find_source(NAME).files.values())), device)
