"""Outlines as GeoParquet, written and read some thousand cells at a time.

One row a cell: `cell`, its number, and `geometry`, its polygon as WKB, in µm of the slide, without
a CRS. Other programs read it alone (`geopandas.read_parquet`, QGIS). Memory holds one row group.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import shapely
from jaxtyping import Int64
from pyarrow import parquet

from histoscribe.data.cells import Outlines
from histoscribe.data.mapped import release

CELLS_AT_ONCE = 16384
"""Rows of a row group: about 8 MB of polygons, and four times that as objects."""

GEOMETRY = {b"ARROW:extension:name": b"geoarrow.wkb", b"ARROW:extension:metadata": b"{}"}


def write_outlines(outlines: Outlines, path: Path) -> None:
    """Write the outlines of cells; the same outlines give the same bytes."""
    schema = pa.schema(
        [pa.field("cell", pa.int64()), pa.field("geometry", pa.binary(), metadata=GEOMETRY)],
        metadata={"geo": json.dumps(_describe(outlines))},
    )
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, max(len(outlines), 1), CELLS_AT_ONCE):
            number = np.arange(first, min(first + CELLS_AT_ONCE, len(outlines)))
            geometry = pa.array(_to_wkb(outlines, number), pa.binary())
            writer.write_table(pa.Table.from_arrays([pa.array(number), geometry], schema=schema))
            release(outlines.xy_um)


def read_outlines(path: Path) -> Outlines:
    """Read what `write_outlines` wrote, or what GeoPandas did for earlier versions."""
    vertices, sizes = [np.zeros((0, 2), np.float32)], [np.zeros(1, np.int64)]
    for polygons in _read_polygons(path):
        n_vertices = shapely.get_num_coordinates(polygons)
        is_last = np.zeros(int(n_vertices.sum()), dtype=bool)
        is_last[np.cumsum(n_vertices) - 1] = True
        vertices.append(shapely.get_coordinates(polygons)[~is_last].astype(np.float32))
        sizes.append((n_vertices - 1).astype(np.int64))
    return Outlines(np.concatenate(vertices), np.cumsum(np.concatenate(sizes)))


def _read_polygons(path: Path) -> Iterator[np.ndarray]:
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(CELLS_AT_ONCE, columns=["geometry"]):
            yield shapely.from_wkb(batch.column(0).to_numpy(zero_copy_only=False))


def _to_wkb(outlines: Outlines, cells: Int64[np.ndarray, " cell"]) -> np.ndarray:
    """Polygons of consecutive cells."""
    start = outlines.start[cells[0] : cells[-1] + 2] if len(cells) else np.zeros(1, np.int64)
    xy = outlines.xy_um[start[0] : start[-1]].astype(np.float64)
    rings = shapely.linearrings(xy, indices=np.repeat(np.arange(len(cells)), np.diff(start)))
    return np.asarray(shapely.to_wkb(shapely.polygons(rings), byte_order=1), dtype=object)


def _describe(outlines: Outlines) -> dict[str, object]:
    """The record that makes it GeoParquet 1.1."""
    column: dict[str, object] = {"encoding": "WKB", "crs": None, "geometry_types": ["Polygon"]}
    if len(outlines):
        low, high = outlines.xy_um.min(axis=0), outlines.xy_um.max(axis=0)
        column["bbox"] = [*map(float, low), *map(float, high)]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
