"""The report of survival: scores, curves, and what they were made from."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from histoscribe.app.report import (
    Picture,
    Report,
    ReportTable,
    SamplePart,
    as_text,
    write_report,
)
from histoscribe.evaluate.kaplan_meier import kaplan_meier, median_days
from histoscribe.evaluate.survival_table import SurvivalRow, SurvivalTable
from histoscribe.plot import DAYS_A_YEAR, draw_survival, to_png

FEW_DEATHS = 50
"""Below it, the 95 % interval of a C-index is wider than about 0.1 to each side."""


def draw_methods(table: SurvivalTable) -> dict[str, bytes]:
    """Kaplan-Meier curves of high and low risk by each method that is no baseline, as PNG."""
    return {
        row.method: to_png(
            draw_survival(
                [
                    kaplan_meier("high risk", table.follow_up, row.answer.is_high),
                    kaplan_meier("low risk", table.follow_up, ~row.answer.is_high),
                ],
                f"{row.method}: log-rank p = {row.logrank_p:.2g}",
            )
        )
        for row in table.rows
        if not row.is_baseline and row.answer.is_high.any() and not row.answer.is_high.all()
    }


def banner_of(table: SurvivalTable) -> str:
    """The caution above the scores: where the deaths cannot carry a claim."""
    n_deaths = int(table.follow_up.event.sum())
    if n_deaths < FEW_DEATHS:
        return f"Illustration, not evidence: n = {n_deaths} deaths."
    return ""


def report_survival(
    title: str,
    table: SurvivalTable,
    pictures: Mapping[str, bytes],
    notes: Sequence[str],
    facts: Mapping[str, Any],
    path: Path,
) -> None:
    """Write survival.html, self-contained."""
    parts = [
        SamplePart(name, _medians(table, table.row(name)), (Picture(_caption(name), png),))
        for name, png in pictures.items()
    ]
    report = Report(
        title=title,
        protocol=table.protocol,
        banner=banner_of(table),
        tables=(_score_table(table, notes), _gain_table(table)),
        samples=tuple(parts),
        provenance=(("Made from", as_text(facts)),),
    )
    write_report(report, path)


def _score_table(table: SurvivalTable, notes: Sequence[str]) -> ReportTable:
    n_deaths = int(table.follow_up.event.sum())
    return ReportTable(
        title=f"{len(table.follow_up)} patients, {n_deaths} deaths",
        columns=("method", "C-index", "95 % interval", "log-rank p", "high / low risk"),
        rows=tuple(
            (
                row.method,
                f"{row.c_index.value:.3f}",
                f"{row.c_index.low:.3f} to {row.c_index.high:.3f}",
                "not defined" if math.isnan(row.logrank_p) else f"{row.logrank_p:.2g}",
                f"{row.answer.is_high.sum()} / {(~row.answer.is_high).sum()}",
            )
            for row in table.rows
        ),
        strong=tuple(row.method for row in table.rows if not row.is_baseline),
        notes=(
            "C-index: 0.5 is chance; 1 names the first to die of every pair; below 0.5, the group "
            "at high risk lived longer, and a small p speaks against the method. The log-rank test "
            "takes patients of all folds as independent, and so flatters.",
            *notes,
        ),
    )


def _gain_table(table: SurvivalTable) -> ReportTable:
    return ReportTable(
        title="Paired gains in C-index",
        columns=("method", "over", "gain", "95 % interval"),
        rows=tuple(
            (
                gain.method,
                gain.over,
                f"{gain.gain.value:+.3f}",
                f"{gain.gain.low:+.3f} to {gain.gain.high:+.3f}",
            )
            for gain in table.gains
        ),
    )


def _medians(table: SurvivalTable, row: SurvivalRow) -> tuple[str, ...]:
    """Half of each group was alive how long."""
    texts = []
    for name, is_member in (("high", row.answer.is_high), ("low", ~row.answer.is_high)):
        days = median_days(kaplan_meier(name, table.follow_up, is_member))
        survival = "not reached" if math.isinf(days) else f"{days / DAYS_A_YEAR:.1f} years"
        texts.append(f"Median survival at {name} risk: {survival}.")
    return tuple(texts)


def _caption(method: str) -> str:
    return (
        f"Kaplan-Meier by {method}, each patient judged by a fit without it; bands: 95 %, point by "
        "point; ticks: censored."
    )
