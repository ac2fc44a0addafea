"""The nets of a fit: one for each inner fold, on what was fitted beside them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from histoscribe import __version__
from histoscribe.data.bags import BagConfig
from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import RegionSize
from histoscribe.data.splits import Split
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.train.assemble import AssembledBags, SlideData
from histoscribe.train.checkpoint import Adapters, Checkpoint, build_model, find_model
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.lora import insert_adapters, take_out
from histoscribe.train.net_task import FitLog, FittedNet, NetTask
from histoscribe.train.transfer import (
    Start,
    carry_weights,
    freeze_all_but_genes,
    gene_tensors,
)

CARRIED = ("n_components", "n_field_components", "has_cell_context", "n_phenotypes")
"""Settings that a fit takes from its start, with the scales that they made."""
N_PARTS = 3
"""Inner folds of a single training slide."""


@dataclass(frozen=True, eq=False)
class Ready:
    """All that a fit needs before its first net: what is fitted beside the nets, and the bags.

    Attributes:
        slides: The training slides.
        split: Which slides they are, and which are kept from them.
        panel: Genes to predict.
        bags: How bags were cut.
        encoder_id: Encoder of the slides.
        region_size: What kind of regions they have, how large and how far apart.
        assembled: All training bags, scaled.
        model_settings: Settings of the model that are not its defaults, those of a start among
            them.
        start: A fitted model to go on from, or None.
    """

    slides: Sequence[SlideData]
    split: Split
    panel: GenePanel
    bags: BagConfig
    encoder_id: str
    region_size: RegionSize
    assembled: AssembledBags
    model_settings: Mapping[str, Any]
    start: Start | None

    def provenance(self, config: FitConfig, model_settings: Mapping[str, Any]) -> Provenance:
        """What the checkpoint of a fit with these settings says it was made from."""
        settings = _model_config(config.model, model_settings, self.assembled)
        return _provenance(self.slides, self.panel, config, self.bags, settings, self.start)


def train_nets(
    ready: Ready, config: FitConfig, model_settings: Mapping[str, Any], log: FitLog
) -> Checkpoint:
    """Train the nets of a fit, one for each inner fold.

    Args:
        ready: From `make_ready`, with the same settings but for learning rate, dropout and weight
            of the cluster loss.
        config: How to fit.
        model_settings: Settings of the model that are not its defaults.
        log: Where to write and whom to tell.

    Raises:
        DivergenceError: If a net diverged.
    """
    from histoscribe.train.loop import train_net  # Lightning takes seconds to import

    start, assembled = ready.start, ready.assembled
    settings = _model_config(config.model, model_settings, assembled)
    provenance = ready.provenance(config, model_settings)
    resolved = config.resolve(ready.region_size.kind)
    if start is not None:  # what is carried over was not fitted by these
        old = start.checkpoint.fit_settings
        resolved = replace(resolved, **{name: old[name] for name in CARRIED if name in old})
    tasks = _plan(inner_folds(assembled, config.n_folds), config, provenance.key)
    carried = None if start is None else carry_weights(start.checkpoint, ready.panel)
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
        scaling=assembled.scaling,
        panel=ready.panel,
        bags=ready.bags,
        encoder_id=ready.encoder_id,
        region_size=ready.region_size,
        split=ready.split,
        fit_settings=asdict(resolved),
        report=tuple(
            {
                "held_out": sorted(_slides_of(assembled, task)),
                "best_epoch": net.best_epoch,
                "best_score": net.best_score,
                "n_epochs": net.n_epochs,
            }
            for task, net in zip(tasks, fitted, strict=True)
        ),
        provenance=provenance,
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
        inputs[f"{slide.slide_id}/patient"] = slide.patient_id
        image = slide.cells.provenance.inputs.get("slide")
        if image is not None:
            inputs[f"{slide.slide_id}/image"] = image
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
    names = (*regions.region_id, *regions.patient_id, *regions.genes.ids)
    digest = hashlib.sha256("\n".join(names).encode())
    digest.update(f"{regions.kind} {regions.radius_um} {regions.expression_unit}".encode())
    digest.update(regions.xy_um.tobytes() + regions.gene_observed.tobytes())
    if slide.blocks is not None:
        digest.update(slide.blocks.xy_um.tobytes() + slide.blocks.region.tobytes())
        digest.update(f"{slide.blocks.shape} {slide.blocks.reach_um}".encode())
    if regions.expression is not None:
        for part in ("data", "indices", "indptr"):
            digest.update(np.ascontiguousarray(getattr(regions.expression, part)).tobytes())
    return digest.hexdigest()


def _plan(fold: Int64[np.ndarray, " bag"], config: FitConfig, key: str) -> list[NetTask]:
    if len(np.unique(fold)) < 2:
        raise DataError(
            "all training regions are one sample; wanted two at least, to stop on one that is not "
            "trained on. Add samples"
        )
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


def _slides_of(assembled: AssembledBags, task: NetTask) -> set[str]:
    held_out = set(assembled.slide_of_bag[task.held_out.numpy()].tolist())
    return {assembled.slides[number].slide_id for number in held_out}
