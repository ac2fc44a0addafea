"""Budgets are spent in full and never overdrawn; the least still works."""

import pytest

from histoscribe.errors import ConfigError
from histoscribe.preprocess.line.budget import GB, Budget, Load, bytes_needed

LOAD = Load(field_px=512, owned_mm2=0.05, n_features=960, has_network=True, on_gpu=False)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("has_network", [False, True])
@pytest.mark.parametrize("memory_gb", [4.0, 7.0, 33.0])
@pytest.mark.parametrize("field_px", [256, 512])
def test_fields_in_hand_fit_the_memory(
    memory_gb: float, field_px: int, has_network: bool, on_gpu: bool
) -> None:
    load = LOAD._replace(field_px=field_px, has_network=has_network, on_gpu=on_gpu)
    shares = Budget(memory_gb, 8).share_out(load)
    assert bytes_needed(shares, load) < 0.75 * memory_gb * GB
    assert shares.mapped_bytes < memory_gb * GB / 8
    assert shares.fields_of_part % shares.fields_at_once == 0
    assert min(shares) >= 1


def test_more_memory_gives_more_at_once_and_no_more_threads_than_asked_for() -> None:
    small, large = (Budget(gb, 3).share_out(LOAD) for gb in (3.5, 8.0))
    assert bytes_needed(small, LOAD) < bytes_needed(large, LOAD)
    assert large.n_finders == 3
    assert large.n_readers <= 3
    assert small.fields_of_part <= large.fields_of_part


def test_only_networks_on_a_gpu_are_shown_several_fields_at_once() -> None:
    on_gpu = LOAD._replace(on_gpu=True)
    assert Budget(n_threads=8).share_out(on_gpu)[:3] == (8, 4, 8)
    assert Budget().share_out(on_gpu._replace(field_px=256)).fields_at_once > 8
    assert Budget().share_out(on_gpu._replace(has_network=False)).fields_at_once == 1
    assert Budget().share_out(LOAD).fields_at_once == 1


def test_wide_features_make_small_parts() -> None:
    wide = Budget(1.5).share_out(LOAD._replace(owned_mm2=0.25, n_features=8192))
    assert wide.fields_of_part < Budget().share_out(LOAD).fields_of_part


def test_fields_beyond_all_bounds_go_one_by_one() -> None:
    shares = Budget(1.5).share_out(LOAD._replace(field_px=8192, owned_mm2=16.0))
    assert shares[:6] == (1, 1, 1, 1, 1, 1)


@pytest.mark.parametrize("memory_gb", [0.5, float("nan"), float("inf"), -1.0])
def test_impossible_budgets_are_refused(memory_gb: float) -> None:
    with pytest.raises(ConfigError, match=r"--memory .*1\.5 GB or more"):
        Budget(memory_gb)


def test_no_threads_are_refused() -> None:
    with pytest.raises(ConfigError, match="give 1 or more"):
        Budget(n_threads=0)
