"""How a file of nuclei is to be read: what the file itself does not say."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

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
            image that is not on the slide's own grid, of a HoVer-Net tile, 1 for µm.
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


def pixels_to_um(slide: Slide, config: NucleiConfig) -> Float64[np.ndarray, "2 3"]:
    """From pixels of the full-resolution level, or of `config.mpp`, to µm."""
    return scaled(slide.mpp if config.mpp is None else (config.mpp, config.mpp))


def scaled(mpp: tuple[float, float]) -> Float64[np.ndarray, "2 3"]:
    """From pixels of `mpp` (x, y) to µm; both frames have their origin top left."""
    return np.array([[mpp[0], 0.0, 0.0], [0.0, mpp[1], 0.0]])
