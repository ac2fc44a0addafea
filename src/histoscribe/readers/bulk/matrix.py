"""Matrices of whole samples: Xena, cBioPortal, RSEM and plain tables, made linear and tidy."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from histoscribe import __version__
from histoscribe.data.atomic import hash_file
from histoscribe.data.provenance import Provenance
from histoscribe.readers.bulk.aliquots import average, averaged, choose_samples, notes_on
from histoscribe.readers.bulk.expression import BulkExpression, BulkReport
from histoscribe.readers.bulk.genes import TidyGenes, tidy_genes
from histoscribe.readers.bulk.table import read_gene_table
from histoscribe.readers.bulk.units import BulkUnit, LogState, Scale, find_scale, to_linear
from histoscribe.readers.tables import must_exist
from histoscribe.readers.tcga_barcode import find_barcode, patient_of


class Matrix(NamedTuple):
    """A matrix, linear, its profiles as they stand.

    Attributes:
        samples: A row a column or line of the file.
        patients: Whose each is: the case of a TCGA barcode, else its own name.
        scale: Unit and log state.
        tidy: What became of the genes.
        is_gene_in_row: Whether genes were the rows of the file.
    """

    samples: BulkExpression
    patients: tuple[str, ...]
    scale: Scale
    tidy: TidyGenes
    is_gene_in_row: bool


def read_bulk_matrix(
    path: Path,
    *,
    unit: BulkUnit | None = None,
    log: LogState | None = None,
    sample_types: Sequence[str] = ("01",),
) -> tuple[BulkExpression, BulkReport]:
    """Read a matrix as one profile a patient.

    Columns with TCGA barcodes are chosen by their sample type, and aliquots of a patient are
    averaged; others are patients by their own names.

    Args:
        path: CSV, TSV, either with .gz, or Parquet; genes along either side.
        unit: Of the values once linear; None to find it.
        log: What was done to the values; None to find it.
        sample_types: Which samples, the preferred first.

    Returns:
        One profile a patient, and what was left out, averaged, summed and found.

    Raises:
        ConfigError: A unit, log state or sample type that is none; types that must not be mixed.
        DataError: The table cannot be read, or unit, log state or orientation cannot be told.
    """
    matrix = read_matrix(path, unit, log)
    samples, scale = matrix.samples, matrix.scale
    rows, dropped = choose_samples(
        samples.profile_id, matrix.patients, samples.sample_type, sample_types
    )
    expression = average(samples, rows)
    settings = {**samples.provenance.settings, "sample_types": list(sample_types)}
    expression = replace(expression, provenance=replace(samples.provenance, settings=settings))
    return expression, BulkReport(
        layout=f"matrix, genes as {'rows' if matrix.is_gene_in_row else 'columns'}",
        n_listed=len(samples),
        n_profiles=len(expression),
        n_genes=len(expression.genes),
        unit=scale.unit,
        unit_reason=scale.unit_reason,
        log=scale.log,
        log_reason=scale.log_reason,
        n_missing=int(np.isnan(expression.values).sum()),
        summed=matrix.tidy.summed,
        averaged=averaged(samples, rows),
        dropped={**dropped, **matrix.tidy.dropped},
        notes=(*scale.notes, *notes_on(samples, rows)),
    )


def read_matrix(path: Path, unit: BulkUnit | None = None, log: LogState | None = None) -> Matrix:
    """Read a matrix, linear, its profiles as they stand: none chosen, none averaged.

    The last one read is kept, since a manifest names one matrix in many rows.

    Raises:
        ConfigError, DataError: As `read_bulk_matrix`.
    """
    must_exist(path)
    state = path.stat()
    return _read(Stamped(path, state.st_mtime_ns, state.st_size), unit, log)


class Stamped(NamedTuple):
    """A file as it is now: changed, it is another."""

    path: Path
    mtime_ns: int
    size: int


@lru_cache(maxsize=1)
def _read(file: Stamped, unit: BulkUnit | None, log: LogState | None) -> Matrix:
    path = file.path
    table = read_gene_table(path)
    scale = find_scale(table.values, path.name, unit, log)
    linear = to_linear(table.values, scale.log)
    if scale.unit == "counts":
        linear = np.rint(linear)  # a log's few decimals do not bring them back whole
    tidy = tidy_genes(table.gene, table.symbol, linear, path)
    barcodes = [find_barcode(name) for name in table.profile]
    samples = BulkExpression(
        profile_id=table.profile,
        genes=tidy.panel,
        values=tidy.values,
        unit=scale.unit,
        sample_type=tuple(one.sample_type if one else "" for one in barcodes),
        aliquots=tuple((name,) for name in table.profile),
        provenance=Provenance(
            f"histoscribe {__version__} read_bulk_matrix",
            {"unit": scale.unit, "log": scale.log},
            {"expression": hash_file(path)},
        ),
    )
    patients = tuple(patient_of(name) for name in table.profile)
    return Matrix(samples, patients, scale, tidy, table.is_gene_in_row)
