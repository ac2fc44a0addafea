"""The kill test of benchmarks/, in short: three kills, the same bytes."""

import importlib
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # ten runs of the program

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_three_kills_leave_the_bytes_of_an_unbroken_run(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    kill_test = importlib.import_module("kill_test")
    words = ["--segmenter", "threshold", "--encoder", "toy", "--kills", "3", "--least", "0"]
    assert kill_test.main(["--study", str(tmp_path / "kills"), *words]) == 0, (
        capsys.readouterr().out
    )
    said = capsys.readouterr().out
    assert "3 kills (3 at random moments)" in said
    assert "PASS" in said


def test_a_folder_with_something_in_it_is_not_deleted(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(SystemExit, match="not empty"):
        importlib.import_module("kill_test").main(["--study", str(tmp_path)])
    assert (tmp_path / "mine").read_text() == "mine"
    sys.modules.pop("kill_test")
