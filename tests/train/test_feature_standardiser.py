"""Vectors of another model: each number by platform, from training rows alone."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.data.profiles import Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.errors import DataError, MismatchError
from histoscribe.train.feature_standardiser import FeatureStandardiser, fit_feature_standardiser
from histoscribe.train.gene_standardiser import CLIP, PRIOR_ROWS

N, WIDTH = 61, 5
FEATURES = np.random.default_rng(0).normal(3, 2, (N, WIDTH)).astype(np.float32)
FEATURES[:, 4] = 7  # never varies
PLATFORM = tuple("spots" if row < 37 else "cells" for row in range(N))
TRAINING = np.flatnonzero(np.arange(N) % 5 > 0)


def fitted(features=FEATURES):
    return fit_feature_standardiser("X", features, PLATFORM, TRAINING)


def test_the_numbers_are_those_of_the_equation():
    rows = [TRAINING[TRAINING >= 37], TRAINING[TRAINING < 37]]  # by name: cells, spots
    means = np.stack([FEATURES[some].mean(axis=0) for some in rows]).astype(np.float64)
    variances = np.stack([FEATURES[some].var(axis=0) for some in rows]).astype(np.float64)
    n = np.array([[len(some)] for some in rows])
    mean = (n * means + PRIOR_ROWS * means.mean(axis=0)) / (n + PRIOR_ROWS)
    variance = (n * variances + PRIOR_ROWS * variances.mean(axis=0)) / (n + PRIOR_ROWS)
    made = fitted()
    assert made.platforms == ("cells", "spots")
    np.testing.assert_allclose(made.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(made.deviation[:, :4], np.sqrt(variance)[:, :4], rtol=1e-5)
    assert (made.deviation[:, 4] == 1).all()
    z = made.apply(FEATURES, PLATFORM)
    np.testing.assert_allclose(
        z[40, :4], (FEATURES[40] - mean[0])[:4] / np.sqrt(variance[0, :4]), rtol=1e-4
    )
    far = made.apply(FEATURES + 1e6, PLATFORM)
    assert (far == CLIP).all()


def test_only_training_rows_are_looked_at():
    poisoned = FEATURES.copy()
    poisoned[np.setdiff1d(np.arange(N), TRAINING)] = 1e6
    lacking = FEATURES.copy()
    lacking[TRAINING[3]] = np.nan
    for name in ("mean", "deviation", "mean0", "deviation0"):
        assert np.array_equal(getattr(fitted(poisoned), name), getattr(fitted(), name))
        assert np.isfinite(getattr(fitted(lacking), name)).all()
    with pytest.raises(DataError, match="X"):
        fitted(np.full_like(FEATURES, np.nan))


def test_a_new_platform_is_known_from_rows_enough():
    made = fitted()
    shifted = FEATURES + 10
    few = made.know(shifted[:5], ("new",) * 5)
    assert few is made
    np.testing.assert_allclose(
        made.apply(shifted[:5], ("new",) * 5)[:, :4],
        np.clip((shifted[:5] - made.mean0) / made.deviation0, -CLIP, CLIP)[:, :4],
        rtol=1e-5,
    )
    known = made.know(shifted, ("new",) * N)
    assert known.platforms == ("cells", "spots", "new")
    own = known.apply(shifted, ("new",) * N)[:, :4].mean(axis=0)
    by_others = made.apply(shifted, ("new",) * N)[:, :4].mean(axis=0)
    assert np.abs(own).max() < 1.2  # it leans on the others as if ten rows were theirs
    assert by_others.min() > 3


def test_it_comes_back_from_arrays():
    made = fitted()
    back = FeatureStandardiser.from_arrays(made.to_arrays(), "X", made.platforms)
    assert np.array_equal(back.apply(FEATURES, PLATFORM), made.apply(FEATURES, PLATFORM))
    with pytest.raises(MismatchError, match="platforms"):
        FeatureStandardiser.from_arrays(made.to_arrays(), "X", ("cells",))


def test_vectors_of_another_model_are_refused():
    profiles = Profiles(
        profile_id=("a", "b"),
        expression=csr_array(np.ones((2, 1))),
        expression_unit="counts",
        genes=GenePanel(("g",), ("g",), "symbol"),
        gene_observed=np.ones(1, dtype=bool),
        provenance=Provenance("test"),
    )
    made = fitted()
    own = replace(profiles, features=FEATURES[:2], features_by="X")
    assert np.array_equal(made.vectors_of(own), FEATURES[:2])
    for wrong, match in (
        (profiles, "have none"),
        (replace(own, features_by="X_other"), "X_other"),
        (replace(own, features=FEATURES[:2, :3].copy()), "3 numbers"),
    ):
        with pytest.raises(MismatchError, match=match):
            made.vectors_of(wrong)
