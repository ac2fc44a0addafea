"""Recipes of cohorts: their ids, what they refuse, and two of them gone through on toy slides."""

import csv
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image
from tests.app.conftest import spot_table
from tests.readers.bulk.conftest import star_text

from histoscribe.app.config import make_config
from histoscribe.data.toy import MPP, PITCH_UM, RADIUS_UM, toy_world
from histoscribe.errors import ConfigError, DataError

RECIPES = Path(__file__).parents[2] / "benchmarks" / "recipes"
PATIENTS = {"TOY1": "A", "TOY2": "B", "TOY3": "A"}
TOY_SETTINGS = {
    "prepare": {"segmenter": "toy", "encoder": "toy"},
    "fit": {"max_epochs": 2, "n_components": 5, "n_field_components": 3, "n_phenotypes": 3},
    "model": {"width": 16},
    "bags": {"rings_um": [150.0]},
    "score": {"bootstrap": {"n_draws": 20}},
}


def numbered(prefix: str, *numbers: int) -> list[str]:
    return [f"{prefix}{number}" for number in numbers]


COHORTS = {
    "hest-brca": (numbered("SPA", *range(119, 155)), 36, 8, 13620),
    "hest-coad": (
        numbered("TENX", 152, 92, 91, 90, 89, 49, 29)
        + numbered("ZEN", 47, 46, 45, 44, 43, 42, 39, 38),
        15,
        None,
        44823,
    ),
    "hest-cscc": (numbered("NCBI", *range(759, 771)), 12, 4, 8671),
    "hest-hcc": (numbered("NCBI", 642, 643), 2, None, 4248),
    "hest-prad": (numbered("MEND", *range(139, 155), *range(156, 163)), 23, 2, 62710),
}
"""Ids, samples, patients and spots of the paper's table 5."""


@pytest.fixture
def recipes(monkeypatch):
    """The modules of the folder, as the script sees them."""
    monkeypatch.syspath_prepend(str(RECIPES))
    yield importlib.import_module("run")
    for name in ("run", "recipe", "hest_layout"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def hest(tmp_path_factory) -> Path:
    """Three toy slides of two patients, laid out as HEST-1k lays out its own; read only."""
    home = tmp_path_factory.mktemp("hest")
    for folder in ("st", "wsis", "metadata"):
        (home / folder).mkdir()
    for seed, (one, patient) in enumerate(PATIENTS.items()):
        world = toy_world(seed, one, patient)
        spot_table(world).write_h5ad(home / "st" / f"{one}.h5ad")
        write_pyramid(home / "wsis" / f"{one}.tif", world.slide.pixels)
        record = {
            "id": one,
            "patient": patient,
            "pixel_size_um_estimated": MPP,
            "spot_diameter": 2 * RADIUS_UM,
            "inter_spot_dist": PITCH_UM,
        }
        (home / "metadata" / f"{one}.json").write_text(json.dumps(record))
    return home


def write_pyramid(path: Path, pixels: np.ndarray) -> None:
    """A tiled BigTIFF with a second level, without a scale of its own."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
        file.write(pixels, subifds=0, **options)
        file.write(np.ascontiguousarray(pixels[::2, ::2]), subfiletype=1, **options)


def write_recipe(folder: Path, **changed) -> Path:
    record = {
        "name": "toy",
        "layout": "hest",
        "samples": list(PATIENTS),
        "n_samples": 3,
        "n_patients": 2,
        "n_spots": 7,
        "settings": {**TOY_SETTINGS, "panel": {"n_genes": 7}},
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({**record, **changed}))
    return path


def copied(hest: Path, home: Path, **metadata: object) -> Path:
    """The toy data by links, with other metadata of TOY2."""
    home.mkdir()
    for folder in ("st", "wsis"):
        (home / folder).symlink_to(hest / folder)
    (home / "metadata").mkdir()
    for path in (hest / "metadata").iterdir():
        record = json.loads(path.read_text())
        changed = {**record, **(metadata if path.stem == "TOY2" else {})}
        (home / "metadata" / path.name).write_text(json.dumps(changed))
    return home


@pytest.mark.parametrize("name", COHORTS)
def test_the_ids_are_those_of_the_paper(recipes, name):
    ids, n_samples, n_patients, n_spots = COHORTS[name]
    recipe = recipes.read_recipe(name)
    assert list(recipe.samples) == ids
    assert len(recipe.samples) == n_samples == recipe.n_samples
    assert (recipe.n_patients, recipe.n_spots) == (n_patients, n_spots)


def test_every_recipe_can_be_read_and_holds_settings(recipes):
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    tcga = {"tcga-brca": 734, "tcga-coad": 388, "tcga-lihc": 185, "tcga-prad": 175}
    assert names == sorted([*COHORTS, *tcga])
    for name in names:
        recipe = recipes.read_recipe(name)
        assert recipe.name == name
        config = make_config(recipe.settings)
        assert (config.fit.max_epochs, config.fit.patience) == (100, 6)
        if name in tcga:
            assert (config.panel.rule, config.panel.n_genes) == ("variance", tcga[name])
            assert recipe.project == name.upper()
    assert sum(len(recipes.read_recipe(name).samples) for name in COHORTS) == 88
    sizes = [recipes.read_recipe(name) for name in COHORTS]
    swapped = [one.name for one in sizes if one.diameter_um is not None]
    assert swapped == ["hest-cscc"]


def test_a_recipe_with_an_unknown_key_is_refused(recipes, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'samples'"):
        recipes.read_recipe(str(write_recipe(tmp_path, sample=["TOY1"])))
    with pytest.raises(ConfigError, match="each once"):
        recipes.read_recipe(str(write_recipe(tmp_path, samples=["TOY1", "TOY1"])))
    with pytest.raises(DataError, match="No config file"):
        recipes.read_recipe("hest-unknown")


def test_rows_say_what_the_metadata_say(recipes, hest, tmp_path):
    recipe = recipes.read_recipe(str(write_recipe(tmp_path)))
    rows, said = recipes.hest_rows(recipe, hest, tmp_path, is_by_section=False)
    assert [(row["sample"], row["patient"]) for row in rows] == list(PATIENTS.items())
    assert {(row["diameter_um"], row["pitch_um"], row["mpp"]) for row in rows} == {
        (repr(2 * RADIUS_UM), repr(PITCH_UM), repr(MPP))
    }
    assert (tmp_path / rows[2]["slide"]).resolve() == (hest / "wsis" / "TOY3.tif").resolve()
    assert not said
    assert "nuclei" not in rows[0]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"patient": None}, r"1 of 3 samples \(TOY2\) name no patient.*--by-section"),
        ({"patient": float("nan")}, "name no patient"),
        ({"spot_diameter": 3 * PITCH_UM}, "diameter above the pitch; if the two are swapped"),
        ({"spot_diameter": None}, "TOY2.json has spot_diameter = None"),
        ({"pixel_size_um_estimated": 0}, "pixel_size_um_estimated = 0"),
        ({"pixel_size_um_estimated": "0.5"}, "pixel_size_um_estimated = '0.5'"),
    ],
)
def test_metadata_that_do_not_hold_up_are_refused(recipes, hest, tmp_path, metadata, words):
    data = copied(hest, tmp_path / "data", **metadata)
    recipe = recipes.read_recipe(str(write_recipe(tmp_path)))
    with pytest.raises(DataError, match=words):
        recipes.hest_rows(recipe, data, tmp_path, is_by_section=False)


def test_what_a_recipe_says_of_the_assay_counts_more_than_swapped_metadata(recipes, hest, tmp_path):
    data = copied(hest, tmp_path / "data", spot_diameter=PITCH_UM, inter_spot_dist=1.0)
    given = write_recipe(tmp_path, diameter_um=2 * RADIUS_UM, pitch_um=PITCH_UM)
    rows, said = recipes.hest_rows(
        recipes.read_recipe(str(given)), data, tmp_path, is_by_section=False
    )
    assert {row["pitch_um"] for row in rows} == {repr(PITCH_UM)}
    assert "by the assay" in said[0]


def test_patients_that_are_not_known_are_said_where_sections_are_split(recipes, hest, tmp_path):
    data = copied(hest, tmp_path / "data", patient=None)
    recipe = recipes.read_recipe(str(write_recipe(tmp_path)))
    rows, said = recipes.hest_rows(recipe, data, tmp_path, is_by_section=True)
    assert [row["patient"] for row in rows] == ["A", "unknown-TOY2", "A"]
    assert "of 1 samples no patient is known (TOY2)" in said[0]


def test_missing_files_are_named_and_counted(recipes, hest, tmp_path, capsys):
    code = recipes.main(["hest-brca", "--data", str(hest), "--out", str(tmp_path / "out")])
    said = " ".join(capsys.readouterr().err.split())
    assert code == 3
    assert "144 files of recipe hest-brca are not in" in said
    assert "st/SPA119.h5ad, wsis/SPA119.tif, metadata/SPA119.json, ..." in said
    assert not (tmp_path / "out" / "study").exists()
    given = write_recipe(tmp_path, nuclei="hest")
    words = [str(given), "--data", str(hest), "--out", str(tmp_path / "other")]
    assert recipes.main(words) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "3 files of recipe toy" in said
    assert "--nuclei ours" in said
    assert recipes.main([str(given), "--data", str(hest / "no"), "--out", str(tmp_path / "o")]) == 3


@pytest.mark.slow
def test_a_recipe_goes_from_the_published_layout_to_scores(recipes, hest, tmp_path, capsys):
    given, out = write_recipe(tmp_path), tmp_path / "out"
    words = [str(given), "--data", str(hest), "--out", str(out)]
    assert recipes.main(words) == 0
    said = capsys.readouterr()
    told = " ".join(said.err.split())
    assert "fold 1 of 2: TOY1, TOY3 tested" in told
    assert "spots are here, 7 in the paper" in told
    assert "mean and deviation over 2 fold(s), one patient each" in " ".join(said.out.split())
    rows = read_scores(out)
    assert {(row["fold"], row["tested"], row["patients"]) for row in rows} == {
        ("patient1", "TOY1 + TOY3", "A"),
        ("patient2", "TOY2", "B"),
    }
    of_model = [row for row in rows if row["method"] == "model"]
    assert all(row["kept apart"] == "patient" for row in of_model)
    for row in of_model:
        scores = json.loads((out / "study/runs" / row["fold"] / "scores.json").read_text())
        (mean,) = [
            one for one in scores["rows"] if (one["method"], one["slide"]) == ("model", "mean")
        ]
        assert float(row["gene_pcc"]) == mean["gene_pcc"]
        assert float(row["js"]) == mean["js"]
    split = json.loads((out / "study/runs/patient1/checkpoint/checkpoint.json").read_text())
    assert split["split"]["train"] == ["TOY2"]
    before = (out / "scores.csv").read_bytes()
    assert recipes.main(words) == 0  # goes on from what is finished
    assert "TOY1: " in capsys.readouterr().err
    assert (out / "scores.csv").read_bytes() == before
    assert recipes.main(["hest-hcc", "--data", str(hest), "--out", str(out)]) == 2
    assert "another recipe" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_one_patient_alone_is_refused_or_split_by_section(recipes, hest, tmp_path, capsys):
    given, out = write_recipe(tmp_path, samples=["TOY1", "TOY3"]), tmp_path / "out"
    words = [str(given), "--data", str(hest), "--out", str(out)]
    assert recipes.main(words) == 3
    assert "all 2 samples are of one patient (A)" in " ".join(capsys.readouterr().err.split())
    assert recipes.main([*words, "--by-section"]) == 0
    assert "sections of one patient may be on both sides" in " ".join(
        capsys.readouterr().out.split()
    )
    assert {row["kept apart"] for row in read_scores(out)} == {"section"}


@pytest.mark.slow
def test_tcga_goes_from_the_download_to_scores(recipes, tmp_path, capsys):
    data, out = tmp_path / "gdc", tmp_path / "out"
    write_download(data)
    given = tmp_path / "bulk.yaml"
    settings = {**TOY_SETTINGS, "panel": {"rule": "variance", "n_genes": 5}}
    settings["fit"] = {
        **settings["fit"], "target_space": "log1p_tpm", "stop_on": "loss", "n_folds": 2
    }  # fmt: skip
    record = {"name": "bulk", "layout": "tcga", "project": "TCGA-LIHC", "test_share": 0.34}
    given.write_text(yaml.safe_dump({**record, "settings": settings}))
    words = [str(given), "--data", str(data), "--out", str(out)]
    # The toy's PNGs state no scale, as SVS do: it is written into the manifest.
    manifest = out / "cohort" / "manifest.csv"
    assert recipes.main(words) == 3
    assert "mpp" in capsys.readouterr().err
    with manifest.open() as stream:
        rows = list(csv.DictReader(stream))
    importlib.import_module("histoscribe.readers.manifest").write_manifest(
        [{**row, "mpp": str(MPP)} for row in rows], manifest
    )
    assert recipes.main(words) == 0, capsys.readouterr().err
    assert "2 patients tested, one split" in " ".join(capsys.readouterr().out.split())
    (tested,) = {row["tested"] for row in read_scores(out)}
    record = json.loads((out / "study/runs/split/checkpoint/checkpoint.json").read_text())
    assert record["split"]["test"] == tested.split(" + ")
    assert len(record["split"]["train"]) == 4
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(given.read_text().replace("TCGA-LIHC", "TCGA-COAD"))
    assert recipes.main([str(wrong), "--data", str(data), "--out", str(out)]) == 3
    assert "is of TCGA-LIHC" in " ".join(capsys.readouterr().err.split())


def write_download(home: Path) -> None:
    """Six patients with a slide and a file of counts each, and the sample sheet."""
    pixels = toy_world(5).slide.pixels
    rng = np.random.default_rng(4)
    genes = [(f"ENSG{number:011d}.2", f"GENE{number}") for number in range(1, 12)]
    lines = ["File ID\tFile Name\tProject ID\tCase ID\tSample ID\tSample Type"]
    (home / "slides").mkdir(parents=True)
    for number in range(6):
        case = f"TCGA-AB-000{number}"
        x, y = 97 * number, 113 * number
        crop = pixels[y : y + 341, x : x + 397]
        Image.fromarray(crop).save(home / "slides" / f"{case}-01Z-00-DX1.png")
        name = f"f{number}.rna_seq.augmented_star_gene_counts.tsv"
        folder = home / "expression" / f"id-{number}"
        folder.mkdir(parents=True)
        counts = [int(count) for count in rng.integers(1, 4000, len(genes))]
        (folder / name).write_text(star_text(counts, genes))
        lines.append(f"id-{number}\t{name}\tTCGA-LIHC\t{case}\t{case}-01A\tPrimary Tumor")
    (home / "gdc_sample_sheet.tsv").write_text("\n".join(lines) + "\n")


def read_scores(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))
