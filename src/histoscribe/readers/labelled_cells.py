"""Labelled single cells, as AnnData, to profiles with their texts.

A profile is the mean of all cells of one annotation (pseudobulk), or one cell. Both are in CP10k
over the genes of the file, so that cells of all depths weigh the same, and stored as log1p of it.
Vectors that another model made of the cells come along: of a mean, the mean of its cells'.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int64
from scipy.sparse import csr_array, vstack

from histoscribe import __version__
from histoscribe.data.atomic import hash_file, hash_folder
from histoscribe.data.genes import GenePanel
from histoscribe.data.metadata_text import metadata_texts, rekey_texts
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.data.texts import Texts, join_texts, key_of, texts_of
from histoscribe.errors import DataError
from histoscribe.readers.cell_groups import (
    LabelledCellsConfig,
    draw_cells,
    group_cells,
    read_annotations,
)
from histoscribe.readers.cell_scale import CellScale, FoundScale, find_cell_scale, to_linear
from histoscribe.readers.cell_store import CellMatrix, CellStore, genes_of, open_cell_store
from histoscribe.readers.profile_features import cell_vectors, mean_vectors

LOOKED_IN = ("raw", "layers/counts", "layers/raw_counts", "layers/raw", "X")
"""Other layers, as of spliced reads, are read when they are named."""

N_LOOKED_AT = 64  # cells that tell the scale
PER_10K = 1e4


@dataclass(frozen=True)
class CellsReport:
    """What was read, and what was left out and why.

    Attributes:
        matrix: Which matrix was read.
        scale: What its values are.
        scale_reason: How that is known.
        n_cells: Cells in the file.
        without_label: Cells left out, since they have no label.
        below_min_genes: Cells left out, since they have too few genes.
        small_groups: Annotations that had too few cells for a mean.
        n_means: Profiles that are means.
        n_single: Profiles that are one cell.
        n_genes: Genes, and in which namespace they are.
        labels: Each label and its cells.
        notes: What a user should know though nothing stops.
    """

    matrix: str
    scale: CellScale
    scale_reason: str
    n_cells: int
    without_label: int
    below_min_genes: int
    small_groups: tuple[str, ...]
    n_means: int
    n_single: int
    n_genes: tuple[int, str]
    labels: dict[str, int]
    notes: tuple[str, ...]

    def describe(self) -> str:
        """The same in a few words."""
        lost = [f"{self.without_label} cells have no label"] * bool(self.without_label)
        lost += [f"{self.below_min_genes} have too few genes"] * bool(self.below_min_genes)
        if self.small_groups:
            n = len(self.small_groups)
            lost.append(
                f"{n} annotations have too few cells for a mean, e.g. {self.small_groups[0]}"
            )
        notes = "".join(f"; {note}" for note in (*self.notes, *lost))
        return (
            f"{self.n_means} means and {self.n_single} single cells of {self.n_cells} cells, "
            f"{len(self.labels)} labels, {self.n_genes[0]} genes by {self.n_genes[1]}, from "
            f"{self.matrix} ({self.scale}: {self.scale_reason}){notes}"
        )


class LabelledCells(NamedTuple):
    """Profiles, all wordings of their texts, and what was left out."""

    profiles: Profiles
    texts: Texts
    report: CellsReport


class _Source(NamedTuple):
    """The matrix that is read, its scale and its genes."""

    matrix: CellMatrix
    found: FoundScale
    genes: GenePanel
    column: Int64[np.ndarray, " old"]

    def cp10k(self, values: csr_array) -> csr_array:
        """Some cells per 10,000, linear, each gene once; a cell of nothing stays so."""
        linear = values.copy()
        linear.data = to_linear(linear.data, self.found.scale)
        moved = csr_array(
            (np.ones(len(self.column)), (np.arange(len(self.column)), self.column)),
            shape=(len(self.column), len(self.genes)),
        )
        merged = csr_array(linear @ moved)
        total = np.asarray(merged.sum(axis=1)).ravel()
        merged.data *= np.repeat(PER_10K / np.where(total > 0, total, 1), np.diff(merged.indptr))
        return merged


class _Rows(NamedTuple):
    """The cells of each mean, and the single cells."""

    groups: list[Int64[np.ndarray, " _"]]
    singles: Int64[np.ndarray, " cell"]


class _Made(NamedTuple):
    """Expression of means and single cells."""

    expression: csr_array
    genes: GenePanel
    provenance: Provenance


def read_labelled_cells(
    path: Path,
    config: LabelledCellsConfig | None = None,
    own: Texts | None = None,
    embedding: str | None = None,
) -> LabelledCells:
    """Read labelled cells.

    Memory: one part of the matrix, and the means (annotation x gene, float64).

    Args:
        path: AnnData, .h5ad or .zarr; CELLxGENE's columns are known.
        config: How; None for the defaults.
        own: The user's texts by key or name of a cell type: more wordings.
        embedding: An `obsm` of vectors that another model made of the cells, to be read too.

    Raises:
        DataError: Unreadable; a column that is missing or not told; values whose scale cannot be
            told, or that are scaled (negative) with no others in the file; nothing left; no such
            vectors.
    """
    config = config or LabelledCellsConfig()
    with open_cell_store(path) as store:
        about, notes = read_annotations(store, config)
        source = _choose_matrix(store, config)
        vectors = None if embedding is None else cell_vectors(store, embedding)
        is_named = (about["label"].ne("") | about["text"].ne("")).to_numpy()
        has_genes = _n_genes_of_cells(source.matrix) >= max(config.min_genes, 1)
        kept = np.flatnonzero(is_named & has_genes)
        if not len(kept):
            raise DataError(
                f"{path}: of {len(is_named)} cells {is_named.sum()} have a label and "
                f"{has_genes.sum()} have {max(config.min_genes, 1)} genes, none has both; check "
                "the column of labels, or lower min_genes"
            )
        groups, small = group_cells(about, kept, config)
        rows = _Rows(groups, draw_cells(about, kept, config))
        if not groups and not len(rows.singles):
            raise DataError(
                f"{path}: no annotation has {config.min_cells} cells ({small[0]}); lower min_cells"
            )
        expression = _collect(source, rows)
        features = None if vectors is None else mean_vectors(vectors, *rows)
    made = _Made(expression, source.genes, _provenance(path, source, config, embedding))
    profiles, wordings = _profiles(made, about, rows, config)
    if features is not None:
        profiles = replace(profiles, features=features, features_by=embedding)
        notes = (*notes, f"{features.shape[1]} numbers a profile by {embedding}")
    report = CellsReport(
        matrix=source.matrix.name,
        scale=source.found.scale,
        scale_reason=source.found.reason,
        n_cells=len(is_named),
        without_label=int((~is_named).sum()),
        below_min_genes=int((is_named & ~has_genes).sum()),
        small_groups=small,
        n_means=len(groups),
        n_single=len(rows.singles),
        n_genes=(len(source.genes), source.genes.namespace),
        labels={str(name): int(n) for name, n in about["label"].iloc[kept].value_counts().items()},
        notes=notes,
    )
    return LabelledCells(profiles, _texts(profiles, wordings, own), report)


def _choose_matrix(store: CellStore, config: LabelledCellsConfig) -> _Source:
    """The matrix that was named; else the first of LOOKED_IN with counts, or of a known scale."""
    path = store.path
    if config.matrix is not None and config.matrix not in store.matrices:
        raise DataError(f"{path}: no matrix {config.matrix!r}; it has {', '.join(store.matrices)}")
    names = [name for name in LOOKED_IN if name in store.matrices]
    if config.matrix is not None:
        names = [config.matrix]
    elif not names:
        raise DataError(f"{path}: name one of the matrices {', '.join(store.matrices)}")
    found: dict[str, FoundScale] = {}
    faults = []
    for name in names:
        try:
            sample = store.matrices[name].sample(N_LOOKED_AT)
            found[name] = find_cell_scale(sample, f"{path}, {name}", config.scale)
        except DataError as fault:
            faults.append(str(fault))
    if not found:
        raise DataError("; ".join(faults))
    counted = [name for name, one in found.items() if one.scale == "counts"]
    matrix = store.matrices[(counted or list(found))[0]]
    panel, column = genes_of(matrix, path)
    return _Source(matrix, found[matrix.name], panel, column)


def _n_genes_of_cells(matrix: CellMatrix) -> Int64[np.ndarray, " cell"]:
    """How many genes each cell has; all values are looked at, the sample was some of them only."""
    n_genes = np.zeros(matrix.stored.shape[0], dtype=np.int64)
    for first, part in matrix.parts():
        if not np.isfinite(part.data).all() or (part.data < 0).any():
            raise DataError(f"{matrix.name} holds negative or missing values; wanted 0 or more")
        part.eliminate_zeros()
        n_genes[first : first + len(part.indptr) - 1] = np.diff(part.indptr)
    return n_genes


def _collect(source: _Source, rows: _Rows) -> csr_array:
    """log1p of the mean CP10k of each group, then of the single cells."""
    groups, singles = rows
    group_of = np.full(source.matrix.stored.shape[0], -1)
    for number, group in enumerate(groups):
        group_of[group] = number
    sums = np.zeros((len(groups), len(source.genes)))
    cells = [csr_array((0, len(source.genes)))]
    for first, part in source.matrix.parts():
        linear = source.cp10k(part)
        n_cells = len(linear.indptr) - 1
        numbers = group_of[first : first + n_cells]
        member = np.flatnonzero(numbers >= 0)
        which, place = np.unique(numbers[member], return_inverse=True)
        adding = csr_array((np.ones(len(member)), (place, member)), shape=(len(which), n_cells))
        sums[which] += csr_array(adding @ linear).toarray()
        mine = singles[(singles >= first) & (singles < first + n_cells)] - first
        if len(mine):
            cells.append(csr_array(linear[mine]))
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    both = csr_array(vstack([csr_array(sums / sizes[:, None]), *cells]))
    both.data = np.log1p(both.data)
    return both


def _profiles(
    made: _Made, about: pd.DataFrame, rows: _Rows, config: LabelledCellsConfig
) -> tuple[Profiles, Texts]:
    """The profiles with what is said of them, and the wordings of it."""
    first = [group[0] for group in rows.groups]
    table = about.iloc[np.concatenate([np.array(first, dtype=np.int64), rows.singles])]
    donors = list(table["donor"])
    if config.pseudobulk == "annotation":
        for number, group in enumerate(rows.groups):
            there = set(about["donor"].iloc[group])
            donors[number] = next(iter(there)) if len(there) == 1 else ""
    said = metadata_texts(
        {"cell_type": list(table["label"]), **{name: list(table[name]) for name in config.about}},
        list(table["ontology_id"]),
        keyed_by=config.keyed_by,
    )
    keys, texts, wordings = said
    if config.text is not None:
        texts, wordings = tuple(table["text"]), Texts((), ())
        keys = tuple(
            key or (key_of(text) if text else "") for key, text in zip(keys, texts, strict=True)
        )
    parts = [table[name] for name in ("label", *config.about, "text", "platform")]
    names = [
        " | ".join(word for word in words if word) for words in zip(*parts, donors, strict=True)
    ]
    names[len(first) :] = [f"cell {name}" for name in table["name"].iloc[len(first) :]]
    profiles = Profiles(
        profile_id=tuple(names),
        expression=made.expression,
        expression_unit="log1p_cp10k",
        genes=made.genes,
        gene_observed=np.ones(len(made.genes), dtype=bool),
        provenance=made.provenance,
        label=tuple(table["label"]) if any(table["label"]) else None,
        text=texts,
        text_key=keys,
        platform=tuple(table["platform"]),
        donor_id=tuple(donors),
    )
    return profiles, wordings


def _texts(profiles: Profiles, wordings: Texts, own: Texts | None) -> Texts:
    """All wordings; the user's own under the keys of what they name."""
    texts = join_texts([texts_of(profiles), wordings])
    if own is None:
        return texts
    labels = profiles.label or profiles.text_key or ()
    keys = profiles.text_key or ()
    return join_texts([texts, rekey_texts(own, labels, keys)])


def _provenance(
    path: Path, source: _Source, config: LabelledCellsConfig, embedding: str | None
) -> Provenance:
    found = {"matrix": source.matrix.name, "scale": source.found.scale}
    return Provenance(
        f"histoscribe {__version__} read_labelled_cells",
        {**asdict(config), **found, **({} if embedding is None else {"embedding": embedding})},
        {"cells": hash_file(path) if path.is_file() else hash_folder(path)},
    )
