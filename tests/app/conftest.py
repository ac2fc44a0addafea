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
import tifffile
from PIL import Image

from histoscribe.app.cli import main
from histoscribe.data.store import hash_file
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


COHORT = ("s1", "s2", "s3", "s4", "s5", "s6")
CROP_PX = (397, 341)


@pytest.fixture(scope="session")
def cohort_files(tmp_path_factory) -> Path:
    """Six small slides without expression, and s3 a second time with a torn tile; read only."""
    folder = tmp_path_factory.mktemp("cohort-files")
    pixels = toy_world(5).slide.pixels
    for number, sample in enumerate(COHORT):
        x, y = 97 * number, 113 * number  # all within the tissue
        crop = pixels[y : y + CROP_PX[1], x : x + CROP_PX[0]]
        Image.fromarray(crop).save(folder / f"{sample}.png")
        if sample == "s3":
            tifffile.imwrite(folder / "torn.tif", crop, tile=(256, 256), compression="zlib")
    with tifffile.TiffFile(folder / "torn.tif") as file:
        place = file.pages[0].dataoffsets[1]
    with (folder / "torn.tif").open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\0" * 64)
    rows = [row_of(sample, f"patient-{sample}", expression="", min_counts="") for sample in COHORT]
    write_manifest(folder / "manifest.csv", rows)
    torn = [{**row, "slide": "torn.tif"} if row["sample"] == "s3" else row for row in rows]
    write_manifest(folder / "torn.csv", torn)
    return folder


def stores_of(study: Path) -> dict[str, str]:
    """SHA-256 of every file below the samples of a study, locks left out."""
    home = study / "samples"
    files = (path for path in home.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(home)): hash_file(path) for path in sorted(files)}


def check(answer, code: int, words: list[str]) -> None:
    assert answer.code == code, answer.err
    assert "Traceback" not in answer.err
    for word in words:
        assert word in answer.message, answer.message
