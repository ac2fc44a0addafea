"""A fitted study that was spoilt, and requests it cannot meet: one clear message, no traceback."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.app.conftest import SMALL_FIT, check

from histoscribe.data.store import read_cells, write_cells

pytestmark = pytest.mark.slow


@pytest.fixture
def spoilt(fitted, tmp_path) -> Callable[[], Path]:
    """A copy of a finished study."""

    def copy() -> Path:
        shutil.copytree(fitted, tmp_path / "copy")
        return tmp_path / "copy"

    return copy


def test_too_few_genes(fitted, call):
    answer = call("fit", fitted, "--run", "many", "--test", "c1", "--genes", "5000")
    check(answer, 3, ["5000"])


def test_a_corrupted_store(spoilt, call):
    study = spoilt()
    chunk = max((study / "samples/a1/cells.zarr/X").rglob("*"), key=lambda p: p.stat().st_size)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0xFF
    chunk.write_bytes(data)
    check(call("predict", study, "--run", "first"), 3, ["corrupted store", "cells.zarr"])


def test_an_interrupted_store(spoilt, call):
    study = spoilt()
    shutil.rmtree(study / "samples/a1/tiles.zarr")
    check(call("predict", study, "--run", "first"), 3, ["tiles.zarr"])


def test_a_checkpoint_that_is_missing_or_changed(spoilt, call):
    study = spoilt()
    check(call("predict", study, "--run", "second"), 3, ["has no run 'second'", "first"])
    check(call("predict", study, "--checkpoint", study), 3, ["no checkpoint"])
    check(call("evaluate", study, "--run", "second"), 3, ["second"])
    check(call("predict", study), 2, ["--run NAME or --checkpoint"])
    path = study / "runs/first/checkpoint/checkpoint.json"
    path.write_text(path.read_text()[:-40])
    check(call("predict", study, "--run", "first"), 3, ["corrupted checkpoint"])


def test_features_of_another_encoder(spoilt, call):
    study = spoilt()
    path = study / "runs/first/checkpoint/checkpoint.json"
    record = json.loads(path.read_text())
    record["encoder_id"] = "vit:other@123/patch-mean/tile24um/mpp0.5/d384"
    path.write_text(json.dumps(record))
    words = ["expects features of vit:other@123", "toy@none", "Re-run 'histoscribe prepare'"]
    check(call("predict", study, "--run", "first"), 4, words)


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("mpp", ["sample 'a1'", "another scale", "histoscribe prepare"]),
        ("slide", ["sample 'a1'", "another slide file", "histoscribe prepare"]),
    ],
)
def test_nuclei_of_what_was_ingested_before(toy_files, fitted, tmp_path, call, role, words):
    files, study = tmp_path / "files", tmp_path / "study"
    shutil.copytree(toy_files, files)
    shutil.copytree(fitted, study)
    if role == "mpp":
        manifest = files / "manifest.csv"
        manifest.write_text(manifest.read_text().replace("a1.png,0.5,", "a1.png,0.501,"))
    else:
        with Image.open(files / "a1.png") as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(files / "a1.png")
    assert call("ingest", files / "manifest.csv", study).code == 0
    for command in (
        ("fit", "--run", "x", "--test", "c1"),
        ("evaluate",),
        ("predict", "--run", "first"),
    ):
        check(call(command[0], study, *command[1:]), 4, words)


def test_a_prepare_that_was_killed_between_its_stores(fitted, tmp_path, call):
    study = tmp_path / "study"
    shutil.copytree(fitted, study)
    home = study / "samples" / "a1"
    cells = read_cells(home)
    other = replace(cells.provenance, settings={**cells.provenance.settings, "seed": 1})
    write_cells(replace(cells, provenance=other), home)
    check(call("fit", study, "--run", "x", "--test", "c1"), 4, ["two runs of prepare"])


def test_a_run_is_not_deleted_for_one_that_cannot_be(fitted, tmp_path, call):
    study = tmp_path / "study"
    shutil.copytree(fitted, study)
    words = ("--replace", "--run", "first", "--test", "c1", "--genes", "5000")
    check(call("fit", study, *words), 3, ["5000"])
    assert (study / "runs/first/checkpoint/model.safetensors").exists()
    assert call("evaluate", study, "--run", "first").code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there(fitted, call):
    words = ("--run", "x", "--test", "c1", "--set", "fit.device=cuda")
    check(call("fit", fitted, *words), 5, ["fit.device = cuda", "it finds cpu"])


def test_a_level_that_does_not_exist(fitted, call):
    check(call("predict", fitted, "--run", "first", "--level", "bulk"), 2, ["region or cell"])


def test_one_patient_only(fitted, call):
    words = ("--test", "a1", "--test", "b1", "--test", "c1", "--run", "x", *SMALL_FIT)
    check(call("fit", fitted, *words), 2, ["No sample is left to train on", "--unit section"])
