"""Marker lists and gene sets, and profiles made up from them."""

import csv
import json
import math
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from histoscribe.data.checks import check_array
from histoscribe.data.gene_names import human_genes
from histoscribe.data.genes import VERSIONED, GenePanel, Namespace
from histoscribe.data.texts import key_of
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.readers.packed import open_text
from histoscribe.readers.signatures import read_signatures

TERM_COLUMNS = ("term", "signature", "cell_type")


@dataclass(frozen=True)
class MarkerSet:
    """Genes by which something is known.

    Attributes:
        term: What it is called.
        genes: Symbols or Ensembl ids, each once.
        weights: One a gene, 1 where none was given; below 0 for a gene it lacks.
    """

    term: str
    genes: tuple[str, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.term.strip() or not self.genes:
            raise DataError(f"marker set {self.term!r} has no name or no genes; mend or remove it")
        if len(set(self.genes)) < len(self.genes) or len(self.weights) != len(self.genes):
            raise DataError(f"marker set {self.term} has a gene twice, or not a weight for each")
        wrong = [weight for weight in self.weights if not math.isfinite(weight) or weight == 0]
        if wrong:
            raise DataError(f"marker set {self.term} has a weight of {wrong[0]}; wanted no 0")


@dataclass(frozen=True)
class PseudoProfiles:
    """Profiles made up from marker sets, in standardised space: no platform, no unit.

    Attributes:
        profile_id: Term, with the number of the copy where there are several.
        z: As what the gene tower reads: deviations from the mean of a platform.
        is_observed: Genes that count.
        genes: Columns.
        label: The term.
        text_key: As `key_of` makes it of the term.
        text: The term without underscores.
        missing: Markers of each term that the panel lacks, where there are any.
    """

    profile_id: tuple[str, ...]
    z: Float32[np.ndarray, "profile gene"]
    is_observed: Bool[np.ndarray, " gene"]
    genes: GenePanel
    label: tuple[str, ...]
    text_key: tuple[str, ...]
    text: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.profile_id)


@dataclass(frozen=True)
class AugmentConfig:
    """How copies of a pseudo-profile differ. The first copy of each is always exact.

    Attributes:
        n_copies: Profiles of each set.
        dropout: Share of markers that a copy loses, by chance; one at least stays.
        noise: Deviation of normal noise on all genes that count, in z.
        spread: A copy's markers that stay have their weights times 1 - spread to 1 + spread, each
            drawn evenly by itself.
        seed: What draws all three. A set's copies do not depend on the sets beside it.
    """

    n_copies: int = 1
    dropout: float = 0.0
    noise: float = 0.0
    spread: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        is_share = 0 <= self.dropout < 1 and 0 <= self.spread < 1
        if self.n_copies < 1 or not is_share or not 0 <= self.noise < math.inf:
            raise ConfigError(
                f"{self.n_copies} copies, dropout {self.dropout}, noise {self.noise}, spread "
                f"{self.spread}; wanted 1 or more, 0 to below 1, 0 or more, and 0 to below 1"
            )


def read_marker_sets(path: Path) -> tuple[MarkerSet, ...]:
    """Read marker sets, told by the ending.

    - .gmt, as of MSigDB: a line a set, by tabs: name, description, genes
    - .json: an object of name -> list of genes, or name -> object of gene -> weight
    - .csv or .tsv: a line a gene, columns term (or signature, cell_type), gene, perhaps weight

    Raises:
        DataError: Missing, of another format, empty, or a term or a gene of it that stands twice.
    """
    readers = {".json": _read_json, ".csv": _read_table, ".tsv": _read_table}
    if path.suffix not in readers:  # .gmt, or refused
        return tuple(
            MarkerSet(one.name, one.genes, (1.0,) * len(one.genes)) for one in read_signatures(path)
        )
    with open_text(path) as text:
        content = text.read()
    try:
        sets = tuple(
            MarkerSet(term.strip(), tuple(weights), tuple(weights.values()))
            for term, weights in readers[path.suffix](path, content)
        )
    except DataError as fault:
        raise fault if str(path) in str(fault) else DataError(f"{path}: {fault}") from fault
    if not sets:
        raise DataError(f"{path}: no marker set; wanted at least one")
    return sets


def rename_markers(
    sets: Sequence[MarkerSet], ids: Collection[str], namespace: Namespace
) -> tuple[MarkerSet, ...]:
    """The sets with genes named as those that they are to meet, by the table of human genes.

    A gene that is there by its own name, or not by the table's either, keeps it; of several names
    of one gene in a set the first counts.

    Args:
        sets: Markers by Ensembl id or symbol, also mixed.
        ids: Names of the genes that are there.
        namespace: What kind of names these are.
    """
    table = human_genes()
    other = table.id_of if namespace == "ensembl" else table.symbol_of
    there = frozenset(ids)

    def name_of(gene: str) -> str:
        bare = _bare(gene)
        if bare in there:
            return bare
        new = other.get(bare)
        return gene if new is None or new not in there else new

    renamed = []
    for one in sets:
        weights: dict[str, float] = {}
        for gene, weight in zip(one.genes, one.weights, strict=True):
            weights.setdefault(name_of(gene), weight)
        renamed.append(MarkerSet(one.term, tuple(weights), tuple(weights.values())))
    return tuple(renamed)


def pseudo_profiles(
    sets: Sequence[MarkerSet],
    panel: GenePanel,
    augment: AugmentConfig | None = None,
    observed: Bool[np.ndarray, " gene"] | None = None,
) -> PseudoProfiles:
    """Make up a profile of each marker set: its weights on its markers, 0 (the mean) elsewhere.

    Args:
        sets: Markers by Ensembl id or symbol, whichever the panel has; a symbol that two genes of
            the panel bear is taken for none.
        panel: The genes of the tower.
        augment: How many copies, and how they differ; None for one, exact.
        observed: Genes of the panel that count; None for all.

    Raises:
        DataError: If a term stands twice.
        MismatchError: If the panel has no marker of a set.
    """
    augment = augment or AugmentConfig()
    observed = np.ones(len(panel), dtype=bool) if observed is None else observed
    check_array("observed genes", observed, bool, (len(panel),))
    terms = [one.term for one in sets]
    twice = next((term for term in terms if terms.count(term) > 1), None)
    if twice is not None:
        raise DataError(f"marker set {twice} stands twice; rename one")
    column_of = _columns(panel, observed)
    rows, missing = [], {}
    for one in sets:
        found = {
            column_of[_bare(gene)]: weight
            for gene, weight in zip(one.genes, one.weights, strict=True)
            if _bare(gene) in column_of
        }
        lost = tuple(gene for gene in one.genes if _bare(gene) not in column_of)
        if not found:
            raise MismatchError(
                f"none of the {len(lost)} markers of {one.term} (e.g. {', '.join(lost[:3])}) is "
                f"among the {observed.sum()} genes of the panel, named by {panel.namespace}; "
                "rename them, or leave the set out"
            )
        if lost:
            missing[one.term] = lost
        rows += [_profile(one.term, found, observed, augment, n) for n in range(augment.n_copies)]
    n_copies = augment.n_copies
    copies = [(term, n) for term in terms for n in range(n_copies)]
    return PseudoProfiles(
        profile_id=tuple(term if n_copies == 1 else f"{term} #{n}" for term, n in copies),
        z=np.stack(rows) if rows else np.zeros((0, len(panel)), np.float32),
        is_observed=observed,
        genes=panel,
        label=tuple(term for term, _ in copies),
        text_key=tuple(key_of(term) for term, _ in copies),
        text=tuple(" ".join(term.replace("_", " ").split()) for term, _ in copies),
        missing=missing,
    )


def _profile(
    term: str,
    found: Mapping[int, float],
    observed: Bool[np.ndarray, " gene"],
    augment: AugmentConfig,
    copy: int,
) -> Float32[np.ndarray, " gene"]:
    z = np.zeros(len(observed), dtype=np.float32)
    columns = np.array(list(found), dtype=np.int64)
    z[columns] = np.array(list(found.values()), dtype=np.float32)
    if copy == 0:
        return z
    chance = np.random.default_rng([augment.seed, zlib.crc32(term.encode()), copy])
    stays = chance.random(len(columns)) >= augment.dropout
    stays[chance.integers(len(columns))] = True
    z[columns[~stays]] = 0
    noise = chance.normal(0, augment.noise, len(observed))
    z[columns] *= chance.uniform(1 - augment.spread, 1 + augment.spread, len(columns))
    return z + np.where(observed, noise, 0).astype(np.float32)


def _columns(panel: GenePanel, observed: Bool[np.ndarray, " gene"]) -> dict[str, int]:
    """Column of each name of a gene that counts; ids go before symbols."""
    genes = [row for row in range(len(panel)) if observed[row]]
    of_symbol: dict[str, set[int]] = {}
    for row in genes:
        of_symbol.setdefault(panel.symbols[row], set()).add(row)
    column_of = {symbol: next(iter(rows)) for symbol, rows in of_symbol.items() if len(rows) == 1}
    return column_of | {panel.ids[row]: row for row in genes}


def _bare(gene: str) -> str:
    return gene.partition(".")[0] if VERSIONED.fullmatch(gene) else gene


def _read_json(path: Path, content: str) -> Iterable[tuple[str, Mapping[str, float]]]:
    try:
        record = json.loads(content)
    except ValueError as fault:
        raise DataError(f"{path}: no JSON ({fault}); write it anew") from fault
    if not isinstance(record, dict):
        raise DataError(f"{path}: wanted an object of name -> genes")
    for term, genes in record.items():
        if isinstance(genes, list) and all(isinstance(gene, str) for gene in genes):
            yield term, dict.fromkeys((gene.strip() for gene in genes if gene.strip()), 1.0)
        elif isinstance(genes, dict) and all(isinstance(n, (int, float)) for n in genes.values()):
            yield term, {gene.strip(): float(weight) for gene, weight in genes.items()}
        else:
            raise DataError(
                f"{path}: markers of {term} are {genes!r}; wanted a list of genes, or an object of "
                "gene -> weight"
            )


def _read_table(path: Path, content: str) -> Iterable[tuple[str, Mapping[str, float]]]:
    rows = csv.DictReader(content.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ",")
    fields = rows.fieldnames or ()
    column = next((name for name in TERM_COLUMNS if name in fields), None)
    if column is None or "gene" not in fields:
        raise DataError(f"{path}: found columns {', '.join(fields)}; wanted term, gene and weight")
    sets: dict[str, dict[str, float]] = {}
    for number, row in enumerate(rows, start=2):
        term, gene = (row[column] or "").strip(), (row["gene"] or "").strip()
        if not term or not gene:
            raise DataError(f"{path}: line {number} lacks a term or a gene; fill or remove it")
        if gene in sets.setdefault(term, {}):
            raise DataError(f"{path}: line {number} repeats {gene} of {term}; write it once")
        sets[term][gene] = _weight(f"{path}, line {number}", row.get("weight"))
    return sets.items()


def _weight(where: str, cell: str | None) -> float:
    if cell is None or not cell.strip():
        return 1.0
    try:
        return float(cell)
    except ValueError as fault:
        raise DataError(f"{where}: weight {cell!r} is no number") from fault
