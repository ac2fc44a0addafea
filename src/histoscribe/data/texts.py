"""Texts: what is said of images and profiles; and terms, the names that are looked for."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from histoscribe.data.checks import check_length
from histoscribe.data.profiles import Profiles
from histoscribe.errors import DataError

ONTOLOGY_ID = re.compile(r"[A-Za-z][A-Za-z_]*:\d{4,}")
"""As of the OBO foundry: CL:0000236, UBERON:0000006."""


@dataclass(frozen=True)
class Texts:
    """Wordings by key. Equal keys mean equal things: any wording of a key is right for it.

    Attributes:
        text_key: Key of each wording; a key has one wording or several, side by side or not.
        text: The wordings. One wording has one key only: else it would be right and wrong at once.
    """

    text_key: tuple[str, ...]
    text: tuple[str, ...]

    def __post_init__(self) -> None:
        check_length("text", self.text, len(self.text_key))
        key_of_text: dict[str, str] = {}
        for row, (key, text) in enumerate(zip(self.text_key, self.text, strict=True)):
            if not key.strip() or not text.strip():
                raise DataError(
                    f"text {row} is {text!r} of key {key!r}; give both, or leave it out"
                )
            if text in key_of_text:
                other = key_of_text[text]
                mend = "write it once" if other == key else "give things that are alike one key"
                raise DataError(
                    f"text {text!r} stands twice, of keys {other!r} and {key!r}; {mend}"
                )
            key_of_text[text] = key

    def __len__(self) -> int:
        return len(self.text)

    @cached_property
    def rows_of_key(self) -> Mapping[str, Int64[np.ndarray, " wording"]]:
        """Rows of each key's wordings; keys in the order of their first."""
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(self.text_key):
            rows.setdefault(key, []).append(row)
        return {key: np.array(some, dtype=np.int64) for key, some in rows.items()}

    @property
    def keys(self) -> tuple[str, ...]:
        """The distinct keys, in the order of their first wordings."""
        return tuple(self.rows_of_key)

    def wordings(self, key: str) -> tuple[str, ...]:
        """All wordings of a key; none for a key that is not there."""
        return tuple(self.text[row] for row in self.rows_of_key.get(key, ()))


@dataclass(frozen=True)
class Term:
    """Something looked for by name.

    Attributes:
        key: What it is matched by: its ontology id, else its first name as `key_of` writes it.
        names: What it is called; the first is shown, all are asked for.
        ontology_id: E.g. "CL:0000236", or None.
    """

    key: str
    names: tuple[str, ...]
    ontology_id: str | None = None

    def __post_init__(self) -> None:
        if not self.key or not self.names or not all(name.strip() for name in self.names):
            raise DataError(f"term {self.key!r} is named {self.names!r}; give it a name")

    @property
    def name(self) -> str:
        """The name that is shown."""
        return self.names[0]


def key_of(name: str, ontology_id: str | None = None) -> str:
    """The key of a name: its ontology id if there is one, else the name without case and gaps.

    "CD8+ T_cell" and "CD8+  T cell" have one key, "cd8+ t cell". Plurals are not folded.
    """
    if ontology_id and ONTOLOGY_ID.fullmatch(ontology_id):
        return ontology_id
    return " ".join(name.replace("_", " ").split()).casefold()


def join_texts(parts: Sequence[Texts]) -> Texts:
    """All wordings of several tables, each once.

    Raises:
        DataError: If one wording has two keys.
    """
    rows = dict.fromkeys(
        pair for part in parts for pair in zip(part.text_key, part.text, strict=True)
    )
    return Texts(tuple(key for key, _ in rows), tuple(text for _, text in rows))


def texts_of(profiles: Profiles) -> Texts:
    """The distinct texts of profiles, under their keys; profiles without a text have none.

    A profile with a text and no key is keyed by the text itself.
    """
    texts = profiles.text or ("",) * len(profiles)
    keys = profiles.text_key or ("",) * len(profiles)
    rows = dict.fromkeys(
        (key or key_of(text), text) for key, text in zip(keys, texts, strict=True) if text
    )
    return Texts(tuple(key for key, _ in rows), tuple(text for _, text in rows))


def read_terms(
    path: Path, names_of: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[Term, ...]:
    """Read terms, one a line.

        B cell | B lymphocyte      a name and its synonyms
        B cell # CL:0000236        with the id of an ontology: what the term is keyed by
        CL:0000236                 an id alone, named by the ontology
        # macrophages next         a remark, as is all behind a # that is no id

    A name that the ontology knows, and no other of its terms bears, gets the id of it; its own
    synonyms stay the only ones.

    Args:
        path: The file, UTF-8.
        names_of: Name and synonyms by id, as of `readers.cell_ontology`; None if there is none.

    Raises:
        DataError: Missing, no text, empty, a term twice, a line without a name, or an id that is
            not among `names_of`.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"{path}: cannot be read ({fault}); give a text file of terms") from fault
    known = names_of or {}
    ids = ids_of_names(known)
    line_of: dict[str, int] = {}
    terms: list[Term] = []
    for number, line in enumerate(lines, start=1):
        if (term := _read_line(f"{path}, line {number}", line, known, ids)) is None:
            continue
        if line_of.setdefault(term.key, number) != number:
            raise DataError(
                f"{path}: {term.name} stands in lines {line_of[term.key]} and {number}; put its "
                "names in one line"
            )
        terms.append(term)
    if not terms:
        raise DataError(f"{path}: no term; wanted one a line, e.g. B cell | B lymphocyte")
    return tuple(terms)


def ids_of_names(names_of: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The id of each name, keyed as `key_of`; what two terms call themselves by has none.

    A term's first name goes before the synonyms of others.
    """
    first: dict[str, set[str]] = {}
    other: dict[str, set[str]] = {}
    for term_id, names in names_of.items():
        first.setdefault(key_of(names[0]), set()).add(term_id)
        for name in names[1:]:
            other.setdefault(key_of(name), set()).add(term_id)
    meant = {**other, **first}
    return {name: next(iter(ids)) for name, ids in meant.items() if len(ids) == 1}


def _read_line(
    where: str,
    line: str,
    names_of: Mapping[str, tuple[str, ...]],
    id_of_name: Mapping[str, str],
) -> Term | None:
    before, _, behind = line.partition("#")
    found = ONTOLOGY_ID.search(behind)
    names = tuple(dict.fromkeys(name.strip() for name in before.split("|") if name.strip()))
    if ONTOLOGY_ID.fullmatch(before.strip()):
        return _named_by_ontology(where, before.strip(), names_of)
    if not names:
        if before.strip():
            raise DataError(f"{where}: {line!r} has no name; wanted name | synonym | synonym")
        return None
    term_id = found.group() if found else id_of_name.get(key_of(names[0]))
    return Term(key_of(names[0], term_id), names, term_id)


def _named_by_ontology(where: str, term_id: str, names_of: Mapping[str, tuple[str, ...]]) -> Term:
    if not names_of:
        raise DataError(
            f"{where}: {term_id} alone has no name; write one before it (name # {term_id}), or "
            "give the ontology that names it"
        )
    if term_id not in names_of:
        raise DataError(f"{where}: {term_id} is not in the ontology; check the id, or write a name")
    return Term(term_id, names_of[term_id], term_id)
