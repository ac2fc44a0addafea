"""How a file of nuclei is to be read: what the file itself does not say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
from jaxtyping import Float64

from histoscribe.data.slide import Slide
from histoscribe.errors import ConfigError

NucleiFormat = Literal["cellvit", "hovernet", "hest", "qupath", "xenium", "labels"]
FORMATS: tuple[NucleiFormat, ...] = get_args(NucleiFormat)


@dataclass(frozen=True)
class NucleiConfig:
    """What the file does not say of itself.

    Attributes:
        format: The format, or None to tell it by the content.
        mpp: µm per pixel of the file's coordinates, in place of what the format has: of a label
            image that is not on the slide's own grid, of a HoVer-Net tile, 1 for QuPath in µm.
        mag: Objective power that a HoVer-Net file was made at, where the file has none.
        slide_mag: Objective power of the slide; by its µm per pixel if None.
        alignment: Xenium: the CSV that brings the H&E image onto the morphology image.
        is_aligned: Xenium: the slide's frame is that of the morphology image, no alignment needed.
        type_info: HoVer-Net: the JSON that names the numbers of its types.
        outline: QuPath: the nucleus of a cell, or the cell itself.
        takes_annotations: QuPath: annotations are nuclei too.
    """

    format: NucleiFormat | None = None
    mpp: float | None = None
    mag: float | None = None
    slide_mag: float | None = None
    alignment: Path | None = None
    is_aligned: bool = False
    type_info: Path | None = None
    outline: Literal["nucleus", "cell"] = "nucleus"
    takes_annotations: bool = False

    def __post_init__(self) -> None:
        if self.format not in (None, *FORMATS):
            raise ConfigError(
                f"no format of nuclei is called {self.format!r}; there are {', '.join(FORMATS)}"
            )
        if self.outline not in ("nucleus", "cell"):
            raise ConfigError(f"outline = {self.outline!r}; give nucleus or cell")
        for name in ("mpp", "mag", "slide_mag"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} = {value}; give a number above 0")
        if self.mpp is not None and (self.mag is not None or self.slide_mag is not None):
            raise ConfigError("both mpp and an objective power are given; give one of the two")
        if self.alignment is not None and self.is_aligned:
            raise ConfigError("an alignment is given, and is_aligned says none is needed; give one")

    def check_used(self, formats: Sequence[NucleiFormat]) -> None:
        """ConfigError if an option is given that no file of these formats has a use for."""
        for name, users in USED_BY.items():
            if getattr(self, name) != getattr(NucleiConfig, name) and not {*users} & {*formats}:
                raise ConfigError(
                    f"{name} is for {' and '.join(users)} files, this one is "
                    f"{' or '.join(formats)}; leave it out"
                )


USED_BY: dict[str, tuple[NucleiFormat, ...]] = {
    "mag": ("hovernet",),
    "slide_mag": ("hovernet",),
    "alignment": ("xenium",),
    "is_aligned": ("xenium",),
    "type_info": ("hovernet",),
    "outline": ("qupath",),
    "takes_annotations": ("qupath",),
}
"""Options that not every format has a use for."""

NUCLEI_COLUMNS = {f"nuclei_{one.name}": one.name for one in fields(NucleiConfig)}
"""Column of a manifest -> option: every option can be given there."""


def _kind_of(hint: Any) -> Any:  # noqa: ANN401 - a type, of whatever form
    """A type without its None."""
    members = get_args(hint)
    return next(one for one in members if one is not NoneType) if NoneType in members else hint


OPTION_KINDS: dict[str, Any] = {
    name: _kind_of(hint) for name, hint in get_type_hints(NucleiConfig).items()
}
"""Option -> what it is: float, bool, Path, or a Literal of names."""

NUCLEI_FILES = tuple(
    column for column, name in NUCLEI_COLUMNS.items() if OPTION_KINDS[name] is Path
)
"""The columns that name a file."""

MIDDLE_PX = 0.5
"""What contours lack that go through the middles of border pixels and call the first one's 0."""


def pixels_to_um(
    slide: Slide, config: NucleiConfig, first_px: float = 0.0
) -> Float64[np.ndarray, "2 3"]:
    """From pixels of the full-resolution level, or of `config.mpp`, to µm."""
    return scaled(slide.mpp if config.mpp is None else (config.mpp, config.mpp), first_px)


def scaled(mpp: tuple[float, float], first_px: float = 0.0) -> Float64[np.ndarray, "2 3"]:
    """From a file's pixels to µm of the slide, whose origin is the top left corner of its image.

        um = mpp * (px + first_px)

    Args:
        mpp: µm per pixel of the file, (x, y).
        first_px: Where the file's (0, 0) is in its own pixels: 0 for the corner of the first one,
            `MIDDLE_PX` for its middle.
    """
    return np.array([[mpp[0], 0.0, mpp[0] * first_px], [0.0, mpp[1], mpp[1] * first_px]])
