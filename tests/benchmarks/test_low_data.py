"""The low-data curve: what is cut is gone, and nothing else is."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from histoscribe.data.toy_words import KINDS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from low_data import (
    KIND_NAMES,
    N_TRAIN,
    SHARES,
    Arm,
    all_arms,
    data_of,
    name_images,
    pairs_of,
    spread,
    world_of,
)


def test_arms_cut_only_what_is_there():
    arms = list(all_arms(["anchor", "softmax"], 3))
    assert len(arms) == len({arm.name for arm in arms}) == 2 * 3 * (1 + 6 + 1 + 9)
    assert not [arm for arm in arms if arm.cut == "image-text" and not arm.has_image_text]


@pytest.mark.parametrize("cut", KIND_NAMES)
def test_one_kind_is_cut_and_the_others_stay_whole(cut):
    world = world_of(0)
    whole = {p.kind: len(p) for p in pairs_of(world, Arm("anchor", "", 1.0, True, 0))}
    for share in SHARES:
        left = {p.kind: len(p) for p in pairs_of(world, Arm("anchor", cut, share, True, 0))}
        assert left.pop(cut) == -(-whole[cut] * share // 1) >= 2
        assert left.items() < whole.items()


def test_expression_whose_pair_was_cut_away_changes_nothing():
    world, arm = world_of(0), Arm("anchor", "image-gene", 1 / 64, False, 0)
    data, rows = data_of(world, arm)
    gone = np.setdiff1d(np.arange(N_TRAIN), rows)
    counts = world.of_images.expression.toarray()
    counts[gone] = np.random.default_rng(0).integers(1000, size=counts[gone].shape)
    images = replace(world.of_images, expression=csr_array(counts.astype(np.float32)))
    other, _ = data_of(replace(world, of_images=images), arm)
    assert len(rows) == N_TRAIN // 64
    assert np.array_equal(data.genes.read(rows).z, other.genes.read(rows).z)
    assert not np.array_equal(data.genes.read(gone).z, other.genes.read(gone).z)


def test_an_image_is_called_what_most_of_it_is():
    world = world_of(0)
    for name, share in zip(name_images(world), world.share, strict=True):
        best = [kind for kind, one in zip(KINDS, share, strict=True) if one == share.max()]
        assert name == (best[0] if len(best) == 1 else "")


def test_the_interval_is_that_of_students_t():
    assert spread([0.6, 0.7, 0.8]) == "0.700 ± 0.248"  # 4.303 x 0.1 / sqrt(3)
    assert spread([0.5]) == "0.500"
