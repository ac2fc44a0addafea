"""BulkExpression: linear expression of whole samples; what was done to get there; its Parquet.

The Parquet has the columns gene_id and symbol and one for each profile, null where a gene was not
measured. Its metadata, key `histoscribe`, say unit, namespace, samples and provenance as JSON.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Float64, Int
from scipy.sparse import csr_array

from histoscribe.data.atomic import replacing
from histoscribe.data.checks import check_array, check_distinct, check_length, freeze
from histoscribe.data.genes import GenePanel
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.errors import DataError
from histoscribe.readers.bulk.units import BulkUnit, LogState
from histoscribe.readers.tables import UNREADABLE, must_exist, unreadable
from histoscribe.readers.tcga_barcode import patient_of

KEY = b"histoscribe"
FORMAT = 1
GENE_COLUMNS = ("gene_id", "symbol")
PLATFORM = "bulk"
"""What measured whole samples, whatever the machine: genes are standardised by it."""


@dataclass(frozen=True)
class BulkExpression:
    """Expression of whole samples, linear.

    Attributes:
        profile_id: One distinct name a profile: the patient once `by_patient` has been over it.
        genes: Columns of the values.
        values: profile x gene; NaN where a gene was not measured in a profile, which is never 0.
        unit: Of the values.
        sample_type: Two digits of TCGA, or "" where it is not known, a profile.
        aliquots: What each profile was read from: columns or files, averaged if several.
        provenance: What made them.
    """

    profile_id: tuple[str, ...]
    genes: GenePanel
    values: Float64[np.ndarray, "profile gene"]
    unit: BulkUnit
    sample_type: tuple[str, ...]
    aliquots: tuple[tuple[str, ...], ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        check_distinct("profile_id", self.profile_id, "row", "rename or drop the duplicates")
        for name in ("sample_type", "aliquots"):
            check_length(name, getattr(self, name), len(self))
        check_array("values", self.values, np.float64, (len(self), len(self.genes)))
        if np.isinf(self.values).any() or (self.values < 0).any():
            raise DataError("expression is negative or infinite; give linear values of 0 or more")
        freeze(self, "values")

    def __len__(self) -> int:
        return len(self.profile_id)

    def take(self, rows: Int[np.ndarray, " row"]) -> "BulkExpression":
        """These profiles, in this order."""
        names = {
            name: tuple(getattr(self, name)[row] for row in rows)
            for name in ("profile_id", "sample_type", "aliquots")
        }
        return replace(self, **names, values=self.values[rows])

    def to_profiles(self) -> Profiles:
        """As profiles, whose mask is one for all: a gene that any profile lacks is not observed.

        Platform and donor are those that regions of whole samples and their splits have.
        """
        is_observed = np.asarray((~np.isnan(self.values)).all(axis=0))
        return Profiles(
            profile_id=self.profile_id,
            expression=csr_array(np.where(is_observed, self.values, 0.0)),
            expression_unit=self.unit,
            genes=self.genes,
            gene_observed=is_observed,
            provenance=self.provenance,
            platform=(PLATFORM,) * len(self),
            donor_id=tuple(patient_of(name) for name in self.profile_id),
        )


@dataclass(frozen=True)
class BulkReport:
    """What was read of a table or folder of whole samples.

    Attributes:
        layout: What it was: GDC's files, or a matrix and which side its genes were on.
        n_listed: Columns or files that were there.
        n_profiles: Profiles returned.
        n_genes: Genes returned.
        unit: Of what is returned.
        unit_reason: How it is known.
        log: What had been done to the values, and was undone.
        log_reason: How that is known.
        n_missing: Cells without a value in what is returned.
        summed: Genes that stood in several rows.
        averaged: Patients of several aliquots, with them.
        dropped: What was left out, by reason.
        notes: What a user should know though nothing stops.
    """

    layout: str
    n_listed: int
    n_profiles: int
    n_genes: int
    unit: BulkUnit
    unit_reason: str
    log: LogState
    log_reason: str
    n_missing: int
    summed: tuple[str, ...]
    averaged: Mapping[str, tuple[str, ...]]
    dropped: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The same for people, a line each."""
        lines = [
            f"{self.layout}: {self.n_profiles} profiles of {self.n_genes} genes, of "
            f"{self.n_listed} samples",
            f"unit {self.unit}: {self.unit_reason}",
            f"log {self.log}: {self.log_reason}",
        ]
        if self.n_missing:
            share = self.n_missing / (self.n_profiles * self.n_genes)
            lines.append(f"{self.n_missing} cells ({share:.1%}) were not measured, and are masked")
        if self.summed:
            lines.append(f"{len(self.summed)} genes stood in several rows and were summed")
        for patient, aliquots in self.averaged.items():
            lines.append(f"{patient} is the mean of {', '.join(aliquots)}")
        lines += [f"left out, {why}: {tell(names)}" for why, names in self.dropped.items()]
        return lines + list(self.notes)


def tell(names: Sequence[str], n_most: int = 5) -> str:
    """How many there are, and the first few."""
    more = ", ..." if len(names) > n_most else ""
    return f"{len(names)} ({', '.join(names[:n_most])}{more})"


def write_expression(expression: BulkExpression, path: Path) -> None:
    """Write the Parquet, whole or not at all; counts as float64, the rest as float32."""
    taken = [name for name in expression.profile_id if name in GENE_COLUMNS]
    if taken:
        raise DataError(f"a profile is called {taken[0]}, as a column of genes is; rename it")
    kind = pa.float64() if expression.unit == "counts" else pa.float32()
    columns = {
        "gene_id": pa.array(expression.genes.ids, pa.string()),
        "symbol": pa.array(expression.genes.symbols, pa.string()),
    }
    for name, values in zip(expression.profile_id, expression.values, strict=True):
        columns[name] = pa.array(values, pa.float64(), from_pandas=True).cast(kind)  # NaN to null
    facts = {
        "format": FORMAT,
        "unit": expression.unit,
        "log": "none",
        "namespace": expression.genes.namespace,
        "samples": {
            name: {"sample_type": sample_type, "aliquots": list(aliquots)}
            for name, sample_type, aliquots in zip(
                expression.profile_id, expression.sample_type, expression.aliquots, strict=True
            )
        },
        "provenance": json.loads(expression.provenance.to_json()),
    }
    table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(facts, sort_keys=True)})
    with replacing(path) as (new,):
        pyarrow.parquet.write_table(table, new, compression="zstd", use_dictionary=False)


def is_ours(path: Path) -> bool:
    """Whether a file is a Parquet that `write_expression` wrote."""
    return path.suffix == ".parquet" and KEY in (_schema(path).metadata or {})


def read_expression(path: Path, profiles: Sequence[str] | None = None) -> BulkExpression:
    """What `write_expression` wrote; with `profiles`, only their columns are read.

    Raises:
        DataError: It is something else, broken, or lacks a profile.
    """
    schema = _schema(path)
    facts = _facts(path, schema)
    there = [name for name in schema.names if name not in GENE_COLUMNS]
    names = there if profiles is None else list(profiles)
    lacking = [name for name in names if name not in there]
    if lacking:
        raise DataError(f"{path}: no profile {', '.join(lacking[:3])}; it has {tell(there)}")
    try:
        table = pyarrow.parquet.read_table(path, columns=[*GENE_COLUMNS, *names])
    except (pa.ArrowException, *UNREADABLE) as fault:
        raise unreadable(path, fault) from fault
    ids, symbols = (tuple(map(str, table[name].to_pylist())) for name in GENE_COLUMNS)
    values = np.empty((len(names), table.num_rows))
    for row, name in enumerate(names):
        values[row] = table[name].cast(pa.float64()).to_numpy()
    samples = [facts["samples"][name] for name in names]
    return BulkExpression(
        profile_id=tuple(names),
        genes=GenePanel(ids, symbols, facts["namespace"]),
        values=values,
        unit=facts["unit"],
        sample_type=tuple(one["sample_type"] for one in samples),
        aliquots=tuple(tuple(one["aliquots"]) for one in samples),
        provenance=Provenance.from_json(json.dumps(facts["provenance"])),
    )


def _schema(path: Path) -> pa.Schema:
    must_exist(path)
    try:
        return pyarrow.parquet.read_schema(path)
    except (pa.ArrowException, *UNREADABLE) as fault:
        raise unreadable(path, fault) from fault


def _facts(path: Path, schema: pa.Schema) -> dict[str, Any]:
    text = (schema.metadata or {}).get(KEY)
    facts = json.loads(text) if text else {}
    if facts.get("format") != FORMAT:
        raise DataError(
            f"{path}: no table of this version's 'histoscribe match' (format "
            f"{facts.get('format')!r}, wanted {FORMAT}); make it anew"
        )
    return facts
