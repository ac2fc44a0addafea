"""How cells are shown to an encoder: one tile each, or all of a field at once."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from histoscribe.errors import ConfigError

Way = Literal["dense", "tile"]
Pooling = Literal["mean", "cls+mean", "mean+std"]

DEFAULT_WAY: Way = "dense"


@dataclass(frozen=True)
class ViewConfig:
    """How cells are shown to an encoder, and how its map becomes features.

    Attributes:
        way: "dense" encodes each field once and pools the network's map inside every nucleus
            (for encoders "instanseg" and "toy" the maps that found the nuclei); "tile" cuts a
            square round each nucleus and encodes every one by itself, as the BiTro paper does.
        mpp: Resolution that fields, or tiles, are read at, µm per pixel; none is the network's own.
        tile_um: Side of a cell's tile.
        input_px: What a tile is resized to before the network sees it, a multiple of its patch
            (224 is one of 14 and of 16); smaller is faster and shows the same tile.
        field_um: Side of what a network describes in one pass in the dense way; fields are cut
            into squares of this side, up to whole patches, so that the cost of attention grows with
            the area and not with its square.
        margin_um: What it sees beyond that on every side, for context.
        window_um: In the dense way, side of the square round each nucleus that deviations are taken
            over: the mean says what the nucleus is, they say how what lies around it varies, as a
            tile of the paper shows it. 0 takes them over the nucleus' own pixels.
        pooling: "mean" over the vectors of the network's map, without CLS and registers, of a tile
            or interpolated at a nucleus' pixels; "cls+mean" puts a tile's CLS token before it;
            "mean+std" puts the deviations after it. None is what goes with the network: "mean" for
            Vision Transformers, whose vectors have seen what lies around, "mean+std" for all
            others.
    """

    way: Way = DEFAULT_WAY
    mpp: float | None = None
    tile_um: float = 24.0
    input_px: int = 224
    field_um: float = 112.0
    margin_um: float = 16.0
    window_um: float = 24.0
    pooling: Pooling | None = None

    def pooled(self, *, with_deviation: bool) -> str:
        """What is pooled in the dense way, as the identity says it."""
        if not with_deviation:
            return "nucleus-mean"
        around = f"+window{self.window_um:g}um" if self.window_um else ""
        return f"nucleus-mean{around}-std"

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, choices in {"way": get_args(Way), "pooling": (None, *get_args(Pooling))}.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"prepare.view.{name} = {getattr(self, name)!r}; "
                    f"give {', '.join(map(str, filter(None, choices)))}"
                )
        if self.way == "dense" and self.pooling == "cls+mean":
            raise ConfigError(
                "prepare.view.pooling = 'cls+mean' wants prepare.view.way = 'tile': the CLS token "
                "of a field is the same for all its cells"
            )

    def _check_numbers(self) -> None:
        for name in ("tile_um", "field_um", "mpp"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"prepare.view.{name} = {value}; give a finite number above 0")
        for name in ("margin_um", "window_um"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"prepare.view.{name} = {getattr(self, name)}; give 0 µm or more")
        if self.input_px < 1:
            raise ConfigError(f"prepare.view.input_px = {self.input_px}; give 1 or more")
