"""The dense way: a field once through the network, and its map pooled inside every nucleus."""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from histoscribe.errors import ConfigError, MismatchError
from histoscribe.preprocess.encoders.encoder import (
    SNAP_PX,
    Described,
    EncoderIdentity,
    FieldPixels,
    Maps,
    Sight,
    Squares,
    owned_corner_px,
)
from histoscribe.preprocess.encoders.networks.patch_network import PatchNetwork
from histoscribe.preprocess.encoders.passes import fit_calibration, look_at, pooling_of
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.features import (
    FeatureMap,
    pool_interpolated,
    pool_squares_by_area,
    pool_windows,
)
from histoscribe.preprocess.fields import BAND_UM, FieldPlan
from histoscribe.preprocess.nuclei import Found
from histoscribe.preprocess.segmenters.segmenter import Calibration


class DenseEncoder:
    """Shows whole fields to a network at its own scale, each once.

    A field is read with a margin of context. The vectors of the network's map lie on one grid from
    the slide's corner on, whatever the fields. They go through the network in pieces of
    `view.field_um`, however large a field is, that overlap by the margin, and each piece gives the
    map of its own part: so every vector that describes what a field owns has seen the margin on
    every side, and all pieces are of the one size that the identity states. A
    nucleus' feature is the mean over its pixels of the map interpolated between its vectors, and
    if asked for the map's deviations over the window round it.

    Attributes:
        identity: Network, field and margin, pooling and resolution.
    """

    def __init__(self, network: PatchNetwork, view: ViewConfig, name: str) -> None:
        """Show fields to a network.

        Args:
            network: Loaded.
            view: Field, margin, resolution and pooling.
            name: What the identity calls the network.
        """
        facts = network.facts
        self.network = network
        self.view = view
        self.with_deviation = pooling_of(facts, view) == "mean+std"
        self.calibration: Calibration | None = None
        self.identity = EncoderIdentity(
            f"{name}-{view.field_um:g}+{view.margin_um:g}um",
            facts.weights_sha256[:12],
            view.pooled(with_deviation=self.with_deviation),
            0.0,
            view.mpp or facts.native_mpp,
            facts.n_channels * (2 if self.with_deviation else 1),
        )

    @property
    def licence(self) -> str:
        """Of its weights."""
        return self.network.facts.licence

    @property
    def precision(self) -> str:
        """Of the network's products."""
        return self.network.facts.precision

    def calibrated(self, pixels: UInt8[np.ndarray, "pixel 3"]) -> "DenseEncoder":
        """With the slide's value range, if the network needs it."""
        ready = copy(self)
        ready.calibration = fit_calibration(self.network.facts, pixels)
        return ready

    def sight(self, plan: FieldPlan, tile_side_um: float) -> Sight:
        """What the fields own, up to whole pieces, and the margin.

        Raises:
            ConfigError: The margin does not hold the squares of the tile grid, or the windows of
                nuclei at the edge.
        """
        mpp, step_px = self.identity.mpp, self.network.facts.step_px
        margin_px = math.ceil(self.view.margin_um / mpp / step_px - SNAP_PX) * step_px
        reach_um = {"squares": tile_side_um / 2}
        if self.with_deviation:
            reach_um["windows"] = self.view.window_um / 2 + BAND_UM
        for what, least_um in reach_um.items():
            if margin_px * mpp < least_um:
                raise ConfigError(
                    f"prepare.view.margin_um = {self.view.margin_um:g}: {what} reach {least_um:g} "
                    "µm beyond what a field owns; give that much or more, or smaller ones "
                    "(prepare.tile_side_um, prepare.view.window_um)"
                )
        owned = owned_corner_px(plan, mpp)
        start = np.floor(owned / step_px + SNAP_PX) * step_px
        owned_um = plan.side_px * plan.mpp - 2 * plan.halo_um
        wanted_px = owned_um / mpp + float((owned - start).max())
        least_px = max(self.view.field_um / mpp, self.network.facts.least_px - 2 * margin_px)
        piece_px = math.ceil(least_px / step_px - SNAP_PX) * step_px
        n_passes = math.ceil(wanted_px / piece_px - SNAP_PX)
        return Sight(
            start.astype(np.int64) - margin_px,
            n_passes * piece_px + 2 * margin_px,
            mpp,
            n_passes,
            margin_px,
        )

    def look(
        self,
        fields: Sequence[FieldPixels],
        maps: Sequence[Maps],  # noqa: ARG002 - of the contract
        plan: FieldPlan,
        sight: Sight | None,
    ) -> "list[DenseLook]":
        """The maps of fields; on a GPU the pieces of all of them go through the network together.

        On a CPU nothing is gained by that, and a field's last bits would depend on its company.
        """
        if sight is None:
            raise MismatchError(f"{self.identity}: the fields were read for another encoder")
        is_gpu = self.network.device.type == "cuda"
        batches = [fields] if is_gpu and fields else [[pixels] for pixels in fields]
        return [one for batch in batches for one in self.look_together(batch, plan, sight)]

    def look_together(
        self, fields: Sequence[FieldPixels], plan: FieldPlan, sight: Sight
    ) -> "list[DenseLook]":
        """The maps of fields whose pieces share passes of the network."""
        images = [pixels.seen for pixels in fields if pixels.seen is not None]
        if len(images) < len(fields):
            raise MismatchError(f"{self.identity}: the fields were read for another encoder")
        pieces = torch.from_numpy(np.concatenate([cut_pieces(image, sight) for image in images]))
        seen = look_at(self.network, pieces, self.calibration)
        vectors = torch.cat([looked.map for looked in seen])
        patch_px = self.network.facts.patch_px
        looks = []
        for pixels, parts in zip(fields, vectors.split(sight.n_passes**2), strict=True):
            x, y = (sight.corner_px[pixels.field] * sight.mpp).tolist()
            level = FeatureMap(join_pieces(parts, sight, patch_px), (x, y), patch_px * sight.mpp)
            box = plan.box(pixels.field)
            corner_um = (box.x_um, box.y_um)
            window_um = self.view.window_um
            looks.append(DenseLook(level, corner_um, plan.mpp, self.with_deviation, window_um))
        return looks


@dataclass(frozen=True)
class DenseLook:
    """The map of one field."""

    level: FeatureMap
    corner_um: tuple[float, float]
    field_mpp: float
    with_deviation: bool
    window_um: float

    def of_nuclei(self, found: Found) -> Described:
        """Mean over each nucleus' pixels of the interpolated map, deviations over its window."""
        has_window = self.with_deviation and self.window_um > 0
        pooled = pool_interpolated(
            self.level,
            found.labels,
            self.corner_um,
            self.field_mpp,
            with_deviation=self.with_deviation and not has_window,
        )
        if not has_window:
            return Described(pooled)
        around = pool_windows(self.level, found.xy_um, self.window_um)
        return Described(np.hstack([pooled, np.split(around, 2, axis=1)[1]]))

    def of_squares(self, squares: Squares) -> Float32[np.ndarray, "square feature"]:
        """Mean of the map over each square, then the deviations."""
        corner_um = squares.corner_px * self.field_mpp + np.array(self.corner_um)
        return pool_squares_by_area(self.level, corner_um, squares.side_px * self.field_mpp)


def cut_pieces(
    image: UInt8[np.ndarray, "y x 3"], sight: Sight
) -> UInt8[np.ndarray, "piece side side 3"]:
    """What goes through the network by itself, row by row, each with its margin."""
    own_px = (sight.side_px - 2 * sight.margin_px) // sight.n_passes
    size_px = own_px + 2 * sight.margin_px
    start = range(0, sight.n_passes * own_px, own_px)
    return np.stack([image[y : y + size_px, x : x + size_px] for y in start for x in start])


def join_pieces(
    parts: Float[Tensor, "piece d py px"], sight: Sight, patch_px: int
) -> Float[Tensor, "d my mx"]:
    """The map of a field: of each piece its own part, and the margin where nothing follows."""
    n = sight.n_passes
    margin = sight.margin_px // patch_px
    own = (sight.side_px // patch_px - 2 * margin) // n
    side = n * own + 2 * margin
    whole = parts.new_empty((parts.shape[1], side, side))
    spans = [
        (0 if i == 0 else margin, own + 2 * margin if i == n - 1 else margin + own)
        for i in range(n)
    ]
    for row, (top, bottom) in enumerate(spans):
        for column, (left, right) in enumerate(spans):
            whole[
                :,
                row * own + top : row * own + bottom,
                column * own + left : column * own + right,
            ] = parts[row * n + column, :, top:bottom, left:right]
    return whole
