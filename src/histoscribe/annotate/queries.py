"""Words as points of the space: each class by its terms, their synonyms and the templates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from histoscribe.annotate.word_model import TEMPLATES, WordModel
from histoscribe.data.annotation import check_terms
from histoscribe.data.texts import Term
from histoscribe.errors import DataError, MismatchError


@dataclass(frozen=True)
class WordClass:
    """A class and the terms it is made of; most have one.

    Attributes:
        name: What the label says.
        members: Its terms, each with its synonyms.
    """

    name: str
    members: tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Queries:
    """Classes as points of the space.

    Attributes:
        classes: Their names.
        prompts: For each class all texts that stand for it.
        embedding: One row a term, of unit length.
        class_of_term: The class that each term is a member of.
    """

    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    embedding: Float32[np.ndarray, "term d"]
    class_of_term: Int64[np.ndarray, " term"]


def embed_classes(
    model: WordModel, classes: Sequence[WordClass], templates: Sequence[str] = TEMPLATES
) -> Queries:
    """Each term of each class as the mean over its names and the templates, of unit length."""
    check_terms(tuple(one.name for one in classes))
    for one in classes:
        if not one.members:
            raise DataError(f"class {one.name!r} has no terms; give at least one")
    terms = [(number, term) for number, one in enumerate(classes) for term in one.members]
    prompts = [fill(templates, term.names) for _, term in terms]
    texts = list(dict.fromkeys(text for some in prompts for text in some))
    row_of = {text: row for row, text in enumerate(texts)}
    embedded = check_unit_rows(model.embed_texts(texts), "text").astype(np.float64)
    rows = np.stack([embedded[[row_of[text] for text in some]].mean(axis=0) for some in prompts])
    class_of_term = np.array([number for number, _ in terms], dtype=np.int64)
    of_class: list[list[str]] = [[] for _ in classes]
    for (number, _), some in zip(terms, prompts, strict=True):
        of_class[number] += some
    return Queries(
        classes=tuple(one.name for one in classes),
        prompts=tuple(tuple(some) for some in of_class),
        embedding=unit(rows),
        class_of_term=class_of_term,
    )


def fill(templates: Sequence[str], names: Sequence[str]) -> list[str]:
    """Every name in every template, each text once."""
    filled = (template.replace("{x}", name) for name in names for template in templates)
    return list(dict.fromkeys(filled))


def unit(rows: Float64[np.ndarray, "row d"]) -> Float32[np.ndarray, "row d"]:
    """Rows brought to length one."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if (length == 0).any():
        raise DataError("texts or cells average to nothing: their embeddings cancel out")
    return (rows / length).astype(np.float32)


def check_unit_rows(rows: Float32[np.ndarray, "row d"], what: str) -> Float32[np.ndarray, "row d"]:
    """Refuse rows that are not of length one (or NaN)."""
    length = np.linalg.norm(rows.astype(np.float64), axis=1)
    wrong = np.flatnonzero(np.abs(length - 1) > 0.01)  # NaN is no row of another length
    if len(wrong):
        raise MismatchError(f"the embedding of {what} {wrong[0]} has length {length[wrong[0]]:.3g}")
    return rows
