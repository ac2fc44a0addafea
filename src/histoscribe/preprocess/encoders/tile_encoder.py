"""The way of BiTro: a square round each nucleus, each by itself through the network."""

import math
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from histoscribe.errors import ConfigError, MismatchError
from histoscribe.preprocess.encoders.encoder import (
    Described,
    EncoderIdentity,
    FieldPixels,
    Maps,
    Sight,
    Squares,
    owned_corner_px,
)
from histoscribe.preprocess.encoders.networks.patch_network import Looked, PatchNetwork
from histoscribe.preprocess.encoders.passes import (
    check_input,
    fit_calibration,
    look_at,
    pooling_of,
    spread,
)
from histoscribe.preprocess.encoders.view import Pooling, ViewConfig
from histoscribe.preprocess.features import crop_squares
from histoscribe.preprocess.fields import BAND_UM, FieldPlan
from histoscribe.preprocess.nuclei import Found
from histoscribe.preprocess.segmenters.segmenter import Calibration

POOLED: dict[Pooling, str] = {
    "mean": "patch-mean",
    "cls+mean": "cls+patch-mean",
    "mean+std": "patch-mean-std",
}


class TileEncoder:
    """Shows tiles of fixed physical size to a network, one for each nucleus.

    A tile is resized to `view.input_px` with area filtering (bilinear, antialiased). Its feature is
    the mean over the network's map, with CLS or the deviations as `view.pooling` says. The squares
    of the tile grid are enlarged as much as a tile is.

    Attributes:
        identity: Network, input size, pooling, tile and resolution.
        tile_px: Side of a cell's tile, in pixels of `identity.mpp`.
    """

    def __init__(self, network: PatchNetwork, view: ViewConfig, name: str) -> None:
        """Show tiles to a network.

        Args:
            network: Loaded.
            view: Tile, input size, resolution and pooling.
            name: What the identity calls the network.

        Raises:
            ConfigError: The network cannot be shown such tiles.
        """
        facts = network.facts
        mpp = view.mpp or facts.native_mpp
        self.tile_px = round(view.tile_um / mpp)
        if self.tile_px < 1:
            raise ConfigError(
                f"prepare.view.tile_um = {view.tile_um:g} is less than a pixel of {mpp:g} µm; give "
                "a larger tile or a smaller prepare.view.mpp"
            )
        check_input(facts, view.input_px)
        self.network = network
        self.input_px = view.input_px
        self.pooling = pooling_of(facts, view)
        self.calibration: Calibration | None = None
        self.identity = EncoderIdentity(
            f"{name}-{view.input_px}px",
            facts.weights_sha256[:12],
            POOLED[self.pooling],
            view.tile_um,
            mpp,
            facts.n_channels * (1 if self.pooling == "mean" else 2),
        )

    @property
    def licence(self) -> str:
        """Of its weights."""
        return self.network.facts.licence

    @property
    def precision(self) -> str:
        """Of the network's products."""
        return self.network.facts.precision

    def calibrated(self, pixels: UInt8[np.ndarray, "pixel 3"]) -> "TileEncoder":
        """With the slide's value range, if the network needs it."""
        ready = copy(self)
        ready.calibration = fit_calibration(self.network.facts, pixels)
        return ready

    def sight(self, plan: FieldPlan, tile_side_um: float) -> Sight:
        """What the fields own, and half a tile or a square beyond."""
        mpp = self.identity.mpp
        half_um = max(self.identity.tile_um, tile_side_um) / 2 + BAND_UM
        reach_px = math.ceil(half_um / mpp) + 2  # for rounding
        corner_px = np.floor(owned_corner_px(plan, mpp)).astype(np.int64) - reach_px
        owned_px = math.ceil((plan.side_px * plan.mpp - 2 * plan.halo_um) / mpp)
        return Sight(corner_px, owned_px + 2 * reach_px + 1, mpp)

    def look(
        self,
        fields: Sequence[FieldPixels],
        maps: Sequence[Maps],  # noqa: ARG002 - of the contract
        plan: FieldPlan,
        sight: Sight | None,
    ) -> "list[TileLook]":
        """Nothing yet: the tiles are cut round what is found."""
        if sight is None:
            raise MismatchError(f"{self.identity}: the fields were read for another encoder")
        return [TileLook(self, pixels, plan.mpp, sight) for pixels in fields]

    def encode(self, tiles: UInt8[np.ndarray, "tile y x 3"]) -> Float32[np.ndarray, "tile feature"]:
        """Features of tiles that were read at `identity.mpp`."""
        seen = look_at(self.network, torch.from_numpy(tiles), self.calibration, self.input_px)
        return stack((self.pool(looked) for looked in seen), self.identity.n_features)

    def encode_squares(
        self, squares: UInt8[np.ndarray, "tile y x 3"]
    ) -> Float32[np.ndarray, "tile feature"]:
        """Means over squares of any size, enlarged as a tile is, then the deviations."""
        facts = self.network.facts
        n_steps = round(squares.shape[1] * self.input_px / self.tile_px / facts.step_px)
        input_px = max(n_steps * facts.step_px, facts.least_px)
        seen = look_at(self.network, torch.from_numpy(squares), self.calibration, input_px)
        return stack((torch.cat(spread(looked.map), 1) for looked in seen), 2 * facts.n_channels)

    def pool(self, looked: Looked) -> Float[Tensor, "tile feature"]:
        """What a network saw of tiles to one vector each."""
        mean, deviation = spread(looked.map)
        if self.pooling == "mean":
            return mean
        if self.pooling == "mean+std" or looked.cls is None:
            return torch.cat([mean, deviation], dim=1)
        return torch.cat([looked.cls, mean], dim=1)


@dataclass(frozen=True)
class TileLook:
    """A field as it was read for tiles."""

    encoder: TileEncoder
    pixels: FieldPixels
    field_mpp: float
    sight: Sight

    def of_nuclei(self, found: Found) -> Described:
        """Features of the tile round each nucleus."""
        tiles = self.cut(found.xy_um, self.encoder.tile_px)
        return Described(self.encoder.encode(tiles), tiles)

    def of_squares(self, squares: Squares) -> Float32[np.ndarray, "square feature"]:
        """Features of each square."""
        side_px = max(1, round(squares.side_px * self.field_mpp / self.sight.mpp))
        return self.encoder.encode_squares(self.cut(squares.centre_um, side_px))

    def cut(
        self, centre_um: Float[np.ndarray, "tile 2"], side_px: int
    ) -> UInt8[np.ndarray, "tile side side 3"]:
        """Squares of the pixels that were read, round centres in µm."""
        if self.pixels.seen is None:
            raise MismatchError(f"{self.encoder.identity}: the field was read for another encoder")
        corner_px = self.sight.corner_px[self.pixels.field]
        centre_px: Float64[np.ndarray, "tile 2"] = centre_um.astype(np.float64) / self.sight.mpp
        return crop_squares(self.pixels.seen, centre_px - corner_px, side_px)


def stack(
    batches: Iterable[Float[Tensor, "tile feature"]], n_features: int
) -> Float32[np.ndarray, "tile feature"]:
    """Batches one after another, on the host."""
    rows = [batch.float().cpu().numpy() for batch in batches]
    return np.concatenate(rows) if rows else np.zeros((0, n_features), np.float32)
