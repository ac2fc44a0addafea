"""Large JSON a piece at a time: the members of chosen containers, each decoded alone.

A slide has a million nuclei, its JSON several hundred MB, and as Python objects ten times that.
Here only a window of the text and one member are held. The pieces are decoded by the standard
library.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from histoscribe.errors import DataError

Place = tuple[str | int, ...]
"""Keys and list positions from the outermost value to a piece."""

BLOCK = 1 << 20  # characters read at a time
CLOSING = {"{": "}", "[": "]"}
SPACE = re.compile(r"[ \t\n\r]*")
LONGEST_TAIL = 3  # of "1e-", which is read as 1 until the next digit is seen
NEAR_END = 32  # characters: a fault this close to the end of the window may be a piece cut off


class JsonStream:
    """One JSON document, read once from front to back."""

    def __init__(self, file: io.TextIOBase, path: Path) -> None:
        self._file = file
        self._path = path
        self._text = ""
        self._at = 0
        self._n_before = 0  # characters that left the window
        self._is_end = False
        self._decoder = json.JSONDecoder()

    def walk(self, opens: Callable[[Place], bool]) -> Iterator[tuple[Place, Any]]:
        """Every piece with its place, in the order of the file.

        Args:
            opens: Whether the object or list at a place is gone into, so that its members come one
                by one; what is not comes whole. An empty one comes whole in any case.

        Raises:
            DataError: This is no JSON, or it ends early, or more follows its end.
        """
        yield from self._walk(opens, ())
        if self._peek():
            raise self._fault("more text follows the end of the document")

    def _walk(self, opens: Callable[[Place], bool], place: Place) -> Iterator[tuple[Place, Any]]:
        sign = self._peek()
        if sign not in CLOSING or not opens(place):
            yield place, self._value()
            return
        self._at += 1
        if self._peek() == CLOSING[sign]:
            self._at += 1
            yield place, {} if sign == "{" else []
            return
        number = 0
        while True:
            yield from self._walk(opens, (*place, self._key() if sign == "{" else number))
            number += 1
            mark = self._peek()
            self._at += 1
            if mark == CLOSING[sign]:
                return
            if mark != ",":
                raise self._fault(f"a comma or {CLOSING[sign]} is wanted")

    def _key(self) -> str:
        if self._peek() != '"':
            raise self._fault("a name in quotes is wanted")
        key = self._value()
        if self._peek() != ":":
            raise self._fault("a colon is wanted")
        self._at += 1
        return key

    def _peek(self) -> str:
        """The next character that is no space; none at the end of the file."""
        while True:
            match = SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def _value(self) -> Any:  # noqa: ANN401 - whatever stands there
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as fault:
                is_cut = fault.msg.startswith("Unterminated")
                is_cut = is_cut or fault.pos >= len(self._text) - NEAR_END
                if is_cut and self._fill():
                    continue
                self._at = fault.pos
                raise self._fault(fault.msg) from fault
            except ValueError as fault:  # a whole number too long for Python
                raise self._fault(str(fault).split(";")[0]) from fault
            except RecursionError as fault:
                raise self._fault("it is nested too deep") from fault
            if end > len(self._text) - LONGEST_TAIL and self._fill():
                continue  # a number may go on
            self._at = end
            return value

    def _fill(self) -> bool:
        """Let go of what was read and take in as much as is left, so that long pieces cost no more.

        Returns:
            Whether there was more.
        """
        if self._is_end:
            return False
        rest = self._text[self._at :]
        more = self._file.read(max(BLOCK, len(rest)))
        if not more:
            self._is_end = True
            return False
        self._n_before += self._at
        self._text, self._at = rest + more, 0
        return True

    def _fault(self, why: str) -> DataError:
        if self._is_end and self._at >= len(self._text) - 1:
            why = "it ends early"
        return DataError(
            f"{self._path}: cannot be read as JSON at character {self._n_before + self._at} "
            f"({why}); export it again, or copy it again from its source"
        )
