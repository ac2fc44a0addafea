"""The user's own texts, from a table."""

from pathlib import Path

from histoscribe.data.texts import Texts
from histoscribe.errors import DataError
from histoscribe.readers.tables import read_table

KEYS = ("text_key", "label", "cell_type", "term")
"""Columns that may name what a text is of; the first that is there counts."""


def read_texts(path: Path) -> Texts:
    """Read a table (.csv, else by tabs) with a column text and one of KEYS; a row a wording.

    Raises:
        DataError: Missing, without these columns, an empty cell, or a text that stands twice.
    """
    table = read_table(path, ("text",))
    column = next((name for name in KEYS if name in table.columns), None)
    if column is None:
        raise DataError(
            f"{path}: no column says what a text is of; wanted one of {', '.join(KEYS)}"
        )
    cells = table[[column, "text"]].fillna("").astype(str)
    try:
        return Texts(
            tuple(key.strip() for key in cells[column]),
            tuple(" ".join(text.split()) for text in cells["text"]),
        )
    except DataError as fault:
        raise DataError(f"{path}: {fault}") from fault
