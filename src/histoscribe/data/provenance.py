"""Provenance: what made an object, from what, with which settings; and the key of it all."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from histoscribe.errors import DataError


@dataclass(frozen=True)
class Provenance:
    """What made a stored object. Equal provenance, equal bytes; times are not part of it.

    Attributes:
        made_by: Program, version and step, e.g. "histoscribe 0.1.0 prepare".
        settings: Every setting that changes the result, JSON-able, units in the names.
        inputs: SHA-256 (or key) of each input by name.
    """

    made_by: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.made_by:
            raise DataError("provenance does not say what made the object; give made_by")
        for name in ("settings", "inputs"):
            # Tuples become lists here, so that what is read back equals what was written.
            object.__setattr__(self, name, _as_json(name, getattr(self, name)))

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """Read what `to_json` wrote.

        Raises:
            DataError: If it is something else.
        """
        try:
            record = json.loads(text)
            return cls(record["made_by"], record["settings"], record["inputs"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"this is no provenance record: {text[:80]!r}") from error

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        record = {
            "made_by": self.made_by,
            "settings": dict(self.settings),
            "inputs": dict(self.inputs),
        }
        return json.dumps(record, sort_keys=True, separators=(",", ":"))

    @property
    def key(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _as_json(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"provenance {name} {key!r} = {value!r} cannot be written as JSON; give numbers "
                "(finite), strings, lists or None"
            ) from error
    return json.loads(json.dumps(dict(values)))
