import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from histoscribe.data.toy import ToyWorld
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.preprocess.describe import read_field
from histoscribe.preprocess.encoders.dense_encoder import DenseEncoder, cut_pieces, join_pieces
from histoscribe.preprocess.encoders.encoder import Sight
from histoscribe.preprocess.encoders.networks.patch_network import PatchNetwork
from histoscribe.preprocess.encoders.networks.token_network import TokenNetwork
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.fields import plan_around, plan_grid
from histoscribe.preprocess.tissue import tissue_mask

Rows = dict[tuple[float, float], np.ndarray]
Describe = Callable[..., tuple[Rows, Rows]]


def dense(network: PatchNetwork, **settings: object) -> DenseEncoder:
    return DenseEncoder(network, ViewConfig(**settings), network.facts.name)  # type: ignore[arg-type]


def apart(one: Rows, other: Rows) -> np.ndarray:
    """Largest difference of each place's features, those of the slide being of size 1."""
    shared = sorted(one.keys() & other.keys())
    assert len(shared) > 0.95 * len(one)
    a, b = (np.stack([rows[place] for place in shared]).astype(np.float64) for rows in (one, other))
    return np.abs(a - b).max(axis=1) / a.std(axis=0).mean()


def test_within_its_margin_a_network_never_knows_how_the_slide_was_cut(
    describe: Describe, make_conv: Callable[[int], PatchNetwork]
) -> None:
    # Three patches of 3.5 µm either way, one that interpolation reaches, and what of a nucleus
    # or a square lies outside what its field owns.
    encoder = dense(make_conv(3), field_um=90.0, margin_um=32.0)
    small, large = describe(encoder, 256), describe(encoder, 512)
    assert apart(small[0], large[0]).max() < 1e-4
    assert apart(small[1], large[1]).max() < 5e-3  # kept as float16
    whole = dense(make_conv(3), field_um=2000.0, margin_um=32.0)
    assert apart(small[0], describe(whole, 512)[0]).max() < 1e-4


def test_beyond_its_margin_it_does(
    describe: Describe, make_conv: Callable[[int], PatchNetwork]
) -> None:
    encoder = dense(make_conv(12), field_um=90.0)
    assert apart(describe(encoder, 256)[0], describe(encoder, 512)[0]).max() > 1e-2


@pytest.mark.parametrize("field_px", [128, 256])
def test_what_attention_sees_of_other_fields_stays_small(
    describe: Describe, vit: TokenNetwork, field_px: int
) -> None:
    """Pieces of one size, in other places; of random weights, in units of the deviation."""
    encoder = dense(vit)
    small, large = describe(encoder, field_px), describe(encoder, 512)
    difference = apart(small[0], large[0])
    assert 0 < np.median(difference) < 0.05
    assert np.quantile(difference, 0.95) < 0.15
    assert difference.max() < 0.3
    assert np.median(apart(small[1], large[1])) < 0.1


def test_fields_together_are_as_fields_alone_to_the_bit(
    world: ToyWorld, make_conv: Callable[[int], PatchNetwork]
) -> None:
    plan = plan_grid(world.slide, tissue_mask(world.slide), 0.5, 384, 64)
    encoder = dense(make_conv(2))
    sight = encoder.sight(plan, 32.0)
    fields = [read_field(world.slide, plan, number, sight) for number in (3, 4, 7)]
    nothing = [()] * 3
    for together, pixels in zip(encoder.look(fields, nothing, plan, sight), fields, strict=True):
        (alone,) = encoder.look([pixels], [()], plan, sight)
        assert torch.equal(together.level.values, alone.level.values)
        assert together.level.corner_um == alone.level.corner_um


@pytest.mark.parametrize(("step", "mpp"), [(16, 0.5), (14, 0.5), (32, 0.41)])
def test_fields_are_read_in_whole_steps_from_the_slide_s_corner(
    world: ToyWorld, step: int, mpp: float, make_conv: Callable[[int], PatchNetwork]
) -> None:
    network = make_conv(1)
    network.facts = network.facts.__class__(
        **{**network.facts.__dict__, "patch_px": step, "step_px": step, "least_px": step}
    )
    encoder = dense(network, mpp=mpp, margin_um=17.0)
    grid = plan_grid(world.slide, tissue_mask(world.slide), 0.5, 512, 64)
    around = plan_around(world.slide, world.regions.xy_um[:3], 92.0, 0.5, 512, 64)
    for plan in (grid, around):
        sight = encoder.sight(plan, 32.0)
        assert (sight.corner_px % step == 0).all()
        assert sight.side_px % step == 0
        assert (sight.side_px - 2 * sight.margin_px) % (sight.n_passes * step) == 0
        own_px = (sight.side_px - 2 * sight.margin_px) / sight.n_passes
        assert own_px == math.ceil(112 / mpp / step) * step  # all pieces of one size
        for field in range(len(plan)):
            box, seen = plan.box(field, -plan.halo_um), sight.box(field)
            margin_um = sight.margin_px * mpp
            assert margin_um >= 17
            assert seen.x_um + margin_um <= box.x_um + 1e-6
            end_um = seen.y_um + seen.height_um - margin_um
            assert end_um >= box.y_um + box.height_um - 1e-6


def test_the_segmenter_s_image_is_not_read_twice(world: ToyWorld, vit: TokenNetwork) -> None:
    plan = plan_grid(world.slide, tissue_mask(world.slide), 0.5, 512, 64)
    field = read_field(world.slide, plan, 2, dense(vit).sight(plan, 32.0))
    assert field.seen is field.image
    sight = dense(vit, margin_um=24.0).sight(plan, 32.0)
    wider = read_field(world.slide, plan, 2, sight)
    assert wider.seen is not None
    np.testing.assert_array_equal(wider.seen[16:-16, 16:-16], field.image)


def test_pieces_of_a_map_come_together_where_they_were() -> None:
    sight = Sight(np.zeros((1, 2), np.int64), 2 * 3 * 8 + 2 * 16, 0.5, n_passes=3, margin_px=16)
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    pieces = cut_pieces(image, sight)
    assert pieces.shape == (9, 48, 48, 3)
    maps = torch.from_numpy(pieces).permute(0, 3, 1, 2)[:, :, ::8, ::8].float()
    wanted = torch.from_numpy(image).permute(2, 0, 1)[:, ::8, ::8].float()
    torch.testing.assert_close(join_pieces(maps, sight, 8), wanted)


def test_the_identity_says_what_changes_the_features(vit: TokenNetwork) -> None:
    told = {
        str(dense(vit, **change).identity)
        for change in (
            {},
            {"field_um": 224.0},
            {"margin_um": 32.0},
            {"mpp": 0.25},
            {"pooling": "mean+std"},
            {"pooling": "mean+std", "window_um": 0.0},
        )
    }
    assert len(told) == 6
    assert "vit-112+16um@5eed5eed5eed/nucleus-mean/tile0um/mpp0.5/d48" in told
    assert str(dense(vit, tile_um=48.0, input_px=448).identity) in told
    assert dense(vit).licence == "Apache-2.0"


def test_what_cannot_be_described_is_refused(world: ToyWorld, vit: TokenNetwork) -> None:
    plan = plan_grid(world.slide, tissue_mask(world.slide), 0.5, 512, 64)
    with pytest.raises(ConfigError, match=r"margin_um = 8: squares reach 16 µm"):
        dense(vit, margin_um=8.0).sight(plan, 32.0)
    with pytest.raises(ConfigError, match=r"windows reach 16\.5 µm beyond"):
        dense(vit, pooling="mean+std", window_um=32.0).sight(plan, 32.0)
    with pytest.raises(ConfigError, match=r"wants prepare\.view.way = 'tile'"):
        dense(vit, pooling="cls+mean")
    field = read_field(world.slide, plan, 0, None)
    with pytest.raises(MismatchError, match="another encoder"):
        dense(vit).look([field], [()], plan, None)
