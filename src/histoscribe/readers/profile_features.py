"""Vectors that another model (Geneformer and the like) made of expression.

Of labelled cells they are an `obsm` of the AnnData that holds the cells; of regions an `obsm` of
AnnData, or a column of lists in Parquet. Nothing is computed here but means: which model made the
vectors is what their name says.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr
from jaxtyping import Float32, Float64, Int64

from histoscribe import __version__
from histoscribe.data.atomic import hash_file, hash_folder
from histoscribe.data.in_file import new_array
from histoscribe.data.provenance import Provenance
from histoscribe.data.region_features import RegionFeatures
from histoscribe.errors import DataError, MismatchError
from histoscribe.readers.cell_store import CellStore, open_cell_store

measure: Any = pc  # its functions are made when it is imported, unseen by type checkers

REGIONS, SLIDES = ("region_id", "region"), ("slide_id", "slide", "sample")
FEATURES = "features"
"""The column of a Parquet table that holds the vectors, where none has the embedding's name."""

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class CellVectors:
    """One `obsm` of a store.

    Attributes:
        name: Where it lies, for messages.
        stored: cell x number, on disk or in memory.
    """

    name: str
    stored: Any

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and numbers of each."""
        n_rows, width = self.stored.shape
        return int(n_rows), int(width)

    def parts(self) -> Iterator[tuple[int, Float64[np.ndarray, "some feature"]]]:
        """All rows from the first to the last, some at once, with the number of the first.

        Raises:
            DataError: If a row is not finite, and not NaN throughout either.
        """
        for first in range(0, self.shape[0], ROWS_AT_ONCE):
            some = np.asarray(self.stored[first : first + ROWS_AT_ONCE], dtype=np.float64)
            is_whole = np.isfinite(some).all(axis=1) | np.isnan(some).all(axis=1)
            if not is_whole.all():
                raise DataError(
                    f"{self.name}: row {first + int(np.argmin(is_whole))} is not finite; mend it, "
                    "or write NaN throughout for a cell without a vector"
                )
            yield first, some


def cell_vectors(store: CellStore, key: str) -> CellVectors:
    """The vectors of a store by the name of their `obsm`.

    Raises:
        DataError: There are none of that name, or they are no table of numbers.
    """
    if key not in store.obsm:
        there = ", ".join(sorted(store.obsm)) or "none"
        raise DataError(
            f"{store.path}: no obsm {key!r} with a vector a row; it has {there}. Name the one that "
            "the other model wrote"
        )
    stored: Any = store.obsm[key]
    if not isinstance(stored, (np.ndarray, h5py.Dataset, zarr.Array, pd.DataFrame)):
        stored = ad.io.read_elem(stored)
    if isinstance(stored, pd.DataFrame):
        stored = stored.to_numpy()
    is_table = len(getattr(stored, "shape", ())) == 2 and hasattr(stored, "dtype")
    if not is_table or np.dtype(stored.dtype).kind not in "fiu" or hasattr(stored, "tocsr"):
        raise DataError(f"{store.path}: obsm {key!r} is no dense table of numbers; write it as one")
    if len(store.obs) != stored.shape[0] or not stored.shape[1]:
        shape = " x ".join(map(str, stored.shape))
        raise DataError(f"{store.path}: obsm {key!r} is {shape} for {len(store.obs)} rows of obs")
    return CellVectors(f"{store.path}, obsm {key}", stored)


def mean_vectors(
    vectors: CellVectors,
    groups: Sequence[Int64[np.ndarray, " _"]],
    singles: Int64[np.ndarray, " cell"],
) -> Float32[np.ndarray, "profile feature"]:
    """The mean vector of each group of cells, then the vectors of single cells.

    Cells without a vector are left out of the means; NaN where none has one.

    Args:
        vectors: Of all cells.
        groups: Rows of the cells of each group; no cell is in two.
        singles: Rows of single cells, ascending.
    """
    n_cells, width = vectors.shape
    group_of = np.full(n_cells, -1)
    for number, group in enumerate(groups):
        group_of[group] = number
    sums, n_summed = np.zeros((len(groups), width)), np.zeros(len(groups))
    own = [np.zeros((0, width), np.float32)]
    for first, some in vectors.parts():
        numbers = group_of[first : first + len(some)]
        rows = np.flatnonzero((numbers >= 0) & np.isfinite(some[:, 0]))
        np.add.at(sums, numbers[rows], some[rows])
        np.add.at(n_summed, numbers[rows], 1)
        mine = singles[(singles >= first) & (singles < first + len(some))] - first
        own.append(some[mine].astype(np.float32))
    means = np.full((len(groups), width), np.nan)
    is_there = n_summed > 0
    means[is_there] = sums[is_there] / n_summed[is_there, None]
    return np.concatenate([means.astype(np.float32), *own])


def read_region_features(paths: Sequence[Path], by: str) -> RegionFeatures:
    """Read vectors of regions.

    AnnData (.h5ad, .zarr): the `obsm` of that name; obs names are the regions. Parquet: a column of
    lists of that name, or `features`, beside region_id. Either may name the slide in a column
    slide_id, slide or sample; without one, the name of the file is the slide's.

    Args:
        paths: One file or several, as one a slide.
        by: What the vectors are called.

    Raises:
        DataError: Missing, broken, without such vectors, or a region that stands twice.
        MismatchError: Files whose vectors differ in width.
    """
    if not paths:
        raise DataError("no file of vectors of regions; name at least one")
    read = [(_read_parquet if _is_parquet(path) else _read_table)(path, by) for path in paths]
    widths = {path.name: part.features.shape[1] for path, part in zip(paths, read, strict=True)}
    if len(set(widths.values())) > 1:
        said = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise MismatchError(f"vectors {by} of regions differ in width ({said}); embed all alike")
    inputs = {
        f"regions{number}": hash_file(path) if path.is_file() else hash_folder(path)
        for number, path in enumerate(paths)
    }
    features = read[0].features
    if len(read) > 1:
        n_rows = sum(len(part.features) for part in read)
        features = new_array((n_rows, features.shape[1]), np.float32)
        np.concatenate([part.features for part in read], out=features)
    return RegionFeatures(
        by=by,
        slide_id=tuple(name for part in read for name in part.slide_id),
        region_id=tuple(name for part in read for name in part.region_id),
        features=features,
        provenance=Provenance(
            f"histoscribe {__version__} read_region_features", {"by": by}, inputs
        ),
    )


class _Read(NamedTuple):
    """What one file holds."""

    slide_id: list[str]
    region_id: list[str]
    features: Float32[np.ndarray, "row feature"]


def _read_table(path: Path, by: str) -> _Read:
    with open_cell_store(path, has_matrix=False) as store:
        vectors = cell_vectors(store, by)
        features = new_array(vectors.shape, np.float32)
        for first, some in vectors.parts():
            features[first : first + len(some)] = some
        slides = _find(SLIDES, list(store.obs.columns))
        names = [str(name) for name in store.obs.index]
        said = None if slides is None else [str(name) for name in store.obs[slides]]
    return _Read([path.stem] * len(names) if said is None else said, names, features)


def _read_parquet(path: Path, by: str) -> _Read:
    with _told(path):
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        regions, slides = _find(REGIONS, names), _find(SLIDES, names)
        column = by if by in names else FEATURES
        if regions is None or column not in names:
            raise DataError(
                f"{path}: columns {', '.join(names[:8]) or 'none'}; wanted region_id, perhaps "
                f"slide_id, and lists of numbers in {by} or {FEATURES}"
            )
        wanted = [name for name in (regions, slides, column) if name is not None]
        features, slide_id, region_id = None, [], []
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
            some = _lists(path, batch.column(column), features)
            if features is None:
                features = new_array((file.metadata.num_rows, some.shape[1]), np.float32)
            features[len(region_id) : len(region_id) + len(some)] = some
            region_id += [str(name) for name in batch.column(regions).to_pylist()]
            own = [path.stem] * len(some) if slides is None else batch.column(slides).to_pylist()
            slide_id += [str(name) for name in own]
    if features is None:
        raise DataError(f"{path}: no row; wanted a region a row")
    return _Read(slide_id, region_id, features)


def _lists(
    path: Path, column: pa.Array, before: np.ndarray | None
) -> Float32[np.ndarray, "row feature"]:
    """Lists of equal length as rows; NaN for what is null."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    is_list = is_list or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if is_list else kind
    if not is_list or not (pa.types.is_floating(inner) or pa.types.is_integer(inner)):
        raise DataError(f"{path}: vectors are of type {kind}; wanted a list of numbers a row")
    there = column.drop_null()
    lengths = set(measure.list_value_length(there).to_pylist())
    lengths |= set() if before is None else {before.shape[1]}
    if len(lengths) != 1:
        said = ", ".join(map(str, sorted(lengths)[:5])) or "none"
        raise DataError(f"{path}: vectors of {said} numbers; wanted the same length in all rows")
    width = lengths.pop()
    rows = np.full((len(column), width), np.nan, np.float32)
    values = there.flatten().to_numpy(zero_copy_only=False)
    rows[np.asarray(column.is_valid())] = values.reshape(len(there), width)
    return rows


def _find(usual: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in usual if name in names), None)


def _is_parquet(path: Path) -> bool:
    if not path.exists():
        raise DataError(f"{path}: no such file; give AnnData (.h5ad, .zarr) or .parquet")
    return path.suffix == ".parquet"


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What pyarrow says of a broken file, in our words."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError) as fault:
        text = " ".join(str(fault).split())
        raise DataError(f"{path}: cannot be read as Parquet ({text}); write it anew") from fault
