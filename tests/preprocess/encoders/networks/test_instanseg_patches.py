import numpy as np
import pytest
import torch

from histoscribe.errors import ConfigError, HistoscribeError
from histoscribe.preprocess import weights
from histoscribe.preprocess.encoders.networks.instanseg_patches import load_instanseg_patches, place
from histoscribe.preprocess.encoders.networks.patch_network import PatchNetwork
from histoscribe.preprocess.segmenters.instanseg import NAME, load_instanseg, scale
from histoscribe.preprocess.segmenters.segmenter import Calibration

H_AND_E = Calibration((8.0, 13.0, 40.0), (246.0, 231.0, 254.0))


@pytest.fixture(scope="module")
def network():
    """The real weights; nothing is fetched from here."""
    try:
        weights.verify(NAME)
    except HistoscribeError as error:
        pytest.skip(f"the weights {NAME} are not cached: {error}")
    return load_instanseg_patches("cpu")


def fields(height, width):
    return np.random.default_rng(3).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


def to_pixels(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def test_stages_come_to_one_stride():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8).contiguous()
    fine = place(ramp, 1)[0, 0, 0]
    torch.testing.assert_close(fine, torch.tensor([1.5, 5.5]))
    assert torch.equal(place(ramp, 4), ramp)
    coarse = place(ramp, 8)[0, 0, 0]
    torch.testing.assert_close(coarse[1:-1], torch.arange(1, 15) / 2 - 0.25)


@pytest.mark.weights
def test_its_stages_are_the_segmenter_s(network):
    """The same maps over the same field, and values scaled in the same way."""
    assert isinstance(network, PatchNetwork)
    images = fields(64, 96)
    shown = network.normalise(to_pixels(images), H_AND_E)
    wanted = scale(images, H_AND_E, torch.device("cpu"))
    torch.testing.assert_close(shown, wanted, rtol=1e-4, atol=1e-4)
    level = network.look(shown).map
    assert level.shape == (2, 480, 16, 24)
    segmented = load_instanseg("cpu").segment(images, H_AND_E)
    start = 0
    for stage in range(4):
        maps = torch.stack([one.maps[stage] for one in segmented])
        n_channels = maps.shape[1]
        part = level[:, start : start + n_channels]
        start += n_channels
        torch.testing.assert_close(part, place(maps, 2**stage), rtol=1e-3, atol=1e-3)
        if stage < 3:
            wanted_mean = maps.mean(dim=(2, 3))
            torch.testing.assert_close(part.mean(dim=(2, 3)), wanted_mean, rtol=1e-3, atol=1e-3)


@pytest.mark.weights
def test_without_a_calibration_or_of_odd_sides_it_does_not_look(network):
    assert network.facts.needs_calibration
    with pytest.raises(ConfigError, match="value range"):
        network.normalise(to_pixels(fields(32, 32)))
    with pytest.raises(ConfigError, match="multiples of 8 px, 32 px or more"):
        network.look(torch.zeros(1, 3, 24, 32))
