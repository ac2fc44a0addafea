"""CellViT's and HoVer-Net's JSON: a record a nucleus, with contour, type and share of its vote."""

import json
import logging
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from histoscribe.data.slide import Slide
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.json_stream import JsonStream, Place
from histoscribe.readers.nuclei_config import NucleiConfig, pixels_to_um, scaled
from histoscribe.readers.packed import open_text
from histoscribe.readers.rings import RawNuclei, RingCollector

LOG = logging.getLogger(__name__)
NO_TYPE = -1
POWERS = (2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
POWER_MPP = 10.0  # µm/px times objective power: 0.25 at 40x
POWER_TOLERANCE = 0.2  # scanners called 40x have 0.22 to 0.28 µm/px
MPP_TOLERANCE = 0.1


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
            held = ", ".join(record) if isinstance(record, Mapping) else repr(record)[:60]
            raise DataError(
                f"{self._path}: nucleus {len(self._rings)} has no contour (it has {held}); wanted "
                "outlines: give cells.json, not cell_detection.json"
            )
        self._rings.add(record["contour"])
        self._type.append(self._number_of(record.get("type")))
        share = record.get("type_prob")
        # A share of the votes is never 0: CellViT's token classifier cuts it off to whole numbers.
        self._probability.append(share if isinstance(share, int | float) and share else np.nan)
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

    def _number_of(self, value: Any) -> int:  # noqa: ANN401
        if value is None:
            return NO_TYPE
        try:
            exact = float(value)
        except (TypeError, ValueError):
            exact = np.nan
        if not (exact >= 0 and exact.is_integer()):
            raise DataError(
                f"{self._path}: nucleus {len(self._rings) - 1} has type {value!r}; wanted a whole "
                "number of 0 or more, or null"
            )
        return int(exact)


def read_cellvit(path: Path, slide: Slide, config: NucleiConfig) -> RawNuclei:
    """Read cells.json of CellViT, CellViT++ or CellViT-Inference.

    `bbox` and `offset_global` are not read: the contour is in pixels of the slide already.

    Raises:
        DataError: Outlines are missing, or the file is of a CellViT that, on a slide it read
            reduced, wrote coordinates which no scale mends.
    """
    nuclei = NucleusCollector(path)
    facts: dict[str, Any] = {}
    for place, value in _pieces(path, "cells"):
        if place[0] == "cells":
            if len(place) == 2:
                nuclei.add(value)
        else:
            facts[str(place[0])] = value
    meta = facts.get("wsi_metadata") or {}
    type_map = facts.get("type_map") or {}
    is_first = "processed_patches" in facts or (_is_by_name(type_map) and "base_mpp" not in meta)
    if is_first and float(meta.get("downsampling") or 1) != 1:
        raise DataError(
            f"{path}: CellViT read this slide reduced by {meta['downsampling']} and this version "
            "of it scales only the places of its patches, so that no scale brings the contours "
            "right; run it again at the slide's own magnification, or with CellViT-Inference"
        )
    return nuclei.finish(
        _cellvit_names(path, type_map),
        format="cellvit",
        to_um=pixels_to_um(slide, config),
        notes=_scale_notes(meta, slide),
    )


def read_hovernet(path: Path, slide: Slide, config: NucleiConfig) -> RawNuclei:
    """Read HoVer-Net's JSON of a slide or of a tile.

    Coordinates are pixels at the objective power `mag` of the file. With the slide's power M:

        full-resolution px = px of the file * M / mag

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
    to_um, settings = _hovernet_scale(path, slide, config, mag)
    return nuclei.finish(
        {} if config.type_info is None else _names_in(config.type_info),
        format="hovernet",
        to_um=to_um,
        settings=settings,
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


def _pieces(path: Path, key: str) -> Any:  # noqa: ANN401 - an iterator of places and values
    def opens(place: Place) -> bool:
        return place in ((), (key,))

    with open_text(path) as file:
        yield from JsonStream(file, path).walk(opens)


def _hovernet_scale(
    path: Path,
    slide: Slide,
    config: NucleiConfig,
    mag: Any,  # noqa: ANN401 - as the file has it
) -> tuple[Float64[np.ndarray, "2 3"], dict[str, Any]]:
    if config.mpp is not None:
        return scaled((config.mpp, config.mpp)), {}
    if mag is not None and not (isinstance(mag, int | float) and 0 < mag < np.inf):
        raise DataError(f"{path}: mag is {mag!r}; wanted an objective power such as 40, or null")
    if mag and config.mag and mag != config.mag:
        raise ConfigError(f"{path} says mag {mag:g}, {config.mag:g} is given; leave mag out")
    used = mag or config.mag
    if not used:
        raise ConfigError(
            f"{path} does not say at which objective power it was made (mag is null: a tile); "
            "give mag, or mpp, the µm per pixel of its coordinates"
        )
    power = config.slide_mag or slide_power(slide)
    factor = power / used
    settings = {"mag": float(used), "slide_mag": float(power)}
    return scaled((slide.mpp[0] * factor, slide.mpp[1] * factor)), settings


def _scale_notes(meta: Mapping[str, Any], slide: Slide) -> tuple[str, ...]:
    stated = meta.get("base_mpp")
    own = max(slide.mpp)
    if not isinstance(stated, int | float) or abs(stated / own - 1) <= MPP_TOLERANCE:
        return ()
    return (
        f"CellViT took the slide to have {stated:g} µm/px, slide {slide.slide_id} has {own:.4g}; "
        "one of the two is wrong, or the file is of another slide",
    )


def _is_by_name(type_map: Mapping[str, Any]) -> bool:
    """Whether a map leads from names to numbers, as CellViT's first version writes it."""
    return bool(type_map) and not all(key.isdecimal() for key in type_map)


def _cellvit_names(path: Path, type_map: Mapping[str, Any]) -> dict[int, str]:
    try:
        if _is_by_name(type_map):
            return {int(number): name.strip() for name, number in type_map.items()}
        return {int(number): str(name).strip() for number, name in type_map.items()}
    except (TypeError, ValueError, AttributeError) as fault:
        raise DataError(
            f"{path}: type_map is {str(type_map)[:80]}; wanted names and whole numbers"
        ) from fault


def _names_in(path: Path) -> dict[int, str]:
    """Names of a type_info.json: number -> [name, colour]."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {
            int(number): str(entry[0] if isinstance(entry, list) else entry).strip()
            for number, entry in record.items()
        }
    except (OSError, ValueError, AttributeError, IndexError) as fault:
        raise DataError(
            f"{path}: no type_info that can be read ({fault}); wanted JSON such as "
            '{"1": ["neopla", [255, 0, 0]]}'
        ) from fault


def _name_of(number: int, names: Mapping[int, str]) -> str:
    return "" if number == NO_TYPE else names.get(number, f"type {number}")
