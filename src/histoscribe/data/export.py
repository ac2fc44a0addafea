"""Nouns for other programs: GeoJSON for QuPath, AnnData for scanpy."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoscribe.data.annotation import Annotation
from histoscribe.data.atomic import replacing
from histoscribe.data.cells import Cells
from histoscribe.data.prediction import Prediction
from histoscribe.errors import ConfigError, DataError

if TYPE_CHECKING:
    from anndata import AnnData


PROBABILITY = "Type probability"
"""The measurement that holds `type_probability`."""

DISC_VERTICES = 32
"""A polygon of so many corners covers 99.4 % of its disc."""


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
    _write_features(_features(cells, np.array([1.0, 1.0] if mpp is None else mpp)), path)


def annotation_to_geojson(
    annotation: Annotation,
    path: Path,
    mpp: tuple[float, float] | None = None,
    cells: Cells | None = None,
) -> None:
    """Write what was said of the units of one slide: their label is the classification.

    Regions are discs (annotations of QuPath) with the score and probability of every term as
    measurements; those without a nucleus are left out. Cells are detections, with the probability
    of their label; "unsure" is a class of its own.

    Args:
        annotation: Of one slide.
        path: The file to write.
        mpp: As `cells_to_geojson` has it.
        cells: The slide's cells, where cells were annotated: their polygons are what is written.

    Raises:
        ConfigError: Whole samples, which have no place; cells that were not given; or no scale.
        DataError: Units of several slides, or other cells than were annotated.
    """
    if annotation.kind == "bulk":
        raise ConfigError("whole samples have no place on a slide; annotate regions or cells")
    if len(set(annotation.slide_id)) > 1:
        raise DataError("units of several slides cannot share a GeoJSON; take one slide")
    if annotation.kind != "cell":
        if mpp is not None and not min(mpp) > 0:
            raise ConfigError(f"mpp = {mpp}; give µm per pixel, (x, y)")
        scale = np.array([1.0, 1.0] if mpp is None else mpp)
        _write_features(_discs(annotation, scale), path)
        return
    if cells is None:
        raise ConfigError("cells were annotated; give them, so that their outlines can be written")
    if not np.array_equal(cells.xy_um, annotation.xy_um):
        raise DataError(f"the cells of {cells.slide_id} are not those that were annotated")
    labelled = changed(
        cells,
        cell_type=annotation.label,
        type_probability=annotation.label_probability.clip(0, 1),
    )
    cells_to_geojson(labelled, path, mpp)


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


def _write_features(features: Iterable[dict[str, Any]], path: Path) -> None:
    with replacing(path) as (new,), new.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for number, feature in enumerate(features):
            file.write(("," if number else "") + "\n" + json.dumps(feature, separators=(",", ":")))
        file.write("\n]}\n")


def _discs(annotation: Annotation, scale: np.ndarray) -> Iterator[dict[str, Any]]:
    angle = np.linspace(0, 2 * np.pi, DISC_VERTICES, endpoint=False)
    ring = annotation.radius_um * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    for row in np.flatnonzero(annotation.is_said):
        corners = _rounded((annotation.xy_um[row] + ring) / scale)
        measured = {}
        for term, name in enumerate(annotation.terms):
            measured[f"Score: {name}"] = round(float(annotation.score[row, term]), 6)
            measured[f"Probability: {name}"] = round(float(annotation.probability[row, term]), 6)
        if np.isfinite(annotation.uncertainty[row]):
            measured["Uncertainty"] = round(float(annotation.uncertainty[row]), 6)
        yield {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*corners, corners[0]]]},
            "properties": {
                "objectType": "annotation",
                "name": annotation.unit_id[row],
                "classification": {"name": annotation.label[row]},
                "measurements": measured,
            },
        }


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
