import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from histoscribe.preprocess.segmenters.instanseg_network import (
    ConvRelu,
    InstanSegNetwork,
    UpsampledConv,
)

CHANNELS = (5, 7, 11, 13)


def conv_norm(state, prefix, c_in, c_out, size, generator):
    """Random parameters of a convolution and a batch normalisation that is far from identity."""

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    state[f"{prefix}.0.weight"] = draw(c_out, c_in, size, size) / (c_in * size**2) ** 0.5
    state[f"{prefix}.0.bias"] = draw(c_out)
    state[f"{prefix}.1.weight"] = draw(c_out).abs() + 0.5
    state[f"{prefix}.1.bias"] = draw(c_out)
    state[f"{prefix}.1.running_mean"] = draw(c_out)
    state[f"{prefix}.1.running_var"] = draw(c_out).abs() + 0.1


def random_state(generator):
    state = {}
    c_in = 3
    for i, c in enumerate(CHANNELS):
        conv_norm(state, f"encoder.{i}.conv0", c_in, c, 1, generator)
        conv_norm(state, f"encoder.{i}.conv1", c_in, c, 3, generator)
        for j in (2, 3, 4):
            conv_norm(state, f"encoder.{i}.conv{j}", c, c, 3, generator)
        c_in = c
    for i, c in enumerate(reversed(CHANNELS[:-1])):
        conv_norm(state, f"decoders.0.decoder.{i}.conv0", c_in, c, 1, generator)
        conv_norm(state, f"decoders.0.decoder.{i}.conv_skip", c, c, 1, generator)
        conv_norm(state, f"decoders.0.decoder.{i}.conv1", c_in, c, 3, generator)
        for j in (2, 3, 4):
            conv_norm(state, f"decoders.0.decoder.{i}.conv{j}", c, c, 3, generator)
        c_in = c
    for i, c in enumerate((2, 2, 1)):
        conv_norm(state, f"decoders.0.final_block.{i}", c_in, c, 1, generator)
    return state


def plain(state, x):
    """The reference form: convolution, batch normalisation, ReLU, upsampling, each by itself."""

    def block(name, x, *, relu=True):
        weight = state[f"{name}.0.weight"]
        y = F.conv2d(x, weight, state[f"{name}.0.bias"], padding=weight.shape[-1] // 2)
        norm = [state[f"{name}.1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        y = F.batch_norm(y, *norm, eps=1e-5)
        return F.relu(y) if relu else y

    stages = []
    for i in range(4):
        x = F.max_pool2d(x, 2) if i else x
        name = f"encoder.{i}.conv"
        x = block(f"{name}0", x) + block(f"{name}2", block(f"{name}1", x))
        x = x + block(f"{name}4", block(f"{name}3", x))
        stages.append(x)
    for i, skip in enumerate(reversed(stages[:-1])):
        name = f"decoders.0.decoder.{i}.conv"
        x = nn.Upsample(scale_factor=2)(x)
        x = block(f"{name}0", x) + block(
            f"{name}2", block(f"{name}1", x) + block(f"{name}_skip", skip)
        )
        x = x + block(f"{name}4", block(f"{name}3", x))
    heads = [block(f"decoders.0.final_block.{i}", x, relu=False) for i in range(3)]
    return torch.cat(heads, 1), stages


def test_folded_network_equals_the_plain_one():
    generator = torch.Generator().manual_seed(3)
    state = {key: value.double() for key, value in random_state(generator).items()}
    images = torch.randn(2, 3, 48, 32, generator=generator)
    with torch.inference_mode():
        maps, stages = InstanSegNetwork(state)(images)
        wanted, wanted_stages = plain(state, images.double())
    for got, want in zip([maps, *stages], [wanted, *wanted_stages], strict=True):
        assert got.shape == want.shape
        scale = want.abs().max()
        torch.testing.assert_close(got.double() / scale, want / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 6)])
def test_upsampled_convolution_is_exact_to_the_border(shape):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(7, 4, 3, 3, generator=generator).double()
    bias = torch.randn(7, generator=generator).double()
    x = torch.randn(2, 4, *shape, generator=generator).double()
    want = ConvRelu(weight, bias)(nn.Upsample(scale_factor=2)(x))
    torch.testing.assert_close(UpsampledConv(weight, bias)(x), want)


def test_same_maps_alone_and_in_a_batch():
    generator = torch.Generator().manual_seed(5)
    network = InstanSegNetwork(random_state(generator))
    images = torch.randn(3, 3, 32, 48, generator=generator)
    with torch.inference_mode():
        together, _ = network(images)
        alone, _ = network(images[1:2])
    scale = alone.abs().max()
    np.testing.assert_allclose(together[1] / scale, alone[0] / scale, rtol=0, atol=1e-5)
