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

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from histoscribe.data.bags import BagConfig
from histoscribe.data.gene_names import rename_panel
from histoscribe.data.genes import GenePanel
from histoscribe.data.regions import RegionSize
from histoscribe.data.splits import Split, check_split
from histoscribe.errors import ConfigError, DataError
from histoscribe.train.assemble import (
    SlideBags,
    SlideData,
    assemble,
    check_one_encoder,
    cut_bags,
    first_parts,
    hold_in_file,
    measure_bags,
)
from histoscribe.train.checkpoint import Checkpoint
from histoscribe.train.fit_config import FitConfig, check_device
from histoscribe.train.naming import name_alike
from histoscribe.train.net_task import FitLog
from histoscribe.train.nets import Ready, train_nets
from histoscribe.train.rows import SomeRows
from histoscribe.train.scaling import (
    Scaling,
    TargetScaling,
    Transformed,
    fit_field,
    fit_pca,
    fit_phenotypes,
    fit_target,
)
from histoscribe.train.transfer import (
    Start,
    carry_scaling,
    check_start,
    check_unseen,
)


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
        panel: Genes to predict, chosen from the training slides. Slides that name their genes
            otherwise are renamed to its namespace, and it to that of the start.
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
    config = config or FitConfig()
    ready = make_ready(
        slides, split, panel, config=config, bags=bags, model_settings=model_settings, start=start
    )
    return train_nets(ready, config, ready.model_settings, log or FitLog())


def make_ready(
    slides: Sequence[SlideData],
    split: Split,
    panel: GenePanel,
    *,
    config: FitConfig,
    bags: BagConfig | None = None,
    model_settings: Mapping[str, Any] | None = None,
    start: Start | None = None,
) -> Ready:
    """Cut bags and fit what is fitted beside the nets; arguments and faults are those of `fit`.

    Learning rate, dropout and weight of the cluster loss have no part in it: nets of any of them
    can be trained on what comes back.
    """
    bags = _bag_config(bags, start)
    check_device(config)
    if start is not None:
        panel = rename_panel(panel, start.checkpoint.panel.namespace)
    training = name_alike(_training_slides(slides, split), panel)
    encoder_id = check_one_encoder(training)
    _check_one_kind(training)
    cut = [hold_in_file(cut_bags(slide, bags)) for slide in training]
    given = model_settings or {}
    if start is None:
        scaling = fit_scaling(cut, panel, config)
    else:
        given = check_start(start.checkpoint, config.model, given, encoder_id, panel)
        check_unseen(start.checkpoint, slides, split)
        target = fit_target_scaling(cut, panel, config)
        scaling = carry_scaling(start.checkpoint, target, panel, start.config)
    assembled = assemble(cut, scaling, panel, has_target=True)
    size = usual_size(training)
    return Ready(training, split, panel, bags, encoder_id, size, assembled, given, start)


def fit_scaling(bags: Sequence[SlideBags], panel: GenePanel, config: FitConfig) -> Scaling:
    """Fit everything beside the network on these bags, which are all of the training slides.

    Cells inside regions are fitted on, each once; cells of the context ring are only transformed.
    """
    rows = [SomeRows(part.slide.cells.features, part.inside_rows()) for part in bags]
    cells = fit_pca(rows, config.n_components)
    transformed = [Transformed(part, cells) for part in rows]
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
    once = first_parts(bags)
    measured = [measure_bags(part, panel, config.target_space) for part in bags]
    return fit_target(
        np.concatenate([y[rows] for (y, _), rows in zip(measured, once, strict=True)]),
        np.concatenate([seen[rows] for (_, seen), rows in zip(measured, once, strict=True)]),
        config.target_space,
    )


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


def _check_one_kind(slides: Sequence[SlideData]) -> None:
    kinds = sorted({slide.regions.kind for slide in slides})
    if len(kinds) > 1:
        raise DataError(
            f"training slides have regions of {' and '.join(kinds)}; fit on one kind, then on the "
            "other with --from"
        )


def usual_size(slides: Sequence[SlideData]) -> RegionSize:
    """The size of most regions of the slides; of equals, the first."""
    count: dict[RegionSize, int] = {}
    for slide in slides:
        size = slide.regions.size
        count[size] = count.get(size, 0) + len(slide.regions)
    return max(count, key=lambda size: count[size])
