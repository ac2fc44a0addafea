"""RunConfig: the settings of every part, composed once, from YAML and flags."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from histoscribe.app.settings import (
    build,
    coerce,
    defaults_of,
    merge,
    overlay,
    parse_assignment,
    plain,
    read_yaml,
)
from histoscribe.data.bags import BagConfig
from histoscribe.data.splits import SplitUnit
from histoscribe.errors import ConfigError
from histoscribe.evaluate.benchmark import ScoreConfig
from histoscribe.preprocess.preparation import PrepareConfig
from histoscribe.readers.cell_groups import LabelledCellsConfig
from histoscribe.train.align_config import AlignConfig
from histoscribe.train.checkpoint import find_model
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.gene_panel import PanelConfig
from histoscribe.train.search import SearchConfig
from histoscribe.train.transfer import TransferConfig


@dataclass(frozen=True)
class SplitConfig:
    """Who is trained on and who is tested.

    Attributes:
        unit: What is kept apart: patients (honest), sections of one patient, or strips of one
            section (both optimistic, and reported as such); or none, to train on all and test
            nothing.
        test: Samples to test on; empty takes the last patient, or the last section.
        n_strips: Strips that the one section is cut into; the last one is tested.
        buffer_um: Regions nearer than this to the tested strip are left out.
    """

    unit: SplitUnit = "patient"
    test: tuple[str, ...] = ()
    n_strips: int = 3
    buffer_um: float = 200.0

    def __post_init__(self) -> None:
        if self.unit == "none" and self.test:
            raise ConfigError(
                f"split.unit = none tests nothing, split.test = {', '.join(self.test)}; give "
                "another unit, or no samples to test on"
            )
        if self.n_strips < 2 or not 0 <= self.buffer_um < math.inf:
            raise ConfigError(
                f"split.n_strips = {self.n_strips}, split.buffer_um = {self.buffer_um}; give two "
                "strips or more, and a buffer of 0 µm or more"
            )


@dataclass(frozen=True)
class RunConfig:
    """Every setting of a study, by part.

    Attributes:
        prepare: How slides become cells and tiles.
        split: Who is trained on and who is tested.
        panel: Which genes.
        bags: How bags are cut.
        model: Settings of the model that `fit.model` names; its sizes are told by the data.
        fit: How it is fitted.
        align: How images, genes and words are brought into one space, where that is the objective.
        labelled: How labelled cells become profiles, likewise.
        search: What is tried to find settings of the fit, where it is asked for.
        transfer: How it goes on from another fit, where it does.
        score: What is compared with what.
    """

    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    panel: PanelConfig = field(default_factory=PanelConfig)
    bags: BagConfig = field(default_factory=BagConfig)
    model: Mapping[str, Any] = field(default_factory=dict)
    fit: FitConfig = field(default_factory=FitConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    labelled: LabelledCellsConfig = field(default_factory=LabelledCellsConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)


def load_config(
    path: Path | None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    beneath: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Defaults, below a file, below `--set`, below named flags.

    Args:
        path: YAML, or None.
        assignments: Words as `fit.max_epochs=20`.
        flags: Nested values of named flags; None means that a flag was not given.
        beneath: Nested values in place of some defaults, as what else is asked for wants them.

    Raises:
        ConfigError: A key is unknown (with the nearest known name), or a value is of the wrong
            type or range.
        DataError: The file is missing.
    """
    values = overlay(beneath or {}, read_yaml(path) if path else {})
    for text in assignments:
        values = overlay(values, parse_assignment(text))
    return make_config(overlay(values, _given(flags or {})))


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """The config of nested values; what they lack is the default."""
    groups = {entry.name: entry for entry in fields(RunConfig)}
    known = {"model": {}, **{name: value for name, value in values.items() if name in groups}}
    stranger = next((name for name in values if name not in groups), None)
    if stranger is not None:
        merge(RunConfig, {stranger: values[stranger]})  # says so, with the nearest name
    for name, value in known.items():
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is a group of settings; {value!r} came.")
    model_name = coerce(known.get("fit", {}).get("model", FitConfig.model), str, "fit.model")
    checked = merge(RunConfig, {name: known[name] for name in known if name != "model"})
    checked["model"] = _check_model(find_model(model_name)[1], known["model"])
    return build(RunConfig, checked)


def values_of(config: RunConfig) -> dict[str, Any]:
    """Every setting as nested plain values, the model's defaults filled in."""
    values = plain(config)
    model = defaults_of(find_model(config.fit.model)[1])
    return {**values, "model": overlay(model, plain(config.model))}


def _check_model(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings of a model, once its config was made of them.

    The sizes that only the data tell have no default; any will do to try the others.
    """
    settings = merge(kind, given, "model")
    sizes = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    build(kind, {**dict.fromkeys(sizes, 1), **settings})
    return settings


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in flags.items():
        if isinstance(value, Mapping):
            inner = _given(value)
            if inner:
                given[name] = inner
        elif value is not None and value != []:
            given[name] = value
    return given
