import numpy as np
import pytest

from histoscribe.errors import DataError
from histoscribe.preprocess import quality
from histoscribe.preprocess.quality import CropTally, check_features, check_nuclei


def crops(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 7, 5, 3), dtype=np.uint8)


def tally_of(*batches: np.ndarray) -> CropTally:
    tally = CropTally()
    for batch in batches:
        tally.add(batch)
    return tally


def test_sound_crops_pass() -> None:
    tally_of(crops(301), crops(0), crops(203, seed=1)).check("crops")
    CropTally().check("crops")


@pytest.mark.parametrize("value", [0, 255])
def test_black_or_white_crops_are_refused(value: int) -> None:
    images = crops(301)
    images[:4] = value  # 1.3 %
    with pytest.raises(DataError, match=r"4 of 301 .* constant"):
        tally_of(images).check("crops")


def test_up_to_one_in_a_hundred_may_be_constant() -> None:
    images = crops(301)
    images[:3] = 0
    tally_of(images).check("crops")


def test_crops_that_repeat_over_fields_are_refused() -> None:
    with pytest.raises(DataError, match="the same as another"):
        tally_of(crops(50), crops(50)).check("crops")


def test_features_that_repeat_or_are_constant_are_refused() -> None:
    features = np.random.default_rng(0).normal(size=(203, 11)).astype(np.float16)
    check_features(features, "features")
    repeated = features.copy()
    repeated[5:9] = features[0]
    with pytest.raises(DataError, match="the same as another"):
        check_features(repeated, "features")
    constant = features.copy()
    constant[:3] = np.arange(3)[:, None]
    with pytest.raises(DataError, match="constant"):
        check_features(constant, "features")
    constant[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        check_features(constant, "features")


def test_plausible_nuclei_pass() -> None:
    check_nuclei("s", np.full(4000, 35, np.float32), 1.3, 0.5)


@pytest.mark.parametrize("factor", [0.01, 0.1, 10, 100])
def test_nuclei_at_a_wrong_mpp_are_refused(factor: float) -> None:
    area = np.full(4000, 35 * factor**2, np.float32)
    with pytest.raises(DataError, match="--mpp"):
        check_nuclei("s", area, 1.3 * factor**2, 0.5 * factor)


def test_no_nuclei_and_impossible_densities_are_refused() -> None:
    with pytest.raises(DataError, match="no nuclei"):
        check_nuclei("s", np.zeros(0, np.float32), 1.0, 0.5)
    with pytest.raises(DataError, match="per mm²"):
        check_nuclei("s", np.full(40, 35, np.float32), 1.0, 0.5)
    with pytest.raises(DataError, match="per mm²"):
        check_nuclei("s", np.full(40_000, 35, np.float32), 1.0, 0.5)


def test_little_tissue_is_said_to_be_unchecked(caplog: pytest.LogCaptureFixture) -> None:
    check_nuclei("s", np.full(2, 35, np.float32), 0.02, 0.5)
    assert "not checked" in caplog.text


@pytest.mark.parametrize(("area", "word"), [(4.0, "small"), (300.0, "large")])
def test_a_suspicious_size_names_the_direction(area: float, word: str) -> None:
    with pytest.raises(DataError, match=f"too {word} by a factor"):
        check_nuclei("s", np.full(4000, area, np.float32), 1.3, 0.5)


@pytest.mark.parametrize(("n", "mm2"), [(12, 0.0741), (11, 0.0198)])
def test_what_a_network_finds_at_a_tenth_of_the_mpp_is_refused(n: int, mm2: float) -> None:
    """As InstanSeg answered for her2st C2 at 0.069 µm/px: glands of the size of nuclei."""
    with pytest.raises(DataError, match=r"1000 to 25000 are usual at 0\.069"):
        check_nuclei("s", np.full(n, 51, np.float32), mm2, 0.069)
    check_nuclei("s", np.full(80, 51, np.float32), 0.0198, 0.065)  # true nuclei, through a 100x


def test_a_repetition_over_the_seam_of_chunks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "CHUNK", 7)
    features = np.random.default_rng(0).normal(size=(203, 11)).astype(np.float16)
    check_features(features, "features")
    features[-5:] = features[0]
    with pytest.raises(DataError, match="5 of 203"):
        check_features(features, "features")
