"""From slides to bags: which cells a region has, what surrounds it, in the fitted scales."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from histoscribe.data.bags import BagBatch, BagConfig
from histoscribe.data.blocks import Blocks, assign_to_blocks, blocks_of
from histoscribe.data.cells import Cells
from histoscribe.data.collate import BatchSize, collate
from histoscribe.data.context import describe_blocks
from histoscribe.data.genes import GenePanel
from histoscribe.data.in_file import move_to_file
from histoscribe.data.join import Membership, knn_within_bags
from histoscribe.data.mapped import release
from histoscribe.data.regions import Regions
from histoscribe.data.splits import strips
from histoscribe.data.tiles import Tiles
from histoscribe.errors import DataError, MismatchError
from histoscribe.train.rows import SomeRows, gather
from histoscribe.train.scaling import Scaling, Transformed
from histoscribe.train.targets import TargetSpace, measure


@dataclass(frozen=True, eq=False)
class SlideData:
    """All that is known of one slide.

    Attributes:
        cells: Its cells.
        tiles: Its field.
        regions: Its regions; a bulk region may go on in other slides of the patient, where it has
            the same name.
        blocks: The blocks of its regions, or None for those that `blocks_of` gives.

    Raises:
        MismatchError: If the parts are of different slides or encoders.
    """

    cells: Cells
    tiles: Tiles
    regions: Regions
    blocks: Blocks | None = None

    def __post_init__(self) -> None:
        strangers = (set(self.regions.slide_id) | {self.tiles.slide_id}) - {self.slide_id}
        if strangers:
            raise MismatchError(
                f"cells of slide {self.slide_id} came with tiles or regions of "
                f"{', '.join(sorted(strangers))}; give the parts of one slide"
            )
        if self.tiles.encoder_id != self.cells.encoder_id:
            raise MismatchError(
                f"tiles of {self.slide_id} are by {self.tiles.encoder_id}, its cells by "
                f"{self.cells.encoder_id}; prepare the slide again"
            )
        if not len(self.regions):
            raise DataError(f"slide {self.slide_id} has no regions; check its spot table")
        last = -1 if self.blocks is None else int(self.blocks.region.max(initial=-1))
        if last >= len(self.regions):
            raise MismatchError(
                f"blocks of slide {self.slide_id} name region {last} of {len(self.regions)}; give "
                "the blocks that belong to these regions"
            )

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self.cells.slide_id

    @property
    def patient_id(self) -> str:
        """Patient of the slide."""
        return self.regions.patient_id[0]


@dataclass(frozen=True, eq=False)
class SlideBags:
    """The bags of one slide before anything fitted is applied.

    Attributes:
        slide: The slide.
        blocks: Blocks with a nucleus inside and a described tile, in the order of their bags;
            their `region` is a row of the slide's regions.
        row_of_bag: Row of each bag in the slide's regions; regions without a block have no bag.
        members: Cells of the blocks; its `region` counts `blocks`.
        neighbours: Nearest cells of each member within its block, as rows of `members`.
        descriptors: Raw field descriptors of the blocks.
    """

    slide: SlideData
    blocks: Blocks
    row_of_bag: Int64[np.ndarray, " bag"]
    members: Membership
    neighbours: Int64[np.ndarray, "member k"]
    descriptors: Float32[np.ndarray, "block ring descriptor"]

    def __len__(self) -> int:
        return len(self.row_of_bag)

    @property
    def bag_of_block(self) -> Int64[np.ndarray, " block"]:
        """The bag that each block is in."""
        return np.searchsorted(self.row_of_bag, self.blocks.region)

    def inside_rows(self) -> Int64[np.ndarray, " inside"]:
        """Cells that lie inside a bag's region; each once."""
        return self.members.cell[self.members.is_inside]

    def average(
        self, values: Float32[np.ndarray, "block feature"]
    ) -> Float32[np.ndarray, "bag feature"]:
        """Mean over the blocks of each bag, each as heavy as it has nuclei inside."""
        if len(self.blocks) == len(self):
            return values
        members = self.members
        n_inside = np.bincount(members.region[members.is_inside], minlength=len(self.blocks))
        total = np.zeros((len(self), values.shape[1]))
        np.add.at(total, self.bag_of_block, values * n_inside[:, None])
        of_bag = np.bincount(self.bag_of_block, n_inside, minlength=len(self))
        return (total / of_bag[:, None]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class AssembledBags:
    """Bags of several slides in one batch, and where each came from.

    A region that lies on several slides is one bag.

    Attributes:
        batch: All bags; with z-scored targets if the regions have expression and it was wanted.
        slide_of_bag: Position of each bag's slide in `slides`, the first where there are several.
        row_of_bag: Row of each bag in that slide's regions.
        bag_of_row: For each slide, the bag of each of its regions, -1 where there is none.
        slides: The slides.
        blocks: For each slide, its blocks in the order of the batch.
        members: For each slide, the cells of these blocks in the order of the batch.
        scaling: The scales that were applied.
    """

    batch: BagBatch
    slide_of_bag: Int64[np.ndarray, " bag"]
    row_of_bag: Int64[np.ndarray, " bag"]
    bag_of_row: tuple[Int64[np.ndarray, " _"], ...]
    slides: tuple[SlideData, ...]
    blocks: tuple[Blocks, ...]
    members: tuple[Membership, ...]
    scaling: Scaling

    @property
    def n_empty(self) -> int:
        """Regions of the slides that have no bag."""
        return sum(int((bags < 0).sum()) for bags in self.bag_of_row)


def cut_bags(slide: SlideData, config: BagConfig) -> SlideBags:
    """Give each region its blocks, their cells, graph and surroundings; nothing is fitted here.

    Raises:
        DataError: If no region of the slide has a nucleus.
    """
    blocks = slide.blocks
    if blocks is None:
        blocks = blocks_of(slide.regions, slide.cells.xy_um, config)
    members = assign_to_blocks(slide.cells.xy_um, blocks, config.ring_um)
    descriptors = describe_blocks(slide.cells, slide.tiles, blocks, config)
    is_kept = np.bincount(members.region[members.is_inside], minlength=len(blocks)) > 0
    is_kept &= np.isfinite(descriptors).all(axis=(1, 2)) & (blocks.region >= 0)
    if not is_kept.any():
        raise DataError(
            f"none of the {len(slide.regions)} regions of {slide.slide_id} has a nucleus; check "
            "that positions and mpp fit the slide, and that it was prepared around its regions"
        )
    if not is_kept.all():  # the largest array; on most whole samples all are kept
        descriptors = descriptors[is_kept]
    new_row = np.cumsum(is_kept) - 1
    is_member = is_kept[members.region]
    kept = Membership(
        new_row[members.region[is_member]], members.cell[is_member], members.is_inside[is_member]
    )
    neighbours = knn_within_bags(slide.cells.xy_um[kept.cell], kept.region, config.neighbours)
    blocks = blocks.take(np.flatnonzero(is_kept))
    row_of_bag = np.unique(blocks.region)
    return SlideBags(slide, blocks, row_of_bag, kept, neighbours, descriptors)


def hold_in_file(bags: SlideBags) -> SlideBags:
    """The same bags; what is large of them lies in a file, as all slides of a cohort hold some."""
    return replace(
        bags,
        neighbours=move_to_file(bags.neighbours),
        descriptors=move_to_file(bags.descriptors),
    )


def assemble(
    bags: Sequence[SlideBags], scaling: Scaling, panel: GenePanel, *, has_target: bool
) -> AssembledBags:
    """Apply the fitted scales and put the bags of all slides one after another.

    Args:
        bags: Bags of each slide. Slides of one bulk region are put side by side.
        scaling: What was fitted on the training slides.
        panel: Genes of the target.
        has_target: Whether to add the measured expression, z-scored; genes that were not measured
            are masked, not zero.
    """
    bags = [bags[i] for i in _side_by_side(bags)]
    batch = collate(
        (_scale(part, scaling, panel if has_target else None) for part in bags),
        BatchSize(
            sum(len(part.members) for part in bags),
            sum(len(part.blocks) for part in bags),
            sum(len(part) for part in bags),
        ),
    )
    slide_of_part = np.repeat(np.arange(len(bags)), [len(part) for part in bags])
    row_of_part = np.concatenate([part.row_of_bag for part in bags])
    bag_of_part = _number([_names_of(part) for part in bags])
    n_bags = int(bag_of_part[-1]) + 1
    if n_bags < len(bag_of_part):
        _check_parts_agree(batch, bag_of_part, bags)
        batch = batch.merge(torch.from_numpy(bag_of_part), n_bags)
    first = np.searchsorted(bag_of_part, np.arange(n_bags))
    bag_of_row = tuple(np.full(len(part.slide.regions), -1) for part in bags)
    for slide, row, bag in zip(slide_of_part, row_of_part, bag_of_part, strict=True):
        bag_of_row[slide][row] = bag
    return AssembledBags(
        batch=batch,
        slide_of_bag=slide_of_part[first],
        row_of_bag=row_of_part[first],
        bag_of_row=bag_of_row,
        slides=tuple(part.slide for part in bags),
        blocks=tuple(part.blocks for part in bags),
        members=tuple(part.members for part in bags),
        scaling=scaling,
    )


def _check_parts_agree(
    batch: BagBatch, bag_of_part: Int64[np.ndarray, " part"], bags: Sequence[SlideBags]
) -> None:
    """DataError if parts of one region come with different expression."""
    first = np.searchsorted(bag_of_part, bag_of_part)
    for values in (batch.target, batch.is_observed):
        if values is not None and not torch.equal(values, values[torch.from_numpy(first)]):
            patients = sorted({part.slide.patient_id for part in bags})
            raise DataError(
                "slides of one bulk region come with different expression (patients "
                f"{', '.join(patients[:5])}); give each sample one profile, or other names"
            )


def _names_of(bags: SlideBags) -> list[tuple[str, ...]]:
    """What tells each bag of a slide from all others; a bulk region is known by its patient."""
    regions = bags.slide.regions
    home = (lambda row: regions.patient_id[row]) if regions.kind == "bulk" else (
        lambda row: regions.slide_id[row]
    )  # fmt: skip
    return [(regions.kind, home(row), regions.region_id[row]) for row in bags.row_of_bag]


def _side_by_side(bags: Sequence[SlideBags]) -> list[int]:
    """Order of the slides in which those of one bulk region are neighbours, else as given."""
    first: dict[tuple[str, ...], int] = {}
    place = []
    for number, part in enumerate(bags):
        place.append(min(first.setdefault(name, number) for name in _names_of(part)))
    return sorted(range(len(bags)), key=lambda number: (place[number], number))


def _number(names: Sequence[Sequence[tuple[str, ...]]]) -> Int64[np.ndarray, " part"]:
    """Number of each bag: the same for parts of one region.

    Raises:
        DataError: If the parts of a region cannot stand side by side.
    """
    number: dict[tuple[str, ...], int] = {}
    flat = [name for part in names for name in part]
    numbers = np.array([number.setdefault(name, len(number)) for name in flat], dtype=np.int64)
    if (np.diff(numbers) < 0).any():
        name = flat[int((np.diff(numbers) < 0).argmax()) + 1]
        raise DataError(
            f"region {name[2]} of {name[1]} goes on in another slide that holds other regions too; "
            "give a slide that is shared by regions of its own names"
        )
    return numbers


def first_parts(bags: Sequence[SlideBags]) -> list[Int64[np.ndarray, " bag"]]:
    """For each slide, those of its bags whose region is on no slide before it.

    What is fitted on regions counts a sample of several slides once.
    """
    seen: set[tuple[str, ...]] = set()
    rows = []
    for part in bags:
        names = _names_of(part)
        rows.append(np.array([i for i, name in enumerate(names) if name not in seen], np.int64))
        seen.update(names)
    return rows


def measure_bags(
    bags: SlideBags, panel: GenePanel, space: TargetSpace
) -> tuple[Float32[np.ndarray, "bag gene"], Bool[np.ndarray, "bag gene"]]:
    """Measured expression of the bags of a slide, and which of it was measured."""
    values, is_observed = measure(bags.slide.regions, panel, space)
    return values[bags.row_of_bag], is_observed[bags.row_of_bag]


def check_one_encoder(slides: Sequence[SlideData]) -> str:
    """The encoder of all slides.

    Raises:
        MismatchError: If there are two.
    """
    if not slides:
        raise DataError("no slides were given")
    first = slides[0]
    for slide in slides[1:]:
        if slide.cells.encoder_id != first.cells.encoder_id:
            raise MismatchError(
                f"cells of {first.slide_id} are described by {first.cells.encoder_id}, those of "
                f"{slide.slide_id} by {slide.cells.encoder_id}; features of different encoders "
                "never meet in one fit. Re-run 'histoscribe prepare' with one encoder"
            )
    return first.cells.encoder_id


def cut_into_strips(slide: SlideData, n_strips: int, buffer_um: float) -> list[SlideData]:
    """One slide as several, for studies of a single slide: strips along x with buffers between.

    Each strip keeps all cells and tiles, which say nothing of expression, and its own regions;
    regions in a buffer are in no strip.
    """
    fold = strips(slide.regions.xy_um, n_strips, buffer_um)
    parts = []
    for strip in range(n_strips):
        name = f"{slide.slide_id}-strip{strip + 1}"
        rows = np.flatnonzero(fold == strip)
        regions = replace(slide.regions.take(rows), slide_id=(name,) * len(rows))
        cells, tiles = replace(slide.cells, slide_id=name), replace(slide.tiles, slide_id=name)
        parts.append(SlideData(cells, tiles, regions))
    return parts


def _scale(bags: SlideBags, scaling: Scaling, panel: GenePanel | None) -> BagBatch:
    """The bags of a slide in the fitted scales; with a panel, what was measured as target."""
    cells, members = bags.slide.cells, bags.members
    table = Transformed(SomeRows(cells.features, members.cell), scaling.cells)
    features = gather(table, np.arange(len(members)))
    phenotype = scaling.phenotypes.assign(features)
    target, is_observed = _measure_target(bags, scaling, panel)
    offset_um = cells.xy_um[members.cell] - bags.blocks.xy_um[members.region]
    field = scaling.field.apply(bags.descriptors)
    release(bags.descriptors)
    return BagBatch(
        features=torch.from_numpy(features),
        offset_um=torch.from_numpy(offset_um),
        is_inside=torch.from_numpy(members.is_inside),
        neighbours=torch.from_numpy(bags.neighbours),
        phenotype=torch.from_numpy(phenotype),
        block_of_cell=torch.from_numpy(members.region),
        bag_of_block=torch.from_numpy(bags.bag_of_block),
        field=torch.from_numpy(field),
        n_bags=len(bags),
        target=target,
        is_observed=is_observed,
    )


def _measure_target(
    bags: SlideBags, scaling: Scaling, panel: GenePanel | None
) -> tuple[Float[Tensor, "bag gene"] | None, Bool[Tensor, "bag gene"] | None]:
    """Measured expression, z-scored, 0 where there is none; and where it was measured."""
    if panel is None:
        return None, None
    values, is_observed = measure_bags(bags, panel, scaling.target.space)
    target = np.nan_to_num(scaling.target.standardise(values), nan=0.0)
    return torch.from_numpy(target), torch.from_numpy(is_observed)
