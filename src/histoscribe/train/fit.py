"""Fit: one function for every model and every size of region.

The nets of a fit form a small ensemble. Each is trained on all inner folds of the training slides
but one, stopped where it does best on that one, and kept with its weights of that epoch; the
predictions of all nets are averaged, so that every training slide is learned from.

Who sees what: test slides are dropped before anything is looked at. The gene panel (chosen before),
the principal components, the phenotypes and the mean and deviation of each gene come from all
training slides, and so from the slide a net stops on as well; of that slide the net's own weights
see nothing but through the choice of the epoch. A held-out score is thus the best of many on a
slide that the scales know: it decides when to stop, and is never a result.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from histoscribe import __version__
from histoscribe.data.bags import BagConfig
from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.splits import Split, check_split
from histoscribe.errors import ConfigError, DataError, MissingExtra
from histoscribe.train.assemble import (
    AssembledBags,
    SlideBags,
    SlideData,
    assemble,
    check_one_encoder,
    cut_bags,
    measure_bags,
)
from histoscribe.train.checkpoint import Checkpoint, build_model, find_model
from histoscribe.train.scaling import Scaling, fit_field, fit_pca, fit_phenotypes, fit_target
from histoscribe.train.targets import TargetSpace

N_PARTS = 3
"""Inner folds of a single training slide."""
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
        cluster_weight: Weight of the cluster loss (eq. 12); 0 in the paper's own best for spots.
        learning_rate: Of AdamW.
        weight_decay: Of AdamW.
        clip_norm: Gradients are scaled down to this norm.
        batch_regions: Regions a step.
        max_epochs: At most.
        patience: Epochs without a better held-out score before a net stops.
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
    cluster_weight: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    batch_regions: int = 32
    max_epochs: int = 30
    patience: int = 8
    n_folds: int = 5
    n_repeats: int = 1
    device: Literal["cpu", "cuda", "mps"] = "cpu"

    def __post_init__(self) -> None:
        least = {"n_folds": 2, "cluster_weight": 0, "weight_decay": 0, "seed": 0}
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


@dataclass(frozen=True)
class Epoch:
    """One finished epoch, for progress bars."""

    net: int
    n_nets: int
    epoch: int
    max_epochs: int
    score: float


@dataclass(frozen=True)
class FitLog:
    """Where a fit writes beside its result, and whom it tells.

    Attributes:
        folder: For CSV and TensorBoard logs, and the state of an unfinished fit, from which the
            same call goes on; None writes nothing.
        on_epoch: Called after each epoch.
        every_s: Seconds between two writings of the state. What is lost by a kill is trained
            again to the same bits.
    """

    folder: Path | None = None
    on_epoch: Callable[[Epoch], None] | None = None
    every_s: float = 20.0


@dataclass(frozen=True, eq=False)
class NetTask:
    """One net to be trained.

    Attributes:
        net: Its place among all nets.
        n_nets: How many there are.
        seed: Its own seed.
        train: Bags it learns from.
        held_out: Bags it stops on.
        key: Names the whole fit: data, settings, version.
    """

    net: int
    n_nets: int
    seed: int
    train: Int64[Tensor, " train"]
    held_out: Int64[Tensor, " held_out"]
    key: str


@dataclass(frozen=True)
class FittedNet:
    """The weights of a net at its best epoch, and how it got there."""

    weights: Mapping[str, Tensor] = field(repr=False)
    best_epoch: int
    best_score: float
    n_epochs: int


def check_device(config: FitConfig) -> None:
    """MissingExtra if the nets cannot be trained on this machine as asked."""
    has = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if not has[config.device]:
        there = ", ".join(name for name, is_there in has.items() if is_there)
        raise MissingExtra(
            f"fit.device = {config.device}, which PyTorch does not find on this machine; it finds "
            f"{there}"
        )


def fit(
    slides: Sequence[SlideData],
    split: Split,
    panel: GenePanel,
    *,
    config: FitConfig | None = None,
    bags: BagConfig | None = None,
    model_settings: Mapping[str, Any] | None = None,
    log: FitLog | None = None,
) -> Checkpoint:
    """Fit on the training slides of the split; same arguments, same checkpoint, bit for bit.

    Args:
        slides: Slides; those outside `split.train` are not looked at.
        split: Which slides to train on.
        panel: Genes to predict, chosen from the training slides.
        config: How to fit.
        bags: How bags are cut.
        model_settings: Settings of the model that are not its defaults.
        log: Where to write and whom to tell.

    Returns:
        The checkpoint, not yet saved.

    Raises:
        DataError: If a training slide is missing, has no expression or no nuclei.
        MismatchError: If slides differ in encoder or naming of genes, or a net diverged.
        ConfigError: If a setting is not known.
        MissingExtra: If this machine has no such device.
    """
    from histoscribe.train.loop import train_net  # Lightning takes seconds to import

    config, bags, log = config or FitConfig(), bags or BagConfig(), log or FitLog()
    check_device(config)
    training = _training_slides(slides, split)
    encoder_id = check_one_encoder(training)
    cut = [cut_bags(slide, bags) for slide in training]
    scaling = fit_scaling(cut, panel, config)
    assembled = assemble(cut, scaling, panel, has_target=True)
    settings = _model_config(config.model, model_settings or {}, assembled)
    provenance = _provenance(training, panel, config, bags, settings)
    folds = inner_folds(assembled, config.n_folds)
    tasks = _plan(folds, config, provenance.key)
    fitted = []
    for task in tasks:
        net = build_model(config.model, settings, task.seed)
        fitted.append(train_net(net, assembled, task, config, log))
    return Checkpoint(
        model=config.model,
        model_settings=settings,
        nets=tuple(net.weights for net in fitted),
        scaling=scaling,
        panel=panel,
        bags=bags,
        encoder_id=encoder_id,
        split=split,
        fit_settings=asdict(config),
        report=tuple(
            {
                "held_out": sorted({training[i].slide_id for i in _slides_of(assembled, task)}),
                "best_epoch": net.best_epoch,
                "best_score": net.best_score,
                "n_epochs": net.n_epochs,
            }
            for task, net in zip(tasks, fitted, strict=True)
        ),
        provenance=provenance,
    )


def fit_scaling(bags: Sequence[SlideBags], panel: GenePanel, config: FitConfig) -> Scaling:
    """Fit everything beside the network on these bags, which are all of the training slides.

    Cells inside regions are fitted on, each once; cells of the context ring are only transformed.
    """
    rows = [part.slide.cells.features[part.inside_rows()] for part in bags]
    cells = fit_pca(rows, config.n_components)
    transformed = [cells.apply(part) for part in rows]
    phenotypes = fit_phenotypes(transformed, config.n_phenotypes, config.seed)
    field_scaling = fit_field(
        [part.descriptors for part in bags],
        bags[0].slide.tiles.features.shape[1],
        config.n_field_components,
        has_cell_context=config.has_cell_context,
    )
    measured = [measure_bags(part, panel, config.target_space) for part in bags]
    target = fit_target(
        np.concatenate([values for values, _ in measured]),
        np.concatenate([is_observed for _, is_observed in measured]),
        config.target_space,
    )
    return Scaling(cells, phenotypes, field_scaling, target)


def inner_folds(assembled: AssembledBags, n_folds: int) -> Int64[np.ndarray, " bag"]:
    """Inner fold of each bag: by patient, or by slide where there is one patient.

    Where there is one slide only, it is cut along x into three parts of equal size, without a
    buffer: context then crosses the border, which flatters the held-out score; it decides nothing
    but when to stop.

    Raises:
        DataError: If one slide has fewer regions than parts.
    """
    patients = [slide.patient_id for slide in assembled.slides]
    units = patients if len(set(patients)) > 1 else [s.slide_id for s in assembled.slides]
    names = list(dict.fromkeys(units))
    if len(names) == 1:
        x, y = assembled.slides[0].regions.xy_um[assembled.row_of_bag].T
        if len(x) < N_PARTS:
            raise DataError(
                f"{len(x)} training regions with nuclei on the only training slide; wanted at "
                f"least {N_PARTS}, to stop on a part that is not trained on. Add slides"
            )
        fold = np.empty(len(x), dtype=np.int64)
        fold[np.lexsort((y, x))] = np.arange(len(x)) * N_PARTS // len(x)
        return fold
    fold_of_slide = np.array([names.index(unit) % n_folds for unit in units])
    return fold_of_slide[assembled.slide_of_bag]


def _training_slides(slides: Sequence[SlideData], split: Split) -> list[SlideData]:
    by_id = {slide.slide_id: slide for slide in slides}
    missing = [slide_id for slide_id in split.train if slide_id not in by_id]
    if missing:
        raise DataError(f"training slide {missing[0]} was not given; prepare it, or split again")
    if all(slide_id in by_id for slide_id in split.test):
        check_split(split, list(by_id), [slide.patient_id for slide in by_id.values()])
    return [by_id[slide_id] for slide_id in split.train]


def _model_config(model: str, given: Mapping[str, Any], assembled: AssembledBags) -> dict[str, Any]:
    """Every field of the model's config: sizes from the data, the rest given or by default."""
    batch = assembled.batch
    assert batch.target is not None
    sizes = {
        "n_features": batch.features.shape[1],
        "n_descriptors": batch.field.shape[2],
        "n_rings": batch.field.shape[1],
        "n_genes": batch.target.shape[1],
    }
    fixed = sorted(set(sizes) & set(given))
    if fixed:
        raise ConfigError(f"{fixed[0]} is told by the data; leave it out of the model's settings")
    _, config_class = find_model(model)
    try:
        return asdict(config_class(**sizes, **given))
    except TypeError as error:
        raise ConfigError(f"settings of model {model}: {error}") from error


def _provenance(
    slides: Sequence[SlideData],
    panel: GenePanel,
    config: FitConfig,
    bags: BagConfig,
    model_settings: Mapping[str, Any],
) -> Provenance:
    inputs = {"panel": hashlib.sha256("\n".join(panel.ids).encode()).hexdigest()}
    for slide in slides:
        inputs[f"{slide.slide_id}/cells"] = slide.cells.provenance.key
        inputs[f"{slide.slide_id}/tiles"] = slide.tiles.provenance.key
        inputs[f"{slide.slide_id}/regions"] = _hash_regions(slide)
    settings = {"fit": asdict(config), "bags": asdict(bags), "model": dict(model_settings)}
    return Provenance(f"histoscribe {__version__} fit", settings, inputs)


def _hash_regions(slide: SlideData) -> str:
    """Of the regions themselves: a part of a table has the provenance of the whole."""
    regions = slide.regions
    digest = hashlib.sha256("\n".join((*regions.region_id, *regions.genes.ids)).encode())
    digest.update(regions.xy_um.tobytes())
    if regions.expression is not None:
        for part in ("data", "indices", "indptr"):
            digest.update(np.ascontiguousarray(getattr(regions.expression, part)).tobytes())
    return digest.hexdigest()


def _plan(fold: Int64[np.ndarray, " bag"], config: FitConfig, key: str) -> list[NetTask]:
    held_out = [f for _ in range(config.n_repeats) for f in np.unique(fold)]
    # Nets draw from streams of their own, whatever their number.
    seeds = [
        int(np.random.SeedSequence([config.seed, net]).generate_state(1)[0])
        for net in range(len(held_out))
    ]
    return [
        NetTask(
            net=net,
            n_nets=len(held_out),
            seed=seeds[net],
            train=torch.from_numpy(np.flatnonzero(fold != f)),
            held_out=torch.from_numpy(np.flatnonzero(fold == f)),
            key=key,
        )
        for net, f in enumerate(held_out)
    ]


def _slides_of(assembled: AssembledBags, task: NetTask) -> set[int]:
    return set(assembled.slide_of_bag[task.held_out.numpy()].tolist())
