"""Toy sections on disk, and the command line called in this process."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoscribe.app.cli import main
from histoscribe.data.toy import MPP, ToyWorld, toy_world

SAMPLES = {"a1": "alice", "b1": "bob", "c1": "carol"}
TOY_PARTS = ["--segmenter", "toy", "--encoder", "toy"]
SMALL_FIT = [
    *("--genes", "7", "--set", "fit.max_epochs=2", "--set", "fit.n_components=5"),
    *("--set", "fit.n_field_components=3", "--set", "fit.n_phenotypes=3"),
    *("--set", "model.width=16", "--set", "bags.rings_um=[150.0]"),
    *("--set", "score.bootstrap.n_draws=50"),
]


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def message(self) -> str:
        """What stands on stderr, in one line."""
        return " ".join(self.err.split())


Call = Callable[..., Answer]


@pytest.fixture
def call(capsys) -> Call:
    def run(*words: object) -> Answer:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


def spot_table(world: ToyWorld) -> anndata.AnnData:
    """The regions of a toy world as a reader meets them: counts, and pixels."""
    regions = world.regions
    assert regions.expression is not None
    return anndata.AnnData(
        X=regions.expression.toarray().astype(np.float32),
        obs=pd.DataFrame(index=list(regions.region_id)),
        var=pd.DataFrame(index=list(regions.genes.symbols)),
        obsm={"spatial": regions.xy_um.astype(np.float64) / MPP},
    )


def write_manifest(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory) -> Path:
    """Three sections of three patients, one with a hole in it; read only."""
    folder = tmp_path_factory.mktemp("toy-files")
    rows = []
    for seed, (sample, patient) in enumerate(SAMPLES.items()):
        world = toy_world(seed, sample, patient, has_lumen=sample == "c1")
        Image.fromarray(world.slide.pixels).save(folder / f"{sample}.png")
        spot_table(world).write_h5ad(folder / f"{sample}.h5ad")
        rows.append(row_of(sample, patient))
    write_manifest(folder / "manifest.csv", rows)
    return folder


def row_of(sample: str, patient: str, **other: object) -> dict[str, object]:
    return {
        "sample": sample,
        "patient": patient,
        "slide": f"{sample}.png",
        "mpp": MPP,
        "expression": f"{sample}.h5ad",
        "min_counts": 1,
        **other,
    }


@pytest.fixture(scope="session")
def fitted(toy_files, tmp_path_factory) -> Path:
    """A study that went all the way; read only."""
    study = tmp_path_factory.mktemp("fitted") / "study"
    assert main(["ingest", str(toy_files / "manifest.csv"), str(study), "--json"]) == 0
    assert main(["prepare", str(study), *TOY_PARTS, "--json"]) == 0
    assert main(["fit", str(study), "--test", "c1", *SMALL_FIT, "--json"]) == 0
    return study
