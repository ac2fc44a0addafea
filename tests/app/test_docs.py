"""Every command that the documentation prints is one that the program takes."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from histoscribe.app.cli import app
from histoscribe.app.config import load_config
from histoscribe.data.texts import read_terms
from histoscribe.evaluate.class_map import read_class_map
from histoscribe.readers.image_text import read_image_texts
from histoscribe.readers.marker_lists import read_marker_sets
from histoscribe.readers.text_table import read_texts

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAM = typer.main.get_command(app)
assert isinstance(PROGRAM, TyperGroup)


def commands_of(page: Path) -> list[str]:
    """Lines of code blocks that call the program, those that end in a backslash joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = re.sub(r"\s*\\\n\s*", " ", "\n".join(blocks)).splitlines()
    started = re.compile(r"(?:torchrun .* -m -- )?(histoscribe .*)")
    return [found[1] for line in lines if (found := started.match(line.strip()))]


def examples_of(name: str) -> list[str]:
    """Lines of a command's help, or of the program's own, that call the program."""
    asked = PROGRAM.commands[name] if name else PROGRAM
    text = inspect.getdoc(asked.callback) or ""
    return [line.strip() for line in text.splitlines() if line.strip().startswith("histoscribe ")]


def check_line(line: str) -> None:
    """Refuse unknown commands and options, wrong types, and settings that there are not.

    What follows two blanks or a redirection is a remark.
    """
    line = re.split(r"\s{2,}| > ", line)[0]
    words, group = shlex.split(line, comments=True)[1:], PROGRAM
    while isinstance(group, TyperGroup) and words:
        if words[0].startswith("-"):
            break
        assert words[0] in group.commands, f"no command {words[0]}: {line}"
        group = group.commands[words.pop(0)]
    if "--help" in words:
        return
    asked = group.make_context("histoscribe", words).params
    if isinstance(assignments := asked.get("set"), (list, tuple)):
        load_config(None, assignments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_the_pages_parse(page):
    for line in commands_of(page):
        check_line(line)


@pytest.mark.parametrize("name", ["", *sorted(PROGRAM.commands)])
def test_examples_of_the_help_parse(name):
    for line in examples_of(name):
        check_line(line)


READERS = {
    "markers.csv": read_marker_sets,
    "markers.json": read_marker_sets,
    "texts.csv": read_texts,
    "images.csv": read_image_texts,
    "terms.txt": read_terms,
    "mine.json": read_class_map,
}


def files_of(page: Path) -> list[tuple[str, str]]:
    """Name and content of the example files that a page shows."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', text, re.M | re.S)


FILES = {name: content for page in PAGES for name, content in files_of(page)}


@pytest.mark.parametrize("name", sorted(READERS))
def test_example_files_are_read(name, tmp_path):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert READERS[name](tmp_path / name)


def test_the_check_itself_refuses():
    assert {name for page in PAGES for name, _ in files_of(page)} == set(READERS)
    assert sum(len(commands_of(page)) for page in PAGES) > 25
    assert sum(len(examples_of(name)) for name in PROGRAM.commands) > 20
    for line in (
        "histoscribe fit s/ --tests C2",
        "histoscribe fi s/",
        "histoscribe fit s/ -s a.b=1",
    ):
        with pytest.raises(Exception):  # noqa: B017, PT011 - of typer, of ours, or an assertion
            check_line(line)
