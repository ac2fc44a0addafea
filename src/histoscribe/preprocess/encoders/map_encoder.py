"""The dense way where a segmenter's network is the encoder: its maps are there already."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from torch import Tensor

from histoscribe.errors import ConfigError
from histoscribe.preprocess.encoders.encoder import (
    Described,
    EncoderIdentity,
    FieldPixels,
    Maps,
    Sight,
    Squares,
)
from histoscribe.preprocess.encoders.view import ViewConfig
from histoscribe.preprocess.features import (
    FeatureMap,
    pool_nuclei,
    pool_squares,
    pool_windows,
    stride_of,
)
from histoscribe.preprocess.fields import BAND_UM, FieldPlan
from histoscribe.preprocess.nuclei import Found
from histoscribe.preprocess.segmenters.segmenter import Calibration


@runtime_checkable
class MapSource(Protocol):
    """What gives the maps where no segmentation has: the segmenter, asked for them alone."""

    def encode(
        self, images: UInt8[np.ndarray, "field y x 3"], calibration: Calibration
    ) -> list[tuple[Tensor, ...]]:
        """The maps of each field, from fine to coarse."""
        ...


@dataclass(frozen=True)
class MapLook:
    """The maps of one field, every pixel of a nucleus with the map's pixel over it."""

    maps: Maps
    corner_um: tuple[float, float]
    mpp: float
    field_px: int
    n_features: int
    window_um: float

    def of_nuclei(self, found: Found) -> Described:
        """Mean of each map over each nucleus, then if asked for deviations over its window."""
        pooled = pool_nuclei(self.maps, found.labels)
        n_means = pooled.shape[1] // 2
        if self.n_features == n_means or not self.window_um:
            return Described(pooled[:, : self.n_features])
        shape = (self.field_px, self.field_px)
        levels = [
            FeatureMap(one, self.corner_um, stride_of(one, shape) * self.mpp) for one in self.maps
        ]
        around = [pool_windows(level, found.xy_um, self.window_um) for level in levels]
        deviations = [np.split(one, 2, axis=1)[1] for one in around]
        return Described(np.hstack([pooled[:, :n_means], *deviations]))

    def of_squares(self, squares: Squares) -> Float32[np.ndarray, "square feature"]:
        """Mean of each map over each square, then the deviations."""
        return pool_squares(self.maps, self.field_px, squares.corner_px, squares.side_px)


@dataclass(frozen=True)
class MapEncoder:
    """Pools the feature maps of a segmenter's network, over the fields it segments.

    Where that segmenter finds the nuclei, their features cost no further pass.

    Attributes:
        identity: Name and hash of the network, as the segmenter has them.
        licence: Of its weights.
        load: Brings the network where another segmenter finds the nuclei.
        fit_range: Fits its value range on a slide's tissue pixels.
        calibration: Of the slide.
        window_um: Side of the square round a nucleus that deviations are taken over, or 0 for the
            nucleus itself.
        precision: Of the network's products.
    """

    identity: EncoderIdentity
    licence: str
    load: Callable[[], MapSource]
    fit_range: Callable[[UInt8[np.ndarray, "pixel 3"]], Calibration]
    calibration: Calibration | None = None
    window_um: float = 0.0
    precision: str = "float32"

    def calibrated(self, pixels: UInt8[np.ndarray, "pixel 3"]) -> "MapEncoder":
        """With the slide's value range."""
        return replace(self, calibration=self.fit_range(pixels))

    def sight(self, plan: FieldPlan, tile_side_um: float) -> None:  # noqa: ARG002 - of the contract
        """Nothing: the segmenter's image is its own.

        Raises:
            ConfigError: The fields are of another resolution, or their overlap does not hold the
                windows of nuclei at their edge.
        """
        if (least_um := self.window_um / 2 + BAND_UM) > plan.halo_um:
            raise ConfigError(
                f"prepare.view.window_um = {self.window_um:g} wants fields that overlap by "
                f"{2 * least_um:g} µm, and they do by {2 * plan.halo_um:g}; give a smaller window, "
                f"or prepare.overlap_px = {math.ceil(2 * least_um / plan.mpp)} or more"
            )
        if plan.mpp != self.identity.mpp:
            raise ConfigError(
                f"encoder {self.identity.name} sees {self.identity.mpp:g} µm/px, nuclei are looked "
                f"for at {plan.mpp:g}; choose a segmenter of the same resolution, or "
                "prepare.view.way = 'tile'"
            )

    def look(
        self,
        fields: Sequence[FieldPixels],
        maps: Sequence[Maps],
        plan: FieldPlan,
        sight: Sight | None,  # noqa: ARG002 - of the contract
    ) -> list[MapLook]:
        """The maps of the segmentation, or where there are none those of a pass of its own."""
        given = [one or self.encode(pixels) for pixels, one in zip(fields, maps, strict=True)]
        looks = []
        for pixels, one in zip(fields, given, strict=True):
            box = plan.box(pixels.field)
            n_features = self.identity.n_features
            corner_um = (box.x_um, box.y_um)
            looks.append(
                MapLook(one, corner_um, plan.mpp, plan.side_px, n_features, self.window_um)
            )
        return looks

    def encode(self, pixels: FieldPixels) -> Maps:
        """The maps of a field that was segmented by another network."""
        if self.calibration is None:
            raise ConfigError(f"{self.identity} was not calibrated on the slide's tissue")
        return self.source.encode(pixels.image[None], self.calibration)[0]

    @cached_property
    def source(self) -> MapSource:
        """The network, loaded when it is first needed."""
        return self.load()


def map_pooling(view: ViewConfig, mpp: float) -> tuple[str, int]:
    """How the maps are pooled, as the identity says it, and how many features a channel gives.

    Raises:
        ConfigError: Another resolution is asked for than the segmenter sees.
    """
    if view.mpp not in (None, mpp):
        raise ConfigError(
            f"prepare.view.mpp = {view.mpp:g}, but maps that find nuclei are those of {mpp:g} "
            "µm/px; leave it out, or give prepare.view.way = 'tile'"
        )
    with_deviation = view.pooling != "mean"
    return view.pooled(with_deviation=with_deviation), 1 + with_deviation
