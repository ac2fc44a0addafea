"""Nuclei that another program found, whatever it wrote: read, checked, brought to the slide.

| format | files | coordinates |
|---|---|---|
| cellvit | CellViT, CellViT++, CellViT-Inference: cells.json, cells.geojson | full-resolution px |
| hovernet | HoVer-Net: JSON of a slide or a tile | px at the objective power `mag` |
| hest | HEST-1k: cellvit_seg and xenium_seg, parquet or GeoJSON | full-resolution px |
| qupath | QuPath and what writes its GeoJSON | full-resolution px |
| xenium | Xenium: nucleus_boundaries, cell_boundaries, parquet or csv.gz | µm, morphology image |
| labels | label image: TIFF, PNG, npy | px of that image |

JSON, GeoJSON and CSV may be packed with gzip, zip (one file) or Snappy. Nothing is unpickled.
"""

import logging
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from histoscribe.data.atomic import hash_file
from histoscribe.data.cells import Outlines
from histoscribe.data.nuclei import GivenNuclei, centroid_key
from histoscribe.data.provenance import Provenance
from histoscribe.data.slide import Slide
from histoscribe.errors import DataError
from histoscribe.readers.json_stream import JsonStream
from histoscribe.readers.nuclei_config import NucleiConfig
from histoscribe.readers.packed import open_text, read_head
from histoscribe.readers.report import NucleiReport
from histoscribe.readers.rings import (
    RawNuclei,
    Rings,
    drop_repeats,
    is_finite,
    measure_rings,
    mend_rings,
)

LOG = logging.getLogger(__name__)
MAX_OFF_SLIDE = 0.01  # share of centroids; a few astride the edge are no fault, a wrong scale is

READERS = {
    "cellvit": "histoscribe.readers.nuclei_json:read_cellvit",
    "hovernet": "histoscribe.readers.nuclei_json:read_hovernet",
    "geojson": "histoscribe.readers.nuclei_geojson:read_geojson",
    "polygons": "histoscribe.readers.nuclei_parquet:read_geoparquet",
    "vertices": "histoscribe.readers.nuclei_parquet:read_vertices",
    "labels": "histoscribe.readers.nuclei_labels:read_labels",
}
"""content -> "module:function", imported when needed."""

FORMATS_OF = {
    "cellvit": ("cellvit",),
    "hovernet": ("hovernet",),
    "geojson": ("qupath", "cellvit", "hest"),
    "polygons": ("hest",),
    "vertices": ("xenium",),
    "labels": ("labels",),
}
"""content -> the formats that may have it."""

SIGNATURES = {
    b"PAR1": "parquet",
    b"\x93NUMPY": "labels",
    b"\x89PNG": "labels",
    b"II*\0": "labels",
    b"MM\0*": "labels",
    b"II+\0": "labels",
    b"MM\0+": "labels",
    b"{": "json",
    b"[": "json",
}


def read_nuclei(
    path: str | Path,
    slide: Slide,
    config: NucleiConfig | None = None,
    scratch: Path | None = None,
) -> tuple[GivenNuclei, NucleiReport]:
    """Read the nuclei of a slide.

    CellViT, HoVer-Net and HEST's cellvit_seg trace through the middles of border pixels and call
    the middle of the slide's first pixel (0, 0): half a pixel of theirs is added, so that a nucleus
    lies where its mask does. It stays one pixel less wide and high than the mask, half a pixel on
    each side, and its area is that of the contour. Labels have the area of their pixels.

    Args:
        path: The file; its format is told by its content.
        slide: The slide they are of, with the right scale.
        config: What the file does not say of itself.
        scratch: Folder in which a label image is unpacked, to a file without a name that is gone
            when it was read; the system's folder for such files if None.

    Returns:
        The nuclei, in the order of the file, and what was left out and why.

    Raises:
        ConfigError: The file needs something that was not given (scale, alignment), or has no use
            for something that was.
        DataError: Missing, broken, of no known format, without nuclei, or with more than 1 % of
            them outside the slide.
        MismatchError: The file belongs to another slide.
        MissingExtra: The disk has no room to unpack a label image.
    """
    path, config = Path(path), config or NucleiConfig()
    content = content_of(path)
    if config.format is not None and config.format not in FORMATS_OF[content]:
        raise DataError(
            f"{path}: format {config.format} was asked, its content is that of "
            f"{' or '.join(FORMATS_OF[content])}; leave the format out"
        )
    config.check_used(FORMATS_OF[content])
    module, function = READERS[content].split(":")
    reader: Callable[..., RawNuclei] = getattr(import_module(module), function)
    raw = reader(path, slide, config, *((scratch,) if content == "labels" else ()))
    given, report = settle(raw, path, slide)
    for note in report.notes:
        LOG.warning("%s: %s", path, note)
    return given, report


def content_of(path: Path) -> str:
    """Which reader of `READERS` the file is for, by its content.

    Raises:
        DataError: Missing, empty, or none of them.
    """
    head = read_head(path)
    kind = next((kind for sign, kind in SIGNATURES.items() if head.startswith(sign)), None)
    if kind == "labels":
        return kind
    if kind == "parquet":
        from histoscribe.readers.nuclei_parquet import content_of_parquet

        return content_of_parquet(path)
    if kind == "json":
        return _content_of_json(path)
    if b"vertex_x" in head:
        return "vertices"
    came = "empty" if not head else f"begins with {head[:12]!r}"
    if head.startswith((b"\x80", b"\xac\xed")):
        came = "a pickle or serialised object, which is never read"
    raise DataError(
        f"{path}: no format of nuclei that is known ({came}); wanted JSON, GeoJSON, parquet, "
        "boundaries as CSV with vertex_x and vertex_y, or a label image as TIFF, PNG or npy"
    )


def _content_of_json(path: Path) -> str:
    with open_text(path) as file:
        for place, value in JsonStream(file, path).walk(_opens_two):
            if kind := _kind_of_piece(place, value):
                return kind
    raise DataError(
        f"{path}: JSON without nuclei that are known; wanted 'cells' and 'type_map' (CellViT), "
        "'nuc' (HoVer-Net) or GeoJSON features"
    )


def _opens_two(place: tuple[str | int, ...]) -> bool:
    return place in ((), ("cells",), ("nuc",), ("features",)) or (
        len(place) == 1 and isinstance(place[0], int)
    )


def _kind_of_piece(place: tuple[str | int, ...], value: Any) -> str | None:  # noqa: ANN401
    """What a first piece of a JSON says of its format, if anything."""
    if place == ():
        return "geojson" if value == [] else None
    if isinstance(place[0], int):
        return "geojson" if place[1:2] in (("type",), ("geometry",), ("properties",)) else None
    keys = {"cells": "cellvit", "wsi_metadata": "cellvit", "type_map": "cellvit"}
    keys |= {"nuc": "hovernet", "mag": "hovernet"}
    keys |= dict.fromkeys(("features", "geometry", "properties", "crs"), "geojson")
    if place[0] == "type" and value in ("FeatureCollection", "Feature"):
        return "geojson"
    if isinstance(value, dict) and "contour" in value and len(place) == 1:
        return "hovernet"  # of old: the nuclei alone
    return keys.get(place[0])


class Placed(NamedTuple):
    """Rings in µm with what was measured of them, and which nuclei of the file they are."""

    rings: Rings
    xy_um: Float32[np.ndarray, "nucleus 2"]
    area_um2: Float32[np.ndarray, " nucleus"]
    row: Int64[np.ndarray, " nucleus"]
    n_mended: int


def settle(raw: RawNuclei, path: Path, slide: Slide) -> tuple[GivenNuclei, NucleiReport]:
    """What a format gave, as nuclei that hold up, with an account of the rest.

    Raises:
        DataError: None is left, or more than 1 % are off the slide.
    """
    dropped = Counter(raw.dropped)
    n_listed = len(raw.rings.start) - 1 + sum(dropped.values())
    placed = _drop_off_slide(_place(raw, dropped), path, slide, dropped)
    if not len(placed.row):
        told = ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "it lists none"
        raise DataError(
            f"{path}: no nuclei ({told}); wanted polygons of nuclei of {slide.slide_id}"
        )
    settings = {"format": raw.format, "to_um": raw.to_um.tolist(), **raw.settings}
    types = raw.cell_type
    given = GivenNuclei(
        slide_id=slide.slide_id,
        outlines=Outlines(placed.rings.xy.astype(np.float32), placed.rings.start),
        xy_um=placed.xy_um,
        area_um2=placed.area_um2,
        source=raw.format,
        provenance=Provenance(
            f"histoscribe {version('histoscribe')} read_nuclei",
            settings,
            {"nuclei": hash_file(path), **raw.inputs},
        ),
        cell_type=None if types is None else tuple(types[row] for row in placed.row),
        type_probability=None if raw.type_probability is None else raw.type_probability[placed.row],
    )
    report = NucleiReport(
        format=raw.format,
        n_listed=n_listed,
        n_kept=len(given),
        dropped=dict(dropped),
        n_mended=placed.n_mended,
        classes=dict(Counter(given.cell_type or ()).most_common()),
        median_area_um2=float(np.median(given.area_um2)),
        notes=raw.notes,
    )
    return given, report


def _place(raw: RawNuclei, dropped: Counter[str]) -> Placed:
    """The sound ones in µm, in the order of the file."""
    rings = Rings(_apply(raw.to_um, raw.rings.xy), raw.rings.start)
    row = np.arange(len(rings.start) - 1)
    rings, row = _keep(rings, row, is_finite(rings), "not finite", dropped)
    rings = drop_repeats(rings)
    is_ring = np.diff(rings.start) >= 3
    rings, row = _keep(rings, row, is_ring, "fewer than 3 vertices", dropped)
    rings, n_mended = mend_rings(rings)
    is_ring = np.diff(rings.start) >= 3
    rings, row = _keep(rings, row, is_ring, "no area", dropped)
    area, centre = measure_rings(rings)
    if raw.centroid is not None:
        centre = _apply(raw.to_um, raw.centroid[row])
    if raw.area is not None:
        area = raw.area[row] * np.linalg.det(raw.to_um[:, :2])
    xy_um, area_um2 = centre.astype(np.float32), np.abs(area).astype(np.float32)
    kept = np.flatnonzero(area_um2 > 0)
    dropped["no area"] += len(row) - len(kept)
    if raw.is_repeat is not None:
        sound = kept[~raw.is_repeat[row[kept]]]
        dropped["repeated id"] += len(kept) - len(sound)
        kept = sound
    first = np.sort(np.unique(centroid_key(xy_um[kept]), return_index=True)[1])
    dropped["repeated outline"] += len(kept) - len(first)
    kept = kept[first]
    return Placed(rings.take(kept), xy_um[kept], area_um2[kept], row[kept], n_mended)


def _keep(
    rings: Rings,
    row: Int64[np.ndarray, " ring"],
    is_kept: Bool[np.ndarray, " ring"],
    reason: str,
    dropped: Counter[str],
) -> tuple[Rings, Int64[np.ndarray, " kept"]]:
    """Those that are kept; the others are counted."""
    if is_kept.all():
        return rings, row
    kept = np.flatnonzero(is_kept)
    dropped[reason] += len(row) - len(kept)
    return rings.take(kept), row[kept]


def _drop_off_slide(placed: Placed, path: Path, slide: Slide, dropped: Counter[str]) -> Placed:
    """Without those whose centroid is outside, if they are few."""
    size_um = np.array(slide.size_px) * np.array(slide.mpp)
    is_on = np.all((placed.xy_um >= 0) & (placed.xy_um < size_um), axis=1)
    n_off = int((~is_on).sum())
    if n_off > MAX_OFF_SLIDE * len(is_on):
        raise DataError(_off_slide(placed.xy_um, size_um, n_off, path, slide))
    dropped["off the slide"] += n_off
    for reason in [reason for reason, n in dropped.items() if not n]:
        del dropped[reason]
    if not n_off:
        return placed
    kept = np.flatnonzero(is_on)
    return Placed(
        placed.rings.take(kept),
        placed.xy_um[kept],
        placed.area_um2[kept],
        placed.row[kept],
        placed.n_mended,
    )


def _off_slide(
    xy_um: Float32[np.ndarray, "nucleus 2"],
    size_um: Float64[np.ndarray, "2"],
    n_off: int,
    path: Path,
    slide: Slide,
) -> str:
    """The fault, and which of the usual mistakes would explain it."""
    far = np.quantile(xy_um, 0.999, axis=0)
    low = np.quantile(xy_um, 0.001, axis=0)
    why = "the scale is wrong (mpp or mag), or the file is of another slide"
    if np.all(far[::-1] <= size_um) and np.all(low >= 0):
        why = "x and y look swapped: wanted x first"
    elif np.all(low >= 0):
        why = (
            f"they reach {float((far / size_um).max()):.3g} times as far as the slide: give the "
            "right scale of the file (mpp, or mag and slide_mag), or the slide it is of"
        )
    return (
        f"{path}: {n_off} of {len(xy_um)} nuclei are outside slide {slide.slide_id} of "
        f"{size_um[0]:.0f} x {size_um[1]:.0f} µm, at most {100 * MAX_OFF_SLIDE:g} % may be; {why}"
    )


def _apply(to_um: Float64[np.ndarray, "2 3"], xy: Float64[np.ndarray, "n 2"]) -> np.ndarray:
    um = xy @ to_um[:, :2].T
    um += to_um[:, 2]
    return um
