"""CellViT's and HoVer-Net's JSON: a record a nucleus, with contour, type and share of its vote."""

import json
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from histoscribe.data.atomic import hash_file
from histoscribe.data.slide import Slide
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.json_stream import JsonStream, Place
from histoscribe.readers.json_values import as_real, as_whole, names_by_number, share_of, shown
from histoscribe.readers.nuclei_config import MIDDLE_PX, NucleiConfig, pixels_to_um, scaled
from histoscribe.readers.packed import open_text
from histoscribe.readers.rings import RawNuclei, RingCollector

NO_TYPE = -1
POWERS = (2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
POWER_MPP = 10.0  # µm/px times objective power: 0.25 at 40x
POWER_TOLERANCE = 0.2  # scanners called 40x have 0.22 to 0.28 µm/px
MPP_TOLERANCE = 0.1
MAP_WANTED = "names and whole numbers"
INFO_WANTED = 'JSON such as {"1": ["neopla", [255, 0, 0]]}'


class NucleusCollector:
    """Contours, types and probabilities of records, as plain numbers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rings = RingCollector()
        self._type = array("q")
        self._probability = array("f")
        self._seen: set[str] = set()
        self._is_repeat = array("b")

    def add(self, record: Any, name: str | None = None) -> None:  # noqa: ANN401 - as the file has it
        """Add a record; `name` is its id where it has one."""
        if not isinstance(record, Mapping) or "contour" not in record:
            held = shown(list(record) if isinstance(record, Mapping) else record)
            raise DataError(
                f"{self._path}: nucleus {len(self._rings)} has no contour (it has {held}); wanted "
                "outlines: give cells.json, not cell_detection.json"
            )
        row = len(self._rings)
        self._rings.add(record["contour"])
        self._type.append(self._number_of(row, record.get("type")))
        share = share_of(self._path, f"nucleus {row} has type_prob", record.get("type_prob"))
        # A share of the votes is never 0: CellViT's token classifier cuts it off to whole numbers.
        self._probability.append(share or np.nan)
        self._is_repeat.append(name is not None and name in self._seen)
        if name is not None:
            self._seen.add(name)

    def finish(self, names: Mapping[int, str], **facts: Any) -> RawNuclei:  # noqa: ANN401
        """All of them, their types by name; a number without a name n becomes "type n"."""
        numbers = np.frombuffer(self._type, dtype=np.int64)
        used, place = np.unique(numbers, return_inverse=True)
        words = [_name_of(int(one), names) for one in used]
        has_types = bool((used != NO_TYPE).any())
        share: Float32[np.ndarray, " n"] = np.frombuffer(self._probability, dtype=np.float32).copy()
        share[numbers == NO_TYPE] = np.nan
        has_shares = has_types and bool(np.isfinite(share).any())
        return RawNuclei(
            rings=self._rings.rings(),
            cell_type=tuple(words[one] for one in place) if has_types else None,
            type_probability=share if has_shares else None,
            is_repeat=np.frombuffer(self._is_repeat, dtype=bool),
            **facts,
        )

    def _number_of(self, row: int, value: Any) -> int:  # noqa: ANN401
        number = NO_TYPE if value is None else as_whole(value)
        if number is None:
            raise DataError(
                f"{self._path}: nucleus {row} has type {shown(value)}; wanted a whole number of 0 "
                "or more, or null"
            )
        return number


def read_cellvit(path: Path, slide: Slide, config: NucleiConfig) -> RawNuclei:
    """Read cells.json of CellViT, CellViT++ or CellViT-Inference.

    `bbox` and `offset_global` are not read: the contour is in pixels of the slide already, those
    that CellViT looked at times their size.

    Raises:
        DataError: Outlines are missing, what is said of them is none of what CellViT writes, or
            the file is of a CellViT that, on a slide it read reduced, wrote coordinates which no
            scale mends.
    """
    nuclei = NucleusCollector(path)
    facts: dict[str, Any] = {}
    type_map: list[tuple[Any, Any]] = []
    for place, value in _pieces(path, "cells", "type_map"):
        if len(place) == 1:
            facts[str(place[0])] = value
        elif place[0] == "cells":
            nuclei.add(value)
        else:
            type_map.append((place[1], value))
    meta = facts.get("wsi_metadata") or {}
    if not isinstance(meta, Mapping):
        raise DataError(f"{path}: wsi_metadata is {shown(meta)}; wanted an object")
    if facts.get("type_map") or any(isinstance(key, int) for key, _ in type_map):
        raise DataError(f"{path}: type_map is no object; wanted {MAP_WANTED}")
    is_by_name = any(not key.isdecimal() for key, _ in type_map)  # as the first version wrote it
    if "processed_patches" in facts or (is_by_name and "base_mpp" not in meta):
        _check_not_reduced(path, meta)
    numbered = ((value, key) if is_by_name else (key, value) for key, value in type_map)
    return nuclei.finish(
        names_by_number(path, "type_map", numbered, MAP_WANTED),
        format="cellvit",
        to_um=pixels_to_um(slide, config, MIDDLE_PX * _size_of_pixel(meta)),
        notes=_scale_notes(meta, slide),
    )


def read_hovernet(path: Path, slide: Slide, config: NucleiConfig) -> RawNuclei:
    """Read HoVer-Net's JSON of a slide or of a tile.

    Coordinates are pixels at the objective power `mag` of the file, whose middles are at whole
    numbers. With the slide's power M:

        full-resolution px = (px of the file + 1/2) * M / mag

    `bbox` is not read: in the mode for whole slides it is wrong.

    Raises:
        ConfigError: The file has no power and none is given, or the slide's cannot be told.
        DataError: Broken.
    """
    nuclei = NucleusCollector(path)
    mag: Any = None
    for place, value in _pieces(path, "nuc"):
        if place == ("mag",):
            mag = value
        elif place[0] == "nuc" and len(place) == 2:
            nuclei.add(value, str(place[1]))
        elif isinstance(value, Mapping) and "contour" in value:  # of old: without mag and nuc
            nuclei.add(value, str(place[0]))
    mpp, settings = _hovernet_scale(path, slide, config, mag)
    info = config.type_info
    return nuclei.finish(
        {} if info is None else _names_in(info),
        format="hovernet",
        to_um=scaled(mpp, MIDDLE_PX),
        settings=settings,
        inputs={} if info is None else {"nuclei_type_info": hash_file(info)},
    )


def slide_power(slide: Slide) -> float:
    """The objective power that a slide's µm per pixel stand for: 40 at about 0.25.

    Raises:
        ConfigError: They are far from any.
    """
    exact = POWER_MPP / max(slide.mpp)
    nearest = min(POWERS, key=lambda power: abs(np.log(power / exact)))
    if abs(exact / nearest - 1) > POWER_TOLERANCE:
        raise ConfigError(
            f"slide {slide.slide_id} has {max(slide.mpp):.4g} µm/px, which is no usual objective "
            "power; give slide_mag, the power that HoVer-Net took the slide to have"
        )
    return nearest


def _pieces(path: Path, *keys: str) -> Iterator[tuple[Place, Any]]:
    """The members of the document, and one by one those of some of its members."""

    def opens(place: Place) -> bool:
        return not place or (len(place) == 1 and place[0] in keys)

    with open_text(path) as file:
        yield from JsonStream(file, path).walk(opens)


def _hovernet_scale(
    path: Path,
    slide: Slide,
    config: NucleiConfig,
    mag: Any,  # noqa: ANN401 - as the file has it
) -> tuple[tuple[float, float], dict[str, Any]]:
    """µm per pixel of the file, and what they follow from."""
    if config.mpp is not None:
        return (config.mpp, config.mpp), {}
    stated = None if mag is None else as_real(mag)
    if mag is not None and not (stated and 0 < stated < np.inf):
        raise DataError(
            f"{path}: mag is {shown(mag)}; wanted an objective power such as 40, or null"
        )
    if stated and config.mag and stated != config.mag:
        raise ConfigError(f"{path} says mag {stated:g}, {config.mag:g} is given; leave mag out")
    used = stated or config.mag
    if not used:
        raise ConfigError(
            f"{path} does not say at which objective power it was made (mag is null: a tile); "
            "give mag, or mpp, the µm per pixel of its coordinates"
        )
    power = config.slide_mag or slide_power(slide)
    factor = power / used
    settings = {"mag": float(used), "slide_mag": float(power)}
    return (slide.mpp[0] * factor, slide.mpp[1] * factor), settings


def _check_not_reduced(path: Path, meta: Mapping[str, Any]) -> None:
    """DataError if a version of CellViT that cannot do so read its slide reduced."""
    given = meta.get("downsampling")
    factor = 1.0 if given is None else as_real(given)
    if factor is None or not factor > 0:
        raise DataError(f"{path}: downsampling is {shown(given)}; wanted a number above 0")
    if factor != 1:
        raise DataError(
            f"{path}: CellViT read this slide reduced by {factor:g} and this version of it scales "
            "only the places of its patches, so that no scale brings the contours right; run it "
            "again at the slide's own magnification, or with CellViT-Inference"
        )


def _size_of_pixel(meta: Mapping[str, Any]) -> float:
    """What one pixel that CellViT looked at measures in those of the slide."""
    seen, own = as_real(meta.get("target_patch_mpp")), as_real(meta.get("base_mpp"))
    if not seen or not own or not 0 < seen / own < np.inf:
        return 1.0
    return seen / own


def _scale_notes(meta: Mapping[str, Any], slide: Slide) -> tuple[str, ...]:
    stated = as_real(meta.get("base_mpp"))
    own = max(slide.mpp)
    if stated is None or abs(stated / own - 1) <= MPP_TOLERANCE:
        return ()
    return (
        f"CellViT took the slide to have {stated:g} µm/px, slide {slide.slide_id} has {own:.4g}; "
        "one of the two is wrong, or the file is of another slide",
    )


def _names_in(path: Path) -> dict[int, str]:
    """Names of a type_info.json: number -> [name, colour]."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: pairs)
    except (OSError, ValueError, RecursionError) as fault:
        raise DataError(
            f"{path}: no type_info that can be read ({fault}); wanted {INFO_WANTED}"
        ) from fault
    if not isinstance(record, list) or not all(isinstance(one, tuple) for one in record):
        raise DataError(f"{path}: no type_info, but {shown(record)}; wanted {INFO_WANTED}")
    pairs = (
        (key, entry[0] if isinstance(entry, list) and entry else entry) for key, entry in record
    )
    return names_by_number(path, "type_info", pairs, INFO_WANTED)


def _name_of(number: int, names: Mapping[int, str]) -> str:
    return "" if number == NO_TYPE else names.get(number, f"type {number}")
