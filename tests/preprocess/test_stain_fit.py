from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, UInt8

from histoscribe.errors import DataError
from histoscribe.preprocess.stain_fit import (
    DENSITY,
    PUBLISHED,
    degrees,
    find_tissue,
    haematoxylin_first,
    macenko,
    separate,
    vahadane,
)

PENALTY = 0.1  # Vahadane 2016
Pixels = UInt8[np.ndarray, "pixel 3"]
Matrix = Float[np.ndarray, "3 2"]
Amounts = Float[np.ndarray, "2 pixel"]
Render = Callable[..., Pixels]


def apart(one: Matrix, other: Matrix) -> tuple[float, float]:
    """Degrees between the haematoxylins, and between the eosins."""
    return degrees(one[:, 0], other[:, 0]), degrees(one[:, 1], other[:, 1])


def objective(density: Float[np.ndarray, "3 pixel"], matrix: Matrix) -> float:
    """What Vahadane's factors minimise, written out plainly."""
    amount = separate(density, matrix, PENALTY)
    misfit = 0.5 * ((density - matrix @ amount) ** 2).sum(axis=0)
    return float((misfit + PENALTY * amount.sum(axis=0)).mean())


positive = st.floats(0.02, 1.0)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(positive, min_size=6, max_size=6),
    st.lists(st.floats(0.0, 5.0), min_size=3, max_size=3),
    st.sampled_from([0.0, 0.1, 0.7]),
)
def test_concentrations_satisfy_the_optimality_conditions(
    entries: list[float], pixel: list[float], penalty: float
) -> None:
    matrix = np.array(entries).reshape(3, 2)
    matrix /= np.linalg.norm(matrix, axis=0)
    if degrees(matrix[:, 0], matrix[:, 1]) < 1:
        return
    density = np.array(pixel)[:, None]
    amount = separate(density, matrix, penalty)
    slope = matrix.T @ (matrix @ amount - density) + penalty
    assert (amount >= 0).all()
    assert (slope > -1e-9).all()  # more of a stain is no better
    assert np.abs(amount * slope).max() < 1e-9  # nor is less of one that is there


@contextmanager
def spams() -> Iterator[Any]:
    """The reference; it leaves OpenMP with one thread, which other tests must not see."""
    module = pytest.importorskip("spams", reason="spams-bin is in the dependency group dev")
    n_threads = torch.get_num_threads()
    try:
        yield module
    finally:
        torch.set_num_threads(n_threads)


def spams_factors(density: Float[np.ndarray, "3 pixel"], start: Matrix) -> Matrix:
    with spams() as reference:
        return haematoxylin_first(train(reference, density, start))


def train(reference: Any, density: Float[np.ndarray, "3 pixel"], start: Matrix) -> Matrix:
    return reference.trainDL(
        np.asfortranarray(density),
        K=2,
        D=np.asfortranarray(start),
        lambda1=PENALTY,
        mode=2,
        modeD=0,
        posAlpha=True,
        posD=True,
        batchsize=2000,
        iter=600,
        numThreads=1,
        verbose=False,
    )


def spams_lasso(density: Float[np.ndarray, "3 pixel"], matrix: Matrix, penalty: float) -> Amounts:
    with spams() as reference:
        found = reference.lasso(
            np.asfortranarray(density),
            D=np.asfortranarray(matrix),
            mode=2,
            lambda1=penalty,
            pos=True,
            numThreads=1,
        )
    return np.asarray(found.todense())


def test_planted_mixtures_come_out_as_with_spams(
    planted: Matrix, amounts: Amounts, render: Render
) -> None:
    density = find_tissue(render(planted, amounts, noise=1.5)).density
    ours = vahadane(density)
    assert max(apart(ours, spams_factors(density, macenko(density)))) < 0.5
    for penalty in (PENALTY, 0.0):
        amount = separate(density, ours, penalty)
        np.testing.assert_allclose(
            amount, spams_lasso(density, ours, penalty), rtol=0.01, atol=1e-6
        )


def test_real_tissue_comes_out_as_with_spams(real_image: UInt8[np.ndarray, "y x 3"]) -> None:
    density = find_tissue(real_image.reshape(-1, 3)).density[:, ::3]
    ours = vahadane(density)
    assert max(apart(ours, spams_factors(density, macenko(density)))) < 0.5
    theirs = spams_lasso(density, ours, PENALTY)
    np.testing.assert_allclose(separate(density, ours, PENALTY), theirs, rtol=0.01, atol=1e-6)


def test_no_near_vectors_are_better(planted: Matrix, amounts: Amounts, render: Render) -> None:
    density = find_tissue(render(planted, amounts, noise=1.5)).density
    found = vahadane(density)
    least, generator = objective(density, found), np.random.default_rng(3)
    for size in (0.003, 0.03, 0.2):
        for _ in range(12):
            other = np.maximum(found + size * generator.normal(size=(3, 2)), 0)
            assert objective(density, other / np.linalg.norm(other, axis=0)) > least


def test_planted_vectors_are_found(planted: Matrix, amounts: Amounts, render: Render) -> None:
    amounts[1, :2_003] = 0  # Macenko's vectors are the purest colours there are
    density = find_tissue(render(planted, amounts)).density
    assert max(apart(macenko(density), planted)) < 1.0
    swapped = find_tissue(render(planted[:, ::-1], amounts[::-1])).density
    np.testing.assert_allclose(macenko(swapped), macenko(density), atol=1e-9)
    # Vahadane's are drawn together by the penalty, the less the sparser the stains
    mixed = max(apart(vahadane(density), planted))
    amounts[1, amounts[0] > 0.3] = 0
    sparse = max(apart(vahadane(find_tissue(render(planted, amounts)).density), planted))
    assert sparse < 3.0 < mixed < 7.0


@pytest.mark.parametrize("method", [macenko, vahadane])
def test_the_order_of_the_pixels_is_no_matter(
    method: Callable[..., Matrix], planted: Matrix, amounts: Amounts, render: Render
) -> None:
    density = find_tissue(render(planted, amounts, noise=2.0)).density
    order = np.random.default_rng(0).permutation(density.shape[1])
    assert (method(density) == method(density.copy())).all()
    np.testing.assert_allclose(method(density[:, order]), method(density), atol=1e-6)


def test_clipped_pixels_do_not_turn_the_vectors(
    planted: Matrix, amounts: Amounts, render: Render
) -> None:
    pixels = render(planted, amounts, noise=1.5)
    clipped = np.tile(np.array([[0, 60, 110]], np.uint8), (len(pixels) // 50, 1))
    with_clipped = find_tissue(np.concatenate([pixels, clipped]))
    assert (with_clipped.density == find_tissue(pixels).density).all()
    assert with_clipped.is_stained[-len(clipped) :].all()  # they are no glass


def test_glass_is_not_tissue() -> None:
    generator = np.random.default_rng(1)
    glass = generator.integers(225, 256, (5_003, 3)).astype(np.uint8)
    with pytest.raises(DataError, match="0 of 5003 pixels have an optical density"):
        find_tissue(glass)
    with pytest.raises(DataError, match="0 of 0 pixels"):
        find_tissue(glass[:0])


def test_black_is_not_tissue() -> None:
    with pytest.raises(DataError, match="0 of 2003 pixels"):
        find_tissue(np.zeros((2_003, 3), np.uint8))


def test_one_colour_is_refused() -> None:
    generator = np.random.default_rng(1)
    pixels = np.array([170, 90, 150]) + generator.integers(-1, 2, (3_001, 3))
    with pytest.raises(DataError, match=r"one colour.*stain method 'none'"):
        find_tissue(pixels.astype(np.uint8))


@pytest.mark.parametrize("noise", [0.5, 2.0])
@pytest.mark.parametrize("method", [macenko, vahadane])
@pytest.mark.parametrize("stain", [0, 1])
def test_one_stain_is_refused(
    stain: int, method: Callable[..., Matrix], noise: float, amounts: Amounts, render: Render
) -> None:
    vector = PUBLISHED[:, [stain, stain]]
    density = find_tissue(render(vector, amounts / 2 + 0.2, noise=noise)).density
    with pytest.raises(DataError, match=r"one stain found.*stain method 'none'"):
        method(density)


INKS = {"green": (10, 110, 60), "turquoise": (30, 130, 150), "yellow": (190, 160, 40)}


@pytest.mark.parametrize("method", [macenko, vahadane])
@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("share", [0.04, 0.3])
def test_ink_is_refused_with_the_mend(
    ink: str, share: float, method: Callable[..., Matrix], amounts: Amounts, render: Render
) -> None:
    pixels = render(PUBLISHED, amounts, noise=1.5)
    strength = np.random.default_rng(2).uniform(0.4, 1.0, (round(share * len(pixels)), 1))
    stroke = 256 * np.exp(-strength * DENSITY[list(INKS[ink])]) - 1
    drawn = np.concatenate([pixels, np.rint(stroke).astype(np.uint8)])
    with pytest.raises(DataError, match=r"ink.*tissue mask.*stain method 'none'"):
        method(find_tissue(drawn).density)


@pytest.mark.parametrize("method", [macenko, vahadane])
def test_another_stain_is_refused(
    method: Callable[..., Matrix], amounts: Amounts, render: Render
) -> None:
    brown = np.array([0.27, 0.57, 0.78])  # DAB: Ruifrok & Johnston 2001
    matrix = np.stack([PUBLISHED[:, 0], brown], axis=1)
    with pytest.raises(DataError, match="another stain than H&E"):
        method(find_tissue(render(matrix, amounts, noise=1.5)).density)
