import numpy as np
import pytest

from histoscribe.data.toy import ToyWorld
from histoscribe.errors import ConfigError, MissingExtra
from histoscribe.preprocess import weights
from histoscribe.preprocess.describe import look_at_fields, read_field
from histoscribe.preprocess.encoders.encoder import Squares
from histoscribe.preprocess.encoders.names import load_encoder
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.fields import FieldPlan, plan_grid, squares_of_field
from histoscribe.preprocess.nuclei import take_owned
from histoscribe.preprocess.segmenters import instanseg
from histoscribe.preprocess.segmenters.toy import ToySegmenter
from histoscribe.preprocess.tissue import sample_tissue_pixels, tissue_mask


@pytest.fixture(scope="module")
def pixels(world: ToyWorld) -> np.ndarray:
    mask = tissue_mask(world.slide)
    return sample_tissue_pixels(world.slide, mask, 9999, 0.5, np.random.default_rng(0))


@pytest.fixture(scope="module")
def plan(world: ToyWorld) -> FieldPlan:
    return plan_grid(world.slide, tissue_mask(world.slide), 0.5, 256, 64)


def load_segmenter(name: str) -> instanseg.InstanSegSegmenter | ToySegmenter:
    if name == "toy":
        return ToySegmenter()
    try:
        weights.verify(instanseg.NAME)
    except MissingExtra:
        pytest.skip("no weights of instanseg")
    return instanseg.load_instanseg("cpu")


@pytest.mark.parametrize("name", ["toy", "instanseg"])
def test_maps_of_the_segmentation_and_of_a_pass_of_its_own_are_the_same(
    world: ToyWorld, pixels: np.ndarray, plan: FieldPlan, name: str
) -> None:
    segmenter = load_segmenter(name)
    encoder = load_encoder(name, ViewConfig()).calibrated(pixels)
    field = read_field(world.slide, plan, 7, encoder.sight(plan, 32.0))
    assert field.seen is None
    segmented = segmenter.segment(field.image[None], segmenter.calibrate(pixels))
    found = take_owned(segmented[0].labels, plan, 7)
    size_um = (world.slide.size_px[0] * 0.5, world.slide.size_px[1] * 0.5)
    squares = Squares(*squares_of_field(plan, 7, 64, size_um), 64)
    rows = []
    for finder in (segmenter.identity, f"{segmenter.identity}/float16", "cellvit@none"):
        (look,) = look_at_fields(encoder, [field], segmented, finder, plan, None)
        rows.append((look.of_nuclei(found).features, look.of_squares(squares)))
    assert len(rows[0][0]) > 10
    for other in rows[1:]:
        for one, two in zip(rows[0], other, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)


def test_maps_of_another_network_are_never_taken(
    world: ToyWorld, pixels: np.ndarray, plan: FieldPlan
) -> None:
    encoder = load_encoder("toy", ViewConfig()).calibrated(pixels)
    field = read_field(world.slide, plan, 7, None)
    black = read_field(world.slide, plan, 7, None).image * 0
    segmenter = ToySegmenter()
    foreign = segmenter.segment(black[None], segmenter.calibrate(pixels))
    own = segmenter.segment(field.image[None], segmenter.calibrate(pixels))
    found = take_owned(own[0].labels, plan, 7)
    (look,) = look_at_fields(encoder, [field], foreign, "toy-2@none", plan, None)
    (wanted,) = look_at_fields(encoder, [field], own, segmenter.identity, plan, None)
    np.testing.assert_array_equal(look.of_nuclei(found).features, wanted.of_nuclei(found).features)


def test_means_alone_are_the_first_half(
    world: ToyWorld, pixels: np.ndarray, plan: FieldPlan
) -> None:
    both, mean = (
        load_encoder("toy", ViewConfig(pooling=pooling)).calibrated(pixels)
        for pooling in (None, "mean")
    )
    assert str(both.identity) == "toy@none/nucleus-mean+window24um-std/tile0um/mpp0.5/d18"
    assert str(mean.identity) == "toy@none/nucleus-mean/tile0um/mpp0.5/d9"
    field = read_field(world.slide, plan, 3, None)
    segmenter = ToySegmenter()
    segmented = segmenter.segment(field.image[None], segmenter.calibrate(pixels))
    found = take_owned(segmented[0].labels, plan, 3)
    rows = [
        encoder.look([field], [segmented[0].maps], plan, None)[0].of_nuclei(found).features
        for encoder in (both, mean)
    ]
    np.testing.assert_array_equal(rows[0][:, :9], rows[1])


def test_another_resolution_and_windows_beyond_fields_are_refused(
    world: ToyWorld, plan: FieldPlan
) -> None:
    with pytest.raises(ConfigError, match=r"prepare\.view\.mpp = 0\.25"):
        load_encoder("toy", ViewConfig(mpp=0.25))
    finer = plan_grid(world.slide, tissue_mask(world.slide), 0.25, 512, 128)
    with pytest.raises(ConfigError, match="same resolution"):
        load_encoder("toy", ViewConfig()).sight(finer, 32.0)
    with pytest.raises(ConfigError, match=r"by 33 µm, and they do by 32; .*overlap_px = 66 or"):
        load_encoder("toy", ViewConfig(window_um=32.0)).sight(plan, 32.0)


def test_the_licence_comes_with_the_weights() -> None:
    assert load_encoder("instanseg", ViewConfig()).licence == "Apache-2.0"
