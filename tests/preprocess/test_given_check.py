from dataclasses import replace

import numpy as np
import pytest
from skimage import draw

from histoscribe.data.cells import Outlines
from histoscribe.data.nuclei import GivenNuclei
from histoscribe.data.provenance import Provenance
from histoscribe.data.toy import ToySlide
from histoscribe.errors import MismatchError
from histoscribe.preprocess.given_check import check_given, share_darkest

MPP = 0.5
SIZE_PX = (1201, 1003)


def planted(seed: int) -> tuple[ToySlide, np.ndarray, np.ndarray]:
    """A pink slide with nuclei scattered at random, some touching; their places and radii."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(6, np.array(SIZE_PX) * MPP - 6, (1500, 2))
    radius = rng.uniform(2.5, 4.5, len(xy))
    pixels = np.empty((SIZE_PX[1], SIZE_PX[0], 3))
    pixels[:] = (224, 174, 200)
    for (x, y), one in zip(xy, radius, strict=True):
        at = draw.disk((y / MPP - 0.5, x / MPP - 0.5), one / MPP, shape=pixels.shape[:2])
        pixels[at] = (110, 70, 150)
    pixels += rng.normal(0, 20, pixels.shape)
    return ToySlide("S1", pixels.clip(0, 255).astype(np.uint8)), xy, radius


SLIDE, XY, RADIUS = planted(0)


def given(change=lambda xy: xy, rows=slice(None), factor=1.0) -> GivenNuclei:
    angle = np.arange(12) * np.pi / 6
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    xy, radius = XY[rows], RADIUS[rows]
    vertices = (xy[:, None] + ring * radius[:, None, None]).reshape(-1, 2)
    start = np.arange(len(xy) + 1, dtype=np.int64) * 12
    return GivenNuclei(
        slide_id="S1",
        outlines=Outlines(np.ascontiguousarray(change(vertices), dtype=np.float32), start),
        xy_um=np.ascontiguousarray(change(xy), dtype=np.float32),
        area_um2=(factor * np.pi * radius**2).astype(np.float32),
        source="test",
        provenance=Provenance("test"),
    )


def test_nuclei_on_their_slide_pass():
    check_given(SLIDE, given())
    share, n_places = share_darkest(SLIDE, given().outlines, given().xy_um, 1)
    assert share == 1
    assert n_places == 64


def test_nuclei_a_little_beside_themselves_pass():
    """An alignment of two images is seldom better."""
    check_given(SLIDE, given(lambda xy: xy + 1.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda xy: xy[:, ::-1], "x and y look swapped"),
        (lambda xy: xy / 2, "twice the scale would fit"),
        (lambda xy: xy * 2, "half the scale would fit"),
        (lambda xy: xy + np.array([23, 31]), "of another slide, or its scale"),
        (lambda xy: xy * 0.95, "of another slide, or its scale"),
    ],
)
def test_nuclei_that_lie_elsewhere_are_refused_with_the_likely_reason(change, message):
    with pytest.raises(MismatchError, match=f"% only, at least 60 % are wanted; .*{message}"):
        check_given(SLIDE, given(change))


def test_nuclei_of_another_slide_and_of_a_blank_one_are_refused():
    with pytest.raises(MismatchError, match="of another slide"):
        check_given(planted(1)[0], given())
    blank = replace(SLIDE, pixels=np.full_like(SLIDE.pixels, 250))
    with pytest.raises(MismatchError, match="at 0 % only"):
        check_given(blank, given())


@pytest.mark.parametrize("factor", [0.1, 9.0])
def test_nuclei_of_no_nucleus_size_are_refused(factor):
    with pytest.raises(MismatchError, match=r"the median given nucleus measures .* of nuclei"):
        check_given(SLIDE, given(factor=factor))


def test_too_few_places_are_said_not_to_be_checked(caplog):
    check_given(SLIDE, given(rows=slice(3, 10)))
    assert "is not checked: only 7 places" in caplog.text
