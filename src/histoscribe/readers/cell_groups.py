"""Which cells make a profile together: annotations read from obs, groups of them, single cells."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Int64

from histoscribe.data.metadata_text import FIELDS, VOID, KeyedBy
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.cell_scale import CellScale
from histoscribe.readers.cell_store import CellStore

Pseudobulk = Literal["donor", "annotation", "none"]

LABELS = ("cell_type", "celltype", "cell_label", "label", "annotation")
DONORS = ("donor_id", "donor", "patient_id", "patient", "individual")
PLATFORM = "assay"


@dataclass(frozen=True)
class LabelledCellsConfig:
    """How labelled cells become profiles.

    Attributes:
        label: Column of obs that names the cell type; None looks for one of LABELS.
        about: Further columns that an annotation is made of and its text speaks of, as far as
            they are there.
        text: Column of free text, which then is the text; None makes one by templates.
        donor: Column that names the donor; None looks for one of DONORS.
        platform: Platform of all cells; None takes the column assay, else the file's name.
        matrix: "X", "raw" or "layers/NAME"; None looks for counts first.
        scale: What the values are; None finds it, or refuses.
        pseudobulk: One mean for each annotation and donor, for each annotation (its donor is
            then not known, unless there is one only), or none.
        n_cells: Single cells of each label beside that, drawn by chance.
        min_genes: Genes that a cell has at least.
        min_cells: Cells that a mean is of at least.
        keyed_by: What profiles have in common that share a text key (see `metadata_texts`).
        seed: What draws the single cells.
    """

    label: str | None = None
    about: tuple[str, ...] = ("tissue", "disease")
    text: str | None = None
    donor: str | None = None
    platform: str | None = None
    matrix: str | None = None
    scale: CellScale | None = None
    pseudobulk: Pseudobulk = "donor"
    n_cells: int = 0
    min_genes: int = 50
    min_cells: int = 5
    keyed_by: KeyedBy = "cell_type"
    seed: int = 0

    def __post_init__(self) -> None:
        strange = [name for name in self.about if name not in FIELDS[1:]]
        if strange:
            raise ConfigError(f"about has {strange[0]!r}; wanted some of {', '.join(FIELDS[1:])}")
        if min(self.n_cells, self.min_genes, self.min_cells - 1) < 0:
            raise ConfigError("n_cells and min_genes are 0 or more, min_cells 1 or more")
        if self.pseudobulk == "none" and not self.n_cells:
            raise ConfigError("neither pseudobulk nor single cells are asked for; set n_cells")


def read_annotations(
    store: CellStore, config: LabelledCellsConfig
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """What obs says of each cell, "" where it says nothing, and which columns were taken.

    Returns:
        Columns name, label, ontology_id, text, donor, platform, and those of `config.about`; and
        notes for people.

    Raises:
        DataError: A column that was named is missing, or none can be told to be the label.
    """
    obs = store.obs
    label = _find(store, "label", config.label, LABELS, needed=config.text is None)
    donor = _find(store, "donor", config.donor, DONORS, needed=False)
    text = _find(store, "text", config.text, (), needed=False)
    names = [str(name) for name in obs.index]
    if len(set(names)) < len(names):
        names = [f"{name}#{row}" for row, name in enumerate(names)]
    columns: dict[str, Sequence[str]] = {"name": names}
    wanted = {"label": label, "ontology_id": f"{label}_ontology_term_id", "text": text}
    wanted |= {"donor": donor, **{name: name for name in config.about}}
    if config.platform is None:
        wanted["platform"] = PLATFORM
    for name, column in wanted.items():
        is_there = column in obs.columns
        columns[name] = _words(obs[column]) if is_there else ("",) * len(obs)
    fallback = config.platform or store.path.stem
    columns["platform"] = [one or fallback for one in columns.get("platform", ("",) * len(obs))]
    notes = [f"label is the column {label}"] * (label is not None and config.label is None)
    notes.append(f"donor is the column {donor}" if donor else "no column names the donor")
    if config.platform is None and PLATFORM not in obs.columns:
        notes.append(f"no column {PLATFORM}: the platform is called {fallback}")
    return pd.DataFrame(columns), tuple(notes)


def group_cells(
    about: pd.DataFrame, kept: Int64[np.ndarray, " cell"], config: LabelledCellsConfig
) -> tuple[list[Int64[np.ndarray, " _"]], tuple[str, ...]]:
    """Rows of the cells of each mean, and the annotations that have too few cells for one."""
    if config.pseudobulk == "none":
        return [], ()
    by = ["label", *config.about, "text", "platform"]
    if config.pseudobulk == "donor":
        by.append("donor")
    groups, small = [], []
    for key, rows in about.iloc[kept].groupby(by, sort=True).indices.items():
        if len(rows) >= config.min_cells:
            groups.append(kept[np.sort(rows)])
        else:
            small.append(f"{', '.join(word for word in key if word)}: {len(rows)}")
    return groups, tuple(small)


def draw_cells(
    about: pd.DataFrame, kept: Int64[np.ndarray, " cell"], config: LabelledCellsConfig
) -> Int64[np.ndarray, " drawn"]:
    """Rows of single cells, of each label as many as asked for, or all it has."""
    drawn: list[Int64[np.ndarray, " _"]] = [np.zeros(0, dtype=np.int64)]
    if config.n_cells:
        labels = about["label"].iloc[kept].to_numpy()
        for number, label in enumerate(sorted(set(labels))):
            rows = kept[labels == label]
            chance = np.random.default_rng([config.seed, number])
            drawn.append(chance.permutation(rows)[: config.n_cells])
    return np.sort(np.concatenate(drawn))


def _find(
    store: CellStore, what: str, told: str | None, usual: Sequence[str], *, needed: bool
) -> str | None:
    if told is not None:
        if told not in store.obs.columns:
            raise DataError(
                f"{store.path}: no column {told!r} for the {what}; obs has "
                f"{', '.join(map(str, store.obs.columns))}"
            )
        return told
    found = next((name for name in usual if name in store.obs.columns), None)
    if found is None and needed:
        raise DataError(
            f"{store.path}: no column is known to be the {what} ({', '.join(usual)}); name one of "
            f"{', '.join(map(str, store.obs.columns))}"
        )
    return found


def _words(column: Iterable[object]) -> list[str]:
    words = [" ".join(str(value).split()) for value in column]
    return ["" if word.casefold() in VOID else word for word in words]
