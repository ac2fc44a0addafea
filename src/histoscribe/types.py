"""What every floor shares: the frame of positions, and a box in it.

Positions are in µm from the top left corner of the slide, x to the right and y down;
a pixel p of a slide with `mpp` µm per pixel covers [p * mpp, (p + 1) * mpp).
"""

from typing import NamedTuple


class Box(NamedTuple):
    """An axis-aligned rectangle on a slide, in µm."""

    x_um: float
    y_um: float
    width_um: float
    height_um: float
