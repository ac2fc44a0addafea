import errno
import os

import numpy as np
import pytest
from safetensors.numpy import load_file

from histoscribe.errors import DataError, MissingExtra
from histoscribe.train import feature_cache
from histoscribe.train.feature_cache import cache_path, cached_features, identity_of

SHAPE = (103, 7)
FEATURES = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


class Tower:
    """Counts what it is asked for; may stop, as a killed run does."""

    def __init__(self, stops_at=None):
        self.asked, self.stops_at = [], stops_at

    def __call__(self, rows):
        if self.stops_at is not None and rows[0] >= self.stops_at:
            raise KeyboardInterrupt
        self.asked += rows.tolist()
        return FEATURES[rows]


def test_features_are_made_once_and_mapped(tmp_path):
    path, tower = cache_path(tmp_path / "new", "text", "a"), Tower()
    first = cached_features(path, SHAPE, tower, batch_rows=10)
    again = cached_features(path, SHAPE, tower, batch_rows=10)
    np.testing.assert_array_equal(first, FEATURES.astype(np.float16))
    np.testing.assert_array_equal(again, first)
    assert tower.asked == list(range(103))
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_is_what_others_read_as_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    cached_features(path, SHAPE, Tower())
    np.testing.assert_array_equal(load_file(path)["features"], FEATURES.astype(np.float16))


def test_a_stopped_run_is_taken_up_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "PORTION_BYTES", 1)
    path = tmp_path / "x.safetensors"
    with pytest.raises(KeyboardInterrupt):
        cached_features(path, SHAPE, Tower(stops_at=60), batch_rows=10)
    assert not path.exists()
    tower = Tower()
    features = cached_features(path, SHAPE, tower, batch_rows=10)
    assert tower.asked == list(range(60, 103))
    np.testing.assert_array_equal(features, FEATURES.astype(np.float16))


def test_what_a_stopped_run_of_another_shape_left_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "PORTION_BYTES", 1)
    path = tmp_path / "x.safetensors"
    with pytest.raises(KeyboardInterrupt):
        cached_features(path, (200, 7), Tower(stops_at=60), batch_rows=10)
    tower = Tower()
    cached_features(path, SHAPE, tower)
    assert tower.asked == list(range(103))


def test_identities_lie_apart(tmp_path):
    one = identity_of("minilm@12", ["a", "b"])
    assert one == identity_of("minilm@12", iter(["a", "b"]))
    others = [
        identity_of("minilm@13", ["a", "b"]),
        identity_of("minilm@12", ["b", "a"]),
        identity_of("minilm@12", ["ab"]),
    ]
    paths = {cache_path(tmp_path, "text", identity) for identity in (one, *others)}
    assert len(paths) == 4


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda rows: FEATURES[rows] * 1e9, "row 0 are not finite"),
        (lambda rows: np.where(rows[:, None] == 57, np.nan, FEATURES[rows]), "row 57"),
        (lambda rows: FEATURES[rows, :3], "shape"),
    ],
)
def test_features_that_do_not_hold_up_are_refused(tmp_path, made, said):
    path = tmp_path / "x.safetensors"
    with pytest.raises(DataError, match=said):
        cached_features(path, SHAPE, made, batch_rows=10)
    assert not path.exists()


def test_a_file_of_another_shape_or_cut_short_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    cached_features(path, SHAPE, Tower())
    with pytest.raises(DataError, match="102 x 7"):
        cached_features(path, (102, 7), Tower())
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(DataError, match="delete it"):
        cached_features(path, SHAPE, Tower())


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MissingExtra, match="disk full"):
        cached_features(tmp_path / "x.safetensors", SHAPE, Tower())
    assert not list(tmp_path.iterdir())
