"""Large arrays in nameless files: same values, nothing left behind, no file kept open."""

import errno
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from histoscribe.data import mapped
from histoscribe.data.in_file import move_to_file, new_array, new_tensor
from histoscribe.data.mapped import release
from histoscribe.errors import MissingExtra


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "IN_FILE_BYTES", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def is_in_file(tensor):
    return tensor.untyped_storage().filename is not None


def test_large_tensors_lie_in_a_file_that_leaves_nothing_behind(scratch):
    assert not is_in_file(new_tensor((83, 3), torch.float32))  # 996 bytes
    large = new_tensor((125, 2), torch.float32)
    assert is_in_file(large)
    assert not list(scratch.iterdir())
    large.copy_(torch.arange(250).view(125, 2))
    release(large.numpy()[7:])
    assert large.flatten().tolist() == list(range(250))
    large[124, 1] = -1
    assert large.numpy()[124, 1] == -1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, bool])
def test_what_is_moved_to_a_file_is_the_same(scratch, dtype):
    values = np.random.default_rng(0).integers(0, 2, (419, 5)).astype(dtype)
    moved = move_to_file(values)
    assert moved.dtype == values.dtype
    assert np.array_equal(moved, values)
    assert not np.shares_memory(moved, values)
    assert is_in_file(torch.from_numpy(new_array((9, 9), dtype))) is False
    few = values[:3]
    assert move_to_file(few) is few
    assert not list(scratch.iterdir())


def test_an_empty_array_needs_no_file(scratch):
    assert new_array((0, 7), np.float32).shape == (0, 7)
    assert not list(scratch.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="wants /proc")
def test_no_file_stays_open_and_its_pages_are_given_back(scratch):
    def count_open():
        return len(list(Path("/proc/self/fd").iterdir()))

    n_open = count_open()
    many = [new_tensor((1 << 18,), torch.float32).fill_(number) for number in range(40)]
    assert count_open() == n_open

    def resident_kb():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))

    before = resident_kb()
    for tensor in many:
        release(tensor.numpy())
    assert before - resident_kb() > 30_000  # of 40 MiB
    assert [int(tensor[-1]) for tensor in many] == list(range(40))


def test_a_full_disk_is_said_with_where_to_go(scratch, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MissingExtra, match=r"no room for 0\.0 GB.*TMPDIR"):
        new_tensor((999, 9), torch.float32)
    assert not list(scratch.iterdir())
