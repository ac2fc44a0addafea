r"""Names of human genes: symbols to Ensembl ids and back, so that tables of either kind can meet.

One table says which symbol names which gene (GENCODE 48, `human_genes/CREDITS.md`). A symbol of
several genes means the one of them that codes for a protein, if exactly one does; else it is
ambiguous. Ids go back to symbols by the same pairs, so that both ways agree. Former symbols are not
in the table. What has no pair keeps its name: it meets nothing by accident, and library sizes stay
what they were.
"""

import csv
import gzip
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Int64
from scipy.sparse import csr_array

from histoscribe.data.genes import VERSIONED, GenePanel, Namespace
from histoscribe.data.profiles import Profiles
from histoscribe.data.regions import Regions
from histoscribe.errors import MismatchError

RELEASE = "GENCODE 48"
SPOKEN: dict[Namespace, str] = {"ensembl": "Ensembl id", "symbol": "symbol"}
STABLE = re.compile(r"ENS([A-Z]*)G\d{11}")
"""A gene's stable id; the group is the species, empty in man."""

N_EXAMPLES = 3


@dataclass(frozen=True)
class GeneTable:
    """Pairs of a symbol and an Ensembl id, one to one.

    Attributes:
        id_of: Ensembl id of each symbol; a gene without a symbol has its id for one.
        symbol_of: The reverse.
        ambiguous: Symbols of several genes, and the ids of genes whose symbol means another.
    """

    id_of: Mapping[str, str]
    symbol_of: Mapping[str, str]
    ambiguous: frozenset[str]


@dataclass(frozen=True)
class GeneNames:
    """What became of names of genes in another namespace.

    Attributes:
        namespace: The other namespace.
        new_of: New name of each name that has one.
        ambiguous: Names that could mean several genes.
        unknown: Names that are not in the table.
    """

    namespace: Namespace
    new_of: Mapping[str, str]
    ambiguous: tuple[str, ...]
    unknown: tuple[str, ...]

    def __str__(self) -> str:
        """In a sentence, for people."""
        n_names = len(self.new_of) + len(self.ambiguous) + len(self.unknown)
        text = (
            f"{len(self.new_of):,} of {n_names:,} genes are matched by their "
            f"{SPOKEN[self.namespace]} ({RELEASE})"
        )
        for what, names in (("ambiguous", self.ambiguous), ("unknown to it", self.unknown)):
            if names:
                text += f"; {len(names):,} are {what} (e.g. {', '.join(names[:N_EXAMPLES])})"
        return text

    def name_of(self, name: str) -> str:
        """The new name; where there is none the old one, without a version."""
        return self.new_of.get(name) or _without_version(name)


@cache
def human_genes() -> GeneTable:
    """The table that comes with the package, read once."""
    path = files("histoscribe.data") / "human_genes" / "genes_homo_sapiens.csv.gz"
    genes_of: dict[str, list[tuple[str, bool]]] = {}
    with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8") as stream:
        for gene, symbol, _, _, biotype in csv.reader(stream):
            genes_of.setdefault(symbol, []).append((gene, biotype == "protein_coding"))
    id_of: dict[str, str] = {}
    ambiguous: set[str] = set()
    for symbol, genes in genes_of.items():
        meant = genes if len(genes) == 1 else [gene for gene in genes if gene[1]]
        if len(meant) == 1:
            id_of[symbol] = meant[0][0]
        else:
            ambiguous.add(symbol)
        ambiguous.update(gene for gene, _ in genes if gene != id_of.get(symbol))
    symbol_of = {gene: symbol for symbol, gene in id_of.items()}
    return GeneTable(id_of, symbol_of, frozenset(ambiguous))


def map_names(names: Sequence[str], namespace: Namespace) -> GeneNames:
    """Names of human genes in another namespace.

    Args:
        names: Symbols where ids are wanted, Ensembl ids where symbols are; a name that is of the
            wanted kind already stays.
        namespace: The wanted one.

    Raises:
        MismatchError: If the names are those of another species, or none is known.
    """
    check_human(names)
    table = human_genes()
    forth, back = table.id_of, table.symbol_of
    if namespace == "symbol":
        forth, back = back, forth
    new_of: dict[str, str] = {}
    ambiguous, unknown = [], []
    for name in dict.fromkeys(names):
        bare = _without_version(name)
        if bare in forth:
            new_of[name] = forth[bare]
        elif bare in back:
            new_of[name] = bare
        else:
            (ambiguous if bare in table.ambiguous else unknown).append(name)
    if names and not new_of:
        raise MismatchError(
            f"none of {len(names)} genes (e.g. {', '.join(names[:N_EXAMPLES])}) has a "
            f"{SPOKEN[namespace]} in the table of human genes ({RELEASE}); give expression whose "
            "genes are named as those of the checkpoint or the other slides"
        )
    return GeneNames(namespace, new_of, tuple(ambiguous), tuple(unknown))


def check_human(names: Sequence[str]) -> None:
    """MismatchError if most stable ids, or the spelling of most symbols, are not human ones."""
    mend = (
        "; only human genes can be renamed. Give expression whose genes are named as those of the "
        "checkpoint or the other slides"
    )
    stable = [match for match in map(STABLE.match, names) if match]
    strangers = [match.group() for match in stable if match.group(1)]
    if 2 * len(strangers) > len(stable):
        raise MismatchError(f"{strangers[0]} is not the id of a human gene (ENSG...){mend}")
    id_of = human_genes().id_of
    n_known = sum(name in id_of for name in names)
    misspelt = [name for name in names if name not in id_of and name.upper() in id_of]
    if len(misspelt) > max(n_known, len(stable)):
        name = misspelt[0]
        raise MismatchError(
            f"symbols such as {name} are not written as those of man ({name.upper()}), but as "
            f"those of another species{mend}"
        )


def rename_panel(panel: GenePanel, namespace: Namespace) -> GenePanel:
    """The same genes in another namespace, in the order of their first names, each once.

    Raises:
        MismatchError: If they are not human, or none is known.
    """
    if panel.namespace == namespace:
        return panel
    return _rename(panel, namespace)[0]


def rename_genes(regions: Regions, namespace: Namespace) -> Regions:
    """The same regions with genes named in another namespace.

    Names of one gene are put together: the expression of those that were observed is summed, in
    linear units, and the gene counts as observed if any of them was. So library sizes stay what
    they were, whatever else the gene is called by.

    Raises:
        MismatchError: If the genes are not human, or none is known.
    """
    if regions.genes.namespace == namespace:
        return regions
    genes, column = _rename(regions.genes, namespace)
    if len(genes) == len(regions.genes):
        return replace(regions, genes=genes)
    is_observed = np.zeros(len(genes), dtype=bool)
    np.logical_or.at(is_observed, column, regions.gene_observed)
    expression = None
    if regions.expression is not None:
        adding = csr_array(
            (regions.gene_observed.astype(np.float64), (np.arange(len(column)), column)),
            shape=(len(column), len(genes)),
        )
        is_log = regions.expression_unit.startswith("log1p")
        linear = regions.expression.astype(np.float64)
        if is_log:
            linear.data = np.expm1(linear.data)
        expression = csr_array(linear @ adding)
        if is_log:
            expression.data = np.log1p(expression.data)
    return replace(regions, genes=genes, gene_observed=is_observed, expression=expression)


def rename_profiles(profiles: Profiles, namespace: Namespace) -> Profiles:
    """The same profiles with genes named in another namespace; as `Profiles.rename` has it.

    Raises:
        MismatchError: If the genes are not human, or none is known.
    """
    if profiles.genes.namespace == namespace:
        return profiles
    names = map_names(profiles.genes.ids, namespace)
    return profiles.rename([names.name_of(gene) for gene in profiles.genes.ids], namespace)


def _without_version(name: str) -> str:
    return name.partition(".")[0] if VERSIONED.fullmatch(name) else name


def _rename(panel: GenePanel, namespace: Namespace) -> tuple[GenePanel, Int64[np.ndarray, " old"]]:
    """The renamed panel, and the new row of each old one."""
    names = map_names(panel.ids, namespace)
    new = [names.name_of(gene) for gene in panel.ids]
    row_of = {gene: row for row, gene in enumerate(dict.fromkeys(new))}
    row = np.array([row_of[gene] for gene in new], dtype=np.int64)
    symbols = dict(zip(reversed(new), reversed(panel.symbols), strict=True))
    spoken = tuple(gene if namespace == "symbol" else symbols[gene] for gene in row_of)
    return GenePanel(tuple(row_of), spoken, namespace), row
