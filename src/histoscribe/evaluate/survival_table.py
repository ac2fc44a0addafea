"""What scoring survival gives: C-index and log-rank by method, gains, and every patient's risk."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from histoscribe.errors import DataError
from histoscribe.evaluate.bootstrap import Interval
from histoscribe.readers.follow_up import FollowUp


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What a method says of patients whose fold it was not fitted on.

    Attributes:
        risk: Log hazard ratio of each patient.
        is_high: Whether it is above the median risk of the training patients of its fold's fit.
        penalties: The penalty of each fold's fit.
        n_features: Features that were given.
        n_constant: For each fold, those left out as constant over its training patients.
    """

    risk: Float64[np.ndarray, " patient"]
    is_high: Bool[np.ndarray, " patient"]
    penalties: tuple[float, ...]
    n_features: int
    n_constant: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SurvivalRow:
    """The score of a method.

    Attributes:
        method: Its name.
        is_baseline: Whether others are compared with it.
        c_index: Concordance over the pairs within folds; 0.5 is chance.
        logrank_p: Of patients at high against those at low risk; NaN if all are in one group.
        answer: What it said of each patient.
    """

    method: str
    is_baseline: bool
    c_index: Interval
    logrank_p: float
    answer: OutOfFold


@dataclass(frozen=True)
class SurvivalGain:
    """Paired difference in C-index of a method over a baseline, the same patients in each draw."""

    method: str
    over: str
    gain: Interval


@dataclass(frozen=True, eq=False)
class SurvivalTable:
    """Scores of all methods on the same patients and folds.

    Attributes:
        rows: One a method.
        gains: Of each method over each baseline.
        follow_up: The patients.
        fold: Of each patient.
        protocol: How the scores were made.
        seed: Of folds and draws.
        n_draws: Of the bootstrap.
    """

    rows: tuple[SurvivalRow, ...]
    gains: tuple[SurvivalGain, ...]
    follow_up: FollowUp
    fold: Int64[np.ndarray, " patient"]
    protocol: str
    seed: int
    n_draws: int

    def row(self, method: str) -> SurvivalRow:
        """The row of a method."""
        for row in self.rows:
            if row.method == method:
                return row
        known = ", ".join(row.method for row in self.rows)
        raise DataError(f"no survival score of {method!r}; there are {known}")

    def records(self) -> list[dict[str, Any]]:
        """One flat record a method."""
        return [
            {
                "method": row.method,
                "is_baseline": row.is_baseline,
                "c_index": row.c_index.value,
                "c_index_low": row.c_index.low,
                "c_index_high": row.c_index.high,
                "logrank_p": row.logrank_p,
                "n_high": int(row.answer.is_high.sum()),
                "n_low": int((~row.answer.is_high).sum()),
                "n_features": row.answer.n_features,
                "n_constant": max(row.answer.n_constant, default=0),
                "n_patients": len(self.follow_up),
                "n_deaths": int(self.follow_up.event.sum()),
                "seed": self.seed,
            }
            for row in self.rows
        ]

    def to_json(self) -> str:
        """Everything but the risks of single patients; what is not a number is null."""
        record = {
            "protocol": self.protocol,
            "n_patients": len(self.follow_up),
            "n_deaths": int(self.follow_up.event.sum()),
            "n_folds": len(np.unique(self.fold)),
            "seed": self.seed,
            "n_draws": self.n_draws,
            "rows": [
                {**_without_nan(record), "penalties": list(row.answer.penalties)}
                for record, row in zip(self.records(), self.rows, strict=True)
            ],
            "gains": [
                _without_nan(
                    {
                        "method": gain.method,
                        "over": gain.over,
                        "gain": gain.gain.value,
                        "low": gain.gain.low,
                        "high": gain.gain.high,
                    }
                )
                for gain in self.gains
            ],
        }
        return json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """The scores, one line a method."""
        records = self.records()
        return _csv(list(records[0]), (list(record.values()) for record in records))

    def risks_to_csv(self) -> str:
        """Each patient's fold, follow-up, and what every method said before it was known."""
        header = ["patient", "fold", "time_days", "event"]
        for row in self.rows:
            header += [f"{row.method}: risk", f"{row.method}: group"]
        lines = []
        for i, patient in enumerate(self.follow_up.patient_id):
            time, event = self.follow_up.time_days[i], self.follow_up.event[i]
            line = [patient, int(self.fold[i]), float(time), int(event)]
            for row in self.rows:
                line += [float(row.answer.risk[i]), "high" if row.answer.is_high[i] else "low"]
            lines.append(line)
        return _csv(header, lines)

    def to_text(self) -> str:
        """The scores for people, with the protocol above them."""
        wide = max(len("method"), *(len(row.method) for row in self.rows))
        n_deaths = int(self.follow_up.event.sum())
        lines = [
            self.protocol,
            f"{len(self.follow_up)} patients, {n_deaths} deaths",
            "",
            f"{'method':{wide}}  C-index [95 % interval]  log-rank p  high/low",
        ]
        for row in self.rows:
            c = row.c_index
            n_high = int(row.answer.is_high.sum())
            lines.append(
                f"{row.method:{wide}}  {c.value:6.3f} [{c.low:5.3f}, {c.high:5.3f}]"
                f"  {row.logrank_p:10.2g}  {n_high}/{len(self.follow_up) - n_high}"
            )
        lines += [
            f"{gain.method} - {gain.over}: {gain.gain.value:+.3f} "
            f"[{gain.gain.low:+.3f}, {gain.gain.high:+.3f}] paired"
            for gain in self.gains
        ]
        return "\n".join(lines) + "\n"


def _csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return stream.getvalue()


def _without_nan(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
