"""The cell level on patches: where nuclei lie after the mirroring, and what is scored how."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from histoscribe.annotate.label import annotate
from histoscribe.annotate.queries import WordClass
from histoscribe.annotate.word_model import AnnotateConfig
from histoscribe.data.texts import Term
from histoscribe.data.toy import toy_world
from histoscribe.errors import DataError
from histoscribe.evaluate.bootstrap import BootstrapConfig
from histoscribe.slides.open import open_slide
from histoscribe.train.assemble import SlideData
from histoscribe.types import Box

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from zero_shot_nucls import (
    CLASSES,
    Found,
    columns_of,
    degrade,
    evaluate,
    find,
    gain,
    read_frozen,
    read_patches,
    score_terms,
)

SIDE = 53
DRAWS = BootstrapConfig(n_draws=300, seed=4)
TERMS = {
    "templates": ["{x}", "a {x}"],
    "terms": [
        {"key": "first", "name": "alpha cell", "synonyms": ["alpha-like"]},
        {"key": "second", "name": "beta cell", "synonyms": []},
    ],
}


def write_patch(folder: Path, spot_px: tuple[int, int], label: int = 2) -> Path:
    """A bright patch with one dark nucleus, labelled at its centre."""
    for name in ("images", "labels"):
        (folder / "test" / name).mkdir(parents=True, exist_ok=True)
    pixels = np.full((SIDE, SIDE, 3), 220, np.uint8)
    x, y = spot_px
    pixels[y - 3 : y + 4, x - 3 : x + 4] = 30
    Image.fromarray(pixels).save(folder / "test/images/p1.png")
    (folder / "test/labels/p1.csv").write_text(f"{x},{y},{label}\n")
    return folder


def test_a_patch_is_mirrored_to_its_neighbours_and_points_lie_on_their_nuclei(tmp_path):
    (patch,) = read_patches(write_patch(tmp_path / "data", (35, 12)), tmp_path / "images")
    assert patch.label.tolist() == [2]
    slide = np.asarray(Image.open(patch.image))
    n = round(SIDE * 0.2 / 0.69)
    assert slide.shape == (3 * n, 3 * n, 3)
    centre = slide[n : 2 * n, n : 2 * n]
    assert np.array_equal(slide[n : 2 * n, :n], centre[:, ::-1])
    assert np.array_equal(slide[2 * n :, 2 * n :], centre[::-1, ::-1])
    mpp = float((tmp_path / "images/manifest.csv").read_text().splitlines()[1].split(",")[3])
    assert mpp * n == pytest.approx(SIDE * 0.2)
    x, y = patch.xy_um[0].tolist()
    opened = open_slide(patch.image, mpp=mpp)
    assert opened.read(Box(x - 0.3, y - 0.3, 0.8, 0.8), mpp).mean() < 60
    assert opened.read(Box(y - 0.3, x - 0.3, 0.8, 0.8), mpp).mean() > 150
    before = patch.image.stat().st_mtime_ns
    read_patches(tmp_path / "data", tmp_path / "images")
    assert patch.image.stat().st_mtime_ns == before


def test_degraded_pixels_are_means():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 256, axis=0)
    slide, mpp = degrade(np.stack([ramp] * 3, axis=2))
    assert slide.shape == (222, 222, 3)
    assert mpp == pytest.approx(51.2 / 74)
    wanted = (np.arange(74) + 0.5) * 256 / 74 - 0.5
    assert np.abs(slide[100, 74:148, 0] - wanted).max() <= 1


def test_labels_that_are_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="label from 0 to 3"):
        read_patches(write_patch(tmp_path, (20, 20), label=4), tmp_path / "images")
    with pytest.raises(DataError, match="no patch"):
        read_patches(tmp_path / "nothing", tmp_path / "images")


def test_the_frozen_map_names_terms_that_are_there():
    frozen = read_frozen()
    keys = [term["key"] for term in frozen["terms"]]
    assert [[keys[column] for column in some] for some in columns_of(frozen)] == [
        ["epithelial_cells"],
        ["cafs", "endothelial_cells", "pvl_cells"],
        ["b_cells", "t_cells", "plasma_cells"],
    ]


def toy_found(n_patches: int = 7, n: int = 210) -> Found:
    rng = np.random.default_rng(3)
    patch = np.sort(rng.integers(n_patches, size=n))
    label = np.where(patch == 0, 1, rng.integers(4, size=n))  # one patch is of one class alone
    nothing = np.zeros(n)
    return Found(patch, label, nothing, nothing, np.arange(n), n_patches)


def test_scores_are_those_of_sklearn_pooled_and_within_patches():
    found = toy_found()
    score = np.random.default_rng(8).normal(size=(len(found.label), 3))
    score[np.arange(len(score)), found.label.clip(max=2)] += 1
    said = evaluate(score, found, DRAWS)
    for number in range(len(CLASSES)):
        is_there = found.label == number
        own = said.by_class[number]
        assert own.value == pytest.approx(roc_auc_score(is_there, score[:, number]))
        assert own.low < own.value < own.high
        by_patch = [
            roc_auc_score(is_there[rows], score[rows, number])
            for rows in (found.patch == patch for patch in range(1, 7))
        ]
        assert said.within[number] == pytest.approx(np.mean(by_patch))
    assert said.n_valid == (6, 6, 6)
    assert said.mean.value == pytest.approx(np.mean([one.value for one in said.by_class]))


def test_a_gain_is_paired_and_its_draws_are_those_of_whole_patches():
    found = toy_found()
    truth = (found.label[:, None] == np.arange(3)).astype(float)
    best = evaluate(truth, found, DRAWS)
    assert (best.mean.low, best.mean.high) == (1, 1)
    noise = evaluate(np.random.default_rng(1).normal(size=truth.shape), found, DRAWS)
    none = gain(noise, noise, DRAWS)
    assert (none.value, none.low, none.high) == (0, 0, 0)
    assert gain(best, noise, DRAWS).value == pytest.approx(1 - noise.mean.value)
    # a score by patch alone varies between draws of patches; one patch only never does
    alone = Found(**{**vars(found), "patch": np.zeros_like(found.patch), "n_patches": 1})
    still = evaluate(np.random.default_rng(1).normal(size=truth.shape), alone, DRAWS)
    assert still.mean.high - still.mean.low < 1e-12 < noise.mean.high - noise.mean.low


def test_each_point_gets_the_nearest_nucleus_of_its_own_patch(tmp_path):
    (patch,) = read_patches(write_patch(tmp_path / "data", (35, 12)), tmp_path / "images")
    worlds = [toy_world(seed, f"s{seed}", "p") for seed in (7, 8)]
    cells = [world.cells for world in worlds]
    found = find([patch, patch], cells)
    for number, own in enumerate(cells):
        distance = np.linalg.norm(own.xy_um - patch.xy_um[0], axis=1)
        first = number * len(cells[0])
        assert found.cell[number] == first + distance.argmin()
        assert found.distance_um[number] == pytest.approx(distance.min(), rel=1e-5)
        assert found.area_um2[number] == own.area_um2[distance.argmin()]
    assert found.patch.tolist() == [0, 1]


def test_one_model_scores_as_annotate_does_and_two_by_the_mean_of_their_cosines(toy_words):
    world = toy_world(7, "s7", "p7")
    slides = [SlideData(world.cells, world.tiles, world.regions)]
    classes = [
        WordClass("first", (Term("first", ("alpha cell", "alpha-like")),)),
        WordClass("second", (Term("second", ("beta cell",)),)),
    ]
    config = AnnotateConfig(level="cell", route="image", templates=("{x}", "a {x}"))
    said = annotate(toy_words, slides, classes, config)
    score, probability = score_terms([toy_words], slides, TERMS, "image")
    assert np.allclose(score, said.calibration["image"].apply(said.score), atol=1e-4)
    assert np.allclose(probability, said.probability, atol=1e-5)
    again, _ = score_terms([toy_words, toy_words], slides, TERMS, "image")
    assert np.allclose(again, score, atol=1e-4)
