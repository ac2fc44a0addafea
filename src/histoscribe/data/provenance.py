"""Provenance: what made an object, from what, with which settings; and the key of it all."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
