import json
import pickle

import pytest
import torch
from safetensors.torch import load_file

from histoscribe.errors import DataError, MissingExtra
from histoscribe.preprocess import weights
from histoscribe.preprocess.pickled_weights import read_pickled


def tensors():
    generator = torch.Generator().manual_seed(7)
    whole = torch.randn(5, 6, generator=generator)
    return {"a": whole, "b.view": whole[1:3, ::2], "c.same": whole, "d.half": whole.half()}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_tensors_are_found_in_every_wrapping(tmp_path, is_zip, wrapper):
    content = {wrapper: tensors(), "epoch": 3} if wrapper else tensors()
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    found = read_pickled(path)
    assert set(found) == set(tensors())
    for key, value in tensors().items():
        assert torch.equal(found[key], value)


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / "weights.bin"
    torch.save({"a": torch.ones(2), "b": Trap()}, path)
    with pytest.raises(DataError, match="never run"):
        read_pickled(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="never run"):
        read_pickled(path)


def test_what_is_no_state_dict_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"a text")
    with pytest.raises(DataError, match="cannot be read as weights alone"):
        read_pickled(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(DataError, match="holds a list"):
        read_pickled(path)
    torch.save({"a": torch.ones(2), "epoch": 3}, path)
    with pytest.raises(DataError, match="1 entries that are no tensors"):
        read_pickled(path)


def test_a_foreign_file_is_converted_once(tmp_path, monkeypatch):
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors(), path)
    converted, digest = weights.convert_foreign(path, tmp_path / "cache")
    assert digest == weights.sha256_of(path)
    found = load_file(converted)
    assert set(found) == set(tensors())
    for key, value in tensors().items():
        assert torch.equal(found[key], value)
        assert found[key].dtype == value.dtype
    record = json.loads((converted.parent / "source.json").read_text())
    assert record["sha256"] == digest
    assert [entry.name for entry in converted.parent.parent.iterdir()] == [converted.parent.name]

    with monkeypatch.context() as patch:
        patch.setattr(weights, "read_pickled", lambda _: pytest.fail("converted again"))
        assert weights.convert_foreign(path, tmp_path / "cache") == (converted, digest)
    content = converted.read_bytes()
    converted.write_bytes(content[:-1] + b"\x01")  # as a full disk or a bad copy leaves it
    weights.convert_foreign(path, tmp_path / "cache")
    assert converted.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors(), path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MissingExtra, match="HISTOSCRIBE_CACHE"):
        weights.convert_foreign(path, tmp_path / "file")


def test_want_of_memory_is_no_fault_of_the_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(2)}, path)

    def full(*_given, **_named):
        raise MemoryError

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(MemoryError):
        read_pickled(path)
