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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from histoscribe import __version__
from histoscribe.data.bags import BagConfig
from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import RegionKind
from histoscribe.data.splits import Split, check_split
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.train.assemble import (
    AssembledBags,
    SlideBags,
    SlideData,
    assemble,
    check_one_encoder,
    cut_bags,
    measure_bags,
)
from histoscribe.train.checkpoint import Adapters, Checkpoint, build_model, find_model
from histoscribe.train.fit_config import FitConfig, check_device
from histoscribe.train.lora import insert_adapters, take_out
from histoscribe.train.net_task import FitLog, FittedNet, NetTask
from histoscribe.train.scaling import (
    Scaling,
    TargetScaling,
    fit_field,
    fit_pca,
    fit_phenotypes,
    fit_target,
)
from histoscribe.train.transfer import (
    Start,
    carry_scaling,
    carry_weights,
    check_start,
    check_unseen,
    freeze_all_but_genes,
    gene_tensors,
)

N_PARTS = 3
"""Inner folds of a single training slide."""


def fit(  # noqa: PLR0913 - the data; then, by name, one setting of each part
    slides: Sequence[SlideData],
    split: Split,
    panel: GenePanel,
    *,
    config: FitConfig | None = None,
    bags: BagConfig | None = None,
    model_settings: Mapping[str, Any] | None = None,
    start: Start | None = None,
    log: FitLog | None = None,
) -> Checkpoint:
    """Fit on the training slides of the split; same arguments, same checkpoint, bit for bit.

    Args:
        slides: Slides; those outside `split.train` are not looked at.
        split: Which slides to train on.
        panel: Genes to predict, chosen from the training slides.
        config: How to fit.
        bags: How bags are cut; from a start, as they were cut there.
        model_settings: Settings of the model that are not its defaults.
        start: A fitted model to go on from, of other regions, spots or whole samples.
        log: Where to write and whom to tell.

    Returns:
        The checkpoint, not yet saved.

    Raises:
        DataError: If a training slide is missing, has no expression or no nuclei.
        MismatchError: If slides differ in encoder or naming of genes, a net diverged, or the start
            is of another encoder or has seen a slide that is to be tested.
        ConfigError: If a setting is not known.
        MissingExtra: If this machine has no such device.
    """
    from histoscribe.train.loop import train_net  # Lightning takes seconds to import

    config, log = config or FitConfig(), log or FitLog()
    bags = _bag_config(bags, start)
    check_device(config)
    training = _training_slides(slides, split)
    encoder_id = check_one_encoder(training)
    kind = _one_kind(training)
    cut = [cut_bags(slide, bags) for slide in training]
    given = model_settings or {}
    if start is None:
        scaling = fit_scaling(cut, panel, config)
    else:
        given = check_start(start.checkpoint, config.model, given, encoder_id, panel)
        check_unseen(start.checkpoint, slides, split)
        target = fit_target_scaling(cut, panel, config)
        scaling = carry_scaling(start.checkpoint, target, panel, start.config)
    assembled = assemble(cut, scaling, panel, has_target=True)
    settings = _model_config(config.model, given, assembled)
    provenance = _provenance(training, panel, config, bags, settings, start)
    resolved = replace(config, cluster_weight=config.cluster_weight_of(kind))
    folds = inner_folds(assembled, config.n_folds)
    tasks = _plan(folds, config, provenance.key)
    carried = None if start is None else carry_weights(start.checkpoint, panel)
    fitted = []
    for task in tasks:
        net = build_model(config.model, settings, task.seed)
        if start is not None and carried is not None:
            _begin(net, carried[task.net % len(carried)], start, task.seed)
        fitted.append(train_net(net, assembled, task, resolved, log, is_start=start is not None))
    nets, adapters = _take_apart(fitted, start)
    return Checkpoint(
        model=config.model,
        model_settings=settings,
        nets=nets,
        adapters=adapters,
        scaling=scaling,
        panel=panel,
        bags=bags,
        encoder_id=encoder_id,
        split=split,
        fit_settings=asdict(resolved),
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
    return Scaling(cells, phenotypes, field_scaling, fit_target_scaling(bags, panel, config))


def fit_target_scaling(
    bags: Sequence[SlideBags], panel: GenePanel, config: FitConfig
) -> TargetScaling:
    """Mean and deviation of each gene over the training regions."""
    measured = [measure_bags(part, panel, config.target_space) for part in bags]
    return fit_target(
        np.concatenate([values for values, _ in measured]),
        np.concatenate([is_observed for _, is_observed in measured]),
        config.target_space,
    )


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


def _bag_config(given: BagConfig | None, start: Start | None) -> BagConfig:
    if start is None:
        return given or BagConfig()
    old = start.checkpoint.bags
    if given not in (None, BagConfig(), old):
        raise ConfigError(
            f"bags are {given}, the checkpoint has {old}; positions must mean the same in both. "
            "Leave the bags' settings out, or fit without --from"
        )
    return old


def _one_kind(slides: Sequence[SlideData]) -> RegionKind:
    kinds = sorted({slide.regions.kind for slide in slides})
    if len(kinds) > 1:
        raise DataError(
            f"training slides have regions of {' and '.join(kinds)}; fit on one kind, then on the "
            "other with --from"
        )
    return slides[0].regions.kind


def _begin(net: nn.Module, weights: Mapping[str, Tensor], start: Start, seed: int) -> None:
    """Give a new net the weights that were carried over, and let learn what is to learn."""
    try:
        net.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise MismatchError(
            f"the weights are not those of this version's model ({error}); fit the checkpoint again"
        ) from error
    if start.config.mode == "full":
        return
    genes = gene_tensors(net)
    freeze_all_but_genes(net)
    if start.config.mode == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            insert_adapters(net, start.config.lora)
        for name, parameter in net.named_parameters():
            if name in genes:
                parameter.requires_grad_(True)


def _take_apart(
    fitted: Sequence[FittedNet], start: Start | None
) -> tuple[tuple[Mapping[str, Tensor], ...], Adapters | None]:
    """The weights of the nets, and their adapters where there are some."""
    if start is None or start.config.mode != "lora":
        return tuple(net.weights for net in fitted), None
    parts = [take_out(net.weights) for net in fitted]
    adapters = Adapters(
        tuple(adapters for _, adapters in parts), start.config.lora, start.checkpoint.model_id
    )
    return tuple(weights for weights, _ in parts), adapters


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
    fixed = sorted(name for name in set(sizes) & set(given) if given[name] != sizes[name])
    if fixed:
        raise ConfigError(f"{fixed[0]} is told by the data; leave it out of the model's settings")
    _, config_class = find_model(model)
    try:
        return asdict(config_class(**{**given, **sizes}))
    except TypeError as error:
        raise ConfigError(f"settings of model {model}: {error}") from error


def _provenance(
    slides: Sequence[SlideData],
    panel: GenePanel,
    config: FitConfig,
    bags: BagConfig,
    model_settings: Mapping[str, Any],
    start: Start | None,
) -> Provenance:
    inputs = {"panel": hashlib.sha256("\n".join(panel.ids).encode()).hexdigest()}
    for slide in slides:
        inputs[f"{slide.slide_id}/cells"] = slide.cells.provenance.key
        inputs[f"{slide.slide_id}/tiles"] = slide.tiles.provenance.key
        inputs[f"{slide.slide_id}/regions"] = _hash_regions(slide)
    settings = {"fit": asdict(config), "bags": asdict(bags), "model": dict(model_settings)}
    if start is not None:
        settings["transfer"] = asdict(start.config)
        inputs["from"] = start.checkpoint.model_id
        for name, key in start.checkpoint.provenance.inputs.items():
            inputs[f"from/{name}"] = key
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
