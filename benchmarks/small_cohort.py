"""Six small slides of real tissue, for the benchmarks of cohorts: made, ingested, prepared, hashed.

With the folder of her2st: the densest squares of its sections, one each, then second ones. Without:
six tiles of the embedded demonstration slide.
"""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from histoscribe.data.store import hash_file
from histoscribe.demo_data.folder import demo_folder

N_SLIDES = 6
HER2ST_MPP = 0.690
DEMO_MPP = 0.7252
COARSE = 16  # tissue is looked for at 1 / 16
COLOURED = 40  # grey levels between channels; glass has under 15


def make_study(folder: Path, data: Path | None, side_px: int) -> Path:
    """Write six slides and a manifest, and ingest them; the study's folder."""
    slides = folder / "slides"
    slides.mkdir(parents=True, exist_ok=True)
    images, mpp = (demo_tiles(), DEMO_MPP) if data is None else (squares(data, side_px), HER2ST_MPP)
    with (slides / "manifest.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sample", "patient", "slide", "mpp", "expression"])
        for number, image in enumerate(images):
            name = f"slide{number}"
            image.save(slides / f"{name}.png")
            writer.writerow([name, name, f"{name}.png", mpp, ""])
    study = folder / "ingested"
    run("ingest", slides / "manifest.csv", study)
    return study


def demo_tiles() -> list[Image.Image]:
    """Two columns and three rows of the embedded slide."""
    image = Image.open(demo_folder() / "visium_crop.jpg").convert("RGB")
    wide, high = image.size[0] // 2, image.size[1] // 3
    corners = [(x * wide, y * high) for y in range(3) for x in range(2)]
    return [image.crop((x, y, x + wide, y + high)) for x, y in corners]


def squares(data: Path, side_px: int) -> list[Image.Image]:
    """The squares with most tissue: the best of each section, then the next best beside it."""
    Image.MAX_IMAGE_PIXELS = None
    paths = sorted(data.glob("ST-imgs/*/*/*.jpg"))
    if not paths:
        raise SystemExit(f"{data}: no images as ST-imgs/<patient>/<section>/*.jpg are there")
    found: list[Image.Image] = []
    for turn in range(N_SLIDES):
        for path in paths:
            if len(found) < N_SLIDES:
                found.append(best_square(path, side_px, turn))
    return found


def best_square(path: Path, side_px: int, turn: int) -> Image.Image:
    """The square with most tissue, after `turn` better ones that it does not touch."""
    image = Image.open(path).convert("RGB")
    coarse = np.asarray(image.reduce(COARSE)).astype(np.int16)
    is_tissue = coarse.max(axis=2) - coarse.min(axis=2) > COLOURED
    side = side_px // COARSE
    share = ndimage.uniform_filter(is_tissue.astype(float), side, mode="constant")
    for _ in range(turn):
        y, x = np.unravel_index(share.argmax(), share.shape)
        share[max(0, y - side) : y + side, max(0, x - side) : x + side] = -1
    y, x = np.unravel_index(share.argmax(), share.shape)
    left, top = int((x - side / 2) * COARSE), int((y - side / 2) * COARSE)
    return image.crop((left, top, left + side_px, top + side_px))


def start(*words: object, one_thread: bool = True) -> subprocess.Popen[str]:
    """A command of histoscribe, in a process group of its own."""
    environment = dict(os.environ)
    if one_thread:
        environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        [sys.executable, "-m", "histoscribe.app.cli", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def run(*words: object) -> None:
    """The same, to its end; what it said is shown if it fails."""
    process = start(*words)
    try:
        said = process.communicate()[1]
    except BaseException:
        end_group(process)
        raise
    if process.returncode:
        raise SystemExit(f"histoscribe {words[0]} failed with {process.returncode}: {said}")


def end_group(process: subprocess.Popen[str]) -> None:
    """End a command and all its processes at once, as `kill -9` does."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def hash_stores(study: Path) -> dict[str, str]:
    """SHA-256 of every file of every sample; of the locks only that they are there."""
    home = study / "samples"
    return {
        path.relative_to(home).as_posix(): hash_file(path)
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
