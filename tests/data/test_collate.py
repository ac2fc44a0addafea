"""Batches made one by one are collated one by one, to what all at once would give."""

import weakref
from dataclasses import fields, replace

import pytest
import torch

from histoscribe.data import mapped
from histoscribe.data.collate import BatchSize, collate
from histoscribe.data.toy import toy_bag_batch
from histoscribe.errors import DataError, MismatchError


def batches(n=4):
    return [
        toy_bag_batch(torch.Generator().manual_seed(seed), n_bags=seed + 2, most_blocks=3)
        for seed in range(n)
    ]


def size_of(parts):
    return BatchSize(
        sum(part.n_cells for part in parts),
        sum(part.n_blocks for part in parts),
        sum(part.n_bags for part in parts),
    )


def put_together(parts, name):
    """What a field is by the plain way: all parts, their rows moved on, and then copied."""
    count = {"neighbours": "n_cells", "block_of_cell": "n_blocks", "bag_of_block": "n_bags"}
    moved, start = [], 0
    for part in parts:
        rows = getattr(part, name)
        moved.append(torch.where(rows < 0, rows, rows + start) if name in count else rows)
        start += getattr(part, count[name]) if name in count else 0
    return torch.cat(moved)


@pytest.mark.parametrize("large_bytes", [1, 1 << 30], ids=["in files", "in memory"])
def test_batches_come_one_after_another(large_bytes, monkeypatch):
    monkeypatch.setattr(mapped, "IN_FILE_BYTES", large_bytes)
    parts = batches()
    whole = collate(iter(parts), size_of(parts))
    assert whole.n_bags == sum(part.n_bags for part in parts)
    for field in fields(whole):
        if isinstance(value := getattr(whole, field.name), torch.Tensor):
            wanted = put_together(parts, field.name)
            assert torch.equal(value, wanted), field.name
            assert value.dtype == wanted.dtype
            assert (value.untyped_storage().filename is not None) == (large_bytes == 1)


def test_a_batch_is_let_go_before_the_next_is_made():
    size, made = size_of(batches()), []

    def one_by_one():
        for number in range(4):
            assert all(old() is None for old in made)
            part = batches(number + 1)[number]
            made.append(weakref.ref(part))
            yield part
            del part

    assert collate(one_by_one(), size).n_bags == size.n_bags
    assert len(made) == 4


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("name", BatchSize._fields)
def test_what_was_not_told_is_refused(name, more):
    parts = batches(2)
    size = size_of(parts)
    told = size._replace(**{name: getattr(size, name) + more})
    with pytest.raises(DataError, match="told ahead"):
        collate(iter(parts), told)


def test_what_cannot_be_one_batch_is_refused():
    parts = batches(2)
    with pytest.raises(DataError, match="no bags"):
        collate(iter([]), BatchSize(0, 0, 0))
    with pytest.raises(MismatchError, match="shape of field"):
        collate([parts[0], replace(parts[1], field=parts[1].field.double())])
