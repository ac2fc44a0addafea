"""EfficientNet-Lite0, with weights from a package index: a real network for tests and benchmarks.

Written from Tan & Le 2019 (arXiv:1905.11946, table 1) and TensorFlow's description of the "lite"
variant (no squeeze-and-excitation, ReLU6), and from the names and shapes of the published weights.
It was trained on ImageNet and knows no tissue; no result for patients should rest on it.

Batch normalisation is folded into the convolution before it. TensorFlow's "same" padding puts the
odd pixel last, so that a map pixel of stride s looks at a point (s - 1) / 2 px right of and below
the middle of its square; `place` puts each stage where it looks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from histoscribe.errors import MismatchError
from histoscribe.preprocess import weights
from histoscribe.preprocess.encoders.networks.patch_network import (
    Looked,
    NetworkFacts,
    check_sides,
    choose_device,
    standardise,
)
from histoscribe.preprocess.segmenters.segmenter import Calibration

NAME = "efficientnet-lite0"
BN_EPS = 1e-3
MEAN, STD = 127 / 255, 128 / 255  # the network sees (x - 127) / 128, as TensorFlow trains it
STRIDE = 8  # of the map
SEEN = {4: 8, 10: 16, 15: 32}  # block whose output is seen -> its stride: 40, 112, 320 channels


class StageRow(NamedTuple):
    """A row of the table: alike blocks one after another."""

    n_blocks: int
    kernel: int
    stride: int  # of the first
    expansion: int
    n_out: int


STEM = 32
TABLE = (
    StageRow(1, 3, 1, 1, 16),
    StageRow(2, 3, 2, 6, 24),
    StageRow(2, 5, 2, 6, 40),
    StageRow(3, 3, 2, 6, 80),
    StageRow(3, 5, 1, 6, 112),
    StageRow(4, 5, 2, 6, 192),
    StageRow(1, 3, 1, 6, 320),
)
HEAD, CLASSES = 1280, 1000  # published, and not used here


class BlockShape(NamedTuple):
    """One inverted residual."""

    n_in: int
    n_wide: int
    n_out: int
    kernel: int
    stride: int


def block_shapes() -> list[BlockShape]:
    """The sixteen blocks of the table."""
    shapes: list[BlockShape] = []
    n_in = STEM
    for row in TABLE:
        for index in range(row.n_blocks):
            stride = row.stride if index == 0 else 1
            shapes.append(BlockShape(n_in, n_in * row.expansion, row.n_out, row.kernel, stride))
            n_in = row.n_out
    return shapes


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Every published tensor and its shape, without the counters of batch normalisation."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(conv: str, norm: str, shape: tuple[int, int, int, int]) -> None:
        shapes[f"{conv}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = shape[:1]

    add("_conv_stem", "_bn0", (STEM, 3, 3, 3))
    for index, block in enumerate(block_shapes()):
        at = f"_blocks.{index}."
        if block.n_wide != block.n_in:
            add(f"{at}_expand_conv", f"{at}_bn0", (block.n_wide, block.n_in, 1, 1))
        add(f"{at}_depthwise_conv", f"{at}_bn1", (block.n_wide, 1, block.kernel, block.kernel))
        add(f"{at}_project_conv", f"{at}_bn2", (block.n_out, block.n_wide, 1, 1))
    add("_conv_head", "_bn1", (HEAD, block_shapes()[-1].n_out, 1, 1))
    return {**shapes, "_fc.weight": (CLASSES, HEAD), "_fc.bias": (CLASSES,)}


def check_state(state: Mapping[str, Tensor]) -> None:
    """MismatchError if a tensor is missing, is too many or has another shape."""
    wanted = published_shapes()
    came = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in wanted.keys() | came.keys() if wanted.get(key) != came.get(key))
    if wrong:
        raise MismatchError(
            f"these weights are no {NAME}: {len(wrong)} keys differ, e.g. {wrong[0]} came with "
            f"shape {came.get(wrong[0])}, wanted {wanted.get(wrong[0])}"
        )


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same": ceil(size / stride) outputs, the smaller half of the padding first."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv(nn.Module):
    """A convolution with its batch normalisation folded in and "same" padding."""

    def __init__(
        self, state: Mapping[str, Tensor], conv: str, norm: str, stride: int, *, relu: bool
    ) -> None:
        """Fold: w' = w g / sqrt(v + eps), b' = s - m g / sqrt(v + eps), in float64."""
        super().__init__()
        gain, shift, mean, variance = (
            state[f"{norm}.{part}"].double()
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = gain / torch.sqrt(variance + BN_EPS)
        weight = state[f"{conv}.weight"].double() * gain[:, None, None, None]
        self.weight = nn.Parameter(
            weight.float().contiguous(memory_format=torch.channels_last), requires_grad=False
        )
        self.bias = nn.Parameter((shift - mean * gain).float(), requires_grad=False)
        self.stride, self.relu = stride, relu
        # A depthwise kernel has one input channel and as many groups as channels.
        self.n_groups = len(weight) if weight.shape[1] == 1 else 1

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d y2 x2"]:
        """Convolve."""
        kernel = self.weight.shape[-1]
        padding: int | tuple[int, int] = kernel // 2
        if self.stride > 1:
            top, bottom = same_padding(x.shape[2], kernel, self.stride)
            left, right = same_padding(x.shape[3], kernel, self.stride)
            x, padding = F.pad(x, (left, right, top, bottom)), 0
        y = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.n_groups)
        return F.relu6(y, inplace=True) if self.relu else y


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; plus the input where shapes allow."""

    def __init__(self, state: Mapping[str, Tensor], at: str, shape: BlockShape) -> None:
        super().__init__()
        is_wider = shape.n_wide != shape.n_in
        self.expand = (
            SameConv(state, f"{at}_expand_conv", f"{at}_bn0", 1, relu=True)
            if is_wider
            else nn.Identity()
        )
        self.depthwise = SameConv(
            state, f"{at}_depthwise_conv", f"{at}_bn1", shape.stride, relu=True
        )
        self.project = SameConv(state, f"{at}_project_conv", f"{at}_bn2", 1, relu=False)
        self.has_skip = shape.stride == 1 and shape.n_in == shape.n_out

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b d y2 x2"]:
        """One block."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_skip else y


class EfficientNetLite0(nn.Module):
    """The stem and the sixteen blocks, without the classifier."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Build from the published tensors, by their published names.

        Raises:
            MismatchError: One is missing, is too many or has another shape.
        """
        super().__init__()
        check_state(state)
        self.stem = SameConv(state, "_conv_stem", "_bn0", 2, relu=True)
        self.blocks = nn.ModuleList(
            InvertedResidual(state, f"_blocks.{index}.", shape)
            for index, shape in enumerate(block_shapes())
        )

    def forward(self, pixels: Float[Tensor, "b 3 y x"]) -> list[Float[Tensor, "b _ _ _"]]:
        """The maps at stride 8, 16 and 32 (40, 112, 320 channels)."""
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        stages: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in SEEN:
                stages.append(x)
        return stages


class EfficientNetPatches:
    """EfficientNet-Lite0 as a `PatchNetwork`: three stages as one map of stride 8.

    A vector has the 40, 112 and 320 channels at stride 8, 16 and 32, the coarser ones
    interpolated linearly between the points they look at. There is no CLS.
    """

    def __init__(self, state: Mapping[str, Tensor], sha256: str, device: str | None = None) -> None:
        """Build from the published tensors.

        Args:
            state: Tensors by their published names.
            sha256: Of the published file.
            device: PyTorch device; by default the GPU if PyTorch sees one, else the CPU.
        """
        self.device = choose_device(device)
        self.model = EfficientNetLite0(state).eval().to(self.device)
        self.facts = NetworkFacts(
            name=NAME,
            weights_sha256=sha256,
            licence=weights.find_source(NAME).licence,
            mean=(MEAN, MEAN, MEAN),
            std=(STD, STD, STD),
            patch_px=STRIDE,
            step_px=32,  # at other sizes "same" padding would shift the coarse stages
            n_channels=sum(block_shapes()[block].n_out for block in SEEN),
            native_mpp=0.5,  # of no meaning for photographs; that of the other encoders
            native_px=224,
            least_px=32,
            has_cls=False,
            precision="bfloat16" if self.device.type == "cuda" else "float32",
        )

    def normalise(
        self,
        pixels: Float[Tensor, "b 3 y x"],
        calibration: Calibration | None = None,  # noqa: ARG002 - of the contract
    ) -> Float[Tensor, "b 3 y x"]:
        """(x - 127) / 128 for x in 0 to 255."""
        return standardise(pixels.to(self.device), self.facts)

    @torch.inference_mode()
    def look(self, pixels: Float[Tensor, "b 3 y x"]) -> Looked:
        """One pass.

        Raises:
            ConfigError: A side is no multiple of 32.
        """
        check_sides(pixels, self.facts)
        height, width = (side // STRIDE for side in pixels.shape[2:])
        is_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_gpu):
            stages = self.model(pixels.to(self.device))
        placed = [
            place(stage.float(), stride, (height, width))
            for stage, stride in zip(stages, SEEN.values(), strict=True)
        ]
        return Looked(None, torch.cat(placed, dim=1))


def place(
    stage: Float[Tensor, "b c y x"], stride: int, grid: tuple[int, int]
) -> Float[Tensor, "b c my mx"]:
    """Values of a stage at the centres of the squares of the map, linear between its own points.

    Pixel j of a stage of stride s looks at input pixel s j + s - 1, square i of the map has its
    centre at 8 i + 3.5 (both counted from the centre of pixel 0). Beyond the last point its value
    goes on.
    """
    rows, columns = (
        mixing(n_in, n_out, stride, stage.device)
        for n_in, n_out in zip(stage.shape[2:], grid, strict=True)
    )
    return torch.einsum("yi,bcix->bcyx", rows, torch.einsum("xj,bcij->bcix", columns, stage))


def mixing(n_in: int, n_out: int, stride: int, device: torch.device) -> Float[Tensor, "out in"]:
    """How much of each pixel of a stage is in each pixel of the map, along one axis."""
    square_px = STRIDE * torch.arange(n_out, device=device) + (STRIDE - 1) / 2
    at = ((square_px - (stride - 1)) / stride).clamp(0, n_in - 1)
    return (1 - (at[:, None] - torch.arange(n_in, device=device)).abs()).clamp_min(0)


def load_efficientnet(
    device: str | None = None, cache_dir: Path | None = None
) -> EfficientNetPatches:
    """The network with its published weights; they are fetched if the cache has none.

    Raises:
        MissingExtra: The weights are not in the cache and cannot be fetched.
        DataError: What came is not what was published.
    """
    state = load_file(weights.fetch(NAME, cache_dir))
    sha256 = next(iter(weights.find_source(NAME).files.values()))
    return EfficientNetPatches(state, sha256, device)
