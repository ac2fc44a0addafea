from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it

from histoscribe.data.toy import ToyWorld
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.preprocess.describe import read_field
from histoscribe.preprocess.encoders.networks.patch_network import PatchNetwork
from histoscribe.preprocess.encoders.networks.token_network import TokenNetwork
from histoscribe.preprocess.encoders.passes import PIXELS_AT_ONCE
from histoscribe.preprocess.encoders.tile_encoder import TileEncoder
from histoscribe.preprocess.encoders.toy import ToyNetwork
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.fields import plan_grid
from histoscribe.preprocess.tissue import tissue_mask


def tile(network: PatchNetwork, **settings: object) -> TileEncoder:
    view = ViewConfig(way="tile", **settings)  # type: ignore[arg-type]
    return TileEncoder(network, view, network.facts.name)


def tiles(n: int, side: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def looked(network: TokenNetwork, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CLS, and the vectors of the patches."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    seen = network.look(network.normalise(pixels))
    assert seen.cls is not None
    return seen.cls.numpy(), seen.map.flatten(2).numpy()


def test_patch_mean_is_the_mean_of_the_patches_alone(vit: TokenNetwork) -> None:
    images = tiles(37, 48)
    cls, patches = looked(vit, images)
    assert patches.shape == (37, 48, 9)
    same_size = {"input_px": 48, "tile_um": 24.0}
    mean = patches.mean(axis=2)
    wanted = {
        "mean": mean,
        "cls+mean": np.concatenate([cls, mean], axis=1),
        "mean+std": np.concatenate([mean, patches.std(axis=2)], axis=1),
    }
    for pooling, features in wanted.items():
        encoder = tile(vit, pooling=pooling, **same_size)
        assert encoder.tile_px == 48
        np.testing.assert_allclose(encoder.encode(images), features, atol=1e-5)
        assert encoder.identity.n_features == features.shape[1]


def test_more_tiles_than_go_through_at_once_keep_their_order(
    vit: TokenNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tile(vit, input_px=32, tile_um=16.0)
    images = tiles(11, 32)
    together = encoder.encode(images)
    monkeypatch.setitem(PIXELS_AT_ONCE, "cpu", 3 * 32**2)
    np.testing.assert_allclose(encoder.encode(images), together, atol=1e-6)


def test_squares_have_the_mean_and_the_deviation_of_their_patches(vit: TokenNetwork) -> None:
    encoder = tile(vit, input_px=48, tile_um=24.0)
    squares = tiles(3, 64)
    _, patches = looked(vit, squares)  # 64 px at the scale of a tile, 48 px on 48
    wanted = np.concatenate([patches.mean(axis=2), patches.std(axis=2)], axis=1)
    np.testing.assert_allclose(encoder.encode_squares(squares), wanted, atol=1e-5)


def test_tiles_are_brought_to_the_input_size_and_none_give_none(vit: TokenNetwork) -> None:
    encoder = tile(vit, input_px=32)
    images = tiles(5, 48)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    pixels = F.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    wanted = vit.look(vit.normalise(pixels)).map.mean(dim=(2, 3))
    np.testing.assert_allclose(encoder.encode(images), wanted, atol=1e-5)
    assert encoder.encode(tiles(0, 48)).shape == (0, 48)
    assert encoder.encode_squares(tiles(0, 64)).shape == (0, 96)


@pytest.mark.parametrize("mpp", [0.5, 0.37])
def test_a_tile_is_the_same_whatever_field_it_is_cut_from(
    describe: Callable[..., tuple[dict, dict]], mpp: float
) -> None:
    encoder = tile(ToyNetwork(), input_px=32, tile_um=12.0, mpp=mpp)
    for small, large in zip(describe(encoder, 256), describe(encoder, 512), strict=True):
        places = sorted(small.keys() & large.keys())
        assert len(places) > 0.9 * len(large)
        one, other = (np.stack([rows[place] for place in places]) for rows in (small, large))
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_tiles_lie_round_their_nuclei(world: ToyWorld) -> None:
    slide = world.slide
    plan = plan_grid(slide, tissue_mask(slide), 0.5, 512, 64)
    encoder = tile(ToyNetwork(), input_px=32, tile_um=16.0)
    sight = encoder.sight(plan, 32.0)
    (look,) = encoder.look([read_field(slide, plan, 6, sight)], [()], plan, sight)
    box = plan.box(6, -plan.halo_um)
    corners = np.array([[box.x_um, box.y_um], [box.x_um + box.width_um, box.y_um + box.height_um]])
    cut = look.cut(corners.astype(np.float32), 32)
    for centre, crop in zip((2 * corners).astype(int), cut, strict=True):
        x, y = centre
        np.testing.assert_array_equal(crop, slide.pixels[y - 16 : y + 16, x - 16 : x + 16])


def test_the_identity_says_what_changes_the_features(vit: TokenNetwork) -> None:
    told = {
        str(tile(vit, **change).identity)
        for change in (
            {},
            {"tile_um": 32.0},
            {"input_px": 112},
            {"mpp": 0.25},
            {"pooling": "mean+std"},
            {"pooling": "cls+mean"},
        )
    }
    assert len(told) == 6
    assert "vit-224px@5eed5eed5eed/patch-mean/tile24um/mpp0.5/d48" in told
    assert str(tile(vit, field_um=48.0, margin_um=48.0).identity) in told


def test_what_cannot_be_shown_is_refused(vit: TokenNetwork, world: ToyWorld) -> None:
    with pytest.raises(ConfigError, match=r"multiples of 16 px .* give one, such as 64"):
        tile(vit, input_px=50)
    with pytest.raises(ConfigError, match=r"less than a pixel of 0\.5 µm"):
        tile(vit, tile_um=0.2)
    with pytest.raises(ConfigError, match="no CLS token"):
        tile(ToyNetwork(), pooling="cls+mean")
    slide = world.slide
    plan = plan_grid(slide, tissue_mask(slide), 0.5, 512, 64)
    encoder = tile(vit)
    (look,) = encoder.look(
        [read_field(slide, plan, 0, None)], [()], plan, encoder.sight(plan, 32.0)
    )
    with pytest.raises(MismatchError, match="another encoder"):
        look.cut(np.zeros((1, 2), np.float32), 48)
