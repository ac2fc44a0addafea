"""Single values of a JSON file, taken for what they are: a truth value is no number.

In Python `True` is 1, and whole numbers have no bound: `isinstance(value, int)` is not enough.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from histoscribe.errors import DataError

LARGEST_NUMBER = 2**31 - 1  # of a type
MAX_SHOWN = 60


def as_real(value: Any) -> float | None:  # noqa: ANN401 - whatever a file holds there
    """A number, which may be NaN or infinite; None for what is none or is beyond a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def as_whole(value: Any) -> int | None:  # noqa: ANN401
    """A whole number from 0 to 2^31 - 1, also in digits as text; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value) if len(value) <= len(str(LARGEST_NUMBER)) else None
    real = as_real(value)
    is_whole = real is not None and 0 <= real <= LARGEST_NUMBER and real.is_integer()
    return int(real) if real is not None and is_whole else None


def share_of(path: Path, where: str, value: Any) -> float:  # noqa: ANN401
    """A probability; NaN where there is none.

    Args:
        path: The file, for the message.
        where: Whose and which it is, for the message.
        value: As the file has it.

    Raises:
        DataError: No number from 0 to 1, and not null or NaN.
    """
    share = float("nan") if value is None else as_real(value)
    if share is None or share < 0 or share > 1:
        raise DataError(f"{path}: {where} {shown(value)}; wanted 0 to 1, or null")
    return share


def names_by_number(
    path: Path, what: str, pairs: Iterable[tuple[Any, Any]], wanted: str
) -> dict[int, str]:
    """Names of numbered types.

    Args:
        path: The file, for the message.
        what: What holds them, for the message.
        pairs: Number and name of each, as the file has them.
        wanted: How they should look.

    Raises:
        DataError: A number that is none, a name that is none, or two names for one number.
    """
    names: dict[int, str] = {}
    for given, name in pairs:
        number = as_whole(given)
        if number is None or not isinstance(name, str):
            pair = f"{shown(given)} with {shown(name)}"
            raise DataError(f"{path}: {what} has {pair}; wanted {wanted}")
        if names.setdefault(number, name.strip()) != name.strip():
            raise DataError(
                f"{path}: {what} has two names for {number}, {shown(names[number])} and "
                f"{shown(name)}; wanted one for each number: mend the file"
            )
    return names


def shown(value: Any) -> str:  # noqa: ANN401
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
