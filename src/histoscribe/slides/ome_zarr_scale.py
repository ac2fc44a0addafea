"""The resolution that an OME-Zarr states: scales and units of its axes (NGFF 0.4, 0.5)."""

from typing import Any

from histoscribe.slides.pixels import StatedMpp

MICRONS_OF_UNIT = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
    "inch": 25_400.0,
}


def stated_mpp_of(multiscale: dict[str, Any]) -> StatedMpp | None:
    """What the first data set says; None where it says nothing.

    A scale of 1 without a unit is what writers put that know nothing, a unit beyond the list
    (say, "pixel") is none of length; both say nothing. Another scale without a unit is taken as
    µm, as most writers mean it, and noted.
    """
    sizes, is_unitless = [], False
    scale, _ = _transform(multiscale, 0)
    for axis in "xy":
        unit = _unit(multiscale, axis)
        is_unitless = is_unitless or not unit
        factor = MICRONS_OF_UNIT.get(unit or "micrometer")
        if factor is None or axis not in scale:
            return None
        sizes.append(scale[axis] * factor)
    if is_unitless and sizes == [1.0, 1.0]:
        return None
    x, y = sizes
    doubt = f"the scale {x:.4g} of its OME-Zarr has no unit; taken as µm"
    return StatedMpp(x, y, "its OME-Zarr scale", doubt if is_unitless else "")


def origin_of(multiscale: dict[str, Any]) -> list[tuple[float, float]]:
    """How far each level starts from level 0, (x, y) in its own pixels, by its translation."""
    _, first = _transform(multiscale, 0)
    origins = []
    for index in range(len(multiscale["datasets"])):
        scale, origin = _transform(multiscale, index)
        x, y = (
            (origin.get(axis, 0.0) - first.get(axis, 0.0)) / (scale.get(axis, 1.0) or 1.0)
            for axis in "xy"
        )
        origins.append((x, y))
    return origins


def _transform(multiscale: dict[str, Any], index: int) -> tuple[dict[str, float], dict[str, float]]:
    """Scale and translation of a data set by axis, those of the whole image applied after."""
    names = [axis["name"] if isinstance(axis, dict) else axis for axis in multiscale["axes"]]
    scale: dict[str, float] = {}
    origin: dict[str, float] = {}
    steps = [
        *multiscale["datasets"][index].get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ]
    for step in steps:
        values = dict(zip(names, step.get(step["type"], ()), strict=False))
        if step["type"] == "scale":
            scale = {axis: scale.get(axis, 1.0) * float(one) for axis, one in values.items()}
            origin = {axis: one * float(values.get(axis, 1.0)) for axis, one in origin.items()}
        elif step["type"] == "translation":
            origin = {axis: origin.get(axis, 0.0) + float(one) for axis, one in values.items()}
    return scale, origin


def _unit(multiscale: dict[str, Any], name: str) -> str | None:
    for axis in multiscale["axes"]:
        if isinstance(axis, dict) and axis.get("name") == name:
            return axis.get("unit")
    return None
