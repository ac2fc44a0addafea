r"""Transfer: a fit that starts from what another fit has learned, of spots or of whole samples.

Everything that belongs to a gene is carried by the gene's id: its query, its readout and bias, and
the mean and deviation it was scaled by. All else of the net, and the scales of its inputs, is taken
over whole. Three modes:

    lora     W' = W + (alpha / r) B A with W frozen, on the projections of block tokens and cells,
             on query, key, value and output of the attention, and on the feed-forward part
    full     everything goes on learning
    frozen   only what belongs to genes learns

In each of them what belongs to genes learns. Source: the BiTro paper, section 3.5; Hu et al. 2022.
Departs from the paper's code, which puts adapters on frozen random weights from the first step,
leaves out the keys, and pairs genes by their row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from histoscribe.data.genes import GenePanel
from histoscribe.data.splits import Split
from histoscribe.errors import ConfigError, MismatchError
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import Checkpoint
from histoscribe.train.lora import LoraSettings
from histoscribe.train.scaling import Scaling, TargetScaling

TransferMode = Literal["lora", "full", "frozen"]

FREE = (
    "n_genes",
    "cell_share",
    "cells_in_training",
    "dropout",
    "gat_dropout",
    "context_input_dropout",
    "context_dropout",
)
"""Settings of a model that may change in a transfer; the others are of its weights."""


@dataclass(frozen=True)
class TransferConfig:
    """How a fit goes on from another.

    Attributes:
        mode: What learns beside the genes' own parameters: adapters, everything, or nothing.
        lora: Rank, weight and dropout of the adapters.
        carry_scaling: Take mean and deviation of the genes in common from the old fit, where both
            learn the same space; else all are fitted on the new training regions, which a few
            regions do badly.
    """

    mode: TransferMode = "lora"
    lora: LoraSettings = field(default_factory=LoraSettings)
    carry_scaling: bool = True


@dataclass(frozen=True, eq=False)
class Start:
    """Where a fit starts: a checkpoint, and how it goes on from there."""

    checkpoint: Checkpoint
    config: TransferConfig = field(default_factory=TransferConfig)


def check_start(
    start: Checkpoint, model: str, settings: Mapping[str, Any], encoder_id: str, panel: GenePanel
) -> dict[str, Any]:
    """Every setting of the model that goes on: the old ones, with those given that may change.

    Args:
        start: The old checkpoint.
        model: Name of the model that was asked for.
        settings: Its settings that were given.
        encoder_id: Encoder of the new slides.
        panel: The new genes.

    Raises:
        MismatchError: If encoders differ, or no gene is in common.
        ConfigError: If another model or shape was asked for.
    """
    if encoder_id != start.encoder_id:
        raise MismatchError(
            f"the checkpoint expects features of {start.encoder_id}, the new cells have "
            f"{encoder_id}. Re-run 'histoscribe prepare' with the encoder, prepare.view and "
            "prepare.stain that the first of these says, or fit without --from"
        )
    if model != start.model:
        raise ConfigError(f"the checkpoint is of model {start.model}, fit.model = {model}")
    for name, value in settings.items():
        if name not in FREE and start.model_settings.get(name) != value:
            raise ConfigError(
                f"model.{name} = {value!r}, but the checkpoint has "
                f"{start.model_settings.get(name)!r}; a transfer keeps the shape of the net. Leave "
                "it out, or fit without --from"
            )
    if panel.namespace != start.panel.namespace:
        raise MismatchError(
            f"genes are named by {panel.namespace} here and by {start.panel.namespace} in the "
            "checkpoint; rename them with data.gene_names.rename_panel first"
        )
    if not (start.panel.rows_of(panel.ids) >= 0).any():
        raise MismatchError(
            f"none of the {len(panel)} genes is among the {len(start.panel)} of the checkpoint "
            f"(e.g. {', '.join(start.panel.ids[:3])}); nothing of a gene could be carried over"
        )
    given = {name: value for name, value in settings.items() if name in FREE}
    return {**start.model_settings, **given, "n_genes": len(panel)}


def check_unseen(start: Checkpoint, slides: Sequence[SlideData], split: Split) -> None:
    """MismatchError if the checkpoint was trained on a slide, or patient, that is to be tested.

    A slide is known by its image, however it was prepared; patients count where the split is by
    patient.
    """
    seen = set(start.provenance.inputs.items())
    known = {name.rpartition("/")[2] + " " + value for name, value in seen}
    for slide in slides:
        if slide.slide_id not in split.test:
            continue
        made = slide.cells.provenance
        marks = {f"cells {made.key}", f"image {made.inputs.get('slide')}"}
        if marks & known:
            raise MismatchError(
                f"the checkpoint was trained on tissue of {slide.slide_id}, which is to be tested; "
                "test on other slides, or start from a checkpoint that has not seen it"
            )
        if split.unit == "patient" and f"patient {slide.patient_id}" in known:
            raise MismatchError(
                f"the checkpoint was trained on patient {slide.patient_id}, who is to be tested; "
                "test on other patients, start from a checkpoint that has not seen them, or, "
                "knowing that the score will be optimistic, split with --unit section"
            )


def carry_weights(start: Checkpoint, panel: GenePanel) -> list[dict[str, Tensor]]:
    """The old nets, each with the rows of the new genes: the old row, or the mean of all old rows.

    Adapters of the old fit are merged first.
    """
    row = torch.from_numpy(start.panel.rows_of(panel.ids))
    genes = gene_tensors(start.build()[0])
    carried = []
    for weights in start.merged().nets:
        net = dict(weights)
        for name in genes:
            old = net[name]
            mean = old.mean(0, keepdim=True).expand(len(row), *old.shape[1:])
            known = (row >= 0).view(-1, *[1] * (old.ndim - 1))
            net[name] = torch.where(known, old[row.clamp(min=0)], mean).contiguous()
        carried.append(net)
    return carried


def carry_scaling(
    start: Checkpoint, target: TargetScaling, panel: GenePanel, config: TransferConfig
) -> Scaling:
    """The scales of the inputs as they were; of the targets, those of the genes in common.

    Args:
        start: The old checkpoint.
        target: Fitted on the new training regions.
        panel: The new genes.
        config: Whether targets keep their scale.
    """
    old = start.scaling.target
    if not config.carry_scaling or old.space != target.space:
        return replace(start.scaling, target=target)
    row = start.panel.rows_of(panel.ids)

    def pick(of_old: Float32[np.ndarray, " old"], fitted: Float32[np.ndarray, " gene"]):  # noqa: ANN202
        return np.where(row >= 0, of_old[row.clip(min=0)], fitted).astype(np.float32)

    carried = TargetScaling(old.space, pick(old.mu, target.mu), pick(old.sigma, target.sigma))
    return replace(start.scaling, target=carried)


def gene_tensors(net: object) -> tuple[str, ...]:
    """Names of the parameters whose rows are genes.

    Raises:
        ConfigError: If the model does not say.
    """
    names = getattr(type(net), "GENE_TENSORS", None)
    if names is None or not isinstance(net, nn.Module):
        raise ConfigError(
            f"{type(net).__name__} does not say what belongs to its genes; it cannot "
            "be carried over"
        )
    present = dict(net.named_parameters())
    return tuple(name for name in names if name in present)


def freeze_all_but_genes(net: nn.Module) -> None:
    """Let only what belongs to genes learn."""
    genes = set(gene_tensors(net))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in genes)


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters of a net.

    Attributes:
        backbone: What belongs to no gene, adapters left out.
        genes: What belongs to genes.
        adapters: What adapters add.
        trained: Of backbone and adapters, what learns.
    """

    backbone: int
    genes: int
    adapters: int
    trained: int


def count_parameters(net: nn.Module, genes: Sequence[str]) -> Sizes:
    """Count the parameters of a net, with or without adapters.

    Args:
        net: The net.
        genes: Names of what belongs to genes.
    """
    backbone = n_genes = adapters = trained = 0
    for name, parameter in net.named_parameters():
        if name in genes:
            n_genes += parameter.numel()
            continue
        is_adapter = ".lora_" in name
        adapters += parameter.numel() * is_adapter
        backbone += parameter.numel() * (not is_adapter)
        trained += parameter.numel() * parameter.requires_grad
    return Sizes(backbone, n_genes, adapters, trained)
