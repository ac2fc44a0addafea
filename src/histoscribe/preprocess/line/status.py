"""What a preparation has in hand, for whoever watches it, or asks after it was killed.

`status.json` in the workspace is one line of JSON, padded with spaces to a fixed length and
rewritten in place by one short write whenever a stage takes a field up or puts one down.
It is never flushed: a killed process leaves what it wrote last, a machine that went down anything.

    {"pid": 4711, "key": "5f0c...", "n_fields": 8100,
     "reading": [640], "segmenting": [632], "finding": [630, 631], "describing": [], "writing": []}

The numbers are fields, of a batch and of a part the first one. Beside the stages there are
"resuming" (parts of a killed run are checked) and "joining" (all fields are done; the slide is put
together).
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from histoscribe.preprocess.line.pipeline import AtWork

NAME = "status.json"
LENGTH = 2048
MOST = 16
"""Numbers told of a stage, so that the line keeps its length."""


class Status:
    """The file, open for writing."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Begin it anew.

        Args:
            folder: The workspace.
            facts: What stays the same, beside the process' id.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._facts = {"pid": os.getpid(), **facts}
        self._file = (folder / NAME).open("w+b", buffering=0)
        self.tell({})

    def tell(self, at_work: AtWork) -> None:
        """Write what is at work now."""
        stages = {stage: list(numbers)[:MOST] for stage, numbers in at_work.items()}
        line = json.dumps({**self._facts, **stages}).ljust(LENGTH - 1) + "\n"
        self._file.seek(0)
        self._file.write(line.encode())

    def close(self) -> None:
        """Leave the file as it is."""
        self._file.close()


@contextmanager
def status_in(folder: Path | None, facts: Mapping[str, Any]) -> Iterator[Status | None]:
    """Status in a workspace while it is worked in; None where there is no workspace."""
    if folder is None:
        yield None
        return
    status = Status(folder, facts)
    try:
        yield status
    finally:
        status.close()


def read_status(folder: Path) -> dict[str, Any]:
    """What was told last in a workspace; {} where nobody works or worked."""
    try:
        record = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
