"""Predict: a checkpoint and slides in, expression of every region or of every cell out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
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


@dataclass(frozen=True, eq=False)
class _Applied:
    """Bags of the slides, the nets, and their mean answer in training space, de-normalised."""

    assembled: AssembledBags
    nets: list[Predictor]
    mean: Float32[np.ndarray, "bag gene"]


def predict_regions(checkpoint: Checkpoint, slides: Sequence[SlideData]) -> Prediction:
    """Predict every region of the slides; those without a nucleus get NaN.

    The answers of the nets are averaged in training space and brought back by y = z sigma + mu
    (eq. 21). They are not clamped: a value below zero is an answer, clamping is for reports.

    Args:
        checkpoint: The fitted model.
        slides: Slides prepared with the encoder of the checkpoint.

    Raises:
        MismatchError: If a slide was described by another encoder.
    """
    _check(checkpoint, slides)
    applied = _apply(checkpoint, slides)
    bags = applied.assembled
    bag_of = dict(zip((slide.slide_id for slide in bags.slides), bags.bag_of_row, strict=True))
    bag_of_row = np.concatenate([bag_of[slide.slide_id] for slide in slides])
    mean = np.where(bag_of_row[:, None] >= 0, applied.mean[bag_of_row], np.float32(np.nan))
    return Prediction(
        kind=slides[0].regions.kind,
        region_id=tuple(name for slide in slides for name in slide.regions.region_id),
        slide_id=tuple(name for slide in slides for name in slide.regions.slide_id),
        xy_um=np.concatenate([slide.regions.xy_um for slide in slides]),
        genes=checkpoint.panel,
        mean=mean,
        unit=checkpoint.scaling.target.space,
        model_id=checkpoint.model_id,
        provenance=_provenance(checkpoint, slides, "predict_regions"),
    )


def predict_cells(checkpoint: Checkpoint, slides: Sequence[SlideData]) -> Prediction:
    r"""Predict every cell inside a region, so that the cells of a region sum to the region.

        c[b, g] = max(exp(y[b, g]) - 1, 0)         y[i, g] = A[i, g] c[b, g]          (eq. 10)

    with y[b, g] what `predict_regions` says of the region and A the nets' mean attention, which
    sums to 1 over the cells inside a region. Departs from the paper, which shares out a z-score of
    a log; only counts add up. Cells are named "region/row of the cell".

    The attention of a pooled representation is a share, not a measurement: see docs/models.

    Args:
        checkpoint: The fitted model.
        slides: Slides prepared with the encoder of the checkpoint.

    Raises:
        MismatchError: If a slide was described by another encoder.
    """
    _check(checkpoint, slides)
    applied = _apply(checkpoint, slides)
    bags = applied.assembled
    of_region = np.expm1(applied.mean.astype(np.float64)).clip(min=0)
    share = _attend(applied.nets, bags.batch)[bags.batch.is_inside]
    bag_of_cell = bags.batch.bag_of_cell[bags.batch.is_inside]
    mean = cell_expression(share, torch.from_numpy(of_region), bag_of_cell).numpy()
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
        genes=checkpoint.panel,
        mean=mean.astype(np.float32),
        unit=LINEAR_UNIT[checkpoint.scaling.target.space],
        model_id=checkpoint.model_id,
        provenance=_provenance(checkpoint, slides, "predict_cells"),
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
    cut = [cut_bags(slide, checkpoint.bags) for slide in slides]
    bags = assemble(cut, checkpoint.scaling, checkpoint.panel, has_target=False)
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


def _apply(checkpoint: Checkpoint, slides: Sequence[SlideData]) -> _Applied:
    cut = [cut_bags(slide, checkpoint.bags) for slide in slides]
    bags = assemble(cut, checkpoint.scaling, checkpoint.panel, has_target=False)
    nets = checkpoint.build()
    total = torch.zeros(bags.batch.n_bags, len(checkpoint.panel), dtype=torch.float64)
    with torch.inference_mode():
        for net in nets:
            total += _answer(net, bags.batch).double()
    z = (total / len(nets)).numpy()
    return _Applied(bags, nets, checkpoint.scaling.target.restore(z))


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


def _attend(nets: Sequence[Predictor], batch: BagBatch) -> Float[Tensor, "cell gene"]:
    """Mean attention of the nets; context cells get 0."""
    total: Tensor | None = None
    with torch.inference_mode():
        for net in nets:
            share = _attend_once(net, batch)
            total = share if total is None else total.add_(share)
    assert total is not None
    return total / len(nets)


def _attend_once(net: Predictor, batch: BagBatch) -> Float[Tensor, "cell gene"]:
    if batch.n_blocks == batch.n_bags:
        portions = torch.arange(batch.n_bags).split(BLOCKS_AT_ONCE)
        return torch.cat([net.attention(batch.take(rows)) for rows in portions])
    return torch.cat(
        [
            stream.share(portion)
            for bag, stream in enumerate(_stream(net, batch))
            for portion in _portions_of(batch, bag)
        ]
    )


def _provenance(checkpoint: Checkpoint, slides: Sequence[SlideData], step: str) -> Provenance:
    inputs = {"checkpoint": checkpoint.model_id}
    for slide in slides:
        inputs[f"{slide.slide_id}/cells"] = slide.cells.provenance.key
        inputs[f"{slide.slide_id}/tiles"] = slide.tiles.provenance.key
        inputs[f"{slide.slide_id}/regions"] = slide.regions.provenance.key
    return Provenance(
        f"histoscribe {__version__} {step}", {"fit": checkpoint.provenance.key}, inputs
    )
