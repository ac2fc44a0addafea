import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.optimize import nnls
from scipy.stats import gamma

from histoscribe.data.slide import Slide
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.preprocess.stain import (
    BLOCK_PX,
    REFERENCE,
    REINHARD_REFERENCE,
    NormalisedSlide,
    StainConfig,
    StainFit,
    StainNormaliser,
    fit_stain,
    reference_of,
)
from histoscribe.preprocess.stain_colour import colour_statistics
from histoscribe.preprocess.stain_fit import DENSITY, degrees, find_tissue, separate
from histoscribe.slides.open import open_slide
from histoscribe.types import Box

METHODS = ("vahadane", "macenko", "reinhard")
STAINS = ("vahadane", "macenko")
DARK = 12
Pixels = UInt8[np.ndarray, "pixel 3"]
Image_ = UInt8[np.ndarray, "y x 3"]
Matrix = Float[np.ndarray, "3 2"]
Amounts = Float[np.ndarray, "2 pixel"]
Render = Callable[..., Pixels]


@pytest.fixture
def pixels(planted: Matrix, amounts: Amounts, render: Render) -> Pixels:
    return render(planted, amounts, noise=2.0)


def miss(one: UInt8[np.ndarray, "*n"], other: UInt8[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Grey levels between two images."""
    return np.abs(one.astype(np.float64) - other)


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_white_stays_white_and_every_colour_has_an_answer(method: str, pixels: Pixels) -> None:
    normaliser = StainNormaliser(fit_stain(pixels, StainConfig(method)))
    white = np.full((7, 5, 3), 255, np.uint8)
    assert (normaliser.apply(white) == 255).all()
    axis = np.arange(0, 256, 5, dtype=np.uint8)
    gamut = np.stack(np.meshgrid(axis, axis, axis), axis=-1)
    with np.errstate(all="raise", under="ignore"):
        assert normaliser.apply(gamut).shape == gamut.shape
    black = normaliser.apply(np.zeros((1, 1, 3), np.uint8))
    assert black.max() < 60  # still dark, in the dyes' colour
    assert normaliser.apply(gamut[:0]).shape == (0, 52, 52, 3)


@pytest.mark.parametrize("method", STAINS)
def test_two_stain_pixels_stay_themselves(method: str, pixels: Pixels, render: Render) -> None:
    fit = fit_stain(pixels, StainConfig(method))
    for own in (fit, REFERENCE):
        steps = [np.linspace(0, 1.2 * top, 173) for top in own.p99]
        mixtures = render(np.array(own.matrix), np.stack(np.meshgrid(*steps)).reshape(2, -1))
        off = miss(StainNormaliser(own, own).apply(mixtures), mixtures).max(axis=1)
        assert off[mixtures.min(axis=1) >= DARK].max() <= 1
        assert off.max() <= 4  # where a whole grey level is a tenth of a density and more


@pytest.mark.parametrize("method", METHODS)
def test_a_real_slide_brought_to_itself_loses_little(method: str, real_image: Image_) -> None:
    fit = fit_stain(real_image.reshape(-1, 3), StainConfig(method))
    once = StainNormaliser(fit, fit).apply(real_image)
    lost = miss(once, real_image)
    if method == "reinhard":
        assert lost.max() == 0
        return
    assert lost.mean() < 3.5  # what two stains do not explain: noise, pigment, JPEG
    assert np.percentile(lost, 99) < 20
    assert miss(StainNormaliser(fit, fit).apply(once), once).max() <= 4  # lost once, not again
    assert abs(once.astype(float).mean() - real_image.mean()) < 1.5  # not lighter, not darker


@pytest.mark.parametrize("method", METHODS)
def test_a_normalised_slide_fits_the_reference(method: str, real_image: Image_) -> None:
    config, reference = StainConfig(method), reference_of(method)
    fit = fit_stain(real_image.reshape(-1, 3), config)
    after = fit_stain(StainNormaliser(fit).apply(real_image).reshape(-1, 3), config)
    if method == "reinhard":
        np.testing.assert_allclose(after.mean, reference.mean, atol=0.05)
        np.testing.assert_allclose(after.deviation, reference.deviation, rtol=0.35)
        return
    least = {"macenko": 2.5, "vahadane": 6.0}[method]  # the penalty draws the vectors together
    for j in range(2):
        turn = degrees(np.array(after.matrix)[:, j], np.array(reference.matrix)[:, j])
        before = degrees(np.array(fit.matrix)[:, j], np.array(reference.matrix)[:, j])
        assert turn < min(least, before + 0.5)
    np.testing.assert_allclose(after.p99, reference.p99, rtol=0.25)


RENDERINGS = {  # stain vectors and maximum concentrations of two laboratories
    "blue": (((0.72, 0.20), (0.62, 0.90), (0.30, 0.39)), (2.5, 1.1)),
    "red": (((0.50, 0.12), (0.77, 0.77), (0.40, 0.63)), (1.5, 1.4)),
}


@pytest.mark.parametrize("method", METHODS)
def test_two_stainings_of_one_tissue_come_together(
    method: str, real_image: Image_, render: Render
) -> None:
    found = fit_stain(real_image.reshape(-1, 3), StainConfig("macenko"))
    amounts = separate(DENSITY[real_image.reshape(-1, 3).T], np.array(found.matrix))
    drawn, normalised = [], []
    for vectors, top in RENDERINGS.values():
        matrix = np.array(vectors) / np.linalg.norm(np.array(vectors), axis=0)
        stained = render(matrix, amounts * (np.array(top) / found.p99)[:, None], noise=1.0)
        drawn.append(stained)
        fit = fit_stain(stained, StainConfig(method))
        normalised.append(StainNormaliser(fit).apply(stained))
    before, after = miss(*drawn).mean(), miss(*normalised).mean()
    assert before > 15
    assert after < before * (0.5 if method == "reinhard" else 0.4)


@pytest.mark.parametrize("method", METHODS)
def test_glass_stays_glass_and_nothing_turns_black(method: str, real_image: Image_) -> None:
    fit = fit_stain(real_image.reshape(-1, 3), StainConfig(method))
    glass = np.random.default_rng(1).integers(236, 246, (301, 3)).astype(np.uint8)
    assert miss(StainNormaliser(fit).apply(glass), glass).max() < 25
    after = StainNormaliser(fit).apply(real_image)
    is_black, was_black = after.max(axis=2) < 10, real_image.max(axis=2) < 10
    assert is_black.mean() <= was_black.mean() + 1e-3
    assert (after == 255).all(axis=2).mean() < (real_image > 225).all(axis=2).mean() + 0.03


@pytest.mark.parametrize("method", METHODS)
def test_how_an_image_is_cut_is_no_matter(method: str, pixels: Pixels) -> None:
    image = np.resize(pixels, (331, 211, 3))
    assert image.size // 3 > 2 * BLOCK_PX
    normaliser = StainNormaliser(fit_stain(pixels, StainConfig(method)))
    whole = normaliser.apply(image)
    for rows, columns in ((1, 211), (37, 53), (331, 7)):
        for top in range(0, 331, rows):
            for left in range(0, 211, columns):
                tile = (slice(top, top + rows), slice(left, left + columns))
                assert (normaliser.apply(image[tile]) == whole[tile]).all()
    assert (normaliser.apply(image[::-1, ::2]) == whole[::-1, ::2]).all()


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_a_normalised_slide_reads_normalised_pixels(
    method: str, tmp_path: Path, pixels: Pixels
) -> None:
    Image.fromarray(np.resize(pixels, (151, 203, 3))).save(tmp_path / "A1.png")
    slide = open_slide(tmp_path / "A1.png", mpp=0.5)
    normaliser = StainNormaliser(fit_stain(pixels, StainConfig(method)))
    normalised = NormalisedSlide(slide, normaliser)
    assert isinstance(normalised, Slide)
    names = ("slide_id", "path", "size_px", "mpp", "notes", "level_mpp")
    assert all(getattr(normalised, name) == getattr(slide, name) for name in names)
    assert not hasattr(normalised, "colour_of_the_sea")
    sent = pickle.loads(pickle.dumps(normalised))
    for box, mpp in ((Box(10.0, 5.0, 31.0, 22.0), 0.5), (Box(-4.0, 60.0, 50.0, 40.0), 1.3)):
        wanted = normaliser.apply(slide.read(box, mpp))
        assert (normalised.read(box, mpp) == wanted).all()
        assert (sent.read(box, mpp) == wanted).all()


def test_none_changes_nothing_and_shares_nothing(pixels: Pixels) -> None:
    fit = fit_stain(pixels[:0], StainConfig())
    assert fit == StainFit("none")
    same = StainNormaliser(fit).apply(pixels)
    assert (same == pixels).all()
    assert not np.shares_memory(same, pixels)


@pytest.mark.parametrize("method", ["none", *METHODS])
def test_a_fit_survives_json(method: str, pixels: Pixels) -> None:
    fit = fit_stain(pixels, StainConfig(method))
    assert StainFit.from_record(json.loads(json.dumps(fit.to_record()))) == fit


@pytest.mark.parametrize(
    "change",
    [
        {"method": "ruifrok"},
        {"p99": [1.0]},
        {"p99": [1.0, float("nan")]},
        {"p99": [1.0, 0.0]},
        {"p99": None},
        {"matrix": [[0.6, 0.6], [0.6, 0.6], [0.5291503, 0.5291503]]},
        {"matrix": [[0.9, 0.9], [0.6, 0.6], [0.5, 0.5]]},
        {"matrix": [[0.6, 0.8], [0.8, 0.6]]},
        {"mean": [0.1, 0.2, 0.3]},
    ],
)
def test_a_broken_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match="not a stain fit"):
        StainFit.from_record(REFERENCE.to_record() | change)
    with pytest.raises(DataError, match="not a stain fit"):
        StainFit.from_record({"method": "macenko"})


def test_the_draw_follows_the_seed_and_its_size_matters_little(pixels: Pixels) -> None:
    def drawn(n_pixels: int, seed: int) -> StainFit:
        return fit_stain(pixels, StainConfig("vahadane", n_pixels, seed))

    assert drawn(9_001, 1) == drawn(9_001, 1)
    assert drawn(9_001, 1) != drawn(9_001, 2)
    few, all_ = np.array(drawn(9_001, 1).matrix), np.array(drawn(200_000, 1).matrix)
    assert max(degrees(few[:, j], all_[:, j]) for j in range(2)) < 1.0


def test_how_much_stain_there_is_does_not_hang_on_glass(pixels: Pixels) -> None:
    glass = np.random.default_rng(1).integers(236, 246, (len(pixels), 3)).astype(np.uint8)
    for method in METHODS:
        config = StainConfig(method)
        with_glass = fit_stain(np.concatenate([pixels, glass]), config)
        assert with_glass == fit_stain(pixels, config)


@pytest.mark.parametrize("method", STAINS)
def test_the_amounts_are_plain_non_negative_least_squares(method: str, pixels: Pixels) -> None:
    few = pixels[:3_001]
    fit = fit_stain(few, StainConfig(method))
    density = DENSITY[few].astype(np.float64)
    amounts = [nnls(np.array(fit.matrix), one)[0] for one in density[density.max(axis=1) > 0.15]]
    np.testing.assert_allclose(fit.p99, np.percentile(amounts, 99, axis=0), rtol=1e-4)


@pytest.mark.parametrize("method", STAINS)
def test_a_pale_slide_is_found_as_pale_as_it_is(
    method: str, planted: Matrix, amounts: Amounts, render: Render
) -> None:
    dark, pale = (
        fit_stain(render(planted, part * amounts, noise=1.0), StainConfig(method))
        for part in (1.0, 0.4)
    )
    np.testing.assert_allclose(np.array(pale.p99) / dark.p99, 0.4, rtol=0.2)


def test_wrong_settings_and_wrong_pairs_are_refused(pixels: Pixels) -> None:
    with pytest.raises(ConfigError, match="no stain method is called 'ruifrok'"):
        StainConfig("ruifrok")
    with pytest.raises(ConfigError, match=r"stain.n_pixels = 10; give 1000"):
        StainConfig(n_pixels=10)
    with pytest.raises(ConfigError, match=r"stain.seed = -1"):
        StainConfig(seed=-1)
    with pytest.raises(MismatchError, match="fit both with one method"):
        StainNormaliser(fit_stain(pixels, StainConfig("reinhard")), REFERENCE)
    with pytest.raises(MismatchError, match="'none'"):
        StainNormaliser(StainFit("none"), REFERENCE)


def test_another_slide_can_be_the_reference(pixels: Pixels, render: Render) -> None:
    other = fit_stain(
        render(np.array(REFERENCE.matrix), np.random.default_rng(0).gamma(1.5, 0.5, (2, 30_011))),
        StainConfig("macenko"),
    )
    brought = StainNormaliser(fit_stain(pixels, StainConfig("macenko")), other).apply(pixels)
    after = fit_stain(brought, StainConfig("macenko"))
    np.testing.assert_allclose(after.matrix, other.matrix, atol=0.03)
    np.testing.assert_allclose(after.p99, other.p99, rtol=0.05)


def test_the_reference_of_reinhard_is_the_published_one_as_a_picture(render: Render) -> None:
    share = (np.arange(200) + 0.5) / 200
    amounts = [
        gamma(shape).ppf(share) * top / gamma(shape).ppf(0.99)
        for shape, top in zip((1.4, 5.0), REFERENCE.p99, strict=True)
    ]
    picture = render(np.array(REFERENCE.matrix), np.stack(np.meshgrid(*amounts)).reshape(2, -1))
    found = colour_statistics(picture[find_tissue(picture).is_stained])
    np.testing.assert_allclose(found.mean, REINHARD_REFERENCE.mean, atol=6e-5)
    np.testing.assert_allclose(found.deviation, REINHARD_REFERENCE.deviation, atol=6e-5)
