"""Units as types, and the two small shapes every floor shares: a box and a point frame.

Positions are in µm from the top left corner of the slide, x to the right and y down;
a pixel p of a slide with `mpp` µm per pixel covers [p * mpp, (p + 1) * mpp).
"""

from typing import NamedTuple, NewType

Microns = NewType("Microns", float)
"""A length on the glass, in µm."""

SlidePixels = NewType("SlidePixels", int)
"""A length in pixels of the slide's full-resolution level."""

TilePixels = NewType("TilePixels", int)
"""A length in pixels of an image that was read at some other resolution."""

Mpp = NewType("Mpp", float)
"""Resolution, in µm per pixel."""


class Box(NamedTuple):
    """An axis-aligned rectangle on a slide, in µm."""

    x_um: float
    y_um: float
    width_um: float
    height_um: float
