"""A hand-written section: 5 x 4 places of the array on a slide of 0.8 µm/px."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histoscribe.data.toy import ToySlide
from histoscribe.slides.open import open_slide
from histoscribe.slides.pyramid import PyramidSlide

MPP = 0.8
PITCH_PX = 250.0  # 200 µm
GENES = ("ACTB", "ERBB2", "FO538757.1")
PLACES = [(x, y) for y in range(11, 15) for x in range(7, 12)]


@pytest.fixture
def slide(tmp_path: Path) -> PyramidSlide:
    """1601 x 1303 px, all pink."""
    Image.new("RGB", (1601, 1303), (220, 150, 190)).save(tmp_path / "C7.png")
    return open_slide(tmp_path / "C7.png", mpp=MPP, slide_id="C7")


@pytest.fixture
def spot_lines() -> list[str]:
    """The table of spots as text, the last one not under tissue."""
    shift = np.random.default_rng(5).normal(0, 8, (len(PLACES), 2))
    lines = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    for (x, y), (dx, dy) in zip(PLACES, shift, strict=True):
        across, down = 200 + (x - 7) * PITCH_PX + dx, 180 + (y - 11) * PITCH_PX + dy
        chosen = 0 if (x, y) == PLACES[-1] else 1
        lines.append(f"{x}\t{y}\t{x}\t{y}\t{across:.2f}\t{down:.2f}\t{chosen}")
    return lines


@pytest.fixture
def count_lines() -> list[str]:
    """Counts of all places but 9x12, in another order; 7x11 has 97 counts in all."""
    lines = ["\t" + "\t".join(GENES)]
    for n, (x, y) in enumerate(reversed(PLACES)):
        if (x, y) == (9, 12):
            continue
        counts = (90, 7, 0) if (x, y) == (7, 11) else (300 + n, 10 * n, n % 3)
        lines.append(f"{x}x{y}\t" + "\t".join(map(str, counts)))
    return lines


@pytest.fixture
def write_section(
    tmp_path: Path, spot_lines: list[str], count_lines: list[str]
) -> Callable[..., tuple[Path, Path]]:
    """Writes both tables, either of them replaced."""

    def write(spots: list[str] | None = None, counts: list[str] | None = None) -> tuple[Path, Path]:
        spot_path, count_path = tmp_path / "C7_selection.tsv", tmp_path / "C7.tsv.gz"
        spot_path.write_text("\n".join(spots or spot_lines) + "\n")
        with gzip.open(count_path, "wt") as file:
            file.write("\n".join(count_lines if counts is None else counts) + "\n")
        return count_path, spot_path

    return write


@pytest.fixture
def blank_slide() -> ToySlide:
    """4003 x 3001 px of 0.25 µm, all white and no memory."""
    white = np.broadcast_to(np.uint8(255), (3001, 4003, 3))
    return ToySlide("S1", white, (0.25, 0.25))


@pytest.fixture
def contours() -> list[list[list[int]]]:
    """Outlines of 23 nuclei in full-resolution pixels, (x, y), open; no two alike."""
    rng = np.random.default_rng(11)
    angle = np.arange(9) * 2 * np.pi / 9
    found = []
    for number in range(23):
        radius = 13 + number % 5 + rng.uniform(-1.5, 1.5, 9)
        x = 60 + 167 * number + radius * np.cos(angle)
        y = 90 + 119 * ((number * 7) % 23) + radius * np.sin(angle)
        found.append(np.rint(np.stack([x, y], axis=1)).astype(int).tolist())
    return found
