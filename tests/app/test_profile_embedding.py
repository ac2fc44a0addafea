"""A space whose profiles are vectors of another model, from the command line."""

import shutil

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from histoscribe.data.store import read_annotation, read_profiles
from histoscribe.data.toy import RATES, SYMBOLS, toy_world

KEY, WIDTH = "X_other", 6
QUICK = [
    *("--genes", "7", "--set", "fit.n_components=5", "--set", "fit.n_field_components=3"),
    *("--set", "fit.n_phenotypes=3", "--set", "model.width=16", "--set", "bags.rings_um=[150.0]"),
    *("--set", "align.n_steps=40", "--set", "align.validate_every=20", "--set", "align.n_nets=1"),
    *("--set", "align.image_gene_rows=32", "--set", "align.gene_text_rows=16"),
    *("--set", "align.embedding_width=8", "--set", "labelled.min_genes=1"),
    *("--set", "labelled.min_cells=2"),
]


def embed(counts):
    """Stands for another model."""
    share = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True).clip(1))
    turned, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(share.shape[1],) * 2))
    return np.tanh(0.2 * share @ turned[:, :WIDTH]).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(fitted, tmp_path_factory):
    """A copy to write to, at the same depth: paths of a study are relative."""
    return shutil.copytree(fitted, tmp_path_factory.mktemp("own") / "study")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Labelled cells with vectors, and a table of those of all regions but two."""
    folder = tmp_path_factory.mktemp("embedded")
    rng, n = np.random.default_rng(4), 40
    kind = np.arange(n) % 2
    counts = rng.poisson(3 * RATES[kind]).astype(np.float32)
    obs = {"kind": np.array(["alpha cell", "beta cell"])[kind]}
    obs["donor_id"] = [f"d{row // 2 % 4}" for row in range(n)]
    anndata.AnnData(
        X=counts,
        obs=pd.DataFrame(obs, index=[f"c{row}" for row in range(n)]),
        var=pd.DataFrame(index=list(SYMBOLS)),
        obsm={KEY: embed(counts)},
    ).write_h5ad(folder / "cells.h5ad")
    tables = []
    for seed, slide in enumerate(("a1", "b1", "c1")):
        regions = toy_world(seed, slide, "p", has_lumen=slide == "c1").regions.expression.toarray()
        names = toy_world(seed, slide, "p", has_lumen=slide == "c1").regions.region_id
        vectors = pa.array(list(embed(regions)), pa.list_(pa.float32()))
        tables.append(
            pa.table({"slide_id": [slide] * len(names), "region_id": names, KEY: vectors})[2:]
        )
    pq.write_table(pa.concat_tables(tables), folder / "regions.parquet")
    return folder


def test_fitted_annotated_searched_and_diagnosed(fitted, call, embedded, tiny_bert, tmp_path):
    cells, regions = f"{embedded / 'cells.h5ad'}:kind", embedded / "regions.parquet"
    vectors = ("--profile-embedding", KEY, "--region-embedding", regions)
    words = ("fit", fitted, "--objective", "joint", "--run", "vectors", "--test", "c1", *QUICK)
    answer = call(*words, "--labelled", cells, *vectors, "--text-tower", tiny_bert)
    assert answer.code == 0, answer.err
    assert f"6 numbers a profile by {KEY}" in answer.message
    assert "align.loss = softmax" in answer.message
    home = fitted / "runs" / "vectors"
    profiles = read_profiles(home / "profiles0")
    assert profiles.features.shape == (8, WIDTH)

    terms = tmp_path / "terms.txt"
    terms.write_text("alpha cell\nbeta cell\n")
    asked = ("annotate", fitted, "--run", "vectors", "--terms", terms, "--sample", "c1")
    for level in ("region", "cell"):
        said = call(*asked, "--level", level, "--out", tmp_path / level, "--json")
        assert said.code == 0, said.err
    stored = read_annotation(tmp_path / "region" / "c1.zarr")
    assert np.isnan(stored.uncertainty).all()
    assert stored.expression_score is None
    refused = call(*asked, "--route", "expression", "--out", tmp_path)
    assert refused.code == 2
    assert "no expression route" in refused.message
    found = call(
        *("search", fitted, "beta cell", "--run", "vectors", "--sample", "c1"),
        *("--out", tmp_path, "--json"),
    )
    assert found.code == 0, found.err
    predicted = call("predict", fitted, "--checkpoint", home / "predictor", "--sample", "c1")
    assert predicted.code == 0, predicted.err

    chain = ("diagnose", fitted, "--run", "vectors", "--profiles", home / "profiles0")
    looked = call(*chain, *vectors, "--json")
    assert looked.code == 0, looked.err
    names = [one["name"] for one in looked.record["findings"]]
    assert "image-gene (alpha)" in names
    bare = call(*chain)
    assert (bare.code, KEY in bare.message) == (4, True)
    half = call(*chain, "--profile-embedding", KEY)
    assert (half.code, "--region-embedding" in half.message) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "match"),
    [
        (["--profile-embedding", KEY], 2, "give its vectors of the regions"),
        (["--region-embedding", "R"], 2, "--profile-embedding KEY"),
        (["--profile-embedding", KEY, "--region-embedding", "R", "--markers", "m"], 2, "--markers"),
        (["--profile-embedding", "X_no", "--region-embedding", "R"], 3, "no obsm 'X_no'"),
        (["--profile-embedding", KEY, "--region-embedding", "no.h5ad"], 3, "no.h5ad"),
        (["--profile-embedding", KEY, "--region-embedding", "R", "--set", "align.loss=anchor"],
         2, "softmax or siglip"),
        (["--profile-embedding", KEY, "--objective", "expression"], 2, "--objective align"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(fitted, call, embedded, words, code, match):
    given = [embedded / "regions.parquet" if word == "R" else word for word in words]
    asked = ("fit", fitted, "--objective", "align", "--run", "other", "--test", "c1")
    asked += ("--labelled", f"{embedded / 'cells.h5ad'}:kind", *QUICK)
    if "expression" in words:
        asked = ("fit", fitted, "--run", "other", "--test", "c1")
    answer = call(*asked, *given)
    assert answer.code == code, answer.err
    assert match in answer.message
    assert "Traceback" not in answer.err
