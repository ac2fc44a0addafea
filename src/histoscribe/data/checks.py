"""What every noun checks of its parts when it is made, and how it freezes them."""

from collections.abc import Sequence, Sized

import numpy as np
from numpy.typing import DTypeLike
from scipy.sparse import csr_array

from histoscribe.data.mapped import release
from histoscribe.errors import DataError

CHUNK = 16384
"""Rows looked at at once; bounds memory on tables of millions of rows."""


def freeze(noun: object, *names: str) -> None:
    """Replace the arrays of these fields by views that cannot be written to."""
    for name in names:
        value = getattr(noun, name)
        if value is not None:
            view = value.view()
            view.flags.writeable = False
            object.__setattr__(noun, name, view)


def check_array(
    name: str, array: np.ndarray, dtype: DTypeLike, shape: tuple[int | None, ...]
) -> None:
    """Refuse an array of another type or shape; None stands for any length."""
    if array.dtype != np.dtype(dtype):
        raise DataError(f"{name} is {array.dtype}; wanted {np.dtype(dtype)}: convert it first")
    fits = array.ndim == len(shape) and all(
        wanted in (None, got) for got, wanted in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        got = " x ".join(str(size) for size in array.shape)
        raise DataError(f"{name} has shape {got}; wanted {wanted}")


def check_finite(name: str, array: np.ndarray) -> None:
    """Refuse NaN and infinity, naming the first row."""
    for start in range(0, len(array), CHUNK):
        some = array[start : start + CHUNK]
        if (
            some.dtype == np.float16
        ):  # numpy has no fast float16: all exponent bits set = not finite
            bad = (np.ascontiguousarray(some).view(np.uint16) & 0x7C00) == 0x7C00
        else:
            bad = ~np.isfinite(some)
        if bad.any():
            row = start + int(np.argwhere(bad)[0][0])
            raise DataError(f"{name} is not finite in row {row} ({array[row]}); drop or mend it")
        release(array)


def check_length(name: str, values: Sized, wanted: int) -> None:
    """Refuse a sequence of another length."""
    if len(values) != wanted:
        raise DataError(f"{name} has {len(values)} entries; wanted {wanted}")


def check_named(name: str, value: str) -> None:
    """Refuse an empty name."""
    if not value or value != value.strip():
        raise DataError(f"{name} is {value!r}; give a name without spaces around it")


def check_types(
    slide_id: str,
    cell_type: tuple[str, ...] | None,
    probability: np.ndarray | None,
    n_cells: int,
) -> None:
    """Refuse labels of cells that are no names, and probabilities without labels or beyond 0..1."""
    if cell_type is not None:
        check_length("cell_type", cell_type, n_cells)
        for name in set(cell_type):
            if not isinstance(name, str) or name != name.strip():
                raise DataError(
                    f"a cell_type of {slide_id} is {name!r}; give names without spaces around "
                    'them, "" for a cell without one'
                )
    if probability is None:
        return
    if cell_type is None:
        raise DataError(f"cells of {slide_id} have a type_probability and no cell_type; give both")
    check_array("type_probability", probability, np.float32, (n_cells,))
    bad = np.flatnonzero((probability < 0) | (probability > 1))  # NaN is neither
    if len(bad):
        raise DataError(
            f"type_probability of cell {bad[0]} of {slide_id} is {probability[bad[0]]:g}; wanted "
            "0 to 1, or NaN where it is not known"
        )


def check_vectors(by: str | None, vectors: np.ndarray | None, n_rows: int) -> None:
    """Refuse vectors of another model that have no name, or are numbers in part."""
    if not by or by != by.strip() or vectors is None:
        raise DataError(
            f"vectors of profiles are called {by!r}; give vectors and a name together, or neither"
        )
    check_array(f"vectors {by}", vectors, np.float32, (n_rows, None))
    if not vectors.shape[1]:
        raise DataError(f"vectors {by} have no number each; give those of a model")
    for start in range(0, n_rows, CHUNK):
        some = vectors[start : start + CHUNK]
        is_whole = np.isfinite(some).all(axis=1) | np.isnan(some).all(axis=1)
        if not is_whole.all():
            row = start + int(np.argmin(is_whole))
            raise DataError(
                f"vector {row} of {by} is not finite; mend it, or write NaN throughout for none"
            )
        release(vectors)


def check_distinct(what: str, names: Sequence[str], where: str, mend: str) -> None:
    """Refuse names that are empty or stand twice, saying where."""
    first: dict[str, int] = {}
    for position, name in enumerate(names):
        if not name:
            raise DataError(f"{what} has an empty name ({where} {position}); {mend}")
        if first.setdefault(name, position) != position:
            raise DataError(f"{what} repeats {name!r} ({where}s {first[name]}, {position}); {mend}")


def tidy_expression(
    matrix: csr_array, unit: str, rows: Sequence[str], columns: Sequence[str]
) -> csr_array:
    """The matrix with sorted columns, summed duplicates and no stored zeros; frozen.

    Values are float32, or float64 where a count is too big for float32 to hold exactly.

    Raises:
        DataError: If the shape is not rows x columns, a value is negative or not finite, or a
            count is no integer.
    """
    _check_expression_shape(tuple(matrix.shape or ()), len(rows), len(columns))
    tidy = csr_array(matrix, copy=True)
    tidy.sum_duplicates()
    tidy.eliminate_zeros()
    values = tidy.data
    bad = ~np.isfinite(values) | (values < 0)
    problem = "expression is negative or not finite"
    if unit == "counts":
        bad |= values != np.floor(values)
        problem = "counts are negative, not finite or no integers"
    if bad.any():
        at = int(np.argmax(bad))
        row = int(np.searchsorted(tidy.indptr, at, side="right")) - 1
        raise DataError(
            f"{problem}: {values[at]} in {rows[row]}, {columns[int(tidy.indices[at])]}; "
            "give raw counts, or say which unit it is"
        )
    is_big = len(values) > 0 and float(values.max()) > 2**24  # exact integers of float32 end here
    exact = values.astype(np.float64 if is_big else np.float32)
    for part in (exact, tidy.indices, tidy.indptr):
        part.flags.writeable = False
    return csr_array((exact, tidy.indices, tidy.indptr), shape=tidy.shape)


def check_observed(matrix: csr_array | None, observed: np.ndarray, genes: Sequence[str]) -> None:
    """Refuse expression of a gene that was not measured."""
    check_array("gene_observed", observed, bool, (len(genes),))
    if matrix is None:
        return
    seen = np.bincount(matrix.indices, minlength=len(genes)) > 0
    wrong = np.flatnonzero(seen & ~observed)
    if len(wrong):
        raise DataError(
            f"{genes[wrong[0]]} has expression but is marked as not observed; correct the mask"
        )


def _check_expression_shape(shape: tuple[int, ...], n_rows: int, n_columns: int) -> None:
    if shape == (n_rows, n_columns):
        return
    swapped = " It looks transposed." if shape == (n_columns, n_rows) else ""
    raise DataError(
        f"expression has shape {' x '.join(map(str, shape))}; wanted {n_rows} regions or profiles "
        f"x {n_columns} genes.{swapped}"
    )
