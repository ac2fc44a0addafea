"""The resolution that a TIFF states: OME's PhysicalSize, Aperio's MPP, or the resolution tags."""

import re
from xml.etree import ElementTree

from tifffile import RESUNIT, TiffFile, TiffPage

from histoscribe.slides.pixels import StatedMpp

MICRONS_OF_UNIT = {
    "µm": 1.0,
    "μm": 1.0,  # the Greek letter, as some writers have it
    "um": 1.0,
    "micron": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "Å": 1e-4,
    "inch": 25_400.0,
    "in": 25_400.0,
}
MICRONS_OF_TAG: dict[int, float] = {RESUNIT.INCH: 25_400.0, RESUNIT.CENTIMETER: 10_000.0}
APERIO_MPP = re.compile(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)")


def stated_mpp_of(file: TiffFile) -> StatedMpp | None:
    """What the file says, in the order of trust; None where it says nothing with a unit.

    A physical size in "pixel", or tags without a unit, say nothing.
    """
    if file.is_ome and file.ome_metadata:
        stated = _from_ome(file.ome_metadata)
        if stated:
            return stated
    page = file.pages[0]
    if not isinstance(page, TiffPage):
        return None
    found = APERIO_MPP.search(page.description)
    if found:
        value = _number(found.group(1))
        if value is not None:
            return StatedMpp(value, value, "its Aperio description")
    return _from_tags(page)


def _from_ome(xml: str) -> StatedMpp | None:
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    pixels = root.find(".//{*}Pixels")
    if pixels is None:
        return None
    sizes = []
    for axis in "XY":
        value = _number(pixels.get(f"PhysicalSize{axis}"))
        unit = MICRONS_OF_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if value is None or unit is None:
            return None
        sizes.append(value * unit)
    return StatedMpp(sizes[0], sizes[1], "its OME metadata")


def _from_tags(page: TiffPage) -> StatedMpp | None:
    unit = MICRONS_OF_TAG.get(page.resolutionunit)
    if unit is None or "XResolution" not in page.tags or "YResolution" not in page.tags:
        return None
    try:
        x, y = page.resolution
    except Exception:  # noqa: BLE001 - damaged tags; the pixels may be sound, and --mpp given
        return None
    if x <= 0 or y <= 0:
        return None
    return StatedMpp(unit / x, unit / y, "its resolution tag")


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
