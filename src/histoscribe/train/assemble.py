"""From slides to bags: which cells a region has, what surrounds it, in the fitted scales."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from histoscribe.data.bags import BagBatch, BagConfig, collate
from histoscribe.data.cells import Cells
from histoscribe.data.context import describe_regions
from histoscribe.data.genes import GenePanel
from histoscribe.data.join import Membership, assign_cells, knn_within_bags
from histoscribe.data.regions import Regions
from histoscribe.data.splits import strips
from histoscribe.data.tiles import Tiles
from histoscribe.errors import DataError, MismatchError
from histoscribe.train.scaling import Scaling
from histoscribe.train.targets import TargetSpace, measure


@dataclass(frozen=True, eq=False)
class SlideData:
    """All that is known of one slide.

    Raises:
        MismatchError: If the parts are of different slides or encoders.
    """

    cells: Cells
    tiles: Tiles
    regions: Regions

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
        row_of_bag: Row of each bag in the slide's regions; regions without a nucleus inside, or
            without a described tile, have no bag.
        members: Cells of the bags; its `region` counts bags.
        neighbours: Nearest cells of each member within its bag, as rows of `members`.
        descriptors: Raw field descriptors of the bags.
    """

    slide: SlideData
    row_of_bag: Int64[np.ndarray, " bag"]
    members: Membership
    neighbours: Int64[np.ndarray, "member k"]
    descriptors: Float32[np.ndarray, "bag ring descriptor"]

    def __len__(self) -> int:
        return len(self.row_of_bag)

    def inside_rows(self) -> Int64[np.ndarray, " inside"]:
        """Cells that lie inside a bag's region; each once."""
        return self.members.cell[self.members.is_inside]


@dataclass(frozen=True, eq=False)
class AssembledBags:
    """Bags of several slides in one batch, and where each came from.

    Attributes:
        batch: All bags; with z-scored targets if the regions have expression and it was wanted.
        slide_of_bag: Position of each bag's slide in `slides`.
        row_of_bag: Row of each bag in its slide's regions.
        slides: The slides.
        members: For each slide, its cells in the order of the batch.
        scaling: The scales that were applied.
    """

    batch: BagBatch
    slide_of_bag: Int64[np.ndarray, " bag"]
    row_of_bag: Int64[np.ndarray, " bag"]
    slides: tuple[SlideData, ...]
    members: tuple[Membership, ...]
    scaling: Scaling

    @property
    def n_empty(self) -> int:
        """Regions of the slides that have no bag."""
        return sum(len(slide.regions) for slide in self.slides) - len(self.row_of_bag)


def cut_bags(slide: SlideData, config: BagConfig) -> SlideBags:
    """Give each region its cells, its graph and its surroundings; nothing is fitted here.

    Raises:
        DataError: If no region of the slide has a nucleus.
    """
    regions = slide.regions
    members = assign_cells(slide.cells.xy_um, regions.xy_um, regions.radius_um, config.ring_um)
    descriptors = describe_regions(slide.cells, slide.tiles, regions, config)
    is_bag = np.bincount(members.region[members.is_inside], minlength=len(regions)) > 0
    is_bag &= np.isfinite(descriptors).all(axis=(1, 2))
    if not is_bag.any():
        raise DataError(
            f"none of the {len(regions)} regions of {slide.slide_id} has a nucleus; check that "
            "positions and mpp fit the slide, and that it was prepared around its regions"
        )
    bag_of_region = np.cumsum(is_bag) - 1
    keep = is_bag[members.region]
    kept = Membership(
        bag_of_region[members.region[keep]], members.cell[keep], members.is_inside[keep]
    )
    neighbours = knn_within_bags(slide.cells.xy_um[kept.cell], kept.region, config.neighbours)
    return SlideBags(slide, np.flatnonzero(is_bag), kept, neighbours, descriptors[is_bag])


def assemble(
    bags: Sequence[SlideBags], scaling: Scaling, panel: GenePanel, *, has_target: bool
) -> AssembledBags:
    """Apply the fitted scales and put the bags of all slides one after another.

    Args:
        bags: Bags of each slide.
        scaling: What was fitted on the training slides.
        panel: Genes of the target.
        has_target: Whether to add the measured expression, z-scored; genes that were not measured
            are masked, not zero.
    """
    batches = [_scale(part, scaling) for part in bags]
    if has_target:
        batches = [
            _add_target(batch, part, scaling, panel)
            for batch, part in zip(batches, bags, strict=True)
        ]
    return AssembledBags(
        batch=collate(batches),
        slide_of_bag=np.repeat(np.arange(len(bags)), [len(part) for part in bags]),
        row_of_bag=np.concatenate([part.row_of_bag for part in bags]),
        slides=tuple(part.slide for part in bags),
        members=tuple(part.members for part in bags),
        scaling=scaling,
    )


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


def _scale(bags: SlideBags, scaling: Scaling) -> BagBatch:
    cells, members = bags.slide.cells, bags.members
    used, position = np.unique(members.cell, return_inverse=True)
    features = scaling.cells.apply(cells.features[used])
    phenotype = scaling.phenotypes.assign(features)
    centre = bags.slide.regions.xy_um[bags.row_of_bag][members.region]
    return BagBatch(
        features=torch.from_numpy(features[position]),
        offset_um=torch.from_numpy(cells.xy_um[members.cell] - centre),
        is_inside=torch.from_numpy(members.is_inside.copy()),
        neighbours=torch.from_numpy(bags.neighbours.copy()),
        phenotype=torch.from_numpy(phenotype[position]),
        bag_of_cell=torch.from_numpy(members.region.copy()),
        field=torch.from_numpy(scaling.field.apply(bags.descriptors)),
        n_bags=len(bags),
    )


def _add_target(batch: BagBatch, bags: SlideBags, scaling: Scaling, panel: GenePanel) -> BagBatch:
    values, is_observed = measure_bags(bags, panel, scaling.target.space)
    target = np.nan_to_num(scaling.target.standardise(values), nan=0.0)
    return replace(
        batch,
        target=torch.from_numpy(target),
        is_observed=torch.from_numpy(is_observed.copy()),
    )
