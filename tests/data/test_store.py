"""What is stored comes back, the same bytes each time, whole or not at all."""

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import anndata
import geopandas
import numpy as np
import pyarrow.parquet
import pytest
import shapely
import zarr
from scipy.sparse import csr_array

from histoscribe.data import atomic, mapped, outline_store, store
from histoscribe.data.atomic import hash_file, hash_folder
from histoscribe.data.mapped import as_read_only, new_mapped
from histoscribe.data.prediction import Prediction
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.data.tables import cells_as_table
from histoscribe.data.toy import toy_world
from histoscribe.errors import DataError, MissingExtra

WORLD = toy_world(5)
CELLS = WORLD.cells.take(np.arange(101))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def prediction():
    regions = WORLD.regions
    mean = np.random.default_rng(0).normal(size=(len(regions), len(regions.genes)))
    mean[2] = np.nan
    return Prediction(
        kind="spot",
        region_id=regions.region_id,
        slide_id=regions.slide_id,
        xy_um=regions.xy_um,
        genes=regions.genes,
        mean=mean.astype(np.float32),
        unit="log1p_cp10k",
        model_id="bitro@0123",
        provenance=Provenance("predict", {"seed": 7}),
    )


def profiles():
    return Profiles(
        profile_id=("a", "b", "c"),
        expression=csr_array(np.arange(39.0).reshape(3, 13)),
        expression_unit="tpm",
        genes=WORLD.regions.genes,
        gene_observed=np.ones(13, dtype=bool),
        provenance=Provenance("read"),
        label=("T cell", "", "B cell, naïve"),
    )


BULK = replace(
    WORLD.regions.take(np.array([0])),
    kind="bulk",
    xy_um=np.full((1, 2), np.nan, np.float32),
    radius_um=np.inf,
    pitch_um=np.nan,
    text_key=("a report",),
)
ROUND_TRIPS = {
    "cells": (CELLS, store.write_cells, store.read_cells),
    "points": (
        replace(CELLS, outlines=None, cell_type=("T", "B", "") * 33 + ("T", "T")),
        store.write_cells,
        store.read_cells,
    ),
    "typed": (
        replace(
            CELLS,
            cell_type=("naïve B", "T", "") * 33 + ("T", "T"),
            type_probability=np.where(np.arange(101) % 3 < 2, 0.25, np.nan).astype(np.float32),
        ),
        store.write_cells,
        store.read_cells,
    ),
    "no cells": (CELLS.take(np.arange(0)), store.write_cells, store.read_cells),
    "tiles": (WORLD.tiles, store.write_tiles, store.read_tiles),
    "regions": (WORLD.regions, store.write_regions, store.read_regions),
    "unmeasured": (
        replace(WORLD.regions, expression=None),
        store.write_regions,
        store.read_regions,
    ),
    "bulk": (BULK, store.write_regions, store.read_regions),
    "profiles": (profiles(), store.write_profiles, store.read_profiles),
    "prediction": (
        prediction(),
        lambda noun, folder: store.write_prediction(noun, folder / "p.zarr"),
        lambda folder: store.read_prediction(folder / "p.zarr"),
    ),
}


def assert_same(a, b):
    assert type(a) is type(b)
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, field.name
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), field.name
        elif isinstance(one, csr_array):
            assert one.dtype == other.dtype
            assert (one != other).nnz == 0, field.name
        elif hasattr(one, "start"):
            assert_same(one, other)
        elif isinstance(one, float) and np.isnan(one):
            assert np.isnan(other)
        else:
            assert one == other, field.name


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_is_written_comes_back_with_the_same_bytes(name, tmp_path):
    noun, write, read = ROUND_TRIPS[name]
    write(noun, tmp_path / "one")
    back = read(tmp_path / "one")
    assert_same(noun, back)
    write(back, tmp_path / "two")
    hashes = {hash_folder(tmp_path / folder) for folder in ("one", "two")}
    assert len(hashes) == 1
    roots = {(path / "zarr.json").read_bytes() for path in tmp_path.glob("*/*.zarr")}
    assert len(roots) == 1  # hash_folder leaves out the seal in the root


def test_the_store_is_plain_anndata(tmp_path):
    store.write_cells(CELLS, tmp_path)
    store.write_regions(WORLD.regions, tmp_path)
    cells = anndata.read_zarr(tmp_path / "cells.zarr")
    assert cells.X.dtype == np.float16
    assert np.array_equal(cells.obsm["xy_um"], CELLS.xy_um)
    assert cells.uns["encoder_id"] == CELLS.encoder_id
    assert Provenance.from_json(cells.uns["provenance"]) == CELLS.provenance
    regions = anndata.read_zarr(tmp_path / "regions.zarr")
    assert regions.uns["expression_unit"] == "counts"
    assert float(regions.uns["radius_um"]) == WORLD.regions.radius_um
    assert tuple(regions.var_names) == WORLD.regions.genes.ids
    assert regions.X.sum() == WORLD.regions.expression.sum()
    outlines = geopandas.read_parquet(tmp_path / "cells.outlines.parquet")
    assert outlines.crs is None
    assert np.allclose(outlines.geometry.area, CELLS.area_um2, rtol=0.04)  # a 15-gon


def test_cell_types_are_plain_columns(tmp_path):
    typed = ROUND_TRIPS["typed"][0]
    store.write_cells(typed, tmp_path)
    table = anndata.read_zarr(tmp_path / "cells.zarr")
    assert table.obs["cell_type"].cat.categories.tolist() == ["", "T", "naïve B"]
    assert tuple(table.obs["cell_type"]) == typed.cell_type
    assert table.obs["type_probability"].dtype == np.float32
    rows = np.array([100, 3, 40])
    some = store.read_cells(tmp_path, rows=rows)
    assert_same(some, typed.take(rows))
    store.write_cells(CELLS, tmp_path / "none")
    assert list(anndata.read_zarr(tmp_path / "none" / "cells.zarr").obs) == ["area_um2"]


def test_cell_types_that_were_stored_as_words_are_read(tmp_path, monkeypatch):
    """As stores of version 0.1.0 have them."""
    typed = replace(CELLS, cell_type=("T", "B", "") * 33 + ("T", "T"))

    def as_before(cells):
        table = cells_as_table(cells)
        table.obs["cell_type"] = np.array(cells.cell_type, dtype=object)
        return table

    monkeypatch.setattr(store, "cells_as_table", as_before)
    store.write_cells(typed, tmp_path)
    group = zarr.open_group(tmp_path / "cells.zarr", mode="r")
    assert isinstance(group["obs/cell_type"], zarr.Array)
    assert_same(store.read_cells(tmp_path), typed)


def test_chosen_rows_are_those_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK_BYTES", 7 * CELLS.features.shape[1] * 2)
    store.write_cells(CELLS, tmp_path)
    assert zarr.open_group(tmp_path / "cells.zarr", mode="r")["X"].chunks == (7, 17)
    rows = np.array([100, 3, 40])
    assert_same(store.read_cells(tmp_path, rows), CELLS.take(rows))


def test_many_cells_are_written_and_read_in_groups(tmp_path, monkeypatch):
    store.write_cells(CELLS, tmp_path / "one")
    monkeypatch.setattr(outline_store, "CELLS_AT_ONCE", 20)
    store.write_cells(CELLS, tmp_path / "many")
    path = tmp_path / "many" / "cells.outlines.parquet"
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 6
    one = geopandas.read_parquet(tmp_path / "one" / "cells.outlines.parquet")
    many = geopandas.read_parquet(path)
    assert many.cell.tolist() == list(range(101))
    assert many.geometry.geom_equals_exact(one.geometry, 0).all()
    assert_same(store.read_cells(tmp_path / "many"), CELLS)
    assert one.total_bounds.tolist() == [*CELLS.outlines.xy_um.min(0), *CELLS.outlines.xy_um.max(0)]


def test_outlines_that_geopandas_wrote_are_read(tmp_path):
    """As versions before this one stored them."""
    sizes = np.diff(CELLS.outlines.start)
    rings = shapely.linearrings(
        CELLS.outlines.xy_um.astype(float), indices=np.repeat(np.arange(101), sizes)
    )
    frame = geopandas.GeoDataFrame({"cell": np.arange(101)}, geometry=shapely.polygons(rings))
    frame.to_parquet(tmp_path / "old.parquet", index=False, compression="zstd")
    assert_same(outline_store.read_outlines(tmp_path / "old.parquet"), CELLS.outlines)


def test_cells_whose_features_live_in_a_file_are_stored_alike(tmp_path):
    held = new_mapped(tmp_path / "features.raw", CELLS.features.shape, np.float16)
    held[:] = CELLS.features
    mapped = replace(CELLS, features=as_read_only(held))
    assert np.shares_memory(mapped.features, held)
    store.write_cells(mapped, tmp_path / "mapped")
    store.write_cells(CELLS, tmp_path / "plain")
    assert hash_folder(tmp_path / "mapped") == hash_folder(tmp_path / "plain")


def test_only_the_same_provenance_is_current(tmp_path):
    made = CELLS.provenance
    assert not store.is_current(tmp_path, "cells", made)
    store.write_cells(CELLS, tmp_path)
    assert store.is_current(tmp_path, "cells", made)
    assert not store.is_current(tmp_path, "cells", Provenance("toy_world", {"seed": 6}))
    assert not store.is_current(tmp_path, "tiles", made)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
@pytest.mark.parametrize(
    "where", ["cells.zarr/X/c/0/0", "cells.zarr/zarr.json", "cells.outlines.parquet"]
)
def test_a_harmed_store_is_refused_and_not_current(tmp_path, harm, where):
    store.write_cells(CELLS, tmp_path)
    harm(tmp_path / where)
    with pytest.raises(DataError, match=r"corrupted store .*re-run"):
        store.read_cells(tmp_path)
    assert not store.is_current(tmp_path, "cells", CELLS.provenance)


def test_a_changed_seal_is_refused(tmp_path):
    store.write_regions(WORLD.regions, tmp_path)
    root = tmp_path / "regions.zarr" / "zarr.json"
    key = WORLD.regions.provenance.key
    root.write_text(root.read_text().replace(key, "0" * 16))
    with pytest.raises(DataError, match="corrupted store"):
        store.read_regions(tmp_path)


def test_a_missing_store_says_so(tmp_path):
    with pytest.raises(DataError, match="no stored data at"):
        store.read_tiles(tmp_path)
    with pytest.raises(DataError, match=r"does not end in \.zarr"):
        store.write_prediction(prediction(), tmp_path / "p")
    with pytest.raises(DataError, match="cannot read"):
        hash_file(tmp_path / "nothing")


def test_another_noun_is_refused(tmp_path):
    store.write_tiles(WORLD.tiles, tmp_path)
    shutil.move(tmp_path / "tiles.zarr", tmp_path / "regions.zarr")
    with pytest.raises(DataError, match="hold tiles; wanted regions"):
        store.read_regions(tmp_path)


class StopError(BaseException):
    """A kill: nothing in the program may catch it."""


def fail_at(call, original, error, log):
    """The original, but for one call, counted from 0."""

    def failing(*args, **kwargs):
        log.append(args)
        if len(log) == call + 1:
            raise error
        return original(*args, **kwargs)

    return failing


STEPS = {
    "outlines": (pyarrow.parquet.ParquetWriter, "write_table"),
    "chunks": (zarr.storage.LocalStore, "set"),
    "flush": (os, "fsync"),
    "rename": (atomic, "_rename"),
}
RENAMES = [("rename", call) for call in range(4)]
PLACES = [("outlines", 0), ("chunks", 7), ("flush", 9), *RENAMES]


@pytest.mark.parametrize(("step", "call"), PLACES)
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, step, call):
    store.write_cells(CELLS, tmp_path)
    before = hash_folder(tmp_path)
    owner, name = STEPS[step]
    error = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail_at(call, getattr(owner, name), error, []))
        with pytest.raises(MissingExtra, match="disk full while writing"):
            store.write_cells(CELLS.take(np.arange(57)), tmp_path)
    assert names_in(tmp_path) == ["cells.outlines.parquet", "cells.zarr"]
    assert hash_folder(tmp_path) == before
    assert_same(store.read_cells(tmp_path), CELLS)


def test_another_fault_is_not_called_a_full_disk(tmp_path, monkeypatch):
    denied = OSError(errno.EACCES, "denied")
    monkeypatch.setattr(atomic, "_rename", fail_at(0, atomic._rename, denied, []))
    with pytest.raises(OSError, match="denied"):
        store.write_tiles(WORLD.tiles, tmp_path)
    assert names_in(tmp_path) == []


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("step", "call"), [("chunks", 30), *RENAMES])
def test_a_kill_at_any_step_is_never_taken_for_a_result(tmp_path, monkeypatch, step, call):
    """After a kill the old, the new or nothing is read; never a mixture; writing again mends it."""
    store.write_cells(CELLS, tmp_path)
    other = CELLS.take(np.arange(57))
    owner, name = STEPS[step]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail_at(call, getattr(owner, name), StopError(), []))
        patch.setattr(atomic, "_remove", lambda path: None)  # the dead clean nothing up
        with pytest.raises(StopError):
            store.write_cells(other, tmp_path)
    try:
        back = store.read_cells(tmp_path)
    except DataError:
        assert not store.is_current(tmp_path, "cells", CELLS.provenance)
    else:
        assert_same(back, CELLS)
    store.write_cells(other, tmp_path)
    assert store.is_current(tmp_path, "cells", other.provenance)
    assert names_in(tmp_path) == ["cells.outlines.parquet", "cells.zarr"]


def test_outlines_that_are_gone_are_removed(tmp_path):
    store.write_cells(CELLS, tmp_path)
    store.write_cells(replace(CELLS, outlines=None), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.zarr"]


def test_the_nouns_do_not_need_anndata():
    """The command line must answer --help without waiting for the tables on disk."""
    code = (
        "import sys, histoscribe.data.cells, histoscribe.data.regions\n"
        "assert 'anndata' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_large_features_are_read_into_a_file_and_are_the_same(tmp_path, monkeypatch):
    store.write_cells(CELLS, tmp_path)
    plain = store.read_cells(tmp_path)
    monkeypatch.setattr(mapped, "IN_FILE_BYTES", 1)
    monkeypatch.setattr(store, "CHUNK_BYTES", 100)
    store.write_cells(CELLS, tmp_path / "in small chunks")
    for folder in (tmp_path, tmp_path / "in small chunks"):
        large = store.read_cells(folder)
        assert large.features.dtype == plain.features.dtype
        assert np.array_equal(large.features, plain.features)
        assert large.features.base.base.untyped_storage().filename is not None
        assert plain.features.base.base is None
