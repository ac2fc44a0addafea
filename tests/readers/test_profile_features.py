"""Vectors that another model made: of labelled cells, and of regions."""

import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_matrix

from histoscribe.data.toy import toy_world
from histoscribe.errors import DataError, MismatchError
from histoscribe.readers.cell_groups import LabelledCellsConfig
from histoscribe.readers.labelled_cells import read_labelled_cells
from histoscribe.readers.profile_features import read_region_features

N, WIDTH, KEY = 23, 5, "X_geneformer"
KIND = np.arange(N) % 3
VECTORS = np.random.default_rng(1).normal(size=(N, WIDTH)).astype(np.float32)
EASY = LabelledCellsConfig(min_genes=1, min_cells=2, n_cells=1)


def write(table, path):
    if path.suffix == ".h5ad":
        table.write_h5ad(path)
        return
    with ad.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what AnnData and Zarr will change one day
        table.write_zarr(path)


def cells(vectors=VECTORS):
    counts = np.random.default_rng(2).poisson(3, (N, 7)).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": [f"kind {k}" for k in KIND]}, index=[f"c{row}" for row in range(N)]
    )
    if isinstance(vectors, pd.DataFrame):
        vectors = vectors.set_index(obs.index)
    var = pd.DataFrame(index=[f"g{column}" for column in range(7)])
    return ad.AnnData(counts, obs, var, obsm={KEY: vectors, "spatial": VECTORS[:, :2]})


@pytest.mark.parametrize("form", ["h5ad", "zarr", "frame"])
def test_a_mean_has_the_mean_vector_of_its_cells(tmp_path, form):
    table = cells(pd.DataFrame(VECTORS) if form == "frame" else VECTORS.astype(np.float64))
    path = tmp_path / f"cells.{'zarr' if form == 'zarr' else 'h5ad'}"
    if form == "frame":
        table.obsm[KEY].columns = [f"n{column}" for column in range(WIDTH)]
    write(table, path)
    said = read_labelled_cells(path, EASY, embedding=KEY)
    means = np.stack([VECTORS[kind == KIND].mean(axis=0) for kind in range(3)])
    np.testing.assert_allclose(said.profiles.features[:3], means, rtol=1e-5, atol=1e-6)
    for name, vector in zip(said.profiles.profile_id[3:], said.profiles.features[3:], strict=True):
        np.testing.assert_array_equal(vector, VECTORS[int(name.removeprefix("cell c"))])
    assert said.profiles.features_by == KEY
    assert f"5 numbers a profile by {KEY}" in said.report.describe()
    bare = read_labelled_cells(path, EASY).profiles
    assert bare.features is None
    assert bare.provenance.key != said.profiles.provenance.key


def test_cells_without_a_vector_are_left_out_of_means(tmp_path):
    vectors = VECTORS.copy()
    vectors[[0, 3]] = np.nan
    vectors[KIND == 1] = np.nan
    cells(vectors).write_h5ad(tmp_path / "cells.h5ad")
    config = LabelledCellsConfig(min_genes=1, min_cells=2)
    features = read_labelled_cells(tmp_path / "cells.h5ad", config, embedding=KEY).profiles.features
    some = np.flatnonzero(KIND == 0)[2:]
    np.testing.assert_allclose(features[0], VECTORS[some].mean(axis=0), rtol=1e-5)
    assert np.isnan(features[1]).all()
    vectors[5, 2] = np.nan
    cells(vectors).write_h5ad(tmp_path / "torn.h5ad")
    with pytest.raises(DataError, match="row 5"):
        read_labelled_cells(tmp_path / "torn.h5ad", config, embedding=KEY)
    with pytest.raises(DataError, match="X_geneformer, spatial"):
        read_labelled_cells(tmp_path / "cells.h5ad", config, embedding="X_scgpt")
    cells(csr_matrix(VECTORS)).write_h5ad(tmp_path / "sparse.h5ad")
    with pytest.raises(DataError, match="no dense table"):
        read_labelled_cells(tmp_path / "sparse.h5ad", config, embedding=KEY)


@pytest.fixture(scope="module")
def regions():
    return toy_world(1, "s1", "p").regions.take(np.arange(N))


def as_parquet(path, names, vectors, **columns):
    kind = (
        pa.list_(pa.float32(), WIDTH) if columns.pop("is_fixed", True) else pa.list_(pa.float64())
    )
    rows = [None if np.isnan(v).all() else list(map(float, v)) for v in vectors]
    table = {"region_id": list(names), **columns, "features": pa.array(rows, kind)}
    pq.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize("form", ["fixed", "list", "table", "zarr", "no counts"])
def test_regions_are_met_by_slide_and_name(tmp_path, form, regions):
    order = np.random.default_rng(0).permutation(N)
    names = [regions.region_id[row] for row in order]
    if form in ("fixed", "list"):
        path = tmp_path / "vectors.parquet"
        slides = {"slide_id": ["s1"] * N, "is_fixed": form == "fixed"}
        as_parquet(path, names, VECTORS[order], **slides)
    else:
        table = cells(VECTORS[order])
        if form == "no counts":
            table = ad.AnnData(obs=table.obs, obsm=dict(table.obsm))
        table.obs_names = names
        path = tmp_path / f"s1.{'zarr' if form == 'zarr' else 'h5ad'}"  # the slide's name
        write(table, path)
    read = read_region_features([path], KEY)
    assert (read.by, read.width, len(read)) == (KEY, WIDTH, N)
    np.testing.assert_array_equal(read.of(regions), VECTORS)
    assert np.isnan(read.of(replace(regions, slide_id=("s2",) * N))).all()


def test_several_files_are_put_together(tmp_path):
    first = as_parquet(tmp_path / "s1.parquet", ["a", "b"], VECTORS[:2])
    gap = VECTORS[2:5].copy()
    gap[1] = np.nan
    second = as_parquet(tmp_path / "s2.parquet", ["a", "b", "c"], gap)
    read = read_region_features([first, second], KEY)
    assert read.slide_id == ("s1", "s1", "s2", "s2", "s2")
    np.testing.assert_array_equal(read.features, np.concatenate([VECTORS[:2], gap]))
    assert set(read.provenance.inputs) == {"regions0", "regions1"}
    with pytest.raises(DataError, match="s1/a"):
        read_region_features([first, first], KEY)
    narrow = tmp_path / "s3.parquet"
    pq.write_table(pa.table({"region_id": ["a"], KEY: [[1.0, 2.0]]}), narrow)
    with pytest.raises(MismatchError, match=r"s1\.parquet 5, s3\.parquet 2"):
        read_region_features([first, narrow], KEY)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"name": ["a"], "features": [[1.0]]}, "region_id"),
        ({"region_id": ["a"], "vector": [[1.0]]}, "features"),
        ({"region_id": ["a"], "features": [1.0]}, "list of numbers"),
        ({"region_id": ["a"], "features": [["x"]]}, "list of numbers"),
        ({"region_id": ["a", "b"], "features": [[1.0], [1.0, 2.0]]}, "same length"),
        ({"region_id": ["a"], "features": [[1.0, None]]}, "not finite"),
        ({"region_id": pa.array([], pa.string()), "features": pa.array([], pa.list_(pa.float32()))},
         "no row"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_refused(tmp_path, table, match):
    path = tmp_path / "s1.parquet"
    pq.write_table(pa.table(table), path)
    with pytest.raises(DataError, match=match):
        read_region_features([path], KEY)


def test_a_broken_or_missing_file_is_refused(tmp_path):
    (tmp_path / "s1.parquet").write_bytes(b"PAR1 nothing")
    for name, match in (("s1.parquet", "as Parquet"), ("s2.parquet", "no such file")):
        with pytest.raises(DataError, match=match):
            read_region_features([tmp_path / name], KEY)
