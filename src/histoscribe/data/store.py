"""Each noun to disk and back, as AnnData on Zarr that `anndata.read_zarr` reads alone.

| noun | where | also |
|---|---|---|
| Cells | folder/cells.zarr | folder/cells.outlines.parquet (GeoParquet, slide µm, no CRS) |
| Tiles | folder/tiles.zarr | |
| Regions | folder/regions.zarr | |
| Profiles | folder/profiles.zarr | |
| Prediction | any path ending in .zarr | |
| Annotation | any path ending in .zarr | |

The same noun gives the same bytes: codecs are fixed and no times are written. Writing is whole or
not at all; a store that was interrupted, truncated or edited is refused when it is read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import zarr
from jaxtyping import Int
from zarr.codecs import ZstdCodec

from histoscribe.data.annotation import Annotation
from histoscribe.data.atomic import hash_file, read_seal, replacing, seal
from histoscribe.data.cells import Cells
from histoscribe.data.mapped import is_large, release
from histoscribe.data.outline_store import read_outlines, write_outlines
from histoscribe.data.prediction import Prediction
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions
from histoscribe.data.tables import (
    annotation_as_table,
    cells_as_table,
    prediction_as_table,
    profiles_as_table,
    regions_as_table,
    table_as_annotation,
    table_as_cells,
    table_as_prediction,
    table_as_profiles,
    table_as_regions,
    table_as_tiles,
    tiles_as_table,
)
from histoscribe.data.tiles import Tiles
from histoscribe.errors import DataError

__all__ = [
    "hash_file",
    "is_current",
    "read_annotation",
    "read_cells",
    "read_prediction",
    "read_profiles",
    "read_regions",
    "read_tiles",
    "write_annotation",
    "write_cells",
    "write_prediction",
    "write_profiles",
    "write_regions",
    "write_tiles",
]

CHUNK_BYTES = 8 << 20
"""About the size of a chunk of features before compression: whole rows, so that rows read fast."""

LEVEL = 3
"""Of zstd: beyond it raw encoder features shrink no further worth the time."""


def is_current(folder: Path, noun: str, provenance: Provenance) -> bool:
    """Whether folder/noun.zarr is complete, unchanged, and made in just this way.

    Args:
        folder: Where it lies.
        noun: "cells", "tiles", "regions", "profiles", or the stem of a prediction's path.
        provenance: What would make it now.
    """
    try:
        facts = _read_facts(folder / f"{noun}.zarr")
    except DataError:
        return False
    return facts.get("provenance") == provenance.key


def write_cells(cells: Cells, folder: Path) -> None:
    """Write cells.zarr and, where there are outlines, cells.outlines.parquet."""
    paths = (_outlines_path(folder / "cells.zarr"), folder / "cells.zarr")
    with replacing(*paths) as (new_outlines, new_table):
        if cells.outlines is not None:
            write_outlines(cells.outlines, new_outlines)
        _fill(cells_as_table(cells), new_table)
        outlines_hash = None if cells.outlines is None else hash_file(new_outlines)
        seal(new_table, provenance=cells.provenance.key, outlines=outlines_hash)


def read_cells(folder: Path, rows: Int[np.ndarray, " row"] | None = None) -> Cells:
    """Read cells; with `rows`, only theirs: the features of the others are never held."""
    path = folder / "cells.zarr"
    facts = _read_facts(path)
    outlines = read_outlines(_outlines_path(path)) if facts.get("outlines") else None
    if outlines is not None and rows is not None:
        outlines = outlines.take(rows)
    return table_as_cells(_open(path, rows), outlines)


def write_tiles(tiles: Tiles, folder: Path) -> None:
    """Write tiles.zarr."""
    _write(tiles, tiles_as_table, folder / "tiles.zarr")


def read_tiles(folder: Path) -> Tiles:
    """Read tiles.zarr."""
    return table_as_tiles(_read(folder / "tiles.zarr"))


def write_regions(regions: Regions, folder: Path) -> None:
    """Write regions.zarr."""
    _write(regions, regions_as_table, folder / "regions.zarr")


def read_regions(folder: Path) -> Regions:
    """Read regions.zarr."""
    return table_as_regions(_read(folder / "regions.zarr"))


def write_profiles(profiles: Profiles, folder: Path) -> None:
    """Write profiles.zarr."""
    _write(profiles, profiles_as_table, folder / "profiles.zarr")


def read_profiles(folder: Path) -> Profiles:
    """Read profiles.zarr."""
    return table_as_profiles(_read(folder / "profiles.zarr"))


def write_prediction(prediction: Prediction, path: Path) -> None:
    """Write a prediction; `path` ends in .zarr."""
    _write(prediction, prediction_as_table, path)


def read_prediction(path: Path) -> Prediction:
    """Read a prediction."""
    return table_as_prediction(_read(path))


def write_annotation(annotation: Annotation, path: Path) -> None:
    """Write an annotation; `path` ends in .zarr."""
    _write(annotation, annotation_as_table, path)


def read_annotation(path: Path) -> Annotation:
    """Read an annotation."""
    return table_as_annotation(_read(path))


def _write(noun: Any, as_table: Callable[[Any], ad.AnnData], path: Path) -> None:  # noqa: ANN401
    if path.suffix != ".zarr":
        raise DataError(f"{path} does not end in .zarr; give a path that does")
    with replacing(path) as (new,):
        _fill(as_table(noun), new)
        seal(new, provenance=noun.provenance.key)


def _read(path: Path) -> ad.AnnData:
    _read_facts(path)
    return _open(path)


def _read_facts(path: Path) -> dict[str, Any]:
    """The seal of a store and of the outlines beside it, both checked against their content."""
    facts = read_seal(path)
    if wanted := facts.get("outlines"):
        outlines = _outlines_path(path)
        if not outlines.is_file() or hash_file(outlines) != wanted:
            raise DataError(
                f"corrupted store {path}: {outlines.name} beside it is missing or was changed; "
                "re-run the step that makes it"
            )
    return facts


def _fill(table: ad.AnnData, folder: Path) -> None:
    """Write AnnData with fixed codecs and whole-row chunks, without touching its settings."""
    compressor = ZstdCodec(level=LEVEL)

    def write(
        writer: Callable[..., None],
        group: object,
        key: str,
        element: Any,  # noqa: ANN401 - AnnData hands over whatever it holds
        dataset_kwargs: Mapping[str, Any],
        iospec: Any,  # noqa: ANN401, ARG001 - and its format record, by this name
    ) -> None:
        if isinstance(element, np.ndarray) and element.ndim == 2 and element.size:
            _write_rows(group, key, element, compressor)
        else:
            writer(group, key, element, dataset_kwargs=dataset_kwargs)

    callback: Any = write  # its protocol names types that AnnData keeps to itself
    with ad.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        group = zarr.open_group(folder, mode="w", zarr_format=3)
        ad.experimental.write_dispatched(
            group, "/", table, callback=callback, dataset_kwargs={"compressor": compressor}
        )


def _write_rows(group: Any, key: str, rows: np.ndarray, compressor: ZstdCodec) -> None:  # noqa: ANN401
    """A table of numbers as AnnData has it, chunk by chunk: it may live in a file itself."""
    n_rows = min(len(rows), max(1, CHUNK_BYTES // (rows.shape[1] * rows.itemsize)))
    array = group.create_array(
        key,
        shape=rows.shape,
        dtype=rows.dtype,
        chunks=(n_rows, rows.shape[1]),
        compressors=(compressor,),
    )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    for first in range(0, len(rows), n_rows):
        array[first : first + n_rows] = rows[first : first + n_rows]
        release(rows)


def _open(path: Path, rows: Int[np.ndarray, " row"] | None = None) -> ad.AnnData:
    group: Any = zarr.open_group(path, mode="r", use_consolidated=False)
    parts: dict[str, Any] = {n: ad.io.read_elem(group[n]) for n in ("obs", "var", "obsm", "uns")}
    if rows is None:
        return ad.AnnData(X=_read_values(group["X"]) if "X" in group else None, **parts)
    parts["obs"] = parts["obs"].iloc[rows]
    parts["obsm"] = {name: values[rows] for name, values in parts["obsm"].items()}
    return ad.AnnData(X=group["X"].oindex[rows, :], **parts)


def _read_values(stored: Any) -> Any:  # noqa: ANN401 - a table of numbers, dense or sparse
    """What AnnData would read; a large table of numbers lies in a file, as a cohort has many."""
    if not isinstance(stored, zarr.Array) or not is_large(stored.nbytes):
        return ad.io.read_elem(stored)
    from histoscribe.data.in_file import new_array  # PyTorch is slow to import

    values, n_rows = new_array(stored.shape, stored.dtype), stored.chunks[0]
    for first in range(0, len(values), n_rows):
        values[first : first + n_rows] = stored[first : first + n_rows]
        release(values)
    return values


def _outlines_path(path: Path) -> Path:
    return path.with_name("cells.outlines.parquet")
