"""Slides written for the tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile


@pytest.fixture
def noise() -> np.ndarray:
    """An image in which every pixel differs from its neighbours."""
    return np.random.default_rng(3).integers(0, 256, (173, 211, 3), dtype=np.uint8)


@pytest.fixture
def smooth() -> np.ndarray:
    """An image that JPEG keeps to within a few grey values."""
    y, x = np.mgrid[:301, :407]
    return np.stack([x * 255 / 407, y * 255 / 301, 128 + 60 * np.sin(x / 40)], axis=2).astype(
        np.uint8
    )


def halved(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    blocks = image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


@pytest.fixture
def write_pyramid(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiled three-level TIFF, its lower levels as SubIFDs or as pages."""

    def write(image: np.ndarray, name: str, *, subifds: bool, **options: object) -> Path:
        path = tmp_path / name
        levels = [image, halved(image), halved(halved(image))]
        with tifffile.TiffWriter(path, ome=name.endswith("ome.tif")) as file:
            common = {"tile": (64, 48), "photometric": "rgb", "compression": "deflate"}
            file.write(levels[0], subifds=2 if subifds else 0, **common, **options)
            for level in levels[1:]:
                file.write(level, subfiletype=1, **common)
        return path

    return write
