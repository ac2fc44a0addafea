"""A fit that goes on from another, from the command line."""

import json
import re
import shutil

import anndata
import numpy as np
import pytest
from tests.app.conftest import SAMPLES, SMALL_FIT, TOY_PARTS, check, row_of, write_manifest

from histoscribe.data.gene_names import human_genes
from histoscribe.data.store import read_prediction
from histoscribe.train.checkpoint import Checkpoint

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
    check_merge(study, folder, tmp_path / "merged", call)


def check_merge(study, folder, merged, call):
    before = (folder / "checkpoint.json").read_bytes()
    answer = call("merge", folder, "--out", merged, "--json")
    assert answer.code == 0, answer.err
    assert answer.record["checkpoint"] == str(merged)
    assert not (merged / "adapters").exists()
    assert (folder / "checkpoint.json").read_bytes() == before
    means = []
    for number, source in enumerate((folder, merged)):
        out = merged.parent / f"said-{number}"
        asked = ("predict", study, "--checkpoint", source, "--sample", "c1", "--out", out)
        assert call(*asked).code == 0
        means.append(read_prediction(out / "c1.zarr").mean)
    assert np.array_equal(*means, equal_nan=True)
    check(call("merge", folder, "--out", merged), 2, [f"{merged} exists", "--out"])
    check(call("merge", merged, "--out", merged.parent / "twice"), 2, ["no adapters to merge"])
    check(call("merge", study, "--out", merged.parent / "twice"), 3, ["no checkpoint at"])
    assert not (merged.parent / "twice").exists()


def test_a_start_that_cannot_be_is_refused(fitted, tmp_path, call):
    words = ("fit", fitted, "--run", "second", "--test", "c1", *SMALL_FIT)
    check(call(*words, "--mode", "full"), 2, ["--from"])
    check(call(*words, "--from", tmp_path), 3, ["no checkpoint at"])
    source = fitted / "runs" / "first" / "checkpoint"
    check(call(*words, "--from", source, "--mode", "half"), 2, ["transfer.mode", "lora"])
    trained_on = ("fit", fitted, "--run", "second", "--test", "a1", *SMALL_FIT)
    check(call(*trained_on, "--from", source), 4, ["was trained on tissue of a1"])
    assert not (fitted / "runs" / "second").exists()
    itself = ("fit", fitted, "--run", "first", "--replace", "--test", "c1", *SMALL_FIT)
    check(call(*itself, "--from", source), 2, ["--replace would delete run 'first'"])
    assert (source / "checkpoint.json").exists()


def ingest(folder, names_of, toy_files, call):
    """A prepared study of toy sections with real genes: by symbol, or by Ensembl id."""
    genes = [pair for pair in sorted(human_genes().id_of.items()) if pair[0][:2] == "KR"]
    folder.mkdir()
    rows = []
    for sample, namespace in names_of.items():
        table = anndata.read_h5ad(toy_files / f"{sample}.h5ad")
        table.var_names = [
            symbol if namespace == "symbol" else gene for symbol, gene in genes[: table.n_vars]
        ]
        table.write_h5ad(folder / f"{sample}.h5ad")
        shutil.copy(toy_files / f"{sample}.png", folder)
        rows.append(row_of(sample, SAMPLES[sample]))
    study = folder / "study"
    assert call("ingest", write_manifest(folder / "m.csv", rows), study).code == 0
    assert call("prepare", study, *TOY_PARTS).code == 0
    return study


def test_genes_by_symbol_and_by_id_meet(toy_files, tmp_path, call):
    source = ingest(tmp_path / "s", {"a1": "symbol", "b1": "symbol"}, toy_files, call)
    answer = call("fit", source, "--test", "b1", *SMALL_FIT)
    assert answer.code == 0, answer.err
    assert "are matched by" not in answer.err
    study = ingest(tmp_path / "t", {"b1": "symbol", "c1": "ensembl"}, toy_files, call)
    words = ("fit", study, "--test", "b1", "--run", "second", *SMALL_FIT)
    answer = call(*words, "--from", source / "runs" / "first" / "checkpoint")
    assert answer.code == 0, answer.err
    assert "are matched by their symbol (GENCODE 48)" in answer.message
    assert re.search("which knows [1-7] of them", answer.message)
    assert answer.message.count("are matched by") == 1  # and not again where it is scored
    assert (study / "runs" / "second" / "report.html").exists()
    assert Checkpoint.load(study / "runs" / "second" / "checkpoint").panel.namespace == "symbol"
    # how the test side is named does not reach the fit
    other = ingest(tmp_path / "o", {"a1": "symbol", "b1": "ensembl"}, toy_files, call)
    answer = call("fit", other, "--test", "b1", *SMALL_FIT)
    assert answer.code == 0, answer.err
    assert answer.message.count("are matched by their symbol (GENCODE 48)") == 1
    runs = [folder / "runs" / "first" for folder in (source, other)]
    first, second = (Checkpoint.load(run / "checkpoint").model_id for run in runs)
    assert first == second
    for name in ("scores.json", "scores.csv"):
        assert (runs[0] / name).read_text() == (runs[1] / name).read_text()
