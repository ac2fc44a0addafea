"""Arrays in files: whole after their pages were given back, and never cut off under a reader."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from histoscribe.data.mapped import as_read_only, new_mapped, release
from histoscribe.errors import MissingExtra


def test_what_is_written_is_there_after_its_pages_were_given_back(tmp_path):
    array = new_mapped(tmp_path / "a.raw", (301, 7), np.float16)
    values = np.random.default_rng(0).normal(size=(301, 7)).astype(np.float16)
    for start in range(0, 301, 50):
        array[start : start + 50] = values[start : start + 50]
        release(array[3:])
    assert np.array_equal(array, values)
    view = as_read_only(array)
    assert np.array_equal(view, values)
    assert np.array_equal(np.fromfile(tmp_path / "a.raw", np.float16), values.ravel())
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 0


def test_private_and_plain_arrays_keep_what_is_in_them(tmp_path):
    np.zeros(4096, np.uint8).tofile(tmp_path / "b.raw")
    private = np.memmap(tmp_path / "b.raw", np.uint8, "c", shape=(4096,))
    private[:] = 7
    release(private)
    assert private.min() == 7
    plain = np.arange(5)
    release(plain)
    assert plain.sum() == 10


def test_a_new_file_leaves_arrays_over_the_old_one_as_they_are(tmp_path):
    old = new_mapped(tmp_path / "c.raw", (5000,), np.int64)
    old[:] = 3
    new = new_mapped(tmp_path / "c.raw", (2,), np.int64)
    assert new.tolist() == [0, 0]
    release(old)
    assert old.sum() == 15000


def test_an_empty_array_needs_no_file(tmp_path):
    assert new_mapped(tmp_path / "d.raw", (0, 5), np.float16).shape == (0, 5)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_before_anything_is_filled(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MissingExtra, match=r"disk full: .*e\.raw wants 0\.0 GB"):
        new_mapped(tmp_path / "e.raw", (9, 9), np.float16)
    assert not list(tmp_path.iterdir())


def resident_kb(path):
    """Pages of a file that this process has in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    return sum(
        int(next(line for line in lines if line.startswith("Rss:")).split()[1])
        for line in lines
        if line.endswith(str(path))
    )


@pytest.mark.skipif(sys.platform != "linux", reason="wants /proc")
@pytest.mark.parametrize("view", [lambda a: a, lambda a: a[0], lambda a: a[0][5:].reshape(-1)])
def test_the_pages_of_any_view_are_given_back(tmp_path, view):
    """Slices of a memmap are memmaps themselves."""
    np.save(tmp_path / "a.npy", np.ones((1, 1033, 1024)))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert array.sum() == 1033 * 1024
    assert resident_kb(tmp_path / "a.npy") > 8000
    release(view(array))
    assert resident_kb(tmp_path / "a.npy") == 0
