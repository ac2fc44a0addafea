"""Nouns for other programs: GeoJSON for QuPath, AnnData for scanpy."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoscribe.data.atomic import replacing
from histoscribe.data.cells import Cells
from histoscribe.data.prediction import Prediction
from histoscribe.errors import ConfigError, DataError

if TYPE_CHECKING:
    from anndata import AnnData


PROBABILITY = "Type probability"
"""The measurement that holds `type_probability`."""


def cells_to_geojson(cells: Cells, path: Path, mpp: tuple[float, float] | None = None) -> None:
    """Write one feature a cell: its polygon, or its centroid where no outline is known.

    Each is a detection of QuPath; its cell type, where it has one, is the classification. What is
    written in pixels `read_nuclei` reads back.

    Args:
        cells: Cells of one slide.
        path: The file to write.
        mpp: µm per pixel (x, y) of the slide. With it coordinates are pixels of the
            full-resolution level, which is what QuPath expects; without it they are µm.
    """
    if mpp is not None and not min(mpp) > 0:
        raise ConfigError(f"mpp = {mpp}; give µm per pixel, (x, y)")
    scale = np.array([1.0, 1.0] if mpp is None else mpp)
    with replacing(path) as (new,), new.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for number, feature in enumerate(_features(cells, scale)):
            file.write(("," if number else "") + "\n" + json.dumps(feature, separators=(",", ":")))
        file.write("\n]}\n")


def prediction_to_anndata(prediction: Prediction, path: Path | None = None) -> "AnnData":
    """The prediction as AnnData, with `obsm["spatial"]` in µm as scanpy and squidpy expect it.

    Rows without a prediction (no cells) are left out, and counted in `uns["n_without_cells"]`.

    Args:
        prediction: What a model said.
        path: Where to write it as .h5ad too; nowhere by default.
    """
    from histoscribe.data.tables import prediction_as_table

    table = prediction_as_table(prediction)
    table.obsm["spatial"] = np.asarray(prediction.xy_um)
    has_cells = ~np.isnan(prediction.mean).all(axis=1)
    table = table[has_cells].copy()
    table.uns["n_without_cells"] = int((~has_cells).sum())
    if path is not None:
        if path.suffix != ".h5ad":
            raise DataError(f"{path} does not end in .h5ad; give a path that does")
        with replacing(path) as (new,):
            table.write_h5ad(new)
    return table


def _features(cells: Cells, scale: np.ndarray) -> Iterator[dict[str, Any]]:
    for row in range(len(cells)):
        measured = {"Nucleus area µm^2": round(float(cells.area_um2[row]), 3)}
        if cells.type_probability is not None and np.isfinite(cells.type_probability[row]):
            measured[PROBABILITY] = round(float(cells.type_probability[row]), 6)
        properties: dict[str, Any] = {"objectType": "detection", "measurements": measured}
        if cells.cell_type is not None and cells.cell_type[row]:
            properties["classification"] = {"name": cells.cell_type[row]}
        yield {
            "type": "Feature",
            "geometry": _geometry(cells, row, scale),
            "properties": properties,
        }


def _geometry(cells: Cells, row: int, scale: np.ndarray) -> dict[str, Any]:
    if cells.outlines is None:
        return {"type": "Point", "coordinates": _rounded(cells.xy_um[row] / scale)}
    first, last = cells.outlines.start[row : row + 2]
    ring = _rounded(cells.outlines.xy_um[first:last] / scale)
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def _rounded(xy: np.ndarray) -> list[Any]:
    return np.round(xy.astype(np.float64), 3).tolist()
