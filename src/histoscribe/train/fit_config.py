"""How a model is fitted, and where."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from histoscribe.data.regions import RegionKind
from histoscribe.errors import ConfigError, MissingExtra
from histoscribe.train.processes import find_processes
from histoscribe.train.targets import TargetSpace

BULK_CLUSTER_WEIGHT = 0.1  # the paper searches 0.1 to 0.5
MAX_SEED = 2**32 - 1  # of scikit-learn's K-means


@dataclass(frozen=True)
class FitConfig:
    """How a model is fitted.

    Attributes:
        model: Name of the model.
        target_space: What it learns to say.
        seed: Seed of weights, order of bags, dropout and phenotypes.
        n_components: Principal components of the cell features.
        n_field_components: Principal components of the tiles of a field, and as many of its cells.
        has_cell_context: Whether the surroundings of a region describe nuclei beside tiles.
        n_phenotypes: K of the K-means over cells.
        cluster_weight: Weight of the cluster loss (eq. 12); null takes 0.1 for bulk and 0 for
            spots, which it hurts (the paper's own ablation).
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        clip_norm: Gradients are scaled down to this norm.
        batch_regions: Regions a step.
        blocks_in_training: Blocks of a region, drawn anew each time, that enter a step; 0 takes
            all. Only whole samples have several.
        blocks_in_scoring: Blocks of a held-out region, the same in every epoch, that it is scored
            by; 0 takes all.
        max_epochs: At most.
        patience: Epochs without a better held-out score before a net stops.
        stop_on: What is better: a higher mean PCC of the genes over the held-out regions of a
            slide, or a lower loss, which a few regions, or one, give as well. Null takes the loss
            for bulk, whose folds may hold one patient, and the PCC for spots.
        n_folds: Inner folds at most; units (patients, else slides) are dealt out to them.
        n_repeats: Nets for each inner fold, with different seeds.
        device: Where the nets are trained.
    """

    model: str = "bitro"
    target_space: TargetSpace = "log1p_cp10k"
    seed: int = 0
    n_components: int = 128
    n_field_components: int = 128
    has_cell_context: bool = False
    n_phenotypes: int = 8
    cluster_weight: float | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    batch_regions: int = 32
    blocks_in_training: int = 64
    blocks_in_scoring: int = 256
    max_epochs: int = 30
    patience: int = 8
    stop_on: Literal["gene_pcc", "loss"] | None = None
    n_folds: int = 5
    n_repeats: int = 1
    device: Literal["cpu", "cuda", "mps"] = "cpu"

    def __post_init__(self) -> None:
        least = {"n_folds": 2, "weight_decay": 0, "seed": 0}
        least |= {"blocks_in_training": 0, "blocks_in_scoring": 0}
        least |= {"cluster_weight": 0} if self.cluster_weight is not None else {}
        least |= dict.fromkeys(
            ("n_components", "n_field_components", "n_phenotypes", "batch_regions"), 1
        )
        least |= dict.fromkeys(("max_epochs", "patience", "n_repeats"), 1)
        for name, lowest in least.items():
            if not lowest <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"fit.{name} = {getattr(self, name)}; give a finite number, {lowest} or more"
                )
        if self.seed > MAX_SEED:
            raise ConfigError(f"fit.seed = {self.seed}; give {MAX_SEED} or less")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(
                    f"fit.{name} = {getattr(self, name)}; give a finite number above 0"
                )

    def resolve(self, kind: RegionKind) -> "FitConfig":
        """The same with every setting that is null given the value it has for regions of a kind."""
        is_bulk = kind == "bulk"
        weight = self.cluster_weight
        if weight is None:
            weight = BULK_CLUSTER_WEIGHT if is_bulk else 0.0
        return replace(
            self, cluster_weight=weight, stop_on=self.stop_on or ("loss" if is_bulk else "gene_pcc")
        )


def check_device(config: FitConfig) -> None:
    """Refuse what cannot train the nets on this machine as asked.

    Raises:
        ConfigError: torchrun started more processes than can share the device, or not as many on
            every machine.
        MissingExtra: The machine has no such device.
    """
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if not has[config.device]:
        there = ", ".join(name for name, is_there in has.items() if is_there)
        raise MissingExtra(
            f"fit.device = {config.device}, which PyTorch does not find on this machine; it finds "
            f"{there}"
        )
    processes = find_processes()
    if processes.n % processes.n_here:
        raise ConfigError(
            f"torchrun started {processes.n_here} of {processes.n} processes on this machine, and "
            "other numbers elsewhere; give --nproc-per-node the same number on every machine"
        )
    if config.device == "mps" and processes.n > 1:
        raise ConfigError(
            f"fit.device = mps works in one process and torchrun started {processes.n}; run "
            "without torchrun, or take fit.device=cpu"
        )
    n_gpus = torch.cuda.device_count() if config.device == "cuda" else processes.n_here
    if processes.n_here > n_gpus:
        raise ConfigError(
            f"torchrun started {processes.n_here} processes on this machine, which has {n_gpus} "
            f"GPU(s) for fit.device = cuda; give --nproc-per-node {n_gpus}"
        )
