import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from histoscribe.errors import ConfigError, HistoscribeError, MismatchError
from histoscribe.preprocess import weights
from histoscribe.preprocess.encoders.networks.efficientnet import (
    NAME,
    EfficientNetLite0,
    EfficientNetPatches,
    load_efficientnet,
    place,
    published_shapes,
    same_padding,
)
from histoscribe.preprocess.encoders.networks.patch_network import PatchNetwork

REFERENCE = Path(__file__).parent / "efficientnet_lite0_outputs.json"


def random_state(seed=3):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in published_shapes().items():
        values = torch.randn(shape, generator=generator)
        if key.endswith("running_var"):
            values = 0.5 + values.abs()
        elif len(shape) == 4:
            values = values * (2 / np.prod(shape[1:])) ** 0.5
        state[key] = values
    return state


def centred_state():
    """Every filter the mean of what it sees, batch normalisation that does nothing."""
    state = {}
    for key, shape in published_shapes().items():
        if key.endswith("running_var"):
            state[key] = torch.full(shape, 1 - 1e-3)
        elif key.endswith(("running_mean", "bias")):
            state[key] = torch.zeros(shape)
        elif len(shape) == 4:
            state[key] = torch.full(shape, 1 / float(np.prod(shape[1:])))
        else:
            state[key] = torch.ones(shape)
    return state


@pytest.fixture(scope="module")
def network():
    return EfficientNetPatches(random_state(), "0" * 64, "cpu")


def noise(height, width, seed=5):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_the_table_has_the_published_tensors():
    shapes = published_shapes()
    assert len(shapes) == 296 - 49  # without one counter per batch normalisation
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 4_694_073 - 49
    assert shapes["_blocks.3._depthwise_conv.weight"] == (144, 1, 5, 5)
    assert "_blocks.0._expand_conv.weight" not in shapes


def test_the_map_has_one_vector_for_each_square(network):
    assert isinstance(network, PatchNetwork)
    pixels = noise(64, 96)
    looked = network.look(network.normalise(pixels))
    assert looked.cls is None
    assert looked.map.shape == (2, 472, 8, 12)
    assert network.facts.n_channels == 472
    one_by_one = torch.cat([network.look(network.normalise(one[None])).map for one in pixels])
    torch.testing.assert_close(looked.map, one_by_one, rtol=1e-4, atol=1e-4)


def test_it_sees_grey_levels_less_127_by_128(network):
    levels = torch.tensor([0.0, 127.0, 255.0]).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
    wanted = ((levels - 127) / 128).contiguous()
    torch.testing.assert_close(network.normalise(levels / 255), wanted, atol=1e-6, rtol=1e-6)


def test_folding_and_padding_equal_the_plain_steps():
    """Block by block with batch normalisation, explicit zeros and no folding."""
    state = {key: value.double() for key, value in random_state(9).items()}

    def norm(x, name):
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var"))
        return F.batch_norm(x, *parts, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3)

    def conv(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        size = weight.shape[-1]
        n_out = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
        missing = [
            max((n - 1) * stride + size - m, 0) for n, m in zip(n_out, x.shape[2:], strict=True)
        ]
        top, left = missing[0] // 2, missing[1] // 2
        padded = torch.zeros(
            *x.shape[:2], x.shape[2] + missing[0], x.shape[3] + missing[1], dtype=x.dtype
        )
        padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
        return F.conv2d(padded, weight, stride=stride, groups=groups)

    strides = {1: 2, 3: 2, 5: 2, 11: 2}
    pixels = noise(64, 32).double()
    with torch.inference_mode():
        x = F.relu6(norm(conv(pixels, "_conv_stem", 2), "_bn0"))
        wanted = []
        for index in range(16):
            at, before = f"_blocks.{index}.", x
            if index:
                x = F.relu6(norm(conv(x, f"{at}_expand_conv"), f"{at}_bn0"))
            x = conv(x, f"{at}_depthwise_conv", strides.get(index, 1), x.shape[1])
            x = F.relu6(norm(x, f"{at}_bn1"))
            x = norm(conv(x, f"{at}_project_conv"), f"{at}_bn2")
            if x.shape == before.shape:
                x = x + before
            if index in (4, 10, 15):
                wanted.append(x.float())
        got = EfficientNetLite0(random_state(9))(pixels.float())
    for ours, theirs in zip(got, wanted, strict=True):
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.std()))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "wanted"),
    [(224, 3, 2, (0, 1)), (224, 5, 2, (1, 2)), (7, 3, 2, (1, 1)), (7, 5, 1, (2, 2))],
)
def test_same_padding_is_tensorflow_s(size, kernel, stride, wanted):
    assert same_padding(size, kernel, stride) == wanted


def test_every_vector_looks_at_its_own_square():
    """Where in the picture a vector looks: the centre of gravity of its gradient."""
    network = EfficientNetLite0(centred_state())
    pixels = torch.zeros(1, 3, 512, 512, requires_grad=True)
    stages = network(pixels + 1e-3)  # far from where ReLU6 is flat
    # The last stage sees more than 512 px, so that the border cuts off some of what it sees.
    for stage, stride, off_px in zip(stages, (8, 16, 32), (0.02, 0.02, 1.0), strict=True):
        level = place(stage, stride, (64, 64))
        row, column = 31, 34
        (gradient,) = torch.autograd.grad(level[0, 0, row, column], pixels, retain_graph=True)
        weight = gradient[0].abs().sum(0)
        at = torch.arange(512) + 0.5
        y = float((weight.sum(1) * at).sum() / weight.sum())
        x = float((weight.sum(0) * at).sum() / weight.sum())
        assert (y, x) == pytest.approx((8 * row + 4, 8 * column + 4), abs=off_px)


def test_a_constant_stage_stays_constant_and_a_ramp_stays_a_ramp():
    flat = place(torch.full((1, 2, 3, 5), 7.0), 16, (6, 10))
    torch.testing.assert_close(flat, torch.full((1, 2, 6, 10), 7.0))
    looks_at = 32 * torch.arange(6.0) + 31  # index of the pixel each point looks at
    ramp = place(looks_at.expand(1, 1, 6, 6).contiguous(), 32, (24, 24))[0, 0, 0]
    wanted = (8 * torch.arange(24.0) + 3.5).clamp(31, 191)
    torch.testing.assert_close(ramp, wanted)


def test_other_sizes_and_other_weights_are_refused(network):
    for height, width in ((64, 72), (16, 32)):
        with pytest.raises(ConfigError, match="multiples of 32 px, 32 px or more"):
            network.look(torch.zeros(1, 3, height, width))
    state = random_state()
    del state["_bn0.bias"]
    with pytest.raises(MismatchError, match=r"1 keys differ, e\.g\. _bn0\.bias came with.*None"):
        EfficientNetLite0(state)
    state = random_state() | {"_fc.weight": torch.ones(3, 1280)}
    with pytest.raises(MismatchError, match=r"_fc\.weight"):
        EfficientNetLite0(state)


@pytest.fixture(scope="module")
def published():
    """The real weights; nothing is fetched from here."""
    try:
        weights.verify(NAME)
    except HistoscribeError as error:
        pytest.skip(f"the weights {NAME} are not cached: {error}")
    return load_efficientnet("cpu")


def wavy_picture():
    """224 px of slow and fast stripes, from whole numbers alone."""
    y, x = np.mgrid[:224, :224]
    colours = [
        np.abs((3 * x + 2 * y) % 510 - 255),
        np.abs((5 * y + x * x // 64) % 510 - 255),
        np.abs((x * y // 32) % 510 - 255),
    ]
    return torch.from_numpy(np.stack(colours).astype(np.float32) / 255)


@pytest.mark.weights
def test_the_published_package_sees_the_same(published):
    """Against numbers from an independent run; the file says how they were made."""
    wanted = json.loads(REFERENCE.read_text())
    with torch.inference_mode():
        stages = published.model(published.normalise(wavy_picture()[None]))
    for stage, stride in zip(stages, (8, 16, 32), strict=True):
        recorded = wanted[f"stride {stride}"]
        for got, values in (
            (stage[0].mean(dim=(1, 2)), recorded["mean"]),
            (stage[0, :, 2, 3], recorded["at row 2 column 3"]),
        ):
            torch.testing.assert_close(got, torch.tensor(values), rtol=1e-4, atol=2e-4)


@pytest.mark.weights
def test_the_facts_name_the_published_file(published):
    facts = published.facts
    assert facts.weights_sha256.startswith("579344248a93")
    assert facts.licence == "Apache-2.0"
    assert len(load_file(weights.verify(NAME))) == len(published_shapes())
