"""What segmentation and cell features cost per mm² of tissue, against the published module.

    python benchmarks/segmentation_cost.py ../shared/data

On the same 512-px tiles of her2st C2 (0.5 µm/px, 64 px overlap, chosen where tissue is densest):

    (a) the published TorchScript module on each tile, and one dense pass of its encoder
    (b) our network and post-processing, and the features of every nucleus pooled from that pass

Both with the same scaling, alternating, medians of several rounds. Then how far the nuclei agree
(F1 at IoU 0.5) on those tiles and on `nucls`, where both are also held against the annotation.
Bars: (b) costs at most 0.8 of (a); F1 of at least 0.98.
"""

import argparse
import pickle
import resource
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from histoscribe.preprocess import weights
from histoscribe.preprocess.features import pool_nuclei
from histoscribe.preprocess.segmenters.instanseg import (
    MPP,
    NAME,
    InstanSegSegmenter,
    load_instanseg,
    scale,
)
from histoscribe.preprocess.segmenters.segmenter import Calibration

TILE_PX, OVERLAP_PX = 512, 64
STEP_PX = TILE_PX - OVERLAP_PX
HER2ST_MPP = 0.690
NUCLS_MPP = 0.2
COARSE = 16  # tissue is looked for at 1 / 16
BAR_RATIO, BAR_F1 = 0.8, 0.98


class PlainUnpickler(pickle.Unpickler):
    """Reads the dictionaries of arrays that `nucls` comes as, and nothing that could run."""

    allowed = ("_reconstruct", "ndarray", "dtype")

    def find_class(self, module: str, name: str) -> object:
        """Let arrays through."""
        if module.split(".")[0] == "numpy" and name in self.allowed:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no plain array")


def read_instances(path: Path) -> np.ndarray:
    """The instance map of a `nucls` label file."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        return PlainUnpickler(file).load().item()["inst_map"].astype(np.int32)


def resample(image: Image.Image, mpp: float) -> Image.Image:
    size = tuple(round(side * mpp / MPP) for side in image.size)
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=None)


def read_tiles(data: Path, n_columns: int, n_rows: int) -> tuple[np.ndarray, float]:
    """A block of overlapping tiles where C2 has most tissue, and its tissue in mm²."""
    Image.MAX_IMAGE_PIXELS = None
    image = Image.open(next((data / "her2st/ST-imgs/C/C2").glob("*.jpg"))).convert("RGB")
    coarse = np.asarray(image.reduce(COARSE)).astype(np.int16)
    is_tissue = (coarse.max(axis=2) - coarse.min(axis=2)) > 40  # grey levels; glass has under 15
    block_px = np.array([n_rows, n_columns]) * STEP_PX + OVERLAP_PX
    block_coarse = np.rint(block_px * MPP / HER2ST_MPP / COARSE).astype(int)
    share = ndimage.uniform_filter(is_tissue.astype(float), block_coarse, mode="constant")
    y, x = np.unravel_index(share.argmax(), share.shape)
    top_left = (np.array([x, y]) - block_coarse[::-1] / 2) * COARSE
    corner = top_left + block_px[::-1] * MPP / HER2ST_MPP
    box = tuple(np.rint([*top_left, *corner]).astype(int))
    block = image.crop(box).resize(tuple(map(int, block_px[::-1])), Image.Resampling.BILINEAR)
    pixels = np.asarray(block)
    tiles = [
        pixels[r * STEP_PX : r * STEP_PX + TILE_PX, c * STEP_PX : c * STEP_PX + TILE_PX]
        for r in range(n_rows)
        for c in range(n_columns)
    ]
    area_mm2 = n_rows * n_columns * (STEP_PX * MPP / 1000) ** 2 * share.max()
    return np.stack(tiles), float(area_mm2)


class Published:
    """The TorchScript module as it comes, and a dense pass of its encoder."""

    def __init__(self) -> None:
        file = weights.verify(NAME).parent / "instanseg.pt"
        self.module = torch.jit.load(file, map_location="cpu").eval()
        self.stages = list(self.module.fcn.encoder.children())

    @torch.inference_mode()
    def segment(self, image: np.ndarray, calibration: Calibration) -> np.ndarray:
        """Labels of one tile."""
        scaled = scale(image[None], calibration, torch.device("cpu")).contiguous()
        return self.module(scaled)[0, 0].numpy().astype(np.int32)

    @torch.inference_mode()
    def encode(self, image: np.ndarray, calibration: Calibration) -> None:
        """All stages of the encoder over one tile."""
        x = scale(image[None], calibration, torch.device("cpu")).contiguous()
        for stage in self.stages:
            x = stage(x)


def count_matches(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Pairs with IoU above 0.5 (so each in one pair only), and the number of nuclei of each."""
    a, b = (np.unique(labels, return_inverse=True)[1].ravel() for labels in (ours, theirs))
    has_none = [bool((labels == 0).any()) for labels in (ours, theirs)]
    a, b = a + (not has_none[0]), b + (not has_none[1])
    shared = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(shared, (a, b), 1)
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    matched = (shared[1:, 1:] > 0.5 * union[1:, 1:]).sum()
    return np.array([matched, a.max(), b.max()])


def f1(counts: np.ndarray) -> float:
    matched, n_ours, n_theirs = counts
    return 2 * matched / max(n_ours + n_theirs, 1)


def compare_on_nucls(data: Path, ours: InstanSegSegmenter, published: Published) -> list[float]:
    """F1 of ours against the module, of ours and of the module against the annotation."""
    counts = np.zeros((3, 3), int)
    for path in sorted((data / "nucls/segmentation").glob("*/images/*.png")):
        image = np.asarray(resample(Image.open(path).convert("RGB"), NUCLS_MPP))
        truth = read_instances(path.parents[1] / "labels" / f"{path.stem}.npy")
        truth = np.asarray(Image.fromarray(truth).resize(image.shape[1::-1], Image.NEAREST))
        calibration = ours.calibrate(image.reshape(-1, 3))
        found = ours.segment(image[None], calibration)[0].labels
        wanted = published.segment(image, calibration)
        counts += [
            count_matches(found, wanted),
            count_matches(found, truth),
            count_matches(wanted, truth),
        ]
    return [f1(row) for row in counts]


def time_rounds(
    tiles: np.ndarray, ours: InstanSegSegmenter, published: Published, n_rounds: int
) -> tuple[dict[str, float], np.ndarray, int]:
    """Median seconds of each part over all tiles; the matches; the number of nuclei."""
    calibration = ours.calibrate(tiles.reshape(-1, 3))
    steps = {"module": [], "encoder": [], "ours": [], "pooling": []}
    for warm_up in range(2):  # TorchScript optimises itself in its first calls
        published.segment(tiles[warm_up % len(tiles)], calibration)
    published.encode(tiles[0], calibration)
    ours.segment(tiles[:1], calibration)
    matches = np.zeros(3, int)
    for number in range(n_rounds):
        spent = dict.fromkeys(steps, 0.0)
        for tile in tiles:
            start = time.perf_counter()
            wanted = published.segment(tile, calibration)
            spent["module"] += time.perf_counter() - start
            start = time.perf_counter()
            published.encode(tile, calibration)
            spent["encoder"] += time.perf_counter() - start
            start = time.perf_counter()
            (found,) = ours.segment(tile[None], calibration)
            spent["ours"] += time.perf_counter() - start
            start = time.perf_counter()
            pool_nuclei(found.maps, found.labels)
            spent["pooling"] += time.perf_counter() - start
            if not number:
                matches += count_matches(found.labels, wanted)
        for name, seconds in spent.items():
            steps[name].append(seconds)
    totals = {name: median(seconds) for name, seconds in steps.items()}
    theirs = np.add(steps["module"], steps["encoder"])
    mine = np.add(steps["ours"], steps["pooling"])
    return totals | {"a": median(theirs), "b": median(mine)}, matches, int(matches[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="Sparse CSR")  # from inside the module
    torch.set_num_threads(options.threads)
    ours, published = load_instanseg(device="cpu"), Published()
    tiles, area_mm2 = read_tiles(options.data_dir, options.columns, options.rows)
    spent, matches, n_nuclei = time_rounds(tiles, ours, published, options.rounds)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    agree, ours_true, module_true = compare_on_nucls(options.data_dir, ours, published)

    print(
        f"her2st C2: {len(tiles)} tiles of {TILE_PX} px, overlap {OVERLAP_PX} px, "
        f"{area_mm2:.3f} mm² of tissue, {options.threads} threads, medians of {options.rounds}"
    )
    print(f"{'':44}{'s/mm²':>8}{'s/tile':>8}")
    rows = {
        "(a) module + one dense pass of its encoder": "a",
        "      module": "module",
        "      encoder": "encoder",
        "(b) ours: nuclei + their features": "b",
        "      network + post-processing": "ours",
        "      pooling": "pooling",
    }
    for text, name in rows.items():
        print(f"{text:44}{spent[name] / area_mm2:8.2f}{spent[name] / len(tiles):8.2f}")
    ratio = spent["b"] / spent["a"]
    print(f"cells per second: {n_nuclei / spent['b']:.0f}; peak memory (both): {peak_gb:.2f} GB")
    print(f"ratio b/a: {ratio:.3f} (bar {BAR_RATIO}): {'met' if ratio <= BAR_RATIO else 'MISSED'}")
    for place, value in {"C2 tiles": f1(matches), "nucls": agree}.items():
        verdict = "met" if value >= BAR_F1 else "MISSED"
        print(f"F1 ours against the module, {place}: {value:.4f} (bar {BAR_F1}): {verdict}")
    print(f"F1 against the annotation of nucls: ours {ours_true:.4f}, module {module_true:.4f}")


if __name__ == "__main__":
    main()
