"""In which unit and on which scale a table of expression is: told, found, or refused.

What is found is said with its reason, and what more than one reading fits is refused with the
option that settles it. RSEM's estimated counts are `rsem`, never TPM and never counts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64

from histoscribe.errors import DataError

BulkUnit = Literal["tpm", "fpkm", "rsem", "counts"]
LogState = Literal["none", "log2p1", "ln1p", "log10p1", "log2p0.001"]

OFFSET = 0.001  # of UCSC Xena's Toil tables, log2(x + 0.001)
FLOOR = float(np.log2(OFFSET))  # -9.966, their zero
LARGEST = 1e10  # beyond any gene's reads, and any TPM or FPKM: a log that gives more is none
PER_MILLION = 1e6
CLOSED = 0.005  # what rounding to a few digits leaves of a sum of 1e6
MOST = 0.9  # of the samples: some of a published table may lack genes
WHOLE = 0.01  # how far from whole a count may come back from a log with four decimals
FEW_COUNTS = 100.0  # counts up to which that holds
ENOUGH = 20  # counts above 0 that are to be whole by no accident
FULL_GENES = 1000  # so many genes hold one above 50 in any linear unit
FULL_MAX = 50.0
N_LOOKED_AT = 64  # profiles; a cohort's are all of one unit

NAMED: dict[BulkUnit, str] = {
    "tpm": r"(?<![a-z])tpm(?![a-z])",
    "fpkm": r"(?<![a-z])fpkm(?![a-z])",
    "rsem": r"rsem|rnaseqv2|hiseqv2(?![_a-z0-9])|expected_?counts?",
    "counts": r"(?<![a-z])(raw_?)?counts?(?![a-z])",
}
"""What in the name of a file tells its unit; the first that fits counts."""

XENA = re.compile(r"\.(star|htseq)_(tpm|fpkm|counts)\b|hiseqv2(?![_a-z0-9])", re.IGNORECASE)
"""Names of UCSC Xena's tables that are log2(x + 1), as its hubs say."""


class Scale(NamedTuple):
    """Unit and log state of a table.

    Attributes:
        unit: Of the values once linear.
        log: What was done to them.
        unit_reason: How the unit is known.
        log_reason: How the log state is known.
        notes: What a user should know though nothing stops.
    """

    unit: BulkUnit
    log: LogState
    unit_reason: str
    log_reason: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What the values of a table look like.

    Attributes:
        values: Some profiles, as they stand.
        least: Smallest of all values.
        most: Largest of all values.
        is_whole: Whether all are whole numbers.
        name: Of the file.
    """

    values: Float64[np.ndarray, "profile gene"]
    least: float
    most: float
    is_whole: bool
    name: str

    def __str__(self) -> str:
        kind = "whole numbers" if self.is_whole else "fractions"
        return f"{kind} from {self.least:.6g} to {self.most:.6g}"


def find_scale(
    values: Float64[np.ndarray, "profile gene"],
    name: str,
    unit: BulkUnit | None = None,
    log: LogState | None = None,
) -> Scale:
    """The unit and the log state of a table.

    Args:
        values: As they stand, NaN where nothing was measured.
        name: Name of the file, which may say the unit.
        unit: What the user says it is, or None to find it.
        log: What the user says was done to the values, or None to find it.

    Raises:
        DataError: The values fit more than one reading, none, or not the one that was given.
    """
    seen = _look(values, name)
    possible: list[LogState] = [one for one in get_args(LogState) if _is_possible(one, seen)]
    if log is not None:
        log_reason, notes = _check_log(log, possible, seen)
    else:
        log, log_reason, notes = *_find_log(possible, seen, unit), ()
    linear = to_linear(seen.values, log)
    if unit is not None:
        unit_reason, more = _check_unit(unit, linear, seen, log)
    else:
        unit, unit_reason, more = _find_unit(linear, seen, log)
    return Scale(unit, log, unit_reason, log_reason, (*notes, *more))


def to_linear(
    values: Float64[np.ndarray, "*shape"], log: LogState
) -> Float64[np.ndarray, "*shape"]:
    """Values without their log; NaN stays. Below 0, which rounding gives, becomes 0."""
    if log == "none":
        return values
    inverse = {
        "log2p1": lambda x: np.exp2(x) - 1,
        "ln1p": np.expm1,
        "log10p1": lambda x: 10.0**x - 1,
        "log2p0.001": lambda x: np.exp2(x) - OFFSET,
    }[log]
    linear = np.maximum(inverse(values), 0.0)
    if log == "log2p0.001":
        linear[linear < OFFSET / 2] = 0.0  # their zero, which rounding left beside 0
    return linear


def _look(values: Float64[np.ndarray, "profile gene"], name: str) -> Seen:
    is_there = ~np.isnan(values)
    if not is_there.any() or np.isinf(values).any():
        found = "an infinite value" if is_there.any() else "no value at all"
        raise DataError(f"{name}: {found}; wanted numbers, and empty cells where none was measured")
    most = float(np.nanmax(values))
    if most == 0.0 and float(np.nanmin(values)) == 0.0:
        raise DataError(f"{name}: all values are 0; wanted expression")
    rows = np.unique(np.linspace(0, len(values) - 1, min(N_LOOKED_AT, len(values))).astype(int))
    some = values[rows]
    is_whole = bool((some[~np.isnan(some)] % 1 == 0).all())
    return Seen(some, float(np.nanmin(values)), most, is_whole, name)


def _is_possible(log: LogState, seen: Seen) -> bool:
    """Whether values so small and so large can be on that scale."""
    if seen.least < (FLOOR - WHOLE if log == "log2p0.001" else 0.0):
        return False
    if log == "none":
        return seen.most <= LARGEST
    with np.errstate(over="ignore"):
        return bool(to_linear(np.array([seen.most]), log)[0] <= LARGEST)


def _check_log(
    log: LogState, possible: Sequence[LogState], seen: Seen
) -> tuple[str, tuple[str, ...]]:
    """Why a log state that was given is taken; DataError where the values contradict it."""
    n_genes = seen.values.shape[1]
    if log not in possible:
        raise DataError(
            f"{seen.name}: given as log {log}, and holds {seen}, which cannot be; "
            f"{_negative(seen) or 'correct --log, or leave it out and it is looked for'}"
        )
    looks_logged = log == "none" and not seen.is_whole and seen.most <= FULL_MAX
    if looks_logged and n_genes >= FULL_GENES:
        raise DataError(
            f"{seen.name}: given as log none, and {n_genes} genes hold {seen}: no linear unit has "
            f"so little in its highest gene. Correct --log ({', '.join(get_args(LogState)[1:])})"
        )
    closed = _closing(possible, seen)
    if closed and log not in closed:
        raise DataError(
            f"{seen.name}: given as log {log}, and read as {closed[0]} every sample sums to 1e6 "
            f"as TPM do. Correct it to --log {closed[0]}"
        )
    if log != "none" and seen.is_whole and n_genes >= FULL_GENES:
        raise DataError(
            f"{seen.name}: given as log {log}, and {n_genes} genes hold {seen}: logarithms are no "
            "whole numbers. Correct it to --log none"
        )
    notes = (f"given as log none, though the largest value is {seen.most:.4g}",) * looks_logged
    return "as given", notes


def _find_log(
    fitting: Sequence[LogState], seen: Seen, unit: BulkUnit | None
) -> tuple[LogState, str]:
    if seen.least < 0:
        if "log2p0.001" in fitting and abs(seen.least - FLOOR) < WHOLE:
            return "log2p0.001", f"the smallest value is {seen.least:.4f}, log2(0.001)"
        raise DataError(f"{seen.name}: holds {seen}; {_negative(seen)}")
    # log2(x + 0.001) shows its floor: a table without it is another
    possible: list[LogState] = [one for one in fitting if one != "log2p0.001"]
    if possible == ["none"]:
        return "none", f"values up to {seen.most:.6g} are no logarithms"
    if seen.is_whole:
        return "none", f"{seen} are no logarithms"
    closed = _closing(possible, seen)
    if len(closed) == 1:
        return closed[0], "so read, every sample sums to 1e6"
    whole: list[LogState] = [
        one for one in possible if one != "none" and _comes_back_whole(seen, one)
    ]
    if len(whole) == 1 and unit in (None, "counts"):
        return whole[0], "so read, all values are whole numbers"
    if XENA.search(seen.name) and "log2p1" in possible:
        return "log2p1", f"{seen.name} is a table of UCSC Xena, which are log2(x + 1)"
    raise DataError(
        f"{seen.name}: holds {seen}, which may be linear or a logarithm, and no one way "
        f"every sample sums to 1e6; say which with --log, in a manifest column "
        f"log ({', '.join(possible) or 'none fits'})"
    )


def _check_unit(
    unit: BulkUnit, linear: Float64[np.ndarray, "profile gene"], seen: Seen, log: LogState
) -> tuple[str, tuple[str, ...]]:
    """Why a unit that was given is taken; DataError where the values contradict it."""
    total = float(np.nansum(linear, axis=1).max())
    if unit == "tpm" and total > PER_MILLION * (1 + CLOSED):
        raise DataError(
            f"{seen.name}: given as TPM, and a sample sums to {total:.6g}; TPM sum to 1e6 at most. "
            "Correct --unit (estimated counts of RSEM are rsem), or --log"
        )
    if unit == "counts" and not _is_whole(linear, log):
        raise DataError(
            f"{seen.name}: given as counts, and holds fractions once linear; estimated counts of "
            "RSEM are --unit rsem"
        )
    is_odd = unit in ("fpkm", "rsem") and _is_closed(linear)
    return "as given", (f"given as {unit}, though every sample sums to 1e6 as TPM do",) * is_odd


def _find_unit(
    linear: Float64[np.ndarray, "profile gene"], seen: Seen, log: LogState
) -> tuple[BulkUnit, str, tuple[str, ...]]:
    named = _unit_by_name(seen.name)
    total = np.nansum(linear, axis=1)
    if _is_closed(linear) and named in (None, "tpm"):
        note = "CPM sum to 1e6, too, and are not told from TPM by their values"
        return "tpm", "every sample sums to 1e6", (note,) if named is None else ()
    if _is_whole(linear, log) and named in (None, "counts"):
        what = "all values are whole numbers" + (" once linear" if log != "none" else "")
        return "counts", what, ()
    sums = f"samples sum to {total.min():.4g} to {total.max():.4g}"
    if named == "tpm" and total.max() <= PER_MILLION * (1 + CLOSED):
        return "tpm", f"the file's name says so, and {sums}: a part of the genes", ()
    is_counted = _is_closed(linear) or _is_whole(linear, log)
    if named in ("fpkm", "rsem") and not is_counted:
        return named, f"the file's name says so; {sums}", ()
    says = f"its name says {named}" if named else "its name says no unit"
    raise DataError(
        f"{seen.name}: the unit cannot be told: {says}, it holds {seen}"
        f"{f', linear by log {log}' if log != 'none' else ''}, and {sums}. Say it with --unit, "
        f"in a manifest column unit ({', '.join(get_args(BulkUnit))})"
    )


def _unit_by_name(name: str) -> BulkUnit | None:
    """The unit that a file's name says; None for none, and for FPKM-UQ, which is none of ours."""
    if re.search(r"fpkm[-_.]?uq", name, re.IGNORECASE):
        return None
    return next((unit for unit, sign in NAMED.items() if re.search(sign, name.lower())), None)


def _negative(seen: Seen) -> str:
    """What negative values are, for a message; "" where there are none."""
    if seen.least >= 0:
        return ""
    return (
        "negative values are z-scores, centred logarithms or what a batch correction left: give "
        "the table before that step"
    )


def _closing(logs: Sequence[LogState], seen: Seen) -> list[LogState]:
    """Those by which every sample sums to 1e6."""
    return [one for one in logs if _is_closed(to_linear(seen.values, one))]


def _is_closed(linear: Float64[np.ndarray, "profile gene"]) -> bool:
    off = np.abs(np.nansum(linear, axis=1) / PER_MILLION - 1)
    return bool((off <= CLOSED).mean() >= MOST)


def _is_whole(linear: Float64[np.ndarray, "profile gene"], log: LogState) -> bool:
    """Whether the values are whole; from a log, as far as its few decimals let them be."""
    if log == "none":
        return bool((linear[~np.isnan(linear)] % 1 == 0).all())
    small = linear[linear <= FEW_COUNTS]  # drops NaN as well
    if len(small) == 0:
        small = linear[~np.isnan(linear)]
    return bool((np.abs(small - np.rint(small)) <= WHOLE).all())


def _comes_back_whole(seen: Seen, log: LogState) -> bool:
    linear = to_linear(seen.values, log)
    n_counts = int(((linear > WHOLE) & (linear <= FEW_COUNTS)).sum())
    return n_counts >= ENOUGH and _is_whole(linear, log)
