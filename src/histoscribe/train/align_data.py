"""What the steps of an alignment read: images, expression and texts by row, and their pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from histoscribe.data.bags import BagBatch
from histoscribe.errors import ConfigError, DataError
from histoscribe.models.text_tower import TextTower
from histoscribe.train.draw import draw_blocks
from histoscribe.train.gene_standardiser import GeneStandardiser, GeneValues, Standardised
from histoscribe.train.pairs import Pairs

Rows = Int64[np.ndarray, " _"]


@runtime_checkable
class ImageRows(Protocol):
    """Regions by row."""

    def bags(self, rows: Rows, seed: int) -> BagBatch:
        """These regions in this order; a row may come twice.

        Args:
            rows: Regions.
            seed: What draws the blocks of a region that is too large to be seen whole.
        """
        ...


@runtime_checkable
class GeneRows(Protocol):
    """Expression by row, standardised, on the table of genes."""

    def read(self, rows: Rows) -> Standardised:
        """These profiles in this order."""
        ...


@dataclass(frozen=True, eq=False)
class HeldBags:
    """Regions that are held in memory.

    Attributes:
        batch: All of them.
        most_blocks: Blocks of a region that are drawn at most; 0 takes all.
    """

    batch: BagBatch
    most_blocks: int = 0

    def bags(self, rows: Rows, seed: int) -> BagBatch:
        """See `ImageRows`."""
        return draw_blocks(self.batch, torch.from_numpy(rows), self.most_blocks, seed)


@dataclass(frozen=True, eq=False)
class MappedPatches:
    """Regions that are one feature vector each, as of a frozen patch encoder, read from a mapping.

    Each is a bag of one cell without surroundings, so that a slide without nuclei goes the same
    way. Only the rows of a step are ever in memory.

    Attributes:
        features: Of every region; any array that gives rows, as a mapping of a file does.
        target: Expression to predict, in training space; None for none.
    """

    features: Float[np.ndarray, "region feature"]
    target: Float[np.ndarray, "region gene"] | None = None

    def bags(self, rows: Rows, seed: int) -> BagBatch:  # noqa: ARG002 - nothing is drawn
        """See `ImageRows`."""
        n = torch.arange(len(rows))
        target = None if self.target is None else np.asarray(self.target[rows], np.float32)
        return BagBatch(
            features=torch.from_numpy(np.asarray(self.features[rows], dtype=np.float32)),
            offset_um=torch.zeros(len(rows), 2),
            is_inside=torch.ones(len(rows), dtype=torch.bool),
            neighbours=n[:, None].clone(),
            phenotype=torch.zeros_like(n),
            block_of_cell=n,
            bag_of_block=n.clone(),
            field=torch.zeros(len(rows), 1, 1),
            n_bags=len(rows),
            target=None if target is None else torch.from_numpy(target),
        )


@dataclass(frozen=True, eq=False)
class MeasuredGenes:
    """Measured expression, standardised when it is read.

    Attributes:
        values: On the table of genes.
        standardiser: Fitted on training rows.
    """

    values: GeneValues
    standardiser: GeneStandardiser

    def __len__(self) -> int:
        return len(self.values)

    def read(self, rows: Rows) -> Standardised:
        """See `GeneRows`."""
        return self.standardiser.apply(self.values.take(rows))


@dataclass(frozen=True, eq=False)
class MadeGenes:
    """Expression that is in standardised space already: marker profiles, or a mapping of a file.

    Attributes:
        z: profile x gene, of any float.
        is_observed: Genes that count.
    """

    z: Float[np.ndarray, "profile gene"]
    is_observed: Bool[np.ndarray, " gene"]

    def __len__(self) -> int:
        return len(self.z)

    def read(self, rows: Rows) -> Standardised:
        """See `GeneRows`."""
        z = np.asarray(self.z[rows], dtype=np.float32)
        return Standardised(z, np.broadcast_to(self.is_observed, z.shape).copy())


@dataclass(frozen=True, eq=False)
class StackedGenes:
    """Several sources, their rows one after another."""

    parts: tuple[MeasuredGenes | MadeGenes, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def read(self, rows: Rows) -> Standardised:
        """See `GeneRows`."""
        first = np.cumsum([0, *(len(part) for part in self.parts)])
        part_of = np.searchsorted(first, rows, side="right") - 1
        order = np.argsort(part_of, kind="stable")
        some = [
            part.read(rows[part_of == number] - first[number])
            for number, part in enumerate(self.parts)
            if (part_of == number).any()
        ]
        back = np.argsort(order, kind="stable")
        return Standardised(
            np.concatenate([one.z for one in some])[back],
            np.concatenate([one.is_observed for one in some])[back],
        )


@dataclass(frozen=True, eq=False)
class TextRows:
    """Texts by row: as features of a frozen tower, or as words for one that learns.

    Attributes:
        key: Number of the text's key, as pairs have it.
        features: Of a frozen tower; any array that gives rows. None for a tower that learns.
        text: The words; () where features are given and words are not needed.
    """

    key: Int64[np.ndarray, " text"]
    features: Float[np.ndarray, "text feature"] | None
    text: tuple[str, ...] = ()

    def read(self, rows: Rows, tower: TextTower | None) -> Float[Tensor, "row feature"]:
        """Features of these texts, on the tower's device or the CPU.

        Raises:
            ConfigError: If neither a tower nor features are there.
        """
        if tower is not None:
            return tower.encode([self.text[row] for row in rows])
        if self.features is None:
            raise ConfigError("the texts have no features; give those of a frozen text tower")
        return torch.from_numpy(np.asarray(self.features[rows], dtype=np.float32))


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows that no step draws; nothing here pairs an image with a text.

    Attributes:
        image: Regions.
        gene: Their expression, row by row.
        profile: Labelled profiles of donors that are held out.
        profile_key: Number of each one's text key.
    """

    image: Rows
    gene: Rows
    profile: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    profile_key: Rows = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if len(self.image) != len(self.gene) or len(self.profile) != len(self.profile_key):
            raise DataError("held-out rows do not pair; give a partner for each")


@dataclass(frozen=True, eq=False)
class AlignData:
    """All that a net is aligned on.

    Attributes:
        images: Regions.
        genes: Expression of regions and profiles.
        texts: Texts.
        pairs: What steps draw from, one of each kind at most.
        held_out: What the net is scored on.
    """

    images: ImageRows
    genes: GeneRows
    texts: TextRows
    pairs: tuple[Pairs, ...]
    held_out: HeldOut

    def __post_init__(self) -> None:
        kinds = [pairs.kind for pairs in self.pairs]
        if not kinds or len(set(kinds)) < len(kinds):
            raise DataError(f"pairs of {', '.join(kinds) or 'nothing'}; wanted each kind once")


def fit_gene_map(
    z: Float32[np.ndarray, "profile gene"],
    is_observed: Bool[np.ndarray, "profile gene"],
    width: int,
) -> Float32[np.ndarray, "gene e"]:
    """Leading principal directions of standardised expression, as columns of unit length.

    They are not whitened: cosines after the map are nearly those of the expression itself, while
    its noise, which lies in the many directions of little variance, is left behind. A gene that
    was never observed gets zeros.

    Args:
        z: Training rows; 0 where not observed.
        is_observed: Which were.
        width: Columns; zeros where the rows span fewer.
    """
    from scipy.linalg import eigh

    n = np.maximum(is_observed.sum(axis=0), 1)
    centred = np.where(is_observed, z - z.sum(axis=0) / n, 0).astype(np.float64)
    n_genes = centred.shape[1]
    last = min(width, n_genes, max(1, len(z) - 1))
    values, vectors = eigh(
        centred.T @ centred / max(1, len(z)), subset_by_index=[n_genes - last, n_genes - 1]
    )
    keep = values[::-1] > max(values.max(), 0) * 1e-9
    vectors = vectors[:, ::-1][:, keep]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    of_gene = np.zeros((n_genes, width), np.float32)
    of_gene[:, : vectors.shape[1]] = vectors * np.where(largest < 0, -1, 1)
    return of_gene


def stack_genes(parts: Sequence[MeasuredGenes | MadeGenes]) -> StackedGenes:
    """Sources one after another; those without a row are left out."""
    return StackedGenes(tuple(part for part in parts if len(part)))
