"""Three grey channels: red, green and blue of one picture, or stains of a fluorescence image?"""

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from histoscribe.errors import DataError

RGB = ("FF0000", "00FF00", "0000FF")
WORDS_OF_COLOUR = (("red", "r"), ("green", "g"), ("blue", "b"))
# fmt: off
SAYING_NOTHING = {
    "channel", "ch", "c", "band", "sample", "image", "rgb", "brightfield", "bright", "field", "he",
    "h", "e",
}
# fmt: on
TELLING = re.compile(r"[a-z]+|[0-9]{3,}")  # words, and wavelengths; a number below 100 only counts
UNSTATED_OME = ("", "-1", "4294967295")  # white: what OME's schema puts where nothing is said


def check_channels(path: Path, names: Sequence[str], colours: Sequence[str]) -> None:
    """Refuse three channels that are said to be others than red, green and blue, in that order.

    Args:
        path: The slide, for the message.
        names: Their names; empty where the file has none.
        colours: What they are shown in, as RRGGBB; empty where the file does not say.

    Raises:
        DataError: A colour other than theirs, or a name that is neither theirs nor a mere number.
    """
    if any(colours) and tuple(colours) != RGB:
        came = f"shown in {', '.join(one or 'none' for one in colours)}"
    elif not all(
        _can_name(name, words) for name, words in zip(names, WORDS_OF_COLOUR, strict=True)
    ):
        came = f"named {', '.join(names)}"
    else:
        return
    msg = (
        f"{path}: its channels are {came}; wanted red, green and blue ({', '.join(RGB)}), an H&E "
        "image. Export the H&E image as RGB."
    )
    raise DataError(msg)


def channels_of_ome(xml: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and colours (RRGGBB) of the channels of the first image; empty where not stated."""
    try:
        pixels = ElementTree.fromstring(xml).find(".//{*}Pixels")
    except ElementTree.ParseError:
        return (), ()
    channels = [] if pixels is None else pixels.findall("{*}Channel")
    names = tuple(one.get("Name", "") for one in channels)
    return names, tuple(_colour_of_ome(one.get("Color", "")) for one in channels)


def _can_name(name: str, words: tuple[str, ...]) -> bool:
    found = TELLING.findall(name.lower())
    return all(word in words for word in found if word not in SAYING_NOTHING)


def _colour_of_ome(text: str) -> str:
    """RRGGBB of OME's 32-bit RGBA, which may be written as a negative number."""
    if text.strip() in UNSTATED_OME:
        return ""
    try:
        return f"{(int(text) & 0xFFFFFFFF) >> 8:06X}"
    except ValueError:
        return text
