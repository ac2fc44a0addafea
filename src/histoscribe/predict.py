"""Predict: a checkpoint and slides in, expression of every region or of every cell out."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from histoscribe import __version__
from histoscribe.data.bags import BagBatch
from histoscribe.data.prediction import Prediction
from histoscribe.data.provenance import Provenance
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.models.predictor import Predictor, Streamed
from histoscribe.models.stream import BagStream
from histoscribe.nn.gene_query import cell_expression
from histoscribe.train.assemble import AssembledBags, SlideData, assemble, cut_bags
from histoscribe.train.checkpoint import Checkpoint
from histoscribe.train.targets import LINEAR_UNIT

BLOCKS_AT_ONCE = 128
"""Pieces of regions predicted at once: bounds memory on regions of any size."""
CELLS_AT_ONCE = 4096
BYTES = 4
"""Of one value of a prediction."""
SAME_SIZE = 0.05
"""Relative difference of lengths below which regions are called alike."""


@dataclass(frozen=True, eq=False)
class Representation:
    """Whole regions as vectors, for models of what no one has measured in genes, as survival.

    Attributes:
        region_id: The regions.
        patient_id: Their patients.
        vector: For each net of the ensemble the mean context and the mean of its cells' features,
            net by net.
    """

    region_id: tuple[str, ...]
    patient_id: tuple[str, ...]
    vector: Float32[np.ndarray, "region d"]


def predict_regions(
    checkpoint: Checkpoint, slides: Sequence[SlideData], genes: Sequence[str] | None = None
) -> Prediction:
    """Predict every region of the slides; those without a nucleus get NaN.

    The answers of the nets are averaged in training space and brought back by y = z sigma + mu
    (eq. 21). They are not clamped: a value below zero is an answer, clamping is for reports.

    Args:
        checkpoint: The fitted model.
        slides: Slides prepared with the encoder of the checkpoint.
        genes: Symbols or ids of those that are wanted; None for all of the checkpoint.

    Raises:
        MismatchError: If a slide was described by another encoder.
        ConfigError: If the checkpoint has no such gene.
    """
    _check(checkpoint, slides)
    columns = _columns(checkpoint, genes)
    bags = _assemble(checkpoint, slides)
    of_bag = _answer_all(checkpoint, checkpoint.build(), bags.batch)[:, columns]
    bag_of = dict(zip((slide.slide_id for slide in bags.slides), bags.bag_of_row, strict=True))
    bag_of_row = np.concatenate([bag_of[slide.slide_id] for slide in slides])
    mean = np.where(bag_of_row[:, None] >= 0, of_bag[bag_of_row], np.float32(np.nan))
    return Prediction(
        kind=slides[0].regions.kind,
        region_id=tuple(name for slide in slides for name in slide.regions.region_id),
        slide_id=tuple(name for slide in slides for name in slide.regions.slide_id),
        xy_um=np.concatenate([slide.regions.xy_um for slide in slides]),
        genes=checkpoint.panel.take(columns),
        mean=mean,
        unit=checkpoint.scaling.target.space,
        model_id=checkpoint.model_id,
        provenance=_provenance(checkpoint, slides, "predict_regions", genes),
    )


def predict_cells(
    checkpoint: Checkpoint,
    slides: Sequence[SlideData],
    genes: Sequence[str] | None = None,
    memory_gb: float = np.inf,
) -> Prediction:
    r"""Predict every cell inside a region, so that the cells of a region sum to the region.

        c[b, g] = max(exp(y[b, g]) - 1, 0)         y[i, g] = A[i, g] c[b, g]          (eq. 10)

    with y[b, g] what `predict_regions` says of the region and A the nets' mean attention, which
    sums to 1 over the cells inside a region. Departs from the paper, which shares out a z-score of
    a log; only counts add up. Cells are named "region/row of the cell".

    The attention of a pooled representation is a share, not a measurement: see docs/models.

    Args:
        checkpoint: The fitted model.
        slides: Slides prepared with the encoder of the checkpoint.
        genes: Symbols or ids of those that are wanted; None for all of the checkpoint.
        memory_gb: What the table, cells x genes x 4 bytes, may take.

    Raises:
        MismatchError: If a slide was described by another encoder.
        ConfigError: If the checkpoint has no such gene, or the table would be larger.
    """
    _check(checkpoint, slides)
    columns = _columns(checkpoint, genes)
    bags = _assemble(checkpoint, slides)
    _check_memory(int(bags.batch.is_inside.sum()), len(columns), memory_gb)
    nets = checkpoint.build()
    of_bag = _answer_all(checkpoint, nets, bags.batch)[:, columns]
    mean = _share_out(nets, bags.batch, np.expm1(of_bag.astype(np.float64)).clip(min=0), columns)
    region_id, slide_id, xy_um = [], [], []
    for slide, blocks, members in zip(bags.slides, bags.blocks, bags.members, strict=True):
        cell = members.cell[members.is_inside]
        rows = blocks.region[members.region[members.is_inside]]
        names = slide.regions.region_id
        region_id += [f"{names[r]}/{c}" for r, c in zip(rows, cell, strict=True)]
        slide_id += [slide.slide_id] * len(cell)
        xy_um.append(slide.cells.xy_um[cell])
    return Prediction(
        kind="cell",
        region_id=tuple(region_id),
        slide_id=tuple(slide_id),
        xy_um=np.concatenate(xy_um),
        genes=checkpoint.panel.take(columns),
        mean=mean,
        unit=LINEAR_UNIT[checkpoint.scaling.target.space],
        model_id=checkpoint.model_id,
        provenance=_provenance(checkpoint, slides, "predict_cells", genes),
    )


def represent_samples(checkpoint: Checkpoint, slides: Sequence[SlideData]) -> Representation:
    """Each region as one vector; a sample of several slides is one region.

    Args:
        checkpoint: The fitted model.
        slides: Slides prepared with the encoder of the checkpoint.

    Raises:
        MismatchError: If a slide was described by another encoder.
        ConfigError: The model has no such vectors.
    """
    _check(checkpoint, slides)
    bags = _assemble(checkpoint, slides)
    with torch.inference_mode():
        of_nets = [
            torch.cat([stream.represent() for stream in _stream(net, bags.batch)])
            for net in checkpoint.build()
        ]
    homes = [bags.slides[slide].regions for slide in bags.slide_of_bag]
    rows = bags.row_of_bag.tolist()
    return Representation(
        tuple(home.region_id[row] for home, row in zip(homes, rows, strict=True)),
        tuple(home.patient_id[row] for home, row in zip(homes, rows, strict=True)),
        torch.cat(of_nets, dim=1).numpy(),
    )


def describe_departure(checkpoint: Checkpoint, slides: Sequence[SlideData]) -> str:
    """In a sentence, how the regions differ from those the model was trained on; "" if not."""
    wanted, got = checkpoint.region_size, slides[0].regions.size
    pairs = ((wanted.radius_um, got.radius_um), (wanted.pitch_um, got.pitch_um))
    if wanted.kind == got.kind and all(_is_alike(a, b) for a, b in pairs):
        return ""
    return (
        f"The model was trained on {wanted} and predicts {got}: no score of the one says how good "
        "the other is."
    )


def _is_alike(a_um: float | None, b_um: float | None) -> bool:
    return a_um is None or b_um is None or abs(a_um - b_um) <= SAME_SIZE * a_um


def _check(checkpoint: Checkpoint, slides: Sequence[SlideData]) -> None:
    if not slides:
        raise DataError("no slides to predict; name at least one")
    for slide in slides:
        if slide.cells.encoder_id != checkpoint.encoder_id:
            raise MismatchError(
                f"checkpoint expects features of {checkpoint.encoder_id}, the cells of "
                f"{slide.slide_id} have {slide.cells.encoder_id}. "
                "Re-run 'histoscribe prepare' with encoder, prepare.view and prepare.stain as the "
                "first of these says."
            )
    kinds = sorted({slide.regions.kind for slide in slides})
    if len(kinds) > 1:
        raise MismatchError(f"slides have regions of {' and '.join(kinds)}; predict one at a time")


def _columns(checkpoint: Checkpoint, genes: Sequence[str] | None) -> Int64[np.ndarray, " gene"]:
    """Where the wanted genes stand in the answer of the nets."""
    return np.arange(len(checkpoint.panel)) if genes is None else checkpoint.panel.find(genes)


def _check_memory(n_cells: int, n_genes: int, memory_gb: float) -> None:
    needed_gb = n_cells * n_genes * BYTES / 1e9
    if needed_gb > memory_gb:
        raise ConfigError(
            f"{n_cells:,} cells x {n_genes:,} genes take {needed_gb:.3g} GB, {memory_gb:g} GB are "
            "allowed; name the genes that are wanted with --gene, or allow more with --memory"
        )


def _assemble(checkpoint: Checkpoint, slides: Sequence[SlideData]) -> AssembledBags:
    cut = [cut_bags(slide, checkpoint.bags) for slide in slides]
    return assemble(cut, checkpoint.scaling, checkpoint.panel, has_target=False)


def _answer_all(
    checkpoint: Checkpoint, nets: Sequence[Predictor], batch: BagBatch
) -> Float32[np.ndarray, "bag gene"]:
    """The nets' mean answer in training space, brought back to expression."""
    total = torch.zeros(batch.n_bags, len(checkpoint.panel), dtype=torch.float64)
    with torch.inference_mode():
        for net in nets:
            total += _answer(net, batch).double()
    return checkpoint.scaling.target.restore((total / len(nets)).numpy())


def _answer(net: Predictor, batch: BagBatch) -> Float[Tensor, "bag gene"]:
    """The answer of a net to all bags, in portions."""
    if batch.n_blocks == batch.n_bags:
        portions = torch.arange(batch.n_bags).split(BLOCKS_AT_ONCE)
        return torch.cat([net.forward(batch.take(rows)) for rows in portions])
    return torch.cat([stream.answer() for stream in _stream(net, batch)])


def _stream(net: Predictor, batch: BagBatch) -> Iterator[BagStream]:
    """For each bag, a stream that has seen all of it.

    Raises:
        ConfigError: The model takes only regions of one block.
    """
    if not isinstance(net, Streamed):
        raise ConfigError(
            f"{type(net).__name__} answers spots only; predict whole samples with another model"
        )
    for bag in range(batch.n_bags):
        stream = net.stream(1)
        for portion in _portions_of(batch, bag):
            stream.add(portion)
        yield stream


def _portions_of(batch: BagBatch, bag: int) -> Iterator[BagBatch]:
    """The blocks of a bag, some at once."""
    first, n = int(batch.first_block_of_bag[bag]), int(batch.n_blocks_of_bag[bag])
    for rows in torch.arange(first, first + n).split(BLOCKS_AT_ONCE):
        yield batch.take_blocks(rows, torch.zeros_like(rows), 1)


def _share_out(
    nets: Sequence[Predictor],
    batch: BagBatch,
    of_bag: Float64[np.ndarray, "bag gene"],
    columns: Int64[np.ndarray, " gene"],
) -> Float32[np.ndarray, "inside gene"]:
    """Expression of the cells inside a region: the one table of that size that is held."""
    bag_of_cell = batch.bag_of_cell[batch.is_inside]
    table = torch.zeros(len(bag_of_cell), len(columns))
    wanted, counts = torch.from_numpy(columns), torch.from_numpy(of_bag)
    with torch.inference_mode():
        for net in nets:
            first = 0
            for share in _attend(net, batch):
                table[first : first + len(share)] += share.index_select(1, wanted) / len(nets)
                first += len(share)
        for rows in torch.arange(len(table)).split(CELLS_AT_ONCE):
            first, end = int(rows[0]), int(rows[-1]) + 1
            some = cell_expression(table[first:end], counts, bag_of_cell[first:end])
            table[first:end] = some.float()
    return table.numpy()


def _attend(net: Predictor, batch: BagBatch) -> Iterator[Float[Tensor, "inside gene"]]:
    """Attention of the cells inside, in portions."""
    if batch.n_blocks == batch.n_bags:
        for rows in torch.arange(batch.n_bags).split(BLOCKS_AT_ONCE):
            portion = batch.take(rows)
            yield net.attention(portion)[portion.is_inside]
        return
    for bag, stream in enumerate(_stream(net, batch)):
        for portion in _portions_of(batch, bag):
            yield stream.share(portion)[portion.is_inside]


def _provenance(
    checkpoint: Checkpoint, slides: Sequence[SlideData], step: str, genes: Sequence[str] | None
) -> Provenance:
    inputs = {"checkpoint": checkpoint.model_id}
    for slide in slides:
        inputs[f"{slide.slide_id}/cells"] = slide.cells.provenance.key
        inputs[f"{slide.slide_id}/tiles"] = slide.tiles.provenance.key
        inputs[f"{slide.slide_id}/regions"] = slide.regions.provenance.key
    settings: dict[str, Any] = {
        "fit": checkpoint.provenance.key,
        "trained_on": asdict(checkpoint.region_size),
        "regions": asdict(slides[0].regions.size),
    }
    if genes is not None:
        settings["genes"] = list(genes)
    return Provenance(f"histoscribe {__version__} {step}", settings, inputs)
