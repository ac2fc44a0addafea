"""A planted-signal world: slide, nuclei, cells, tiles and regions, made up in under a second.

Two kinds of cells differ in look, in features and in what they express; their mix changes over
the tissue. What the kinds look like and express is the same in every world, so that a model that
learned on one toy slide must do well on another. Sizes are odd and all different, so that a
swapped axis cannot pass by luck.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from scipy.sparse import csr_array
from torch import Tensor

from histoscribe.data.bags import BagBatch
from histoscribe.data.cells import Cells, Outlines
from histoscribe.data.genes import GenePanel
from histoscribe.data.join import assign_cells, knn_within_bags
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions
from histoscribe.data.tiles import Tiles
from histoscribe.types import Box

MPP = 0.5
SIZE_PX = (1921, 1643)
SPACING_UM = 11.0
RADIUS_UM = 27.5
PITCH_UM = 100.0
TILE_UM = 32.0
N_FEATURES = 17
N_TILE_FEATURES = 10
ENCODER_ID = f"toy@planted/nucleus-mean-std/tile0um/mpp{MPP:g}/d{N_FEATURES}"

WHITE = (243, 242, 244)
STROMA = (224, 174, 200)
NUCLEUS = ((120, 84, 160), (66, 36, 112))
"""Colour of nuclei of kind 0 and kind 1."""
AXES_UM = ((2.6, 2.2), (4.2, 3.0))
"""Half axes of nuclei of kind 0 and kind 1."""

SYMBOLS = (
    "ALPHA1", "ALPHA2", "ALPHA3", "ALPHA4", "BETA1", "BETA2", "BETA3", "BETA4", "HOUSE1", "HOUSE2",
    "RARE1", "MT-TOY1", "RPL1",
)  # fmt: skip
RATES = np.array(
    [
        [9.0, 6.0, 4.0, 3.0, 0.5, 0.4, 0.3, 0.6, 5.0, 3.0, 0.02, 8.0, 6.0],
        [0.6, 0.3, 0.4, 0.5, 8.0, 7.0, 5.0, 3.0, 5.0, 3.0, 0.02, 8.0, 6.0],
    ]
)
"""Expected counts of one cell, kind x gene."""


@dataclass(frozen=True)
class ToySlide:
    """A slide in memory."""

    slide_id: str
    pixels: UInt8[np.ndarray, "y x 3"]
    mpp: tuple[float, float] = (MPP, MPP)

    @property
    def path(self) -> Path:
        """Where it would lie; no such file exists."""
        return Path(f"{self.slide_id}.png")

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def read(self, box: Box, mpp: float) -> UInt8[np.ndarray, "y x 3"]:
        """The box, each pixel the mean over its area; white outside."""
        wide, high = round(box.width_um / mpp), round(box.height_um / mpp)
        step_x, step_y = mpp / self.mpp[0], mpp / self.mpp[1]
        x, y = float(box.x_um) / self.mpp[0], float(box.y_um) / self.mpp[1]
        left, top = max(0, int(x)), max(0, int(y))  # only what the box covers
        near = self.pixels[top : int(y + high * step_y) + 2, left : int(x + wide * step_x) + 2]
        across = _overlap(x - left, step_x, wide, near.shape[1])
        down = _overlap(y - top, step_y, high, near.shape[0])
        image = np.empty((high, wide, 3), dtype=np.float64)
        for channel in range(3):
            darkness = 255.0 - near[..., channel]
            image[..., channel] = 255.0 - down @ (across @ darkness.T).T
        return np.rint(image).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class ToyWorld:
    """A slide and all that is known of it.

    Attributes:
        slide: The image.
        cells: Its nuclei, with features that carry their kind.
        tiles: Its squares, with features that carry the mix of kinds.
        regions: Spots on a lattice; counts are Poisson around the sum over the cells inside.
        kind_of_cell: 0 or 1, what was planted.
    """

    slide: ToySlide
    cells: Cells
    tiles: Tiles
    regions: Regions
    kind_of_cell: Int[np.ndarray, " cell"]


def toy_world(
    seed: int,
    slide_id: str = "toy-a",
    patient_id: str = "patient-a",
    *,
    has_lumen: bool = False,
) -> ToyWorld:
    """Draw one slide.

    Args:
        seed: Where nuclei lie and which counts are drawn; not what kinds look like.
        slide_id: Name of the slide.
        patient_id: Its patient.
        has_lumen: Leave a round hole without nuclei around one spot, which so has none.
    """
    rng = np.random.default_rng(seed)
    provenance = Provenance("toy_world", {"seed": seed, "has_lumen": has_lumen})
    extent_um = np.array(SIZE_PX) * MPP
    spots_xy = _lattice(extent_um)
    xy_um = _scatter(rng, extent_um)
    if has_lumen:
        hole = spots_xy[len(spots_xy) // 2]
        xy_um = xy_um[np.hypot(*(xy_um - hole).T) > RADIUS_UM + 2 * max(AXES_UM[1])]
    kind = (rng.random(len(xy_um)) < _mix(rng, xy_um, extent_um)).astype(np.int64)
    axes = np.array(AXES_UM)[kind] * rng.uniform(0.9, 1.1, (len(kind), 2))
    angle = rng.uniform(0, np.pi, len(kind))
    pixels = _draw(rng, xy_um, kind, axes, angle)
    cells = Cells(
        slide_id=slide_id,
        xy_um=xy_um.astype(np.float32),
        area_um2=(np.pi * axes.prod(axis=1)).astype(np.float32),
        features=_features(rng, np.eye(2)[kind], N_FEATURES),
        encoder_id=ENCODER_ID,
        segmenter_id="toy@planted",
        provenance=provenance,
        outlines=_outline(xy_um, axes, angle),
    )
    tiles = _describe_tiles(rng, pixels, xy_um, kind, (slide_id, provenance))
    regions = _measure(rng, spots_xy, cells, kind, (slide_id, patient_id, provenance))
    return ToyWorld(ToySlide(slide_id, pixels), cells, tiles, regions, kind)


def toy_study(seed: int, n_slides: int = 3, slides_per_patient: int = 1) -> list[ToyWorld]:
    """Several slides, `slides_per_patient` of each patient (the last may have fewer)."""
    return [
        toy_world(seed * 1000 + i, f"toy-{i}", f"patient-{i // slides_per_patient}")
        for i in range(n_slides)
    ]


def toy_bag_batch(
    generator: torch.Generator,
    n_bags: int = 5,
    n_features: int = 7,
    n_descriptors: int = 6,
    n_rings: int = 4,
    n_genes: int = 11,
    most_blocks: int = 1,
) -> BagBatch:
    """Bags of up to `most_blocks` blocks of 1 to 9 cells, some of these cells context.

    The target is linear in cells and fields.

    The weights of the target are drawn from the generator: to test on other bags than were
    trained on, draw one batch and `take` from it.
    """
    n_blocks_of_bag = torch.ones(n_bags, dtype=torch.int64)
    if most_blocks > 1:
        n_blocks_of_bag = torch.randint(1, most_blocks + 1, (n_bags,), generator=generator)
    bag_of_block = torch.repeat_interleave(torch.arange(n_bags), n_blocks_of_bag)
    n_blocks = len(bag_of_block)
    n_cells = torch.randint(1, 10, (n_blocks,), generator=generator)
    n_cells[n_blocks // 2] = 1
    block_of_cell = torch.repeat_interleave(torch.arange(n_blocks), n_cells)
    total = len(block_of_cell)
    is_inside = torch.rand(total, generator=generator) < 0.7
    is_inside[n_cells.cumsum(0) - n_cells] = True
    offset_um = (torch.rand(total, 2, generator=generator) - 0.5) * 100
    features = torch.randn(total, n_features, generator=generator)
    field = torch.randn(n_blocks, n_rings, n_descriptors, generator=generator)
    neighbours = knn_within_bags(offset_um.numpy(), block_of_cell.numpy(), 3)
    inside = torch.zeros(n_bags, total)
    inside[bag_of_block[block_of_cell][is_inside], is_inside.nonzero()[:, 0]] = 1
    of_cell = inside / inside.sum(1, keepdim=True)
    target = of_cell @ features @ _randn(n_features, n_genes, generator)
    fields = field[:, 0] @ _randn(n_descriptors, n_genes, generator)
    target = target + 0.5 * of_cell @ fields[block_of_cell]
    return BagBatch(
        features=features,
        offset_um=offset_um,
        is_inside=is_inside,
        neighbours=torch.from_numpy(neighbours),
        phenotype=(features[:, 0] > 0).long() + 2 * (features[:, 1] > 0).long(),
        block_of_cell=block_of_cell,
        bag_of_block=bag_of_block,
        field=field,
        n_bags=n_bags,
        target=target,
    )


def _randn(n: int, m: int, generator: torch.Generator) -> Float[Tensor, "n m"]:
    return torch.randn(n, m, generator=generator) / n**0.5


def _lattice(extent_um: Float[np.ndarray, "2"]) -> Float[np.ndarray, "spot 2"]:
    x = np.arange(PITCH_UM / 2, extent_um[0], PITCH_UM)
    y = np.arange(PITCH_UM / 2 + 10, extent_um[1], PITCH_UM)
    xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return xy[_is_tissue(xy, extent_um, margin_um=RADIUS_UM)]


def _is_tissue(
    xy: Float[np.ndarray, "*n 2"], extent_um: Float[np.ndarray, "2"], margin_um: float = 0.0
) -> Bool[np.ndarray, "*n"]:
    """A fat ellipse that leaves the corners of the slide white."""
    half = 0.49 * extent_um - margin_um
    return (np.abs((xy - extent_um / 2) / half) ** 3).sum(axis=-1) < 1


def _scatter(
    rng: np.random.Generator, extent_um: Float[np.ndarray, "2"]
) -> Float[np.ndarray, "cell 2"]:
    """A shaken grid with holes: no two nuclei touch."""
    axes = [np.arange(SPACING_UM / 2, size, SPACING_UM) for size in extent_um]
    xy = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    xy = xy + rng.uniform(-1.2, 1.2, xy.shape)
    keep = _is_tissue(xy, extent_um, margin_um=6.0) & (rng.random(len(xy)) < 0.85)
    return xy[keep]


def _mix(
    rng: np.random.Generator, xy_um: Float[np.ndarray, "cell 2"], extent_um: np.ndarray
) -> Float[np.ndarray, " cell"]:
    """Probability of kind 1: smooth waves over the slide."""
    waves = rng.uniform(0.7, 1.6, (3, 2)) * rng.choice([-1, 1], (3, 2))
    phase = rng.uniform(0, 2 * np.pi, 3)
    level = np.sin(2 * np.pi * (xy_um / extent_um) @ waves.T + phase).sum(axis=1)
    return 1 / (1 + np.exp(-1.8 * level))


def _features(
    rng: np.random.Generator, mix: Float[np.ndarray, "row 2"], n_features: int
) -> np.ndarray:
    """The mix through a fixed loading, with noise; scales differ as those of real encoders do."""
    loading = np.random.default_rng(n_features).normal(size=(2, n_features))
    scale = np.geomspace(0.2, 5.0, n_features)
    noise = rng.normal(scale=0.8, size=(len(mix), n_features))
    return ((mix @ loading + noise) * scale).astype(np.float16)


def _draw(
    rng: np.random.Generator,
    xy_um: Float[np.ndarray, "cell 2"],
    kind: Int[np.ndarray, " cell"],
    axes: Float[np.ndarray, "cell 2"],
    angle: Float[np.ndarray, " cell"],
) -> UInt8[np.ndarray, "y x 3"]:
    x, y = ((np.arange(size) + 0.5) * MPP for size in SIZE_PX)
    extent_um = np.array(SIZE_PX) * MPP
    tissue = _is_tissue(np.stack(np.meshgrid(x, y), axis=-1), extent_um)
    image = np.where(tissue[..., None], np.array(STROMA, np.uint8), np.array(WHITE, np.uint8))
    reach = int(np.ceil(max(AXES_UM[1]) * 1.2 / MPP))
    grid = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2), axis=-1)
    for centre, colour, half, turn in zip(xy_um, kind, axes, angle, strict=True):
        middle = np.floor(centre / MPP).astype(int)
        offset = (grid + middle + 0.5) * MPP - centre
        cos, sin = np.cos(turn), np.sin(turn)
        along = offset @ np.array([[cos, -sin], [sin, cos]]) / half
        rows, columns = np.nonzero((along**2).sum(axis=-1) <= 1)
        image[rows + middle[1] - reach, columns + middle[0] - reach] = NUCLEUS[colour]
    image += rng.integers(0, 9, image.shape, dtype=np.uint8)
    return image


def _outline(
    xy_um: Float[np.ndarray, "cell 2"],
    axes: Float[np.ndarray, "cell 2"],
    angle: Float[np.ndarray, " cell"],
    n_vertices: int = 15,
) -> Outlines:
    turn = np.linspace(0, 2 * np.pi, n_vertices, endpoint=False)
    ring = axes[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x = ring[..., 0] * cos - ring[..., 1] * sin
    y = ring[..., 0] * sin + ring[..., 1] * cos
    vertices = np.stack([x, y], axis=-1) + xy_um[:, None]
    start = np.arange(len(xy_um) + 1, dtype=np.int64) * n_vertices
    return Outlines(vertices.reshape(-1, 2).astype(np.float32), start)


def _describe_tiles(
    rng: np.random.Generator,
    pixels: UInt8[np.ndarray, "y x 3"],
    xy_um: Float[np.ndarray, "cell 2"],
    kind: Int[np.ndarray, " cell"],
    made: tuple[str, Provenance],
) -> Tiles:
    """Whole squares whose centre is tissue: features from the mix inside, true colours."""
    side_px = round(TILE_UM / MPP)
    rows, columns = pixels.shape[0] // side_px, pixels.shape[1] // side_px
    squares = pixels[: rows * side_px, : columns * side_px].astype(np.float32)
    squares = squares.reshape(rows, side_px, columns, side_px, 3)
    colour = np.concatenate([squares.mean(axis=(1, 3)), squares.std(axis=(1, 3))], axis=-1)
    grid_x, grid_y = np.meshgrid(np.arange(columns), np.arange(rows))
    centres = (np.stack([grid_x, grid_y], axis=-1).reshape(-1, 2) + 0.5) * TILE_UM
    mix = np.zeros((rows + 1, columns + 1, 2))
    column, row = np.floor(xy_um / TILE_UM).astype(int).T
    np.add.at(mix, (row, column, kind), 1 / 6)  # about six nuclei a tile
    is_tissue = _is_tissue(centres, np.array(SIZE_PX) * MPP)
    means = _features(rng, mix[:rows, :columns].reshape(-1, 2)[is_tissue], N_TILE_FEATURES // 2)
    return Tiles(
        slide_id=made[0],
        side_um=TILE_UM,
        xy_um=centres[is_tissue].astype(np.float32),
        features=np.concatenate([means, rng.uniform(0.5, 1.0, means.shape)], axis=1, dtype="f2"),
        colour=colour.reshape(-1, 6)[is_tissue].astype(np.float32),
        encoder_id=ENCODER_ID,
        provenance=made[1],
    )


def _measure(
    rng: np.random.Generator,
    spots_xy: Float[np.ndarray, "spot 2"],
    cells: Cells,
    kind: Int[np.ndarray, " cell"],
    made: tuple[str, str, Provenance],
) -> Regions:
    """Counts of each spot: Poisson, with a depth of its own, plus a trace of ambient RNA."""
    xy_um: Float32[np.ndarray, "spot 2"] = spots_xy.astype(np.float32)
    inside = assign_cells(cells.xy_um, xy_um, RADIUS_UM, ring_um=0.0)
    n_of_kind = np.zeros((len(xy_um), 2))
    np.add.at(n_of_kind, (inside.region, kind[inside.cell]), 1)
    depth = rng.lognormal(0.0, 0.2, len(xy_um))[:, None]
    counts = rng.poisson(depth * (n_of_kind @ RATES + 0.1))
    panel = GenePanel(
        ids=tuple(f"ENSG{number:011d}" for number in range(1, len(SYMBOLS) + 1)),
        symbols=SYMBOLS,
        namespace="ensembl",
    )
    column_row = np.round((spots_xy - PITCH_UM / 2) / PITCH_UM).astype(int)
    return Regions(
        kind="spot",
        region_id=tuple(f"{column}x{row}" for column, row in column_row),
        slide_id=(made[0],) * len(xy_um),
        patient_id=(made[1],) * len(xy_um),
        xy_um=xy_um,
        radius_um=RADIUS_UM,
        pitch_um=PITCH_UM,
        genes=panel,
        expression=csr_array(counts.astype(np.float32)),
        expression_unit="counts",
        gene_observed=np.ones(len(panel), dtype=bool),
        platform="toy",
        provenance=made[2],
    )


def _overlap(start_px: float, step_px: float, n_out: int, n_in: int) -> csr_array:
    """Share of each output pixel that each input pixel covers; what lies outside counts 0."""
    edges = start_px + step_px * np.arange(n_out + 1)
    first = np.floor(edges[:-1]).astype(int)
    reach = int(np.ceil(step_px)) + 1
    column = first[:, None] + np.arange(reach)
    low = np.maximum(column, edges[:-1, None])
    high = np.minimum(column + 1, edges[1:, None])
    share = np.maximum(high - low, 0) / step_px
    row = np.broadcast_to(np.arange(n_out)[:, None], column.shape)
    valid = (column >= 0) & (column < n_in) & (share > 0)
    return csr_array((share[valid], (row[valid], column[valid])), shape=(n_out, n_in))
