r"""Words put to single nuclei that were never trained on: breast, patches of NuCLS.

    python benchmarks/zero_shot_nucls.py --data ../shared/data/nucls/detection \
        --checkpoint FIT [FIT ...] --out OUT

The space was fitted on spots of her2st (histoscribe fit --objective joint, or
`zero_shot_her2st.py --all-sections`); of several checkpoints the cosines are averaged. No nucleus
of NuCLS, nor any label of a single nucleus, was seen. Terms, templates and the map from terms to
classes were frozen beforehand and lie in `zero_shot/`.

Each patch (51 µm, 0.2 µm/px) is brought to the scale that was trained on, 0.69 µm/px, by a box
filter, and mirrored to 3 x 3 patches, so that a nucleus has surroundings; then it is a slide like
any other. A labelled point is scored by the nucleus that was found nearest to it. A class has the
largest of its terms' scores, each calibrated on cells of the training sections.

AUROC of each class against all other nuclei (the fourth class, "other", included): of all nuclei
together, intervals over draws of whole patches; and within patches, mean over those that have
nuclei in and out of the class. The prepared patches stay in --out: a second run is quick.
"""

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial import KDTree

from histoscribe.annotate.label import embed_units
from histoscribe.annotate.queries import WordClass, embed_classes
from histoscribe.annotate.scores import probabilities, score_units
from histoscribe.annotate.word_model import AnnotateConfig, WordModel
from histoscribe.app.annotate_run import Asked, PlacesConfig, load_places
from histoscribe.app.console import Voice
from histoscribe.app.ingest import ingest_manifest
from histoscribe.app.prepare import prepare_study
from histoscribe.app.study import open_study, write_json
from histoscribe.data.annotation import Calibration, Route
from histoscribe.data.cells import Cells
from histoscribe.data.texts import Term
from histoscribe.errors import DataError, MismatchError
from histoscribe.evaluate.bootstrap import BootstrapConfig, Interval, interval
from histoscribe.evaluate.ranking import auroc
from histoscribe.evaluate.zero_shot import auroc_by_image
from histoscribe.preprocess.preparation import PrepareConfig
from histoscribe.train.align_checkpoint import AlignCheckpoint
from histoscribe.train.assemble import SlideData

FROZEN = Path(__file__).parent / "zero_shot" / "terms.json"
CLASSES = ("tumour", "stroma", "TIL")
GOAL = 0.60
"""Of the mean AUROC, per nucleus."""
OTHER = 3
"""Number of the label that is none of the classes."""
PATCH_MPP, TRAINED_MPP = 0.2, 0.69
FAR_UM = 5.0
"""A point whose nearest nucleus is farther off was probably not found; it stays, and is counted."""
MAIN = "image to text"
AREA = "nucleus area alone (+, +, -)"
AREA_SIGN = (1.0, 1.0, -1.0)
"""What nucleus area alone says of each class: tumour and stroma are large, lymphocytes small."""
AFTER = "after the test: probability as annotate shows it, summed over terms"


@dataclass(frozen=True, eq=False)
class Patch:
    """A patch, and its labelled nuclei in the frame of the mirrored slide."""

    name: str
    image: Path
    xy_um: np.ndarray
    label: np.ndarray


@dataclass(frozen=True, eq=False)
class Found:
    """All labelled nuclei: patch, label, and what was found nearest to each."""

    patch: np.ndarray
    label: np.ndarray
    distance_um: np.ndarray
    area_um2: np.ndarray
    cell: np.ndarray
    n_patches: int


def degrade(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """A square patch at about the trained scale, mirrored to 3 x 3; and its µm per pixel."""
    side = round(len(pixels) * PATCH_MPP / TRAINED_MPP)
    small = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))
    mirrored = np.pad(small, ((side, side), (side, side), (0, 0)), "symmetric")
    return mirrored, len(pixels) * PATCH_MPP / side


def read_points(path: Path, side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Labelled points of a patch, rows "x,y,label" in pixels, in µm of the mirrored slide."""
    with path.open(newline="") as stream:
        rows = [[float(value) for value in row] for row in csv.reader(stream) if row]
    points = np.array(rows).reshape(-1, 3)
    if not len(points) or not np.isin(points[:, 2], range(OTHER + 1)).all():
        raise DataError(f"{path}: wanted rows of x, y and a label from 0 to {OTHER}")
    return (points[:, :2] + side_px) * PATCH_MPP, points[:, 2].astype(np.int64)


def read_patches(data: Path, images: Path) -> list[Patch]:
    """All patches of both folders; the slides made of them go to `images`, with a manifest."""
    images.mkdir(parents=True, exist_ok=True)
    patches, lines = [], ["sample,patient,slide,mpp,expression\n"]
    for path in sorted(data.glob("*/images/*.png")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        slide, mpp = degrade(pixels)
        image = images / path.name
        if not image.exists() or not np.array_equal(np.asarray(Image.open(image)), slide):
            Image.fromarray(slide).save(image)
        points = read_points(path.parents[1] / "labels" / f"{path.stem}.csv", len(pixels))
        patches.append(Patch(path.stem, image, *points))
        lines.append(f"{path.stem},{path.stem},{image.name},{mpp!r},\n")
    if not patches:
        raise DataError(f"no patch under {data}; wanted */images/*.png with */labels/*.csv")
    (images / "manifest.csv").write_text("".join(lines))
    return patches


def prepare(images: Path, folder: Path, config: PrepareConfig, model: WordModel) -> list[SlideData]:
    """The patches as slides without expression, in the order of the manifest."""
    voice = Voice()
    ingest_manifest(images / "manifest.csv", folder, None, voice.say)
    study = open_study(folder)
    with study.lock():
        prepare_study(study, config, [], voice)
    asked = Asked(places=PlacesConfig("grid"))
    return [slide for _, slide in load_places(study, model, asked)]


def find(patches: Sequence[Patch], cells: Sequence[Cells]) -> Found:
    """The nucleus nearest to each labelled point; rows of cells are those of all patches."""
    first = np.cumsum([0, *map(len, cells)])
    near = [KDTree(one.xy_um).query(patch.xy_um) for patch, one in zip(patches, cells, strict=True)]
    cell = np.concatenate([start + row for start, (_, row) in zip(first, near, strict=False)])
    return Found(
        patch=np.repeat(np.arange(len(patches)), [len(patch.label) for patch in patches]),
        label=np.concatenate([patch.label for patch in patches]),
        distance_um=np.concatenate([distance for distance, _ in near]),
        area_um2=np.concatenate([one.area_um2 for one in cells])[cell],
        cell=cell,
        n_patches=len(patches),
    )


def read_frozen() -> dict[str, Any]:
    """Terms, templates and the map from terms to classes."""
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    if frozen["cell_level_map"]["rule"] != "max":
        raise DataError("the frozen map wants another rule than the largest calibrated score")
    return frozen


def columns_of(frozen: Mapping[str, Any]) -> list[list[int]]:
    """Columns of the terms of each class."""
    keys = [term["key"] for term in frozen["terms"]]
    return [[keys.index(key) for key in frozen["cell_level_map"][name]] for name in CLASSES]


def score_terms(
    models: Sequence[WordModel],
    slides: Sequence[SlideData],
    frozen: Mapping[str, Any],
    route: Route,
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated score and probability of every nucleus and term, as `annotate` has them.

    Of several models the cosines are averaged, those of the nuclei and those of the reference.

    Raises:
        MismatchError: The models keep other references: they are not of one training side.
    """
    cosines, references = [], []
    config = AnnotateConfig(level="cell", route=route, templates=tuple(frozen["templates"]))
    for model in models:
        queries = embed_classes(
            model,
            [
                WordClass(term["key"], (Term(term["key"], (term["name"], *term["synonyms"])),))
                for term in frozen["terms"]
            ],
            config.templates,
        )
        rows = embed_units(model, slides, config).embedding[route]
        reference = model.reference("cell", route)
        if reference is None:
            raise MismatchError(f"{model.model_id} keeps no cells to calibrate on; fit again")
        cosines.append(score_units(rows, queries, config.composite, model.scale))
        references.append(score_units(reference, queries, config.composite, model.scale))
    if len({len(one) for one in references}) > 1:
        raise MismatchError("the checkpoints keep other references: average seeds of one fit alone")
    known = np.mean(references, axis=0)
    known = known[np.isfinite(known).all(axis=1)].astype(np.float64)
    mean, deviation = known.mean(axis=0), known.std(axis=0, ddof=1)
    calibration = Calibration(
        mean.astype(np.float32), deviation.astype(np.float32), "reference", len(known)
    )
    score = np.mean(cosines, axis=0)
    scale = float(np.mean([model.scale for model in models]))
    return calibration.apply(score), probabilities(calibration, score, scale)


def scores_of(
    models: Sequence[WordModel], slides: Sequence[SlideData], found: Found
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Score of each labelled nucleus and class by method; and of each term, image to text."""
    frozen = read_frozen()
    columns = columns_of(frozen)

    def largest(terms: np.ndarray) -> np.ndarray:
        return np.stack([terms[found.cell][:, some].max(axis=1) for some in columns], axis=1)

    terms, probability = score_terms(models, slides, frozen, "image")
    methods = {
        AREA: found.area_um2[:, None] * np.array(AREA_SIGN),
        MAIN: largest(terms),
    }
    if all(one.reference("cell", "expression") is not None for one in models):
        by_genes, _ = score_terms(models, slides, frozen, "expression")
        methods["via predicted expression"] = largest(by_genes)
    if len(models) > 1:
        for number, one in enumerate(models):
            alone = largest(score_terms([one], slides, frozen, "image")[0])
            methods[f"{MAIN}, checkpoint {number} alone"] = alone
    summed = [probability[found.cell][:, some].sum(axis=1) for some in columns]
    methods[AFTER] = np.stack(summed, axis=1)
    return methods, terms[found.cell]


@dataclass(frozen=True, eq=False)
class Scores:
    """AUROC of a method.

    Attributes:
        by_class: Of all nuclei together, with its interval over patches.
        mean: Over the classes.
        within: By class the mean over valid patches; NaN where there is none.
        n_valid: Patches with nuclei in and out of the class.
        draws: Of `mean`, the same patches for every method.
    """

    by_class: tuple[Interval, ...]
    mean: Interval
    within: tuple[float, ...]
    n_valid: tuple[int, ...]
    draws: np.ndarray


def evaluate(score: np.ndarray, found: Found, config: BootstrapConfig) -> Scores:
    """AUROC of each class. A draw that lacks a class leaves it out of that draw's mean."""
    present = found.label[:, None] == np.arange(len(CLASSES))
    share = np.full(found.n_patches, 1 / found.n_patches)
    generator = np.random.default_rng(config.seed)
    drawn = generator.multinomial(found.n_patches, share, size=config.n_draws)
    weights = drawn[:, found.patch].astype(np.float64)
    exact = [float(auroc(s, p)[0]) for s, p in zip(score.T, present.T, strict=True)]
    draws = np.stack([auroc(s, p, weights) for s, p in zip(score.T, present.T, strict=True)], 1)
    within = auroc_by_image(score, present, found.patch, found.n_patches)
    means = np.nanmean(draws, axis=1)
    return Scores(
        by_class=tuple(
            interval(value, own[np.isfinite(own)], config)
            for value, own in zip(exact, draws.T, strict=True)
        ),
        mean=interval(float(np.mean(exact)), means, config),
        within=tuple(float(value) for value in np.nanmean(within, axis=0)),
        n_valid=tuple(int(n) for n in np.isfinite(within).sum(axis=0)),
        draws=means,
    )


def gain(of: Scores, over: Scores, config: BootstrapConfig) -> Interval:
    """Paired gain of the mean over classes: both had the same patches in each draw."""
    return interval(of.mean.value - over.mean.value, of.draws - over.draws, config)


def score_by_term(terms: np.ndarray, found: Found) -> dict[str, dict[str, float]]:
    """AUROC of every class by every term alone."""
    return {
        term["key"]: {
            name: float(auroc(terms[:, column], found.label == number)[0])
            for number, name in enumerate(CLASSES)
        }
        for column, term in enumerate(read_frozen()["terms"])
    }


def describe(models: Sequence[WordModel], found: Found) -> dict[str, Any]:
    """What was scored by what."""
    counts = np.bincount(found.label, minlength=OTHER + 1).tolist()
    return {
        "checkpoints": [one.model_id for one in models],
        "n_patches": found.n_patches,
        "n_nuclei": dict(zip((*CLASSES, "other"), counts, strict=True)),
        "n_far": int((found.distance_um > FAR_UM).sum()),
        "median_distance_um": float(np.median(found.distance_um)),
    }


def spread(one: Interval, sign: str = "") -> str:
    return f"{one.value:{sign}.3f} [{one.low:{sign}.3f}, {one.high:{sign}.3f}]"


def print_tables(scores: Mapping[str, Scores], gains: Mapping[str, Interval]) -> None:
    """All nuclei together, then within patches."""
    first = next(iter(scores.values()))
    print("| AUROC per nucleus | " + " | ".join((*CLASSES, "mean")) + " | above nucleus area |")
    print("|---" * (len(CLASSES) + 3) + "|")
    print("| chance " + "| .500 " * (len(CLASSES) + 1) + "| |")
    for name, one in scores.items():
        cells = [spread(value) for value in (*one.by_class, one.mean)]
        gain = spread(gains[name], "+") if name in gains else ""
        print(f"| {name} | " + " | ".join([*cells, gain]) + " |")
    names = [f"{name} ({n} valid)" for name, n in zip(CLASSES, first.n_valid, strict=True)]
    print("\n| within patches | " + " | ".join(names) + " | mean |")
    print("|---" * (len(CLASSES) + 2) + "|")
    for name, one in scores.items():
        means = (*one.within, np.mean(one.within))
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in means) + " |")


def print_terms(by_term: Mapping[str, Mapping[str, float]]) -> None:
    """AUROC of every term alone, image to text."""
    print("\n| one term alone | " + " | ".join(CLASSES) + " |")
    print("|---" * (len(CLASSES) + 1) + "|")
    for term, of_class in by_term.items():
        print(f"| {term} | " + " | ".join(f"{of_class[name]:.3f}" for name in CLASSES) + " |")


def to_record(scores: Mapping[str, Scores], gains: Mapping[str, Interval]) -> dict[str, Any]:
    return {
        name: {
            "by_class": {c: asdict(one) for c, one in zip(CLASSES, of.by_class, strict=True)},
            "mean": asdict(of.mean),
            "within": dict(zip(CLASSES, of.within, strict=True)),
            "n_valid": dict(zip(CLASSES, of.n_valid, strict=True)),
            "above_area": asdict(gains[name]) if name in gains else None,
        }
        for name, of in scores.items()
    }


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder nucls/detection")
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="fitted spaces")
    parser.add_argument("--out", type=Path, required=True, help="prepared patches and scores")
    parser.add_argument("--encoder", default="instanseg", help="that of the checkpoints")
    parser.add_argument("--draws", type=int, default=2000, help="draws of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    models = [AlignCheckpoint.load(folder) for folder in arguments.checkpoint]
    images, study = arguments.out / "images", arguments.out / "study"
    patches = read_patches(arguments.data, images)
    slides = prepare(images, study, PrepareConfig(encoder=arguments.encoder), models[0])
    found = find(patches, [slide.cells for slide in slides])
    methods, terms = scores_of(models, slides, found)
    if not np.isfinite(terms).all():
        raise DataError("a labelled nucleus could not be embedded: it has no surroundings")
    draws = BootstrapConfig(arguments.draws, seed=arguments.seed)
    scores = {name: evaluate(score, found, draws) for name, score in methods.items()}
    gains = {name: gain(one, scores[AREA], draws) for name, one in scores.items() if name != AREA}
    facts = describe(models, found)
    print(
        f"{len(found.label)} labelled nuclei of {found.n_patches} patches "
        f"({', '.join(f'{n} {name}' for name, n in facts['n_nuclei'].items())}); the nearest found "
        f"nucleus is {facts['median_distance_um']:.2f} µm off (median), farther than "
        f"{FAR_UM:g} µm for {facts['n_far']}\n"
    )
    print_tables(scores, gains)
    by_term = score_by_term(terms, found)
    print_terms(by_term)
    verdict = "met" if scores[MAIN].mean.value >= GOAL else "falls short"
    print(f"\nGoal, mean of {MAIN} at least {GOAL:.2f}: {verdict}")
    record = {"facts": facts, "scores": to_record(scores, gains), "by_term": by_term}
    write_json(arguments.out / "scores.json", record)


if __name__ == "__main__":
    main()
