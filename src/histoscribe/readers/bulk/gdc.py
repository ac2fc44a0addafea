"""A folder of GDC's STAR gene counts: one file an aliquot, put together to a table of patients.

A file has the line `# gene-model: ...`, the columns `COLUMNS`, four tallies of reads (N_unmapped,
...) and a line a gene, by Ensembl id with version. The copies of genes on the Y chromosome
(..._PAR_Y) are summed with those on the X.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Float64

from histoscribe import __version__
from histoscribe.data.atomic import hash_file
from histoscribe.data.provenance import Provenance
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.bulk.aliquots import average, averaged, choose_samples, notes_on
from histoscribe.readers.bulk.expression import BulkExpression, BulkReport
from histoscribe.readers.bulk.genes import TALLY, TidyGenes, tidy_genes
from histoscribe.readers.bulk.sample_sheet import (
    ManifestRow,
    SheetRow,
    read_gdc_manifest,
    read_sample_sheet,
)
from histoscribe.readers.bulk.units import CLOSED, PER_MILLION, BulkUnit

ENDING = ".rna_seq.augmented_star_gene_counts.tsv"
COLUMNS = (
    "gene_id", "gene_name", "gene_type", "unstranded", "stranded_first", "stranded_second",
    "tpm_unstranded", "fpkm_unstranded", "fpkm_uq_unstranded",
)  # fmt: skip
COLUMN_OF_UNIT: dict[BulkUnit, str] = {
    "tpm": "tpm_unstranded",
    "fpkm": "fpkm_unstranded",
    "counts": "unstranded",
}

NOT_IN_SHEET = "files that the sample sheet does not list"
NOT_IN_MANIFEST = "files that the manifest does not list"
NOT_THERE = "files that are listed and not in the folder"


class StarFile(NamedTuple):
    """One file as it stands.

    Attributes:
        gene: Of each line, tallies included.
        symbol: Of each line.
        values: In the unit asked for, NaN for tallies that have none.
        gene_model: What the first line says.
    """

    gene: tuple[str, ...]
    symbol: tuple[str, ...]
    values: Float64[np.ndarray, " line"]
    gene_model: str


@dataclass(frozen=True)
class Found:
    """Files that can be read, and those that cannot.

    Attributes:
        rows: What the sample sheet says of those that are there, by path.
        n_listed: Files in the folder.
        left_out: The others, by reason.
    """

    rows: dict[Path, SheetRow]
    n_listed: int
    left_out: dict[str, tuple[str, ...]]


def read_gdc_star(
    folder: Path,
    sample_sheet: Path,
    *,
    manifest: Path | None = None,
    unit: BulkUnit = "tpm",
    sample_types: Sequence[str] = ("01",),
) -> tuple[BulkExpression, BulkReport]:
    """Read a folder of STAR gene counts as the GDC portal or its client wrote it.

    Args:
        folder: The files, in folders of their own or not.
        sample_sheet: Says whose each file is; the portal writes it.
        manifest: What was downloaded; its MD5 are checked and files that it does not list are
            left out.
        unit: Which of the columns: tpm, fpkm (not its upper quartile form), or counts.
        sample_types: Which samples, the preferred first.

    Returns:
        One profile a patient, and what was left out, averaged and summed.

    Raises:
        ConfigError: A unit that the files have not got; sample types that must not be mixed.
        DataError: Files that are missing, damaged, of different gene models, or not told.
    """
    if unit not in COLUMN_OF_UNIT:
        raise ConfigError(
            f"GDC's gene counts have no unit {unit}; wanted one of {', '.join(COLUMN_OF_UNIT)}"
        )
    wanted = read_gdc_manifest(manifest, ENDING) if manifest else {}
    found = _find_files(folder, read_sample_sheet(sample_sheet, ENDING), wanted)
    paths, sheet = list(found.rows), list(found.rows.values())
    rows, dropped = choose_samples(
        [one.file for one in sheet],
        [one.case for one in sheet],
        [one.sample_type for one in sheet],
        sample_types,
    )
    chosen = sorted(row for taken in rows.values() for row in taken)
    tidy, gene_model, digest = _read_files([paths[row] for row in chosen], wanted, unit)
    samples = BulkExpression(
        profile_id=tuple(sheet[row].file for row in chosen),
        genes=tidy.panel,
        values=tidy.values,
        unit=unit,
        sample_type=tuple(sheet[row].sample_type for row in chosen),
        aliquots=tuple((f"{sheet[row].sample} ({sheet[row].file})",) for row in chosen),
        provenance=Provenance(
            f"histoscribe {__version__} read_gdc_star",
            {"unit": unit, "sample_types": list(sample_types), "gene_model": gene_model},
            {"files": digest, "sample_sheet": hash_file(sample_sheet)},
        ),
    )
    place = {row: number for number, row in enumerate(chosen)}
    rows = {patient: [place[row] for row in taken] for patient, taken in rows.items()}
    expression = average(samples, rows)
    return expression, BulkReport(
        layout="GDC's STAR gene counts",
        n_listed=found.n_listed,
        n_profiles=len(expression),
        n_genes=len(expression.genes),
        unit=unit,
        unit_reason=f"the column {COLUMN_OF_UNIT[unit]}",
        log="none",
        log_reason="GDC's files are linear",
        n_missing=int(np.isnan(expression.values).sum()),
        summed=tidy.summed,
        averaged=averaged(samples, rows),
        dropped={**found.left_out, **dropped, **tidy.dropped},
        notes=(f"gene model {gene_model}", *notes_on(samples, rows)),
    )


def read_star_file(data: bytes, name: str, unit: BulkUnit) -> StarFile:
    """One file of gene counts.

    Args:
        data: All of it.
        name: Its name, for messages.
        unit: Which column.

    Raises:
        DataError: It is no such file, or not whole: its TPM do not sum to 1e6, or a gene has no
            value.
    """
    model, header, n_skipped = _head(data, name)
    kinds = {one: pa.string() if one in COLUMNS[:3] else pa.float64() for one in COLUMNS}
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(data),
            pyarrow.csv.ReadOptions(use_threads=False, skip_rows=n_skipped, column_names=header),
            pyarrow.csv.ParseOptions(delimiter="\t"),
            pyarrow.csv.ConvertOptions(column_types=kinds, include_columns=list(COLUMNS)),
        )
    except pa.ArrowException as fault:
        text = " ".join(str(fault).split())[:200]
        raise DataError(f"{name}: cannot be read ({text}). Download it again") from fault
    gene = tuple(map(str, table["gene_id"].to_pylist()))
    is_gene = np.array([TALLY.fullmatch(one) is None for one in gene])
    tpm = table["tpm_unstranded"].to_numpy()
    values = table[COLUMN_OF_UNIT[unit]].to_numpy()
    total = float(np.nansum(tpm[is_gene]))
    if not np.isfinite(values[is_gene]).all() or abs(total / PER_MILLION - 1) > CLOSED:
        n_genes, n_bare = int(is_gene.sum()), int((~np.isfinite(values[is_gene])).sum())
        raise DataError(
            f"{name}: {n_bare} of {n_genes} genes have no value, and the TPM sum to {total:.6g}, "
            "not 1e6: the file is not whole. Download it again"
        )
    return StarFile(gene, tuple(map(str, table["gene_name"].to_pylist())), values, model)


def _head(data: bytes, name: str) -> tuple[str, list[str], int]:
    """Gene model, columns, and how many lines come before the first tally."""
    lines = data[:4096].decode("utf-8", errors="replace").splitlines()
    comments = [line for line in lines[:5] if line.startswith("#")]
    header = lines[len(comments)].split("\t") if len(lines) > len(comments) else []
    lacking = [column for column in COLUMNS if column not in header]
    if lacking:
        raise DataError(
            f"{name}: no column {', '.join(lacking)}; wanted GDC's STAR gene counts (data release "
            "32 or later)"
        )
    model = next((one.split(":", 1)[1] for one in comments if "gene-model" in one), "not said")
    return model.strip(), header, len(comments) + 1


def _find_files(
    folder: Path, sheet: Mapping[str, SheetRow], manifest: Mapping[str, ManifestRow]
) -> Found:
    there: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{ENDING}")):
        if there.setdefault(path.name, path) != path:
            raise DataError(f"{path.name} lies both at {there[path.name]} and {path}; remove one")
    if not there:
        raise DataError(f"{folder}: no file that ends in {ENDING}, in it or in folders below it")
    listed = [name for name in sheet if not manifest or name in manifest]
    left_out = {
        NOT_IN_MANIFEST: [name for name in there if manifest and name not in manifest],
        NOT_IN_SHEET: [name for name in there if name not in sheet],
        NOT_THERE: [name for name in listed if name not in there],
    }
    rows = {there[name]: sheet[name] for name in listed if name in there}
    if not rows:
        raise DataError(
            f"{folder}: none of its {len(there)} files is in the sample sheet"
            f"{' and the manifest' if manifest else ''} (first: {next(iter(there))}, there: "
            f"{next(iter(sheet))}); give those of this download"
        )
    return Found(rows, len(there), {why: tuple(names) for why, names in left_out.items() if names})


def _read_files(
    paths: Sequence[Path], manifest: Mapping[str, ManifestRow], unit: BulkUnit
) -> tuple[TidyGenes, str, str]:
    """All files as one table, their gene model, and a hash of what was read."""
    digest = hashlib.sha256()
    first: StarFile | None = None
    values = np.empty((0, 0))
    for row, path in enumerate(paths):
        data = path.read_bytes()
        _check_whole(path, data, manifest.get(path.name))
        one = read_star_file(data, path.name, unit)
        if first is None:
            first, values = one, np.empty((len(paths), len(one.gene)))
        if one.gene != first.gene:
            raise DataError(
                f"{path.name} has {len(one.gene)} lines by {one.gene_model}, {paths[0].name} "
                f"{len(first.gene)} by {first.gene_model}; wanted the same genes in all. Download "
                "them from one data release"
            )
        values[row] = one.values
        digest.update(f"{path.name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    assert first is not None
    tidy = tidy_genes(first.gene, first.symbol, values, paths[0])
    return tidy, first.gene_model, digest.hexdigest()


def _check_whole(path: Path, data: bytes, wanted: ManifestRow | None) -> None:
    if wanted is None:
        return
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if (len(data), md5) != (wanted.size, wanted.md5):
        raise DataError(
            f"{path}: {len(data)} bytes of md5 {md5}, the manifest says {wanted.size} of "
            f"{wanted.md5}; download it again"
        )
