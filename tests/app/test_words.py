"""Words on a study, from the command line: maps, tables, stores, and what is refused."""

import csv
import json

import anndata
import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array

from histoscribe.app import annotate_run
from histoscribe.data.genes import GenePanel
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.data.store import read_annotation, write_profiles
from histoscribe.data.toy import MPP, RATES, SYMBOLS, toy_world

pytestmark = pytest.mark.usefixtures("with_toy_words")


@pytest.fixture
def with_toy_words(monkeypatch, toy_words):
    """The model of the toy world in place of a checkpoint on disk: a fit takes minutes."""
    monkeypatch.setattr(annotate_run, "load_words_model", lambda folder: toy_words)


@pytest.fixture
def terms(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_text("alpha cell | alpha-like\nbeta cell  # CL:0000236\n")
    return path


def test_regions_are_labelled_drawn_and_stored(fitted, call, terms, tmp_path):
    out = tmp_path / "out"
    words = ("annotate", fitted, "--checkpoint", "x", "--terms", terms, "--out", out, "--json")
    answer = call(*words, "--sample", "a1", "--sample", "c1", "--phenotypes")
    assert answer.code == 0, answer.err
    said = read_annotation(out / "a1.zarr")
    counts = answer.record["samples"]["a1"]["labels"]
    assert counts == said.count()
    assert counts["alpha cell"] > 5
    assert counts["beta cell"] > 5
    world = toy_world(0, "a1", "alice")
    features = json.loads((out / "a1.geojson").read_text())["features"]
    assert len(features) == len(world.regions)
    first = features[0]["properties"]
    assert first["classification"]["name"] == said.label[0]
    assert first["measurements"]["Score: beta cell"] == pytest.approx(said.score[0, 1], abs=1e-5)
    ring = np.array(features[0]["geometry"]["coordinates"][0]) * MPP
    assert np.allclose(ring[:-1].mean(axis=0), said.xy_um[0], atol=0.01)
    assert np.allclose(np.hypot(*(ring - said.xy_um[0]).T), said.radius_um, atol=0.01)
    page = (out / "annotations.html").read_text()
    assert page.count("data:image/png") == 2
    assert "alpha-like" in page
    assert [one["label"] for one in answer.record["phenotypes"]] == ["alpha cell", "beta cell"]
    assert read_annotation(out / "c1.zarr").label.count("") == 1


def test_cells_are_labelled_with_their_outlines(fitted, call, terms, tmp_path):
    words = ("annotate", fitted, "--checkpoint", "x", "--terms", terms, "--level", "cell")
    answer = call(*words, "--sample", "a1", "--out", tmp_path, "--route", "image", "--json")
    assert answer.code == 0, answer.err
    table = anndata.read_zarr(tmp_path / "a1.cells.zarr")
    features = json.loads((tmp_path / "a1.cells.geojson").read_text())["features"]
    assert len(features) == table.n_obs
    names = [one["properties"]["classification"]["name"] for one in features]
    assert names == list(table.obs["label"])
    assert "without a nucleus" not in (tmp_path / "annotations.cells.html").read_text()
    assert features[0]["geometry"]["type"] == "Polygon"
    assert (tmp_path / "annotations.cells.html").exists()
    counted = json.loads((tmp_path / "annotations.cells.json").read_text())["labels"]["a1"]
    assert counted == {name: names.count(name) for name in counted}


def test_a_grid_where_nothing_was_measured(fitted, call, terms, tmp_path):
    words = ("annotate", fitted, "--checkpoint", "x", "--terms", terms, "--regions", "grid")
    answer = call(*words, "--sample", "a1", "--out", tmp_path, "--pitch", "80", "--json")
    assert answer.code == 0, answer.err
    said = read_annotation(tmp_path / "a1.grid.zarr")  # what is measured has a name of its own
    assert np.allclose(np.diff(np.unique(said.xy_um[:, 0])), 80)
    assert (tmp_path / "a1.grid.geojson").exists()


def test_a_search_gives_a_map_and_a_table(fitted, call, tmp_path):
    words = ("search", fitted, "beta cells | beta", "--checkpoint", "x", "--out", tmp_path)
    answer = call(*words, "--sample", "a1", "--json")
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader((tmp_path / "beta-cells" / "a1.csv").read_text().splitlines()))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert len(rows) == len(toy_world(0, "a1", "alice").regions)
    with Image.open(tmp_path / "beta-cells" / "a1.png") as picture:
        assert picture.size[0] > 300
    seen = call(*words, "--sample", "a1")
    assert rows[0]["unit"] in seen.out


def test_the_chain_is_diagnosed(fitted, call, terms, tmp_path):
    rng = np.random.default_rng(0)
    kind = np.arange(30) % 2
    panel = GenePanel(tuple(f"ENSG{n:011d}" for n in range(1, 14)), SYMBOLS, "ensembl")
    profiles = Profiles(
        profile_id=tuple(f"p{n}" for n in range(30)),
        expression=csr_array(rng.poisson(5 * RATES[kind]).astype(np.float32)),
        expression_unit="counts",
        genes=panel,
        gene_observed=np.ones(13, bool),
        provenance=Provenance("test"),
        text=tuple(("alpha cell", "beta cell")[k] for k in kind),
        platform=("sc",) * 30,
    )
    write_profiles(profiles, tmp_path)
    words = ("diagnose", fitted, "--checkpoint", "x", "--profiles", tmp_path, "--terms", terms)
    answer = call(*words, "--json")
    assert answer.code == 0, answer.err
    found = {one["name"]: one for one in answer.record["findings"]}
    assert found["image-gene (alpha)"]["is_fine"]
    assert found["gene-text (beta)"]["is_fine"]
    assert {"bias: alpha cell", "bias: beta cell", "platform gap: the regions - sc"} <= set(found)
    assert "image-gene (alpha)" in call(*words).out
    twice = call(*words, "--profiles", tmp_path, "--json")
    assert twice.code == 0, twice.err
    beta = {one["name"]: one["value"] for one in twice.record["findings"]}["gene-text (beta)"]
    assert beta == pytest.approx(found["gene-text (beta)"]["value"])
    refused = call("diagnose", fitted, "--checkpoint", tmp_path / "elsewhere" / "x")
    assert refused.code == 2
    assert "--profiles" in refused.message


@pytest.mark.parametrize(
    ("words", "code", "match"),
    [
        (["annotate", "--terms", "T"], 2, "--run NAME or --checkpoint"),
        (["search", "x", "--run", "first", "--checkpoint", "x"], 2, "not both"),
        (["annotate", "--terms", "T", "--checkpoint", "x", "--level", "slide"], 2, "level"),
        (["annotate", "--terms", "no.txt", "--checkpoint", "x"], 3, "no.txt"),
        (["annotate", "--terms", "T", "--checkpoint", "x", "--regions", "sample"], 2, "grid"),
        (["annotate", "--terms", "T", "--checkpoint", "x", "--sample", "z9"], 2, "z9"),
        (["annotate", "--terms", "livers", "--checkpoint", "x"], 2, "class map"),
        (["search", "|", "--checkpoint", "x"], 2, "nothing to search"),
    ],
)
def test_wrong_requests_are_named(fitted, call, terms, words, code, match):
    given = [terms if word == "T" else word for word in words]
    answer = call(given[0], fitted, *given[1:])
    assert answer.code == code, answer.err
    assert match in answer.message
    assert "Traceback" not in answer.err


def test_a_benchmark_is_scored_from_its_published_files(call, tmp_path):
    from scipy.io import savemat

    world = toy_world(3, "toy_1", "p")
    crop = world.slide.pixels[300:1100, 400:1300]
    inside = np.flatnonzero(
        ((world.cells.xy_um > np.array([203, 153])) & (world.cells.xy_um < [647, 547])).all(axis=1)
    )
    numbers = np.zeros(crop.shape[:2], np.int32)
    place = np.floor(world.cells.xy_um[inside] / MPP).astype(int) - [400, 300]
    for number, (x, y) in enumerate(place, start=1):
        numbers[y - 2 : y + 3, x - 2 : x + 3] = number
    for folder in ("Lizard_Images1", "Lizard_Labels/Labels"):
        (tmp_path / "lizard" / folder).mkdir(parents=True)
    Image.fromarray(crop).save(tmp_path / "lizard" / "Lizard_Images1" / "toy_1.png")
    savemat(
        tmp_path / "lizard" / "Lizard_Labels" / "Labels" / "toy_1.mat",
        {"inst_map": numbers, "id": np.arange(1, len(inside) + 1)[:, None],
         "class": np.where(world.kind_of_cell[inside] == 0, 2, 6)[:, None]},
    )  # fmt: skip
    out = tmp_path / "out"
    toy = ("--set", "prepare.segmenter=toy", "--set", "prepare.encoder=toy")
    words = ("zero-shot", "lizard", tmp_path / "lizard", "--checkpoint", "x", "--out", out, *toy)
    refused = call(*words)
    assert refused.code == 2
    assert "mpp" in refused.message
    answer = call(*words, "--mpp", MPP, "--json")
    assert answer.code == 0, answer.err
    scores = answer.record["scores"]
    assert [one["name"] for one in scores["by_class"]] == ["Epithelial", "Leukocyte", "Fibroblast"]
    assert scores["by_class"][1]["n_valid_images"] == 0  # none of them was planted
    assert scores["n_without_image"] >= 1
    assert scores["n_units"] > 10
    assert (out / "scores.csv").read_text().startswith("class,auroc")
