"""A fit that goes on from another, from the command line."""

import json
import shutil

import pytest
from tests.app.conftest import SMALL_FIT, check

pytestmark = pytest.mark.slow


def test_a_run_goes_on_from_a_checkpoint(fitted, tmp_path, call):
    study = tmp_path / "study"
    shutil.copytree(fitted, study)
    source = study / "runs" / "first" / "checkpoint"
    words = ("fit", study, "--run", "second", "--test", "c1", *SMALL_FIT)
    answer = call(*words, "--from", source, "-s", "transfer.lora.rank=2", "-s", "fit.stop_on=loss")
    assert answer.code == 0, answer.err
    assert "lora from bitro@" in answer.err
    folder = study / "runs" / "second" / "checkpoint"
    assert (folder / "adapters" / "net0" / "adapter_model.safetensors").exists()
    record = json.loads((folder / "checkpoint.json").read_text())
    source_id = json.loads((study / "runs" / "second" / "run.json").read_text())["from"]
    assert record["provenance"]["inputs"]["from"] == record["adapters"]["base_id"] == source_id
    check(call(*words, "--from", source, "--mode", "full"), 2, ["exists with other settings"])
    check(call(*words), 2, ["exists with other settings"])
    answer = call("predict", study, "--run", "second", "--sample", "c1")
    assert answer.code == 0, answer.err


def test_a_start_that_cannot_be_is_refused(fitted, tmp_path, call):
    words = ("fit", fitted, "--run", "second", "--test", "c1", *SMALL_FIT)
    check(call(*words, "--mode", "full"), 2, ["--from"])
    check(call(*words, "--from", tmp_path), 3, ["no checkpoint at"])
    source = fitted / "runs" / "first" / "checkpoint"
    check(call(*words, "--from", source, "--mode", "half"), 2, ["transfer.mode", "lora"])
    trained_on = ("fit", fitted, "--run", "second", "--test", "a1", *SMALL_FIT)
    check(call(*trained_on, "--from", source), 4, ["was trained on tissue of a1"])
    assert not (fitted / "runs" / "second").exists()
