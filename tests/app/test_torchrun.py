"""`fit` by two processes of torchrun: what one writes, written once, and one end for both."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.app.conftest import SMALL_FIT, check
from torch.distributed import DistBackendError, DistNetworkError, DistStoreError

from histoscribe.app.together import find_lost
from histoscribe.train.checkpoint import Checkpoint
from histoscribe.train.processes import NAMES

NO_CHANCE = [
    *("-s", "model.dropout=0", "-s", "model.context_dropout=0", "-s", "fit.cluster_weight=0"),
    *("-s", "model.context_input_dropout=0", "-s", "model.cells_in_training=0"),
    *("-s", "transfer.lora.dropout=0"),
]
EACH_ITS_STUDY = (
    "import os, sys; from histoscribe.app.cli import main;"
    "study = sys.argv[1 + int(os.environ['RANK'])];"
    "sys.exit(main(['fit', study, *sys.argv[3:]]))"
)


def files_of(folder: Path) -> list[str]:
    """All files, without the times and the process in the names of TensorBoard's."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name.split("tfevents")[0] for name in names)


@pytest.mark.slow
def test_two_processes_write_once_what_one_writes(fitted, tmp_path, call, torchrun):
    study = tmp_path / "study"
    shutil.copytree(fitted, study)
    start = study / "runs" / "first" / "checkpoint"
    words = ["fit", study, "--test", "c1", "--from", start, *SMALL_FIT, *NO_CHANCE]
    assert call(*words, "--run", "one").code == 0
    done = torchrun("-m", "--", "histoscribe", *words, "--run", "two", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["report"] == str(study / "runs" / "two" / "report.html")
    runs = [study / "runs" / name for name in ("one", "two")]
    assert files_of(runs[0]) == files_of(runs[1])
    log = [json.loads(line) for line in (study / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line.get("run") == "two"] == ["fit", "evaluate"]
    assert (study / ".lock").read_text() == ""
    one, two = (Checkpoint.load(run / "checkpoint").merged() for run in runs)
    assert [net["best_epoch"] for net in one.report] == [net["best_epoch"] for net in two.report]
    for a, b in zip(one.nets, two.nets, strict=True):
        for name, tensor in a.items():
            assert torch.allclose(tensor, b[name], rtol=0, atol=1e-5), name


@pytest.mark.slow
def test_a_fault_of_one_process_ends_both_and_is_said_once(fitted, tmp_path, torchrun):
    studies = tmp_path / "study", tmp_path / "of-a-machine-that-lacks-a-file"
    for study in studies:
        shutil.copytree(fitted, study)
    shutil.rmtree(studies[1] / "samples" / "b1" / "cells.zarr")
    words = ["--run", "two", "--test", "c1", *SMALL_FIT]
    program = ["--no-python", "--", sys.executable, "-c", EACH_ITS_STUDY]
    done = torchrun(*program, *studies, *words)
    assert done.returncode != 0
    assert done.stderr.count("DataError: no stored data at") == 1
    assert "Bug" not in done.stderr
    assert done.stdout == ""
    assert not (studies[0] / "runs" / "two" / "checkpoint").exists()
    # a fault of both is said by one; it comes after the lock, which is free again
    done = torchrun("-m", "--", "histoscribe", "fit", studies[0], *words, "--genes", "70000")
    assert done.returncode != 0
    assert done.stderr.count("DataError: ") == 1


def test_other_commands_are_refused(tmp_path, call, monkeypatch):
    for name, value in zip(NAMES, ("1", "2", "2"), strict=True):
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for command in ("prepare", "ingest", "survival", "predict"):
        check(call(command, tmp_path), 2, [f"run 'histoscribe {command}' without torchrun"])
    check(call("fit", tmp_path), 3, ["No study at"])
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    for command in ("prepare", "fit"):
        check(call(command, tmp_path), 2, ["start several processes with torchrun"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "1")
    check(call("prepare", tmp_path), 3, ["No study at"])
    monkeypatch.setenv("WORLD_SIZE", "many")
    check(call("fit", tmp_path), 2, ["start several processes with torchrun"])


GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] "
LOST = [
    DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed.\nframes"),
    DistStoreError("Timed out after 301 seconds waiting for clients."),
    RuntimeError(GLOO + "Connection closed by peer [127.0.0.1]:24"),
    RuntimeError(GLOO + "Read error [127.0.0.1]:24: Connection reset by peer"),
    RuntimeError(GLOO + "Write error: Broken pipe"),
    RuntimeError(GLOO + "Timed out waiting 1800000ms for recv operation to complete"),
    DistBackendError("NCCL error in: ProcessGroupNCCL.cpp\nConnection closed by remote peer n1"),
]
KEPT = [
    RuntimeError("ProcessGroupNCCL is only supported with GPUs, no GPUs found!"),
    DistBackendError("NCCL error in: NCCLUtils.cpp\nDuplicate GPU detected : rank 1 and rank 0"),
    RuntimeError(GLOO + "op.preamble.length <= op.nbytes. 8 vs 4"),
    RuntimeError("DataLoader timed out after 5 seconds"),
    ValueError("closed by peer, says gloo"),
]


@pytest.mark.parametrize("error", LOST + KEPT, ids=lambda error: str(error)[-30:])
def test_a_process_that_went_away_is_told_from_other_faults(error, monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert find_lost(error) is None
    for name, value in zip(NAMES, ("1", "2", "2"), strict=True):
        monkeypatch.setenv(name, value)
    lost = find_lost(error)
    assert (lost is not None) == (error in LOST)
    if lost is not None:
        assert lost.exit_code == 5
        assert "One of the 2 processes no longer answers" in str(lost)
        assert str(lost).endswith(f"PyTorch says: {str(error).splitlines()[0]}")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert find_lost(error) is None


ONE_CLAIMS = """
import json, os, sys, time
from pathlib import Path
from histoscribe.app.together import claim_fault
begun = time.monotonic()
is_mine = claim_fault()
said = json.dumps([is_mine, time.monotonic() - begun])
Path(sys.argv[1], os.environ["RANK"]).write_text(said)
time.sleep(3)  # the store lives as long as a process does
"""


@pytest.mark.slow
def test_one_process_claims_a_fault_and_the_other_is_held_up(tmp_path, torchrun):
    done = torchrun("--no-python", "--", sys.executable, "-c", ONE_CLAIMS, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads((tmp_path / rank).read_text()) for rank in ("0", "1")]
    (_, _), (is_mine, held_up_s) = sorted(said, reverse=True)
    assert sorted(mine for mine, _ in said) == [False, True]
    assert not is_mine
    assert held_up_s >= 1


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "histoscribe", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("histoscribe ")
