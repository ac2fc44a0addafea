"""The chain is taken apart on planted embeddings: each fault is found where it was put."""

from dataclasses import replace

import numpy as np
import pytest

from histoscribe.errors import DataError, MismatchError
from histoscribe.evaluate.diagnose import (
    Chain,
    angle,
    class_bias,
    diagnose,
    nearest_angle,
    platform_gap,
    won_share,
)

N_CLASSES, D = 4, 16


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def chain(seed=0, noise=0.05):
    """Four classes on four axes; every link but for noise."""
    rng = np.random.default_rng(seed)
    axes = np.eye(N_CLASSES, D)

    def near(kind):
        return unit(axes[kind] + rng.normal(0, noise, (len(kind), D)))

    region, profile = rng.integers(0, N_CLASSES, 53), np.arange(37) % N_CLASSES
    return Chain(
        image=near(region),
        gene=near(region),
        profile=near(profile),
        text=axes[profile],
        text_key=tuple(f"t{k}" for k in profile),
        platform=("sc",) * 37,
        class_score=rng.normal(0, 1, (53, 3)),
        classes=("a", "b", "c"),
    )


def verdicts(one):
    return {finding.name: finding for finding in diagnose(one)}


def test_angles_by_hand():
    a, b = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [0.6, 0.8]])
    assert np.allclose(angle(a, b), [90.0, np.degrees(np.arccos(0.6))])
    assert np.allclose(nearest_angle(a, b), np.degrees(np.arccos(0.6)))
    alone = nearest_angle(b, b, np.array(["x", "y"]))
    assert np.isnan(alone).all()


def test_a_sound_chain_is_called_so():
    found = verdicts(chain())
    bad = [name for name, finding in found.items() if not finding.is_fine]
    assert bad in ([], ["Theta = alpha + beta + gamma"])
    assert found["image-gene (alpha)"].value < 25
    assert "(100% of comparisons" in found["gene-text (beta)"].advice


def test_shuffled_pairs_are_found_at_their_link():
    one = chain()
    order = np.random.default_rng(1).permutation(len(one.gene))
    found = verdicts(replace(one, image=one.image[order]))
    assert not found["image-gene (alpha)"].is_fine
    assert found["gene-text (beta)"].is_fine
    rolled = verdicts(replace(one, text=np.roll(one.text, 1, axis=0)))
    assert not rolled["gene-text (beta)"].is_fine
    assert rolled["image-gene (alpha)"].is_fine


def test_a_constant_gap_between_modalities_opens_angles_and_fools_no_comparison():
    one = chain()
    moved = unit(one.image + 2.0 * np.eye(1, D, D - 1))
    assert angle(moved, one.gene).mean() > 2 * angle(one.image, one.gene).mean()
    assert won_share(moved, one.gene) == pytest.approx(won_share(one.image, one.gene), abs=0.03)
    assert won_share(moved, np.ones_like(moved)) == pytest.approx(0.5)  # nothing to tell them by


def test_a_platform_that_lies_apart_is_found():
    one = chain(noise=0.3)
    far = unit(one.profile + 3.0 * np.eye(1, D, D - 1))
    platform = ("sc",) * 20 + ("bulk",) * 17
    mixed = np.concatenate([one.profile[:20], far[20:]])
    found = verdicts(replace(one, profile=mixed, platform=platform))
    assert not found["platform gap: bulk - sc"].is_fine
    assert not found["platform gap: the regions - bulk"].is_fine
    assert found["platform gap: the regions - sc"].is_fine
    everything = verdicts(replace(one, profile=far))
    assert not everything["bridge gap (gamma)"].is_fine


def test_samples_of_one_platform_have_no_gap_however_few():
    rng = np.random.default_rng(2)
    gaps = [platform_gap(rng.normal(size=(9, D)), rng.normal(size=(7, D))) for _ in range(40)]
    assert np.median(gaps) < 0.2
    assert platform_gap(np.zeros((3, D)), np.ones((3, D))) == np.inf


def test_bias_is_in_deviations_and_a_sink_is_named():
    score = np.random.default_rng(3).normal(size=(4000, 3)) * 0.1 + np.array([0.3, 0.0, 0.0])
    assert np.allclose(class_bias(score), [2.0, -1.0, -1.0], atol=0.1)
    found = verdicts(replace(chain(), class_score=score))
    assert not found["bias: a"].is_fine
    assert "takes labels" in found["bias: a"].advice
    assert all(finding.advice and finding.threshold for finding in found.values())


def test_what_does_not_pair_is_refused():
    one = chain()
    with pytest.raises(MismatchError, match="images and expression"):
        diagnose(replace(one, image=one.image[:-1]))
    with pytest.raises(DataError, match="1 labelled"):
        diagnose(replace(one, profile=one.profile[:1]))


def test_a_class_of_one_profile_hides_no_gap():
    sound = chain()
    far = unit(sound.gene + 5 * np.eye(N_CLASSES, D, 8)[np.zeros(53, dtype=int)])
    lone = (*sound.text_key[:-1], "alone")
    apart = verdicts(replace(sound, gene=far, image=far, text_key=lone))["bridge gap (gamma)"]
    assert not apart.is_fine
    assert verdicts(replace(sound, text_key=lone))["bridge gap (gamma)"].is_fine
    none = verdicts(replace(sound, text_key=tuple(f"{n}" for n in range(37))))
    assert not none["bridge gap (gamma)"].is_fine
    assert "not to be judged" in none["bridge gap (gamma)"].advice
