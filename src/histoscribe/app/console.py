"""What the commands say: to people in colour on stderr, to machines as JSON on stdout."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

Advance = Callable[[int, int], None]
"""Called with (done, total)."""

Bars = Callable[[str, int | None, int | None], None]
"""Called with (name, done, total); its bar goes where nothing is known of it any more."""


class Voice:
    """One command's way to speak.

    Attributes:
        is_json: Whether a machine listens: then stdout carries one JSON object and nothing else.
        is_silent: Whether nothing is said at all, for another process says it.
    """

    def __init__(self, is_json: bool = False, is_silent: bool = False) -> None:
        self.is_json, self.is_silent = is_json, is_silent
        self._people = Console(stderr=True, highlight=False, quiet=is_silent)
        self._out = Console(highlight=False, quiet=is_silent)

    def say(self, text: str) -> None:
        """One line for people."""
        if not self.is_json:
            self._people.print(text, markup=False, soft_wrap=True)

    def write(self, text: str) -> None:
        """One line of the outcome, on stdout, for people."""
        if not self.is_json:
            self._out.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line for people that must not be missed; on stderr even where a machine listens."""
        self._people.print("warning: ", style="yellow", end="")
        self._people.print(text, markup=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table on stdout for people; machines get theirs with `result`."""
        if self.is_json:
            return
        table = Table(title=Text(title), title_justify="left", title_style="bold")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._out.print(table)

    def result(self, record: Mapping[str, Any]) -> None:
        """The outcome as one JSON object, where a machine asked for it."""
        if self.is_json and not self.is_silent:
            sys.stdout.write(json.dumps(record, default=str, sort_keys=True) + "\n")
            sys.stdout.flush()

    def fault(self, kind: str, message: str, exit_code: int, **facts: object) -> None:
        """The one clear message of a failure: for people on stderr, for machines on stdout too."""
        self._people.print(f"{kind}: ", style="bold red", end="")
        self._people.print(message, markup=False, soft_wrap=True)
        self.result({**facts, "error": kind, "message": message, "exit_code": exit_code})

    @contextmanager
    def progress(self, text: str) -> Iterator[Advance]:
        """A bar with the time left; silent for machines and where nobody watches."""
        with self._new_bars() as bar:
            task = bar.add_task(escape(text), total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @property
    def is_watched(self) -> bool:
        """Whether somebody sees a bar."""
        return self._people.is_terminal and not self.is_json and not self.is_silent

    @contextmanager
    def bars(self) -> Iterator[Bars]:
        """A bar for each of many things, while something is known of it."""
        with self._new_bars() as shown:
            task_of: dict[str, TaskID] = {}

            def show(name: str, done: int | None, total: int | None) -> None:
                if total is None:
                    if name in task_of:
                        shown.remove_task(task_of.pop(name))
                    return
                if name not in task_of:
                    task_of[name] = shown.add_task(escape(name), total=None)
                shown.update(task_of[name], completed=done, total=total)

            yield show

    def _new_bars(self) -> Progress:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        return Progress(*columns, console=self._people, transient=True, disable=not self.is_watched)
