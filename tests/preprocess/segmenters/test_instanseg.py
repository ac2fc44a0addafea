import warnings

import numpy as np
import pytest
import torch

from histoscribe.errors import DataError, HistoscribeError
from histoscribe.preprocess import weights
from histoscribe.preprocess.run import PrepareConfig, prepare_slide
from histoscribe.preprocess.segmenters.instanseg import (
    NAME,
    check_image,
    load_instanseg,
    pad_to_stride,
    scale,
)
from histoscribe.preprocess.segmenters.segmenter import Calibration
from histoscribe.slides.open import open_slide

H_AND_E = Calibration((8.0, 13.0, 40.0), (246.0, 231.0, 254.0))


@pytest.fixture(scope="module")
def folder():
    """Where the real weights lie; nothing is fetched from here."""
    try:
        return weights.verify(NAME).parent
    except HistoscribeError as error:
        pytest.skip(f"the weights {NAME} are not cached: {error}")


@pytest.fixture(scope="module")
def segmenter(folder):
    return load_instanseg(device="cpu")


@pytest.fixture(scope="module")
def published(folder):
    """The published test image as 8-bit RGB, and the labels that belong to it."""
    image = np.load(folder / "test-input.npy")[0].transpose(1, 2, 0)
    labels = np.load(folder / "test-output_instance_segmentation.npy")[0, 0]
    return np.ascontiguousarray(image).astype(np.uint8), labels.astype(np.int64)


def test_scaling_brings_the_range_to_one_and_clamps():
    image = np.zeros((1, 2, 3, 3), np.uint8)
    image[0, 0, 0] = (100, 50, 20)
    image[0, 0, 1] = (200, 250, 30)
    image[0, 0, 2] = (255, 255, 255)
    calibration = Calibration((100.0, 50.0, 20.0), (200.0, 250.0, 30.0))
    image.flags.writeable = False  # as images that come straight from a decoder
    scaled = scale(image, calibration, torch.device("cpu"))
    torch.testing.assert_close(scaled[0, :, 0, 0], torch.zeros(3))
    torch.testing.assert_close(scaled[0, :, 0, 1], torch.ones(3))
    assert scaled[0, 2, 0, 2] == 3
    assert scaled[0, 2, 1, 0] == pytest.approx(-2)


def test_padding_mirrors_to_multiples_of_16():
    image = torch.arange(2 * 3 * 33 * 47, dtype=torch.float32).reshape(2, 3, 33, 47)
    padded = pad_to_stride(image)
    assert padded.shape == (2, 3, 48, 48)
    torch.testing.assert_close(padded[..., :33, :47], image)
    torch.testing.assert_close(padded[..., 33, :47], image[..., 31, :])


@pytest.mark.parametrize(
    "image",
    [np.zeros((1, 64, 64, 3), np.float32), np.zeros((1, 64, 64, 4), np.uint8)],
    ids=["unscaled floats", "alpha"],
)
def test_anything_but_8_bit_rgb_is_refused(image):
    with pytest.raises(DataError, match="8 bits"):
        check_image(image, n_axes=4)


@pytest.mark.weights
def test_published_output_is_reproduced(segmenter, published):
    image, wanted = published
    calibration = segmenter.calibrate(image.reshape(-1, 3))
    labels = segmenter.segment(image[None], calibration)[0].labels
    assert labels.max() == len(np.unique(wanted)) - 1 == 336
    assert ((labels > 0) == (wanted > 0)).mean() > 0.999
    pairs = np.unique(np.stack([labels.ravel(), wanted.ravel()]), axis=1)
    agreeing = (np.unique(pairs[0], return_counts=True)[1] == 1).mean()
    assert agreeing > 0.98  # nuclei whose every pixel is the published nucleus


@pytest.mark.weights
def test_network_equals_the_published_module(segmenter, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(folder / "instanseg.pt", map_location="cpu").eval()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)).clamp(-2, 3)
    with torch.inference_mode():
        maps, stages = segmenter.network(images)
        torch.testing.assert_close(maps, module.fcn(images), rtol=1e-4, atol=1e-4)
        x = images
        for stage, ours in zip(module.fcn.encoder.children(), stages, strict=True):
            x = stage(x)
            torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)
    assert [stage.shape[1] for stage in stages] == [32, 64, 128, 256]


@pytest.mark.weights
def test_maps_cover_the_field_at_stride_1_2_4_8(segmenter, published):
    image = np.ascontiguousarray(published[0][:77, :101])
    (result,) = segmenter.segment(image[None], H_AND_E)
    assert result.labels.shape == (77, 101)
    assert [m.shape for m in result.maps] == [
        (32, 77, 101),
        (64, 39, 51),
        (128, 20, 26),
        (256, 10, 13),
    ]
    assert all(m.dtype == torch.float32 for m in result.maps)


@pytest.mark.weights
def test_a_field_does_not_depend_on_its_neighbours(segmenter, published):
    image = published[0]
    fields = np.stack([image[:64, :96], image[100:164, 60:156]])
    together = segmenter.segment(fields, H_AND_E)
    alone = segmenter.segment(fields[1:], H_AND_E)
    np.testing.assert_array_equal(together[1].labels, alone[0].labels)
    torch.testing.assert_close(together[1].maps[3], alone[0].maps[3])


@pytest.mark.weights
@pytest.mark.parametrize("grey", [0, 244, 255])
def test_a_field_without_tissue_has_no_nuclei(segmenter, grey):
    noise = np.random.default_rng(1).integers(-6, 6, (1, 65, 83, 3))
    field = np.clip(grey + noise, 0, 255).astype(np.uint8)
    assert segmenter.segment(field, H_AND_E)[0].labels.max() == 0


@pytest.mark.weights
@pytest.mark.parametrize("grey", [0, 240, 255])
def test_a_blank_slide_is_refused(segmenter, grey):
    noise = np.random.default_rng(1).integers(-6, 6, (999, 3))
    with pytest.raises(DataError, match="nearly constant"):
        segmenter.calibrate(np.clip(grey + noise, 0, 255).astype(np.uint8))


@pytest.mark.weights
def test_no_pixels_and_tiny_fields_are_refused(segmenter):
    with pytest.raises(DataError, match="no pixels"):
        segmenter.calibrate(np.zeros((0, 3), np.uint8))
    with pytest.raises(DataError, match="at least 32 px"):
        segmenter.segment(np.zeros((1, 20, 64, 3), np.uint8), H_AND_E)


@pytest.mark.weights
def test_identity_names_the_published_file(segmenter):
    assert segmenter.identity == "instanseg-brightfield_nuclei-0.1.1@0c724da169d5"
    assert segmenter.mpp == 0.5


@pytest.mark.slow
@pytest.mark.weights
def test_a_section_at_a_tenth_of_its_mpp_is_refused(folder, data_dir):
    """Its glands then have the size of nuclei: nothing but how few they are tells."""
    path = next((data_dir / "her2st" / "ST-imgs" / "C" / "C2").glob("*.jpg"))
    slide = open_slide(path, mpp=0.069)
    with pytest.raises(DataError, match="per mm²"):
        prepare_slide(slide, None, PrepareConfig())
