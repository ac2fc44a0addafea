from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoscribe.data.texts import Texts
from histoscribe.errors import ConfigError, DataError
from histoscribe.train.pairs import (
    PairStream,
    draw_step,
    pair_rows,
    pair_texts,
    split_by_donor,
)

TEXTS = Texts(("b", "t", "b"), ("B cell", "T cell", "B lymphocyte"))
KEYS = ("b", "", "t", "b", "t", "")


def rows(n):
    return pair_rows("image-gene", np.arange(n), np.arange(n)[::-1].copy())


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 99))
def test_each_epoch_has_each_pair_once(n, n_drawn, seed):
    stream = PairStream(rows(n), n_drawn, seed)
    drawn = np.concatenate([stream.draw(step).left for step in range(-(-2 * n // n_drawn))])
    for epoch in (drawn[:n], drawn[n : 2 * n]):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 17), st.integers(0, 99))
def test_sources_are_drawn_alike_and_each_has_epochs_of_its_own(n, n_other, n_drawn, seed):
    source = np.r_[np.full(n, 4), np.full(n_other, 1)]
    pairs = replace(rows(n + n_other), source=source)
    stream = PairStream(pairs, n_drawn, seed)
    drawn = np.concatenate([stream.draw(step).left for step in range(-(-4 * max(n, 9) // n_drawn))])
    is_first = drawn < n
    assert abs(2 * is_first.sum() - len(drawn)) <= 1
    np.testing.assert_array_equal(np.sort(drawn[is_first][:n]), np.arange(n))
    np.testing.assert_array_equal(np.sort(drawn[~is_first][:n_other]), n + np.arange(n_other))


def test_sources_follow_from_the_step_alone_and_stay_with_their_rows():
    some = np.array([0, 1, 2, 3])
    pairs = pair_texts("gene-text", KEYS, TEXTS, some, np.array([0, 0, 1, 0]))
    np.testing.assert_array_equal(pairs.source, [0, 1, 0])  # row 1 has no text
    np.testing.assert_array_equal(pairs.take(np.array([1])).source, [1])
    one, two = PairStream(pairs, 4, 7), PairStream(pairs, 4, 7)
    for step in (9, 2):
        draw = one.draw(step)
        np.testing.assert_array_equal(draw.left, two.draw(step).left)
        assert (draw.left == 2).sum() == 2


def test_a_step_follows_from_its_number_alone():
    one, two = (PairStream(pair_texts("gene-text", KEYS, TEXTS, np.arange(6)), 3, 7) for _ in "ab")
    later = [one.draw(step) for step in (5, 0, 31)]
    for _ in range(9):
        two.draw(2)
    for draw, step in zip(later, (5, 0, 31), strict=True):
        again = two.draw(step)
        for name in ("left", "right", "key"):
            np.testing.assert_array_equal(getattr(draw, name), getattr(again, name))


def test_streams_do_not_know_of_each_other():
    images = PairStream(rows(50), 8, 1)
    texts = PairStream(pair_texts("gene-text", KEYS, TEXTS, np.arange(6)), 3, 1)
    both = draw_step([texts, images], 4)
    np.testing.assert_array_equal(both["image-gene"].left, images.draw(4).left)
    assert set(both) == {"image-gene", "gene-text"}


def test_seeds_and_epochs_differ():
    first = PairStream(rows(200), 200, 1)
    assert (first.draw(0).left != first.draw(1).left).any()
    assert (first.draw(0).left != PairStream(rows(200), 200, 2).draw(0).left).any()


def test_a_pair_keeps_its_right_row_and_its_key():
    draw = PairStream(rows(40), 16, 3).draw(1)
    np.testing.assert_array_equal(draw.right, 39 - draw.left)
    assert len(set(draw.key.tolist())) == 16


def test_texts_are_of_the_row_s_key_and_all_wordings_come():
    stream = PairStream(pair_texts("gene-text", KEYS, TEXTS, np.arange(6)), 4, 3)
    seen = set()
    for step in range(60):
        draw = stream.draw(step)
        for left, right, key in zip(*draw, strict=True):
            assert TEXTS.text_key[right] == KEYS[left] == TEXTS.keys[key]
            seen.add((int(left), int(right)))
    assert seen == {(0, 0), (0, 2), (3, 0), (3, 2), (2, 1), (4, 1)}


def test_only_rows_that_take_part_are_drawn():
    pairs = pair_texts("gene-text", KEYS, TEXTS, np.array([1, 3, 4]))
    np.testing.assert_array_equal(pairs.left, [3, 4])
    with pytest.raises(DataError, match="no gene-text pair"):
        pair_texts("gene-text", KEYS, TEXTS, np.array([1, 5]))
    with pytest.raises(DataError, match="'nk' is not among"):
        pair_texts("gene-text", ("nk",), TEXTS, np.array([0]))


def test_a_smaller_share_is_part_of_a_larger():
    pairs = rows(1024)
    eighth, small, least = (pairs.cut(share, 5) for share in (1 / 8, 1 / 64, 1 / 512))
    assert (len(eighth), len(small), len(least)) == (128, 16, 2)
    assert set(least.left) <= set(small.left) <= set(eighth.left)
    np.testing.assert_array_equal(pairs.cut(1.0, 5).left, pairs.left)
    assert set(pairs.cut(1 / 8, 6).left) != set(eighth.left)
    draw = PairStream(eighth, 64, 1).draw(3)
    np.testing.assert_array_equal(draw.right, 1023 - draw.left)
    with pytest.raises(ConfigError, match="share of 0"):
        pairs.cut(0.0, 5)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=30).filter(lambda x: len(set(x)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 9),
)
def test_no_donor_is_on_both_sides_and_none_is_lost(donors, share, seed):
    training, held_out = split_by_donor(donors, share, seed)
    assert {donors[row] for row in training}.isdisjoint(donors[row] for row in held_out)
    assert sorted([*training, *held_out]) == list(range(len(donors)))
    assert len(training)
    assert len(held_out)


def test_rows_of_no_donor_are_refused_or_trained_on():
    donors = ("a", "", "b", "a")
    with pytest.raises(DataError, match="1 of 4 profiles have no donor"):
        split_by_donor(donors, 0.5, 0)
    training, _ = split_by_donor(donors, 0.5, 0, unknown_in_training=True)
    assert 1 in training
    with pytest.raises(DataError, match=r"1 donor\(s\)"):
        split_by_donor(("a", "a"), 0.5, 0)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ConfigError, match="draws 0 pairs"):
        PairStream(rows(3), 0, 1)
    with pytest.raises(DataError, match="right rows"):
        pair_rows("image-gene", np.arange(2), np.arange(3))
