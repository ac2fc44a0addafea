"""The border: how every way to end becomes an exit code and one message."""

import errno
import json
import subprocess
import sys

import pytest
import typer

from histoscribe.app import cli, commands_machine
from histoscribe.app.console import Voice
from histoscribe.errors import ConfigError, DataError, MismatchError, MissingExtra

COMMANDS = (
    "demo", "match", "ingest", "prepare", "fit", "predict", "evaluate", "merge", "survival",
    "doctor", "tissue", "weights", "config",
)  # fmt: skip


def raising(monkeypatch, error: BaseException) -> None:
    def fail(*words: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from histoscribe.app.cli import main; main(['--help']);"
        "heavy = {'torch', 'anndata', 'matplotlib', 'pandas', 'numpy'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_example(call, command):
    answer = call(command, "--help")
    assert answer.code == 0
    if command != "weights":
        assert "histoscribe" in answer.out or "sample,patient" in answer.out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no"), 2),
        (DataError("no"), 3),
        (MismatchError("no"), 4),
        (MissingExtra("no"), 5),
        (KeyboardInterrupt(), 130),
        (typer.Abort(), 130),
        (BrokenPipeError(), 141),
        (OSError(errno.ENOSPC, "No space left on device", "/full/x"), 5),
        (OSError(errno.EACCES, "Permission denied", "/shut/x"), 3),
        (ValueError("surprise"), 70),
    ],
)
def test_every_end_has_its_code_and_no_traceback(monkeypatch, call, error, code):
    raising(monkeypatch, error)
    answer = call("config")
    assert answer.code == code
    assert "Traceback" not in answer.err


def test_a_full_disk_is_said_with_its_place(monkeypatch, call):
    raising(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/full/cells.zarr"))
    message = call("prepare", "study").message
    assert "The disk is full at /full/cells.zarr" in message
    assert "Make room" in message


def test_a_bug_is_called_one_and_leaves_its_record(monkeypatch, call, tmp_path):
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    raising(monkeypatch, ValueError("surprise"))
    answer = call("config")
    assert "bug in histoscribe" in answer.message
    (record,) = tmp_path.glob("histoscribe-fault-*.log")
    assert "ValueError: surprise" in record.read_text()
    assert record.name in answer.message


def test_debug_keeps_the_traceback(monkeypatch, call):
    raising(monkeypatch, DataError("torn"))
    answer = call("config", "--debug")
    assert answer.code == 3
    assert "Traceback" in answer.err


def test_machines_get_failures_as_json(call, tmp_path):
    answer = call("fit", tmp_path, "--json")
    assert answer.code == 3
    assert answer.record["error"] == "DataError"
    assert answer.record["exit_code"] == 3
    assert "study.json" in answer.record["message"]


def test_version(call):
    assert call("--version").out.startswith("histoscribe ")


def test_config_is_yaml_for_people_and_json_for_machines(call):
    assert "rings_um: [250.0, 450.0, 1000.0]" in call("config").out
    assert call("config", "--json", "-s", "bags.neighbours=3").record["bags"]["neighbours"] == 3


def test_doctor_looks_at_machine_and_slides(call, toy_files, tmp_path):
    answer = call("doctor", toy_files / "a1.png", "--mpp", "0.5", "--json")
    assert answer.code == 0, answer.out
    found = {(finding["what"], finding["verdict"]) for finding in answer.record["findings"]}
    assert ("program", "good") in found
    assert (str(toy_files / "a1.png"), "good") in found
    bad = call("doctor", toy_files / "a1.png", tmp_path / "none.svs", "--json")
    assert bad.code == 3
    faults = [f for f in json.loads(bad.out)["findings"] if f["verdict"] == "bad"]
    assert [fault["what"] for fault in faults] == [
        str(toy_files / "a1.png"),
        str(tmp_path / "none.svs"),
    ]
    assert "--mpp" in faults[0]["found"]


def test_weights_list(call):
    answer = call("weights", "list", "--json")
    assert {row["licence"] for row in answer.record["weights"]} == {"Apache-2.0"}


def test_unknown_weights(call):
    assert call("weights", "fetch", "nonesuch").code == 2


def test_commands_are_registered_by_their_own_names():
    assert commands_machine.weights_app.registered_commands


def test_brackets_in_names_are_said_as_they_are(capsys):
    voice = Voice()
    voice.say("slide[red].svs is [/odd]")
    voice.table("study [x]", ["method"], [["a[/b]"]])
    with voice.progress("[/c]"):
        pass
    said = capsys.readouterr()
    assert "slide[red].svs is [/odd]" in said.err
    assert "study [x]" in said.out
    assert "a[/b]" in said.out
