"""How well each segmenter finds annotated nuclei, and what a wrong mpp does.

    python benchmarks/nuclei_accuracy.py ../shared/data

On the annotated patches of `nucls` (breast, 0.2 µm/px, 640 nuclei), each patch opened as a slide:
F1 at IoU 0.5 of the right scale; then the same with an mpp that is wrong by a factor: what is
found, and what the audit says of it. The audit looks at the nuclei of all patches together, as it
does at those of a slide.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from histoscribe.errors import DataError
from histoscribe.preprocess.preparation import load
from histoscribe.preprocess.quality import check_nuclei
from histoscribe.preprocess.segmenters.segmenter import SEGMENTERS, Segmenter
from histoscribe.slides.open import open_slide
from histoscribe.types import Box
from segmentation_cost import NUCLS_MPP, count_matches, f1, read_instances

FACTORS = (1.0, 0.5, 2.0, 0.1, 10.0, 0.01, 100.0)
RESULT = tuple[np.ndarray, np.ndarray, float, str]


def at_scale(segmenter: Segmenter, path: Path, mpp: float) -> np.ndarray:
    """Labels of a patch read through the program at the segmenter's resolution."""
    slide = open_slide(path, mpp=mpp)
    width_um, height_um = (n * one for n, one in zip(slide.size_px, slide.mpp, strict=True))
    image = slide.read(Box(0.0, 0.0, width_um, height_um), segmenter.mpp)
    calibration = segmenter.calibrate(image.reshape(-1, 3))
    side = -(-np.array(image.shape[:2]) // 32) * 32  # networks want whole steps
    padded = np.pad(
        image, ((0, side[0] - image.shape[0]), (0, side[1] - image.shape[1]), (0, 0)), "reflect"
    )
    labels = segmenter.segment(padded[None], calibration)[0].labels
    return labels[: image.shape[0], : image.shape[1]]


def examine(segmenter: Segmenter, paths: list[Path], factor: float) -> RESULT:
    """Matches with the annotation, areas, area searched, and what the audit says."""
    counts, areas, searched_mm2 = np.zeros(3, int), [], 0.0
    mpp = NUCLS_MPP * factor
    for path in paths:
        labels = at_scale(segmenter, path, mpp)
        truth = read_instances(path.parents[1] / "labels" / f"{path.stem}.npy")
        wanted = Image.fromarray(truth).resize(labels.shape[::-1], Image.Resampling.NEAREST)
        counts += count_matches(labels, np.asarray(wanted))
        areas.append(np.bincount(labels.ravel())[1:] * segmenter.mpp**2)
        searched_mm2 += labels.size * segmenter.mpp**2 / 1e6
    area_um2 = np.concatenate(areas).astype(np.float32)
    try:
        check_nuclei("nucls", area_um2[area_um2 > 0], searched_mm2, mpp)
    except DataError as fault:
        return counts, area_um2, searched_mm2, f"refused: {fault}"
    return counts, area_um2, searched_mm2, "passes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--segmenters", default="threshold,instanseg")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    paths = sorted((options.data_dir / "nucls/segmentation").glob("*/images/*.png"))
    print("| segmenter | mpp given / true | F1 at IoU 0.5 | nuclei | median µm² | audit |")
    print("|---|---|---|---|---|---|")
    for name in options.segmenters.split(","):
        segmenter = load(SEGMENTERS, name)
        for factor in FACTORS:
            try:
                counts, area_um2, _, verdict = examine(segmenter, paths, factor)
            except DataError as fault:
                print(f"| {name} | {factor:g} | | | | refused: {fault} |")
                continue
            score = f"{f1(counts):.3f}"
            median = f"{np.median(area_um2):.1f}" if len(area_um2) else "none"
            print(f"| {name} | {factor:g} | {score} | {len(area_um2)} | {median} | {verdict} |")


if __name__ == "__main__":
    main()
