"""HEST's GeoParquet of polygons, and Xenium's tables of vertices (parquet, csv or csv.gz)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from jaxtyping import Bool, Float64, Int64

from histoscribe.data.atomic import hash_file
from histoscribe.data.slide import Slide
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.nuclei_config import MIDDLE_PX, NucleiConfig, pixels_to_um, scaled
from histoscribe.readers.packed import open_packed
from histoscribe.readers.rings import RawNuclei, Rings, largest_of, starts
from histoscribe.readers.xenium_alignment import read_alignment

BATCH = 65_536  # polygons decoded together
VERTEX_COLUMNS = ("vertex_x", "vertex_y")
PARQUET = b"PAR1"
BROKEN = (pa.ArrowException, OSError, ValueError, TypeError)
"""What pyarrow raises over pages and columns that are not what they should be."""


def content_of_parquet(path: Path) -> str:
    """Which it is by its columns, "polygons" or "vertices".

    Raises:
        DataError: Neither, or broken.
    """
    names = _open(path).schema_arrow.names
    if all(name in names for name in VERTEX_COLUMNS):
        return "vertices"
    if _geometry_column(path) in names:
        return "polygons"
    raise DataError(
        f"{path}: a table with the columns {', '.join(names[:8])}; wanted polygons (geometry, as "
        "HEST has them) or vertices (cell_id, vertex_x, vertex_y, as Xenium has them)"
    )


def read_geoparquet(path: Path, slide: Slide, config: NucleiConfig) -> RawNuclei:
    """Read polygons in pixels of the full-resolution level: HEST's cellvit_seg and xenium_seg.

    Of a nucleus in several pieces the largest is kept. A coordinate system is not looked at.
    cellvit_seg is told by its class names: its outlines go through the middles of pixels.

    Raises:
        DataError: Broken, or not WKB.
    """
    file, column = _open(path), _geometry_column(path)
    names = file.schema_arrow.names
    wanted = [column, *(name for name in ("class", "cell_id") if name in names)]
    xy, size, owner, classes, ids, n_rows, n_holes = [], [], [], [], [], 0, 0
    try:
        for batch in file.iter_batches(BATCH, columns=wanted):
            parts, part_of = _parts(path, batch.column(column))
            outside = shapely.get_exterior_ring(parts)
            n_holes += int(shapely.get_num_interior_rings(parts).sum())
            xy.append(shapely.get_coordinates(outside))
            size.append(shapely.get_num_coordinates(outside))
            owner.append(part_of + n_rows)
            n_rows += len(batch)
            classes += _column(path, batch, "class") if "class" in names else []
            ids += _column(path, batch, "cell_id") if "cell_id" in names else []
    except BROKEN as fault:
        raise _unreadable(path, fault) from fault
    joined = [np.concatenate(parts) if parts else np.zeros(0) for parts in (size, owner)]
    all_xy = np.concatenate(xy) if xy else np.zeros((0, 2))
    pieces = Rings(all_xy, starts(joined[0].astype(np.int64)))
    rings, row = largest_of(pieces, joined[1].astype(np.int64))
    cell_type = tuple(_class_name(classes[one]) for one in row) if classes else None
    is_cellvit = any(isinstance(one, str) and not one.isdecimal() for one in set(classes))
    return RawNuclei(
        format="hest",
        rings=rings,
        to_um=pixels_to_um(slide, config, MIDDLE_PX if is_cellvit else 0.0),
        cell_type=cell_type if cell_type and any(cell_type) else None,
        is_repeat=_repeats([ids[one] for one in row]) if ids else None,
        dropped={"no polygon": n_rows - len(row)},
        notes=(f"{n_holes} holes of outlines are filled",) if n_holes else (),
    )


def read_vertices(path: Path, slide: Slide, config: NucleiConfig) -> RawNuclei:
    """Read Xenium's boundaries: one row a vertex, in µm of the morphology image.

    Polygons are told by `label_id`, or by `cell_id` where that is missing. The rows of one stand
    together; one that closes before its rows end is followed by another of the same cell.

    Raises:
        ConfigError: It is not said how the morphology image lies on the slide.
        DataError: Broken, or its rows are not in order.
        MismatchError: The alignment is of another slide.
    """
    to_um, settings = _xenium_frame(path, slide, config)
    alignment = config.alignment
    inputs = {} if alignment is None else {"nuclei_alignment": hash_file(alignment)}
    table = _vertices(path)
    xy = np.stack([_floats(path, table, name) for name in VERTEX_COLUMNS], axis=1)
    key = "label_id" if "label_id" in table.column_names else "cell_id"
    if key not in table.column_names:
        raise DataError(f"{path}: no column cell_id; wanted cell_id, vertex_x, vertex_y")
    code = _codes(path, table, key)
    first = np.flatnonzero(np.concatenate([[True], np.diff(code) != 0])) if len(code) else code
    rings = Rings(xy, starts(np.diff(np.append(first, len(code)))))
    name = code[first]
    if len(name) > 2 * len(np.unique(name)):
        raise DataError(
            f"{path}: the rows of a polygon do not stand together ({len(name)} runs of "
            f"{len(np.unique(name))} {key}); wanted them in the order in which Xenium writes them"
        )
    is_repeat = np.ones(len(name), dtype=bool)
    is_repeat[np.unique(name, return_index=True)[1]] = False
    run = np.arange(len(name))
    if key == "cell_id":  # a label is one polygon, a cell may have several nuclei
        rings, run = split_closed(rings)
    return RawNuclei(
        format="xenium",
        rings=rings,
        to_um=to_um,
        settings=settings,
        inputs=inputs,
        is_repeat=is_repeat[run],
    )


def split_closed(rings: Rings) -> tuple[Rings, Int64[np.ndarray, " ring"]]:
    """Runs of vertices in which one closed ring follows another, taken apart.

    Returns:
        The rings, and of which run each is.
    """
    size = np.diff(rings.start)
    origin = np.repeat(rings.xy[rings.start[:-1][size > 0]], size[size > 0], axis=0)
    is_back = np.all(rings.xy == origin, axis=1)
    n_back = np.concatenate([[0], np.cumsum(is_back)])
    n_back = n_back[rings.start[1:]] - n_back[rings.start[:-1]]
    closes = np.zeros(len(size), dtype=bool)
    closes[size > 0] = is_back[rings.start[1:][size > 0] - 1]
    # One return at its last vertex is a ring; any other return is the end of one of several.
    odd = np.flatnonzero((n_back > 1) & ~((n_back == 2) & closes))
    if not len(odd):
        return rings, np.arange(len(size))
    cuts = [rings.start]
    for run in odd:
        cuts.append(np.array(_ends(rings, int(run)), dtype=np.int64))
    start = np.unique(np.concatenate(cuts))
    return Rings(rings.xy, start), np.searchsorted(rings.start, start[:-1], side="right") - 1


def _ends(rings: Rings, run: int) -> list[int]:
    """Where the closed rings of a run end."""
    ends, at, last = [], int(rings.start[run]), int(rings.start[run + 1])
    while at < last:
        same = np.flatnonzero(np.all(rings.xy[at + 1 : last] == rings.xy[at], axis=1))
        same = same[same >= 2]  # a repeated first vertex closes nothing
        if not len(same):
            break
        at += int(same[0]) + 2
        ends.append(at)
    return ends


def _xenium_frame(
    path: Path, slide: Slide, config: NucleiConfig
) -> tuple[Float64[np.ndarray, "2 3"], dict[str, Any]]:
    if config.alignment is not None:
        to_px, facts = read_alignment(config.alignment, path, slide)
        return np.array(slide.mpp)[:, None] * to_px, facts
    if config.mpp is not None:
        return scaled((config.mpp, config.mpp)), {}
    if config.is_aligned:
        return scaled((1.0, 1.0)), {"is_aligned": True}
    raise ConfigError(
        f"{path}: Xenium's µm are those of the morphology image, and nothing says how slide "
        f"{slide.slide_id} lies on it; give alignment (..._he_imagealignment.csv), or is_aligned "
        "if the slide is in that frame"
    )


def _vertices(path: Path) -> pa.Table:
    """The columns that matter, of parquet or CSV."""
    with open_packed(path) as file:
        is_parquet = file.read(len(PARQUET)) == PARQUET
    wanted = ("label_id", *VERTEX_COLUMNS)
    try:
        if is_parquet:
            names = _open(path).schema_arrow.names
            used = [name for name in wanted if name in names]
            used += ["cell_id"] if "label_id" not in names and "cell_id" in names else []
            return pq.read_table(path, columns=used)
        from pyarrow import csv

        with open_packed(path) as file:
            header = file.readline().decode("utf-8-sig")
        names = [name.strip().strip('"') for name in header.split(",")]
        used = [name for name in wanted if name in names]
        used += ["cell_id"] if "label_id" not in names and "cell_id" in names else []
        types: dict[str, pa.DataType] = dict.fromkeys(VERTEX_COLUMNS, pa.float64())
        types["cell_id"] = pa.dictionary(pa.int32(), pa.string())
        with open_packed(path) as file:
            return csv.read_csv(
                file,
                convert_options=csv.ConvertOptions(include_columns=used, column_types=types),
            )
    except BROKEN as fault:
        raise _unreadable(path, fault) from fault


def _codes(path: Path, table: pa.Table, key: str) -> Int64[np.ndarray, " vertex"]:
    """A column as numbers: those of its dictionary where it holds names."""
    column = table.column(key)
    if column.null_count:
        raise DataError(f"{path}: {column.null_count} rows have no {key}; wanted one in each")
    if pa.types.is_integer(column.type):
        return column.to_numpy().astype(np.int64)
    try:
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        column = column.unify_dictionaries()
    except BROKEN as fault:
        raise _unreadable(path, fault) from fault
    chunks = [chunk.indices.to_numpy() for chunk in column.chunks]
    return np.concatenate([np.zeros(0, np.int64), *chunks]).astype(np.int64)


def _floats(path: Path, table: pa.Table, name: str) -> Float64[np.ndarray, " vertex"]:
    if name not in table.column_names:
        raise DataError(f"{path}: no column {name}; wanted cell_id, vertex_x, vertex_y")
    column = table.column(name)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{path}: {name} is of type {column.type}; wanted numbers, in µm")
    return column.to_numpy().astype(np.float64)


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
        file.schema_arrow.names  # noqa: B018 - decoded here, so that a broken one is told here
    except BROKEN as fault:
        raise _unreadable(path, fault) from fault
    return file


def _geometry_column(path: Path) -> str:
    """The column that GeoParquet's own record names, else "geometry"."""
    metadata = _open(path).schema_arrow.metadata or {}
    try:
        record = json.loads(metadata.get(b"geo", b"{}"))
        column = record.get("primary_column", "geometry")
        encoding = record.get("columns", {}).get(column, {}).get("encoding", "WKB")
    except (ValueError, AttributeError, TypeError, RecursionError) as fault:
        raise _unreadable(path, fault) from fault
    if encoding != "WKB":
        raise DataError(f"{path}: its geometry is in {encoding}; wanted WKB: write it so")
    return column


def _parts(path: Path, column: pa.Array) -> tuple[np.ndarray, Int64[np.ndarray, " part"]]:
    """The polygons of a column, those in pieces taken apart, and their rows."""
    try:
        shapes = shapely.from_wkb(column.to_numpy(zero_copy_only=False))
    except (shapely.errors.GEOSException, TypeError) as fault:
        raise _unreadable(path, fault) from fault
    parts, row = shapely.get_parts(shapes, return_index=True)
    is_polygon = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    is_polygon &= ~shapely.is_empty(parts)
    return parts[is_polygon], row[is_polygon].astype(np.int64)


def _column(path: Path, batch: pa.RecordBatch, name: str) -> list[Any]:
    """Names, whole numbers or None."""
    column = batch.column(name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_name = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
    if not (is_name or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise DataError(f"{path}: {name} is of type {kind}; wanted names or whole numbers")
    values = column.to_pylist()
    return [one.decode() if isinstance(one, bytes) else one for one in values]


def _class_name(value: str | int | None) -> str:
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else f"type {value}"


def _repeats(ids: list[Any]) -> Bool[np.ndarray, " nucleus"]:
    """Which ids stood there before."""
    seen: set[Any] = set()
    repeats = np.zeros(len(ids), dtype=bool)
    for row, one in enumerate(ids):
        repeats[row] = one is not None and one in seen
        seen.add(one)
    return repeats


def _unreadable(path: Path, fault: Exception) -> DataError:
    text = " ".join(str(fault).split())[:200]
    return DataError(f"{path}: cannot be read as a table of outlines ({text}); copy it again")
