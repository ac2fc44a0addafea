"""Search: learning rate, dropout and weight of the cluster loss, found on the training side alone.

Every setting of the grid is one trial: all the nets that `fit` would train with it. A trial's score
is the mean, over its nets, of the best score on the inner fold that each net stops on. That score
is what `stop_on` names, the mean PCC of the genes or minus the loss of expression; the cluster loss
has no part in it, so that trials of different weights can be compared. Test slides are dropped
before anything is looked at, as `fit` does.

The best of many held-out scores is higher than that setting deserves: it chooses, and is never a
result.

Source: the BiTro paper, appendix C, which searches learning rates and dropouts of these values, and
"lambda from 0.1 to 0.5" without saying on what it scores them. Ours: the steps of lambda, 0 among
them (no cluster loss), and the inner folds.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from histoscribe.data.atomic import replacing
from histoscribe.data.bags import BagConfig
from histoscribe.data.genes import GenePanel
from histoscribe.data.splits import Split
from histoscribe.errors import ConfigError
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import find_model
from histoscribe.train.fit import make_ready
from histoscribe.train.fit_config import FitConfig
from histoscribe.train.net_task import DivergenceError, Epoch, FitLog
from histoscribe.train.nets import Ready, train_nets
from histoscribe.train.processes import find_processes, from_first, meet
from histoscribe.train.transfer import Start


@dataclass(frozen=True)
class SearchConfig:
    """The settings that are tried, each with each; of equals the first wins.

    Attributes:
        learning_rates: Of AdamW; the paper's four.
        dropouts: Of the model's `dropout`; the paper's three. Its other dropouts stay as they are.
        cluster_weights: Lambda, the weight of the cluster loss; the paper says 0.1 to 0.5, the
            steps are ours, and so is 0, the default of spots.
    """

    learning_rates: tuple[float, ...] = (1e-3, 5e-4, 1e-4, 1e-5)
    dropouts: tuple[float, ...] = (0.0, 0.1, 0.2)
    cluster_weights: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)

    def __post_init__(self) -> None:
        for name, is_good, wanted in (
            ("learning_rates", lambda value: 0 < value < math.inf, "finite numbers above 0"),
            ("dropouts", lambda value: 0 <= value < 1, "shares of 0 or more, below 1"),
            ("cluster_weights", lambda value: 0 <= value < math.inf, "finite numbers, 0 or more"),
        ):
            values = getattr(self, name)
            if not values or not all(map(is_good, values)) or len(set(values)) < len(values):
                raise ConfigError(
                    f"search.{name} = {list(values)}; give one or more {wanted}, each once"
                )

    def __len__(self) -> int:
        return len(self.learning_rates) * len(self.dropouts) * len(self.cluster_weights)

    def grid(self) -> Iterator[tuple[float, float, float]]:
        """Learning rate, dropout and cluster weight of each trial, the last one running fastest."""
        return product(self.learning_rates, self.dropouts, self.cluster_weights)


@dataclass(frozen=True)
class Trial:
    """One setting of the grid and how its nets did on what they were not trained on.

    Attributes:
        learning_rate: Of AdamW.
        dropout: Of the model.
        cluster_weight: Weight of the cluster loss.
        score: Mean of `net_scores`, higher is better; None where a net diverged.
        net_scores: Best held-out score of each net.
        best_epochs: The epoch of each.
        key: Names everything the trial was made from.
    """

    learning_rate: float
    dropout: float
    cluster_weight: float
    score: float | None
    net_scores: tuple[float, ...]
    best_epochs: tuple[int, ...]
    key: str

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Trial":
        """What `asdict` made of a trial, and JSON of that; KeyError or TypeError if it is not."""
        listed = {name: tuple(record[name]) for name in ("net_scores", "best_epochs")}
        return cls(**{**record, **listed})


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        config: How to fit, with the best learning rate and cluster weight; nothing in it is null.
        model_settings: Settings of the model, with the best dropout.
        trials: All trials in the order of the grid.
        best: Number of the best trial among them.
    """

    config: FitConfig
    model_settings: Mapping[str, Any]
    trials: tuple[Trial, ...]
    best: int


def search(  # noqa: PLR0913 - as `fit`, and the grid
    slides: Sequence[SlideData],
    split: Split,
    panel: GenePanel,
    *,
    config: FitConfig | None = None,
    bags: BagConfig | None = None,
    model_settings: Mapping[str, Any] | None = None,
    start: Start | None = None,
    search: SearchConfig | None = None,
    log: FitLog | None = None,
) -> SearchResult:
    """Try every setting of the grid on the inner folds of the training side.

    A search that was killed goes on: in the log's folder each finished trial is kept as JSON under
    the key of everything that made it, and within a trial its finished nets.

    Args:
        slides: Slides; those outside `split.train` are not looked at.
        split: Which slides to train on.
        panel: Genes to predict, chosen from the training slides.
        config: How to fit; the grid takes the place of its learning rate and cluster weight.
        bags: How bags are cut.
        model_settings: Settings of the model; the grid takes the place of its dropout.
        start: A fitted model to go on from.
        search: The grid.
        log: Where to keep trials, and whom to tell of epochs: nets are counted over all trials.

    Raises:
        ConfigError: If the model has no dropout, or as `fit`.
        DivergenceError: If a net diverged in every trial.
        MismatchError: As `fit`.
        DataError: As `fit`.
        MissingExtra: As `fit`.
    """
    config, grid, log = config or FitConfig(), search or SearchConfig(), log or FitLog()
    given = dict(model_settings or {})
    if "dropout" not in {one.name for one in fields(find_model(config.model)[1])}:
        raise ConfigError(f"model {config.model} has no dropout to search; fit it without --search")
    ready = make_ready(
        slides, split, panel, config=config, bags=bags, model_settings=given, start=start
    )
    config = config.resolve(ready.region_size.kind)
    trials = []
    for number, (rate, dropout, weight) in enumerate(grid.grid()):
        of_trial = replace(config, learning_rate=rate, cluster_weight=weight)
        place = _Place(number, len(grid), log)
        trials.append(_try(ready, of_trial, {**ready.model_settings, "dropout": dropout}, place))
    scores = [-math.inf if trial.score is None else trial.score for trial in trials]
    best = from_first(int(np.argmax(scores)))
    found = trials[best]
    if found.score is None:
        raise DivergenceError(
            f"a net diverged in each of the {len(trials)} trials; give lower "
            "search.learning_rates, or check the features for outliers"
        )
    return SearchResult(
        config=replace(
            config, learning_rate=found.learning_rate, cluster_weight=found.cluster_weight
        ),
        model_settings={**given, "dropout": found.dropout},
        trials=tuple(trials),
        best=best,
    )


@dataclass(frozen=True)
class _Place:
    """Which of all trials one is, and where it writes."""

    number: int
    n_trials: int
    log: FitLog

    def folder(self, key: str) -> Path | None:
        return None if self.log.folder is None else self.log.folder / key

    def log_of(self, key: str) -> FitLog:
        """The log of this trial: nets are told by their number among those of all trials."""
        tell = self.log.on_epoch
        if tell is None:
            return replace(self.log, folder=self.folder(key))

        def tell_of_all(epoch: Epoch) -> None:
            first, n_nets = self.number * epoch.n_nets, self.n_trials * epoch.n_nets
            tell(replace(epoch, net=first + epoch.net, n_nets=n_nets))

        return FitLog(self.folder(key), tell_of_all, self.log.every_s)


def _try(ready: Ready, config: FitConfig, model_settings: dict[str, Any], place: _Place) -> Trial:
    """Train the nets of one setting, or take up what is kept of it."""
    key = _key_of(ready, config, model_settings)
    folder = place.folder(key)
    kept = None if folder is None else _read_trial(folder / "trial.json", key)
    if kept is not None:
        return kept
    assert config.cluster_weight is not None
    setting = (config.learning_rate, float(model_settings["dropout"]), config.cluster_weight)
    try:
        report = train_nets(ready, config, model_settings, place.log_of(key)).report
        scores = tuple(float(net["best_score"]) for net in report)
        epochs = tuple(int(net["best_epoch"]) for net in report)
        trial = Trial(*setting, float(np.mean(scores)), scores, epochs, key)
    except DivergenceError:
        trial = Trial(*setting, None, (), (), key)
    if folder is not None:
        has_met = meet()
        if find_processes().is_first:
            _write_trial(trial, folder, is_state_read=has_met)
    return trial


def _key_of(ready: Ready, config: FitConfig, model_settings: Mapping[str, Any]) -> str:
    """Names data and settings, and the inner folds as far as they are not settings."""
    made = ready.provenance(config, model_settings).key
    patients = [[slide.slide_id, slide.patient_id] for slide in ready.slides]
    return hashlib.sha256(json.dumps([made, patients]).encode()).hexdigest()[:16]


def _write_trial(trial: Trial, folder: Path, *, is_state_read: bool) -> None:
    """Keep what was found; the weights have done their part, the logs of the nets stay.

    Where another process may still read finished nets of an earlier start, they stay as well.
    """
    with replacing(folder / "trial.json") as (beside,):
        beside.write_text(json.dumps(asdict(trial), indent=1, sort_keys=True) + "\n")
    if is_state_read:
        shutil.rmtree(folder / "state", ignore_errors=True)


def _read_trial(path: Path, key: str) -> Trial | None:
    """A trial that was finished; one that cannot be read is made again."""
    try:
        trial = Trial.from_record(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return trial if trial.key == key else None
