"""The network of InstanSeg: a U-Net of four encoder stages and one decoder, in plain PyTorch.

Written from the paper (Goldsborough et al. 2024, arXiv:2408.15954) and from the names and shapes
of the published weights; none of the authors' code is in it. For a field it answers with five
maps at full resolution, and with the four stages of its encoder from the same pass:

    0, 1  offset (x, y) of each pixel's embedding        2, 3  sigma, how tight the nucleus is
    4     seed, how central the pixel is in its nucleus

Two things differ from a literal reading of the weights, both exact up to rounding: batch
normalisation is folded into the convolution before it, and a convolution that follows a nearest
2x upsampling runs on the small map instead (see `UpsampledConv`).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from jaxtyping import Float
from torch import Tensor, nn

STAGES = (32, 64, 128, 256)  # channels of the encoder's stages, at stride 1, 2, 4, 8
STRIDE = 16  # fields are padded to a multiple of this, as the published module does
BN_EPS = 1e-5  # of the published batch normalisations


class ConvRelu(nn.Module):
    """A convolution with its batch normalisation folded in, and a ReLU unless told otherwise."""

    def __init__(self, weight: Tensor, bias: Tensor, *, relu: bool = True) -> None:
        super().__init__()
        out_channels, in_channels, size, _ = weight.shape
        self.conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
        self.conv.weight = nn.Parameter(weight, requires_grad=False)
        self.conv.bias = nn.Parameter(bias, requires_grad=False)
        self.relu = relu

    def forward(self, x: Float[Tensor, "field c y x"]) -> Float[Tensor, "field d y x"]:
        """Convolve, same size."""
        y = self.conv(x)
        return y.relu_() if self.relu else y


class UpsampledConv(nn.Module):
    """A 3x3 convolution of the nearest 2x upsampling of a map, computed on the small map.

    Each of the four output phases sees only 2x2 pixels of the small map, because an upsampled
    pixel and its neighbours are copies of them; summing the 3x3 kernel over the copies gives four
    2x2 kernels: 16 multiplications per small pixel and channel pair instead of 36, same result.
    At the border the padding of the large map (zeros) is the padding of the small one.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        # Rows of the 3x3 kernel that fall on the first and the second of the two small pixels.
        take = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
        take = take.to(weight.dtype)  # (phase, small, large)
        phases = torch.einsum("pal,qbm,oilm->pqoiab", take, take, weight)
        self.weight = nn.Parameter(phases.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Float[Tensor, "field c y x"]) -> Float[Tensor, "field d y2 x2"]:
        """Upsample twofold and convolve, with a ReLU."""
        n, _, height, width = x.shape
        out = torch.empty(
            (n, self.bias.numel(), 2 * height, 2 * width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        padded = F.pad(x, (1, 1, 1, 1))
        for row in (0, 1):
            for column in (0, 1):
                window = padded[:, :, row : row + height + 1, column : column + width + 1]
                out[:, :, row::2, column::2] = F.conv2d(window, self.weight[row, column], self.bias)
        return out.relu_()


class EncoderStage(nn.Module):
    """Two residual pairs of 3x3 convolutions, after a 2x2 max-pooling in all stages but one."""

    def __init__(self, folded: Mapping[str, tuple[Tensor, Tensor]], *, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.convs = nn.ModuleList(ConvRelu(*folded[f"conv{i}"]) for i in range(5))

    def forward(self, x: Float[Tensor, "field c y x"]) -> Float[Tensor, "field d y2 x2"]:
        """One stage down."""
        if self.pool:
            x = F.max_pool2d(x, 2)
        conv = self.convs
        y = conv[0](x).add_(conv[2](conv[1](x)))
        return y.add_(conv[4](conv[3](y)))


class DecoderStage(nn.Module):
    """Upsample twofold, add the encoder's map of that size, two residual pairs."""

    def __init__(self, folded: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.project = ConvRelu(*folded["conv0"])
        self.skip = ConvRelu(*folded["conv_skip"])
        self.up = UpsampledConv(*folded["conv1"])
        self.convs = nn.ModuleList(ConvRelu(*folded[f"conv{i}"]) for i in (2, 3, 4))

    def forward(
        self, x: Float[Tensor, "field c y x"], skip: Float[Tensor, "field d y2 x2"]
    ) -> Float[Tensor, "field d y2 x2"]:
        """One stage up."""
        # A 1x1 convolution and its ReLU commute with nearest upsampling: project first, then copy.
        projected = F.interpolate(self.project(x), scale_factor=2, mode="nearest")
        y = self.up(x).add_(self.skip(skip))
        y = projected.add_(self.convs[0](y))
        return y.add_(self.convs[2](self.convs[1](y)))


class InstanSegNetwork(nn.Module):
    """The encoder and decoder; see the module's docstring for what comes out."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Build from the published parameters, by their published names.

        Args:
            state: `encoder.*`, `decoders.0.*` (weights, biases and running statistics).
        """
        super().__init__()
        self.encoder = nn.ModuleList(
            EncoderStage(fold_stage(state, f"encoder.{i}."), pool=i > 0) for i in range(len(STAGES))
        )
        self.decoder = nn.ModuleList(
            DecoderStage(fold_stage(state, f"decoders.0.decoder.{i}."))
            for i in range(len(STAGES) - 1)
        )
        heads = [fold_batch_norm(state, f"decoders.0.final_block.{i}.") for i in range(3)]
        self.head = ConvRelu(
            torch.cat([weight for weight, _ in heads]),
            torch.cat([bias for _, bias in heads]),
            relu=False,
        )
        self.eval()
        for parameter in self.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.contiguous(memory_format=torch.channels_last)

    def forward(
        self, images: Float[Tensor, "field 3 y x"]
    ) -> tuple[Float[Tensor, "field 5 y x"], list[Float[Tensor, "field _ _ _"]]]:
        """Run on scaled images whose sides are multiples of 16.

        Returns:
            The five maps, and the stages of the encoder (32, 64, 128, 256 channels at stride
            1, 2, 4, 8).
        """
        stages = self.encode(images)
        x = stages[-1]
        for stage, skip in zip(self.decoder, reversed(stages[:-1]), strict=True):
            x = stage(x, skip)
        return self.head(x), stages

    def encode(self, images: Float[Tensor, "field 3 y x"]) -> list[Float[Tensor, "field _ _ _"]]:
        """The stages of the encoder alone."""
        x = images.contiguous(memory_format=torch.channels_last)
        stages: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            stages.append(x)
        return stages


def fold_batch_norm(state: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, Tensor]:
    """The convolution `prefix`0 with its batch normalisation `prefix`1 folded in.

    With running mean m and variance v, gain g and shift s: w' = w g / sqrt(v + eps) and
    b' = (b - m) g / sqrt(v + eps) + s. Summed in float64, returned in float32.
    """
    double = {
        name: state[prefix + name].double()
        for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    }
    gain = double["1.weight"] / torch.sqrt(double["1.running_var"] + BN_EPS)
    weight = double["0.weight"] * gain[:, None, None, None]
    bias = (double["0.bias"] - double["1.running_mean"]) * gain + double["1.bias"]
    return weight.float(), bias.float()


def fold_stage(state: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Fold every convolution of one stage, by its name within the stage."""
    names = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
    return {name: fold_batch_norm(state, f"{prefix}{name}.") for name in names}
