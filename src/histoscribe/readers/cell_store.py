"""AnnData on disk, read part by part: .h5ad or .zarr, its matrices never held whole."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from jaxtyping import Float64, Int64
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.errors import DataError
from histoscribe.readers.counts import ENSEMBL_ID, MOSTLY, gene_panel

CHUNK_CELLS = 2048
CHUNK_BYTES = 64 << 20
"""Of a dense part, as float64."""

ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "feature_id", "ensembl_ids")
SYMBOL_COLUMNS = ("feature_name", "gene_name", "gene_symbol", "gene_symbols", "symbol")


@dataclass(frozen=True)
class CellMatrix:
    """One matrix of a store.

    Attributes:
        name: "X", "raw", or "layers/NAME".
        stored: A sparse or dense matrix, on disk or in memory, cell x gene.
        var: Its genes.
    """

    name: str
    stored: Any
    var: pd.DataFrame

    def parts(self) -> Iterator[tuple[int, csr_array]]:
        """The matrix from its first row to its last, some rows at once, with the first's number."""
        n_cells, n_genes = self.stored.shape
        is_dense = isinstance(self.stored, (np.ndarray, h5py.Dataset, zarr.Array))
        n_rows = max(1, CHUNK_BYTES // (8 * n_genes)) if is_dense else CHUNK_CELLS
        for first in range(0, n_cells, n_rows):
            yield first, self.rows(slice(first, first + n_rows))

    def rows(self, rows: slice) -> csr_array:
        """Some rows, as float64."""
        return csr_array(self.stored[rows.start : rows.stop], dtype=np.float64)

    def sample(self, n_cells: int) -> list[Float64[np.ndarray, " _"]]:
        """What is not 0 of some cells that lie evenly through the matrix."""
        numbers = np.linspace(0, self.stored.shape[0] - 1, n_cells).round().astype(int)
        cells = [self.rows(slice(row, row + 1)).data for row in np.unique(numbers).tolist()]
        return [cell[cell != 0] for cell in cells]


@dataclass(frozen=True)
class CellStore:
    """A store that is open.

    Attributes:
        path: Where it lies.
        obs: Metadata of the cells.
        matrices: By name, in the order in which counts are looked for.
        obsm: What else there is of each cell, as on disk: a group or a mapping, read by
            `cell_vectors`.
    """

    path: Path
    obs: pd.DataFrame
    matrices: Mapping[str, CellMatrix]
    obsm: Any = field(default_factory=dict)


@contextmanager
def open_cell_store(path: Path, *, has_matrix: bool = True) -> Iterator[CellStore]:
    """Open AnnData on disk.

    Args:
        path: Where it lies, .h5ad or .zarr.
        has_matrix: Whether a matrix is wanted.

    Raises:
        DataError: Missing, unreadable, or without cells or a matrix.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; give an AnnData as .h5ad or .zarr")
    if path.suffix not in (".h5ad", ".zarr"):
        raise DataError(f"{path}: ends in {path.suffix or 'nothing'}; wanted .h5ad or .zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old layouts, which are read all the same
        root: Any = None
        try:
            is_zarr = path.suffix == ".zarr"
            root = zarr.open_group(path, mode="r") if is_zarr else h5py.File(path, "r")
            is_old = isinstance(root["obs"], h5py.Dataset)
            store = _held(path) if is_old else _lazy(path, root)
        except Exception as fault:
            if isinstance(root, h5py.File):
                root.close()
            raise DataError(
                f"{path}: cannot be read as AnnData ({' '.join(str(fault).split())}); copy it again"
            ) from fault
    try:
        if not len(store.obs) or (has_matrix and not store.matrices):
            raise DataError(f"{path}: no cells or no matrix; wanted cells x genes")
        yield store
    finally:
        if isinstance(root, h5py.File):
            root.close()


def genes_of(matrix: CellMatrix, path: Path) -> tuple[GenePanel, Int64[np.ndarray, " old"]]:
    """The distinct genes of a matrix, and the column of each of its columns among them.

    Ensembl ids are taken where var has them, as names or in one of ID_COLUMNS; else the names are
    symbols. A gene that stands twice, also by version, is one.
    """
    names = [str(name) for name in matrix.var.index]
    symbols = _column(matrix.var, SYMBOL_COLUMNS) or names
    if not _is_ensembl(names):
        ids = _column(matrix.var, ID_COLUMNS)
        if ids is not None and _is_ensembl(ids):
            names, symbols = ids, names
    stable = [ENSEMBL_ID.fullmatch(name) for name in names]
    if _is_ensembl(names):
        names = [m.group(1) if m else name for m, name in zip(stable, names, strict=True)]
    row_of = {name: row for row, name in enumerate(dict.fromkeys(names))}
    symbol_of = dict(zip(reversed(names), reversed(symbols), strict=True))
    panel = gene_panel(list(row_of), path, symbol_of)
    return panel, np.array([row_of[name] for name in names], dtype=np.int64)


def _is_ensembl(names: Sequence[str]) -> bool:
    return sum(ENSEMBL_ID.fullmatch(name) is not None for name in names) > MOSTLY * len(names)


def _column(var: pd.DataFrame, names: Sequence[str]) -> list[str] | None:
    found = next((name for name in names if name in var.columns), None)
    return None if found is None else [str(value) for value in var[found]]


def _lazy(path: Path, root: Any) -> CellStore:  # noqa: ANN401 - a group of h5py or zarr
    var = _table(root["var"])
    matrices = {}
    if "raw" in root and "X" in root["raw"]:
        raw = root["raw"]
        matrices["raw"] = CellMatrix("raw", _on_disk(raw["X"]), _table(raw["var"]))
    for name in root.get("layers", ()):
        matrices[f"layers/{name}"] = CellMatrix(
            f"layers/{name}", _on_disk(root["layers"][name]), var
        )
    if "X" in root:
        matrices["X"] = CellMatrix("X", _on_disk(root["X"]), var)
    return CellStore(path, _table(root["obs"]), matrices, root.get("obsm", {}))


def _table(stored: Any) -> pd.DataFrame:  # noqa: ANN401 - a group of h5py or zarr
    table: Any = ad.io.read_elem(stored)
    return table


def _on_disk(stored: Any) -> Any:  # noqa: ANN401 - a group or an array of h5py or zarr
    if isinstance(stored, (h5py.Dataset, zarr.Array)):
        return stored
    sparse: Any = ad.io.sparse_dataset(stored)
    return sparse if sparse.format == "csr" else csr_array(sparse.to_memory())


def _held(path: Path) -> CellStore:
    """AnnData of before 2019, whose tables h5py cannot read alone: read whole."""
    table: Any = ad.read_h5ad(path)
    matrices = {}
    if table.raw is not None:
        matrices["raw"] = CellMatrix("raw", _plain(table.raw.X), table.raw.var)
    for name, layer in table.layers.items():
        matrices[f"layers/{name}"] = CellMatrix(f"layers/{name}", _plain(layer), table.var)
    if table.X is not None:
        matrices["X"] = CellMatrix("X", _plain(table.X), table.var)
    return CellStore(path, table.obs, matrices, table.obsm)


def _plain(matrix: Any) -> Any:  # noqa: ANN401 - whatever AnnData holds
    return matrix if isinstance(matrix, np.ndarray) else csr_array(matrix)
