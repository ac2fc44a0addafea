"""The search of a run: which learning rate, dropout and cluster weight its fit takes."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from histoscribe.app.config import RunConfig
from histoscribe.app.console import Voice
from histoscribe.app.report import ReportTable
from histoscribe.app.settings import plain
from histoscribe.app.study import read_json, write_json, write_text
from histoscribe.data.genes import GenePanel
from histoscribe.data.splits import Split
from histoscribe.train.assemble import SlideData
from histoscribe.train.net_task import Epoch, FitLog
from histoscribe.train.processes import find_processes
from histoscribe.train.search import SearchResult, Trial, search
from histoscribe.train.transfer import Start

TABLE, RECORD = "search.csv", "search.json"
TRIED = ("learning_rate", "dropout", "cluster_weight")
COLUMNS = ("trial", "learning rate", "dropout", "cluster weight", "held-out score", "of each net")


def search_run(
    slides: Sequence[SlideData],
    split: Split,
    panel: GenePanel,
    config: RunConfig,
    *,
    start: Start | None,
    folder: Path,
    voice: Voice,
) -> tuple[RunConfig, dict[str, Any]]:
    """Search on the training side; write and show every trial.

    Args:
        slides: Slides; those that are tested are not looked at.
        split: Which are trained on.
        panel: Genes to predict.
        config: All settings; `config.search` is the grid.
        start: A fitted model to go on from.
        folder: Of the run: search.json and search.csv; the kept trials go to `search/`.
        voice: Told what happens.

    Returns:
        The settings to fit with, and what of them was found, nested as settings are.
    """
    n_trials = len(config.search)
    voice.say(f"{n_trials} trials, scored on inner folds of the training side alone")
    with voice.progress("search") as advance:

        def tell(epoch: Epoch) -> None:
            advance(epoch.net * epoch.max_epochs + epoch.epoch, epoch.n_nets * epoch.max_epochs)

        result = search(
            slides,
            split,
            panel,
            config=config.fit,
            bags=config.bags,
            model_settings=config.model,
            start=start,
            search=config.search,
            log=FitLog(folder / "search", tell),
        )
    found = _found(result)
    record = {
        "grid": plain(config.search),
        "score": result.config.stop_on,
        "scored_on": "inner folds of the training side",
        "found": found,
        "best": result.best,
        "trials": [asdict(trial) for trial in result.trials],
    }
    if find_processes().is_first:
        write_json(folder / RECORD, record)
        write_text(folder / TABLE, _to_csv(result))
    voice.table(
        f"Search by held-out {_name(result.config.stop_on)}: trial {result.best + 1} is taken",
        COLUMNS,
        _rows(result.trials),
    )
    return replace(config, fit=result.config, model=result.model_settings), found


def search_table(folder: Path) -> ReportTable:
    """All trials of a run that was searched, for its report."""
    record = read_json(folder / RECORD)
    trials = [Trial.from_record(one) for one in record["trials"]]
    return ReportTable(
        title="Settings found by search",
        columns=COLUMNS,
        rows=tuple(_rows(trials)),
        strong=(str(record["best"] + 1),),
        notes=(
            f"Higher is better: {_name(record['score'])} on inner folds of the training side, mean "
            "over nets. The test side had no part in it. The best of many such scores is "
            "optimistic: it chose, and is no result.",
        ),
    )


def _found(result: SearchResult) -> dict[str, Any]:
    best = result.trials[result.best]
    return {
        "fit": {"learning_rate": best.learning_rate, "cluster_weight": best.cluster_weight},
        "model": {"dropout": best.dropout},
    }


def _rows(trials: Sequence[Trial]) -> list[tuple[str, ...]]:
    return [
        (
            str(number),
            *(f"{getattr(trial, name):g}" for name in TRIED),
            "diverged" if trial.score is None else f"{trial.score:.4f}",
            ", ".join(f"{score:.3f}" for score in trial.net_scores),
        )
        for number, trial in enumerate(trials, start=1)
    ]


def _to_csv(result: SearchResult) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("trial", *TRIED, "score", "net_scores", "best_epochs", "is_best"))
    for number, trial in enumerate(result.trials):
        facts: Mapping[str, Any] = asdict(trial)
        writer.writerow(
            (
                number + 1,
                *(facts[name] for name in TRIED),
                "" if trial.score is None else repr(trial.score),
                " ".join(map(repr, trial.net_scores)),
                " ".join(map(str, trial.best_epochs)),
                int(number == result.best),
            )
        )
    return stream.getvalue()


def _name(stop_on: str | None) -> str:
    assert stop_on is not None  # a search has resolved it
    return {"gene_pcc": "mean PCC of the genes", "loss": "minus the loss of expression"}[stop_on]
