"""Spots in one AnnData file: counts in X, full-resolution pixels in obsm["spatial"]."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from scipy.sparse import csr_array, issparse

from histoscribe import __version__
from histoscribe.data.atomic import hash_file
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions
from histoscribe.data.slide import Slide
from histoscribe.errors import DataError
from histoscribe.readers import lattice
from histoscribe.readers.counts import checked_counts, distinct, gene_panel
from histoscribe.readers.report import ReadReport
from histoscribe.readers.section import (
    VISIUM,
    Origin,
    SpotCounts,
    SpotPlaces,
    SpotSizes,
    make_regions,
)


def read_spot_table(
    table: Path,
    slide: Slide,
    *,
    sample_id: str,
    patient_id: str,
    sizes: SpotSizes = VISIUM,
) -> tuple[Regions, ReadReport]:
    """Read one section from an .h5ad.

    Ensembl ids are taken from var["gene_ids"] where it is there (Scanpy's name for them), with
    the index as symbols; else the index names the genes.

    Args:
        table: Whole counts in X; obsm["spatial"] holds x, y in pixels of the full image.
        slide: The slide; its mpp is held against the spots' distances.
        sample_id: Name of the section; the regions' slide_id is the slide's.
        patient_id: What splits are made by.
        sizes: Spot diameter and pitch (Visium by default), and the least counts of a spot.

    Raises:
        DataError: Anything in the file that does not hold up.
    """
    lattice.check_sizes(sizes.diameter_um, sizes.pitch_um)
    data = _open(table)
    names = tuple(str(name) for name in data.obs_names)
    if not names or data.n_vars == 0:
        msg = f"{table}: empty counts, {data.n_obs} spots x {data.n_vars} genes."
        raise DataError(msg + " Give the table of raw counts.")
    distinct(names, "spots", table)
    xy_px = _pixels(data, names, table)
    distance_px = lattice.nearest_distance_px(xy_px, table)
    lattice.check_on_slide(xy_px, names, slide, table)
    pitch_um = lattice.check_pitch(distance_px, slide.mpp, sizes.pitch_um, table)
    counts = SpotCounts(table, names, _counts(data, names, table), "counts", _panel(data, table))
    places = SpotPlaces(table, names, xy_px, len(names), pitch_um)
    provenance = Provenance(
        made_by=f"histoscribe {__version__} read_spot_table",
        settings={
            "sample_id": sample_id,
            "patient_id": patient_id,
            "mpp": list(slide.mpp),
            **asdict(sizes),
        },
        inputs={"expression": hash_file(table)},
    )
    return make_regions(places, counts, slide, sizes, Origin(patient_id, "visium", provenance))


def _open(path: Path) -> anndata.AnnData:
    if not path.is_file():
        msg = f"{path}: no such file. Check the path (in a manifest, relative to its folder)."
        raise DataError(msg)
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError) as fault:
        msg = f"{path}: cannot be read as .h5ad ({fault}). Copy it again from its source."
        raise DataError(msg) from fault


def _pixels(data: Any, names: tuple[str, ...], path: Path) -> np.ndarray:  # noqa: ANN401
    if "spatial" not in data.obsm:
        msg = (
            f'{path}: no obsm["spatial"] (there: {", ".join(data.obsm) or "nothing"}); wanted x, y '
            "in pixels of the full-resolution image."
        )
        raise DataError(msg)
    xy_px = np.asarray(data.obsm["spatial"], dtype=np.float64)[:, :2]
    lattice.check_finite(xy_px, names, path)
    return xy_px


def _counts(data: Any, names: tuple[str, ...], path: Path) -> csr_array:  # noqa: ANN401
    if data.X is None:
        msg = f"{path}: empty counts, there is no X. Give the table of raw counts in X."
        raise DataError(msg)
    if issparse(data.X):  # as it is: of a whole Visium slide a dense one is over a GB
        return checked_counts(csr_array(data.X), names, path)
    return checked_counts(np.asarray(data.X, dtype=np.float64), names, path)


def _panel(data: Any, path: Path) -> Any:  # noqa: ANN401
    symbols = [str(name) for name in data.var_names]
    if "gene_ids" not in data.var:
        return gene_panel(symbols, path, {})
    ids = [str(one) for one in data.var["gene_ids"]]
    known = {one.split(".")[0]: symbol for one, symbol in zip(ids, symbols, strict=True)}
    return gene_panel(ids, path, known)
