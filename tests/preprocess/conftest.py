"""Planted and real stains."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float, UInt8

from histoscribe.slides.open import open_slide
from histoscribe.types import Box

PLANTED = np.array([[0.65, 0.15], [0.68, 0.90], [0.34, 0.41]])

REAL = {  # file, µm/px, and where its tissue is
    "her2st": ("ST-imgs/C/C3/*.jpg", 0.69, (3600, 4300)),
    "nucls": ("segmentation/train/images/train_6.png", 0.2, (0, 0)),
    "tcga_pairs": ("tiles/TCGA-AY-A8YK-*.tif", 0.25, (100, 60)),
}


@pytest.fixture
def planted() -> Float[np.ndarray, "3 2"]:
    """Haematoxylin and eosin of a slide that never was, 36 degrees apart."""
    return PLANTED / np.linalg.norm(PLANTED, axis=0)


@pytest.fixture
def amounts() -> Float[np.ndarray, "2 pixel"]:
    """Concentrations of tissue: nuclei here and there, eosin nearly everywhere."""
    generator = np.random.default_rng(11)
    haematoxylin = generator.gamma(1.4, 0.45, 40_013) * (generator.random(40_013) < 0.8)
    return np.stack([haematoxylin, generator.gamma(3.0, 0.25, 40_013)])


@pytest.fixture(scope="session")
def render() -> Callable[..., UInt8[np.ndarray, "pixel 3"]]:
    """Pixels of concentrations: `render(matrix, amounts, noise=0.0)`, noise in grey levels."""

    def draw(
        matrix: Float[np.ndarray, "3 2"], amounts: Float[np.ndarray, "2 pixel"], noise: float = 0.0
    ) -> UInt8[np.ndarray, "pixel 3"]:
        grey = 256 * np.exp(-matrix @ amounts) - 1
        grey += noise * np.random.default_rng(5).normal(size=grey.shape)
        return np.rint(grey).clip(0, 255).astype(np.uint8).T

    return draw


@pytest.fixture(scope="session", params=list(REAL))
def real_image(request: pytest.FixtureRequest, data_dir: Path) -> UInt8[np.ndarray, "y x 3"]:
    """A piece of tissue of each set, 256 px wide or more."""
    name, mpp, (x, y) = REAL[request.param]
    path = next((data_dir / request.param).glob(name), None)
    if path is None:
        pytest.skip(f"no {request.param}/{name} in {data_dir}; set HISTOSCRIBE_DATA")
    slide = open_slide(path, mpp=mpp, slide_id=request.param)
    width, height = min(slide.size_px[0] - x, 703), min(slide.size_px[1] - y, 601)
    return slide.read(Box(x * mpp, y * mpp, width * mpp, height * mpp), mpp)
