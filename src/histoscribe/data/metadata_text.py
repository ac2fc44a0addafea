"""Texts from columns of metadata by fixed templates, joined by the user's own.

The assay is left out on purpose: it names the platform, and a text tower would learn the platform
from it.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from histoscribe.data.checks import check_length
from histoscribe.data.texts import Texts, join_texts, key_of
from histoscribe.errors import ConfigError, DataError

KeyedBy = Literal["cell_type", "annotation"]

FIELDS = ("cell_type", "tissue", "disease", "development_stage", "sex")
"""What a text may speak of, in this order."""

VOID = frozenset({"", "unknown", "na", "n/a", "nan", "none", "not applicable", "unassigned"})
HEALTHY = frozenset({"normal", "healthy"})


class RowTexts(NamedTuple):
    """What is said of each row of a table of metadata.

    Attributes:
        text_key: Key of each row, "" for one of which nothing is known.
        text: The fullest wording of each row, "" likewise.
        texts: All wordings, by key.
    """

    text_key: tuple[str, ...]
    text: tuple[str, ...]
    texts: Texts


def describe(record: Mapping[str, str]) -> tuple[str, ...]:
    """What can be said of one row, from short to full; nothing where nothing is known.

    With cell_type "B cell", tissue "lung" and disease "adenocarcinoma":

        B cell
        B cell from lung
        B cell from lung, adenocarcinoma

    The disease "normal" makes the tissue healthy ("B cell from healthy lung").
    """
    said = {field: " ".join(str(record.get(field, "")).split()) for field in FIELDS}
    said = {field: "" if value.casefold() in VOID else value for field, value in said.items()}
    cell_type, tissue, disease = said["cell_type"], said["tissue"], said["disease"]
    if disease.casefold() in HEALTHY:
        disease, place = "", f"healthy {tissue}" if tissue else ""
    else:
        place = tissue
    first = f"{cell_type} from {place}" if cell_type and place else cell_type or place
    wordings = [cell_type, first]
    for more in (disease, said["development_stage"], said["sex"]):
        if more:
            wordings.append(f"{wordings[-1]}, {more}" if wordings[-1] else more)
    return tuple(dict.fromkeys(wording for wording in wordings if wording))


def metadata_texts(
    columns: Mapping[str, Sequence[str]],
    ontology_id: Sequence[str] | None = None,
    own: Texts | None = None,
    keyed_by: KeyedBy = "cell_type",
) -> RowTexts:
    """Texts of all rows of a table.

    Keyed by cell type, all cells of a type are right for each other's texts, whatever their
    tissue, and each of the wordings is one of the key. Keyed by annotation, tissue and disease
    must agree as well, and the fullest wording is the only one.

    Args:
        columns: Some of FIELDS, each with a value a row.
        ontology_id: Of the cell type of each row, "" where there is none; keys go by it.
        own: The user's texts, under the key or the name of a cell type: more wordings.
        keyed_by: What rows have in common that share a key.

    Raises:
        ConfigError: If a column is none of FIELDS, or no column is given.
        DataError: If columns differ in length, or own texts have keys that no row has.
    """
    n_rows = _check_columns(columns)
    ids = ("",) * n_rows if ontology_id is None else ontology_id
    check_length("ontology_id", ids, n_rows)
    names = columns.get("cell_type", ids)
    id_of = {key_of(name): one for name, one in zip(names, ids, strict=True) if one}
    keys, fullest, rows = [], [], {}
    for row in range(n_rows):
        record = {field: columns[field][row] for field in columns}
        wordings = describe(record)
        key = _key(record, wordings, id_of.get(key_of(names[row]), ""), keyed_by)
        keys.append(key)
        fullest.append(wordings[-1] if wordings else "")
        for wording in wordings if keyed_by == "cell_type" else wordings[-1:]:
            rows.setdefault((key, wording), None)
    texts = Texts(tuple(key for key, _ in rows), tuple(text for _, text in rows))
    if own is not None:
        texts = join_texts([texts, rekey_texts(own, columns.get("cell_type", keys), keys)])
    return RowTexts(tuple(keys), tuple(fullest), texts)


def rekey_texts(own: Texts, names: Sequence[str], keys: Sequence[str]) -> Texts:
    """The user's texts under the keys of what they name.

    Args:
        own: Under keys, or names of cell types.
        names: Name of each row.
        keys: Key of each row.

    Raises:
        DataError: If a text is of what no row is.
    """
    known = {key_of(name): key for name, key in zip(names, keys, strict=True) if key}
    known |= {key: key for key in keys if key}
    strange = [key for key in own.keys if key not in known and key_of(key) not in known]
    if strange:
        raise DataError(
            f"own texts are of {strange[0]!r}, which no row is; the keys are "
            f"{', '.join(list(known)[:6])}"
        )
    return Texts(tuple(known.get(key) or known[key_of(key)] for key in own.text_key), own.text)


def _check_columns(columns: Mapping[str, Sequence[str]]) -> int:
    unknown = [name for name in columns if name not in FIELDS]
    if unknown or not columns:
        raise ConfigError(
            f"a text cannot speak of {', '.join(unknown) or 'nothing'}; give some of "
            f"{', '.join(FIELDS)}"
        )
    n_rows = len(next(iter(columns.values())))
    for name, values in columns.items():
        check_length(name, values, n_rows)
    return n_rows


def _key(
    record: Mapping[str, str], wordings: tuple[str, ...], ontology_id: str, keyed_by: KeyedBy
) -> str:
    if not wordings:
        return ""
    cell_type = str(record.get("cell_type", ""))
    if keyed_by == "annotation" or cell_type.strip().casefold() in VOID:
        return key_of(wordings[-1])
    return key_of(cell_type, ontology_id)
