"""One cell of a clinical table: an event, a number, a stage, or a word for a missing value.

Every function says what is wrong as a ValueError, to which the reader adds line and patient.
"""

import math
import re
from typing import NamedTuple

MISSING = frozenset(
    {"", "na", "n/a", "nan", "none", "null", "unknown", "not reported", "not available"}
)
DASHES = re.compile(r"'?-+")  # GDC writes '--
DEAD = ("dead", "deceased", "died", "1", "1.0", "true", "yes")
ALIVE = ("alive", "living", "censored", "0", "0.0", "false", "no")
CODED = re.compile(r"([01])\s*:\s*(\w+)")  # cBioPortal writes 1:DECEASED
STAGE = re.compile(r"stage\s+(0|iv|iii|ii|i)[abc]?\d?", re.IGNORECASE)
STAGES = {"0": 0.0, "i": 1.0, "ii": 2.0, "iii": 3.0, "iv": 4.0}
NO_STAGE = re.compile(r"stage\s+(x|tis|is)|i/ii nos", re.IGNORECASE)
SAME_DAYS = 1e-6


class Outcome(NamedTuple):
    """What a row, or all rows, say of a patient; None is not known."""

    time_days: float | None = None
    has_died: bool | None = None

    @property
    def is_known(self) -> bool:
        """Whether both are known."""
        return self.time_days is not None and self.has_died is not None

    @property
    def lacks(self) -> str:
        """What is not known, in words; "" if nothing."""
        if self.has_died is None:
            return "whether the patient died is missing"
        if self.time_days is not None:
            return ""
        return f"the day of {'death' if self.has_died else 'the last contact'} is missing"


def joined(one: Outcome, other: Outcome) -> Outcome:
    """What two rows of a patient say together."""
    if None not in (one.has_died, other.has_died) and one.has_died != other.has_died:
        raise ValueError("dead in one row and alive in another")
    days = [each.time_days for each in (one, other) if each.time_days is not None]
    if len(days) == 2 and abs(days[0] - days[1]) > SAME_DAYS:
        raise ValueError(f"{days[1]:g} days here and {days[0]:g} in an earlier row")
    has_died = one.has_died if other.has_died is None else other.has_died
    return Outcome(days[0] if days else None, has_died)


def is_missing(text: str) -> bool:
    """Whether the cell stands for no value; so does all that is in square brackets."""
    word = text.strip().lower()
    is_bracketed = word.startswith("[") and word.endswith("]")
    return word in MISSING or is_bracketed or DASHES.fullmatch(word) is not None


def event_of(column: str, text: str) -> bool | None:
    """Whether the patient died; None if the cell is missing."""
    word = text.strip().lower()
    coded = CODED.fullmatch(word)
    if coded:
        code, word = coded[1] == "1", coded[2]
        if word in (*DEAD, *ALIVE) and code != (word in DEAD):
            raise ValueError(f"{column} is {text!r}, whose number and word disagree")
        return code
    if is_missing(text):
        return None
    if word not in (*DEAD, *ALIVE):
        raise ValueError(f"{column} is {text!r}; wanted 0, 1, alive, dead or the like")
    return word in DEAD


def number_of(column: str, text: str) -> float | None:
    """A number of 0 or more; None if the cell is missing."""
    value = _number(text)
    if value is None and is_missing(text):
        return None
    if value is None or value < 0:
        raise ValueError(f"{column} is {text!r}; wanted a number of 0 or more")
    return value


def value_of(column: str, text: str) -> float | None:
    """A number or a stage as its number; None if the cell is missing or the stage not known."""
    if is_missing(text) or NO_STAGE.fullmatch(text.strip()):
        return None
    stage = STAGE.fullmatch(text.strip())
    value = STAGES[stage[1].lower()] if stage else _number(text)
    if value is None:
        raise ValueError(f"{column} is {text!r}; wanted a number or a stage, such as Stage IIA")
    return value


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
