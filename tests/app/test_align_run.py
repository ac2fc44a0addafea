"""A space of images, genes and words from the command line, and words put to the study with it."""

import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest

from histoscribe.app.align_run import split_labelled
from histoscribe.data.store import read_annotation, read_profiles
from histoscribe.data.toy import RATES, SYMBOLS

QUICK = [
    *("--genes", "7", "--set", "fit.n_components=5", "--set", "fit.n_field_components=3"),
    *("--set", "fit.n_phenotypes=3", "--set", "model.width=16", "--set", "bags.rings_um=[150.0]"),
    *("--set", "align.n_steps=40", "--set", "align.validate_every=20", "--set", "align.n_nets=1"),
    *("--set", "align.image_gene_rows=32", "--set", "align.gene_text_rows=16"),
    *("--set", "align.embedding_width=8", "--set", "labelled.min_genes=1"),
    *("--set", "labelled.min_cells=2"),
]


@pytest.fixture(scope="module")
def fitted(fitted, tmp_path_factory):
    """A copy to write to, at the same depth: paths of a study are relative."""
    return shutil.copytree(fitted, tmp_path_factory.mktemp("own") / "study")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Labelled cells of two kinds, their genes by symbol."""
    rng, n = np.random.default_rng(4), 40
    kind = np.arange(n) % 2
    cells = anndata.AnnData(
        X=rng.poisson(3 * RATES[kind]).astype(np.float32),
        obs=pd.DataFrame(
            {
                "kind": np.array(["alpha cell", "beta cell"])[kind],
                "donor_id": [f"d{row // 2 % 4}" for row in range(n)],
            },
            index=[f"c{row}" for row in range(n)],
        ),
        var=pd.DataFrame(index=list(SYMBOLS)),
    )
    path = tmp_path_factory.mktemp("labelled") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


def test_fitted_annotated_and_diagnosed(fitted, call, labelled, tiny_bert, tmp_path):
    markers = tmp_path / "markers.json"
    markers.write_text(json.dumps({"beta cell": ["BETA1", "BETA2"]}))
    words = ("fit", fitted, "--objective", "joint", "--run", "words", "--test", "c1", *QUICK)
    words += ("--labelled", f"{labelled}:kind", "--markers", markers, "--text-tower", tiny_bert)
    answer = call(*words, "--json")
    assert answer.code == 0, answer.err
    home = fitted / "runs" / "words"
    assert answer.record["checkpoint"] == str(home / "checkpoint")
    assert answer.record["held_out"] == [None]  # towards anchors nothing is held out
    assert (home / "history.csv").read_text().startswith("net,step,loss")
    assert len(read_profiles(home / "profiles0")) == 8
    again = call(*words, "--json")
    assert again.record["model_id"] == answer.record["model_id"]
    other = call(*words, "--set", "align.n_steps=41")
    assert other.code == 2
    assert "--replace" in other.message

    terms = tmp_path / "terms.txt"
    terms.write_text("alpha cell\nbeta cell\n")
    for level in ("region", "cell"):
        said = call(
            *("annotate", fitted, "--run", "words", "--terms", terms, "--level", level),
            *("--sample", "c1", "--out", tmp_path / level, "--json"),
        )
        assert said.code == 0, said.err
    stored = read_annotation(tmp_path / "region" / "c1.zarr")
    assert np.isfinite(stored.uncertainty).any()
    (home / "profiles9").mkdir()
    again = call(*words, "--json")
    assert not (home / "profiles9").exists()
    found = call("diagnose", fitted, "--json")  # the one run with words, and its own profiles
    assert found.code == 0, found.err
    refused = call("predict", fitted, "--run", "words", "--sample", "c1")
    assert refused.code == 3
    assert str(home / "predictor") in refused.message
    predicted = call("predict", fitted, "--checkpoint", home / "predictor", "--sample", "c1")
    assert predicted.code == 0, predicted.err


@pytest.mark.parametrize(
    ("words", "code", "match"),
    [
        (["--objective", "joint"], 2, "--labelled"),
        (["--objective", "words"], 2, "objective"),
        (["--markers", "m.json"], 2, "--objective"),
        (["--objective", "align", "--markers", "none.json"], 3, "none.json"),
        (["--objective", "align", "--set", "align.n_step=3"], 2, "n_steps"),
    ],
)
def test_wrong_requests_are_named(fitted, call, words, code, match):
    answer = call("fit", fitted, "--run", "other", "--test", "c1", *words)
    assert answer.code == code, answer.err
    assert match in answer.message


def test_a_text_of_nothing_is_refused(fitted, call, tiny_bert, tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"beta_cell": ["BETA1", "BETA2"]}))
    (tmp_path / "t.csv").write_text("label,text\nBeta cell,cells of x\ngamma cell,cells of y\n")
    answer = call(
        *("fit", fitted, "--objective", "align", "--run", "texts", "--test", "c1", *QUICK),
        *("--markers", tmp_path / "m.json", "--texts", tmp_path / "t.csv"),
        *("--text-tower", tiny_bert),
    )
    assert answer.code == 3, answer.err
    assert "'gamma cell'" in answer.message
    assert "beta cell" in answer.message


def test_a_column_is_told_from_a_path(tmp_path):
    path = tmp_path / "a:b.h5ad"
    path.touch()
    assert split_labelled(str(path)) == (path, None)
    assert split_labelled("x/cells.h5ad:cell_type")[1] == "cell_type"
    assert split_labelled("cells.h5ad")[1] is None
