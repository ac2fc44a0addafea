import json

import pytest
import torch

from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.predict import predict_regions
from histoscribe.train.checkpoint import RECORD, SCALING, WEIGHTS, Checkpoint, build_model
from histoscribe.train.fit import fit


@pytest.fixture(scope="module")
def checkpoint(slides, split, panel, quick, small):
    return fit(slides, split, panel, config=quick, model_settings=small)


@pytest.fixture
def folder(checkpoint, tmp_path):
    checkpoint.save(tmp_path / "model")
    return tmp_path / "model"


def test_saved_and_loaded_are_equal_and_say_the_same(checkpoint, folder, slides, tmp_path):
    loaded = Checkpoint.load(folder)
    assert loaded.model_id == checkpoint.model_id
    for name in ("model_settings", "panel", "bags", "encoder_id", "split", "report", "provenance"):
        assert getattr(loaded, name) == getattr(checkpoint, name)
    before, after = (predict_regions(c, slides[3:]) for c in (checkpoint, loaded))
    assert before.mean.tobytes() == after.mean.tobytes()
    assert before.model_id == after.model_id
    loaded.save(tmp_path / "again")
    for name in (WEIGHTS, SCALING, RECORD):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_there_is_no_pickle_and_no_time_in_it(folder):
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    record = json.loads((folder / RECORD).read_text())
    assert {"panel", "split", "encoder_id", "fit_settings", "model_settings", "bags"} <= set(record)
    assert "time" not in json.dumps(record)


def test_saving_over_an_old_one_leaves_one_whole_folder(checkpoint, folder):
    (folder / "stray").write_text("x")
    checkpoint.save(folder)
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, SCALING, RECORD}
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", [WEIGHTS, SCALING, RECORD])
def test_a_file_that_is_missing_cut_or_changed_is_told(name, folder):
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(DataError, match="corrupted checkpoint"):
        Checkpoint.load(folder)
    if name != RECORD:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DataError, match="corrupted checkpoint"):
            Checkpoint.load(folder)
    path.unlink()
    with pytest.raises(DataError, match="fit"):
        Checkpoint.load(folder)


def test_a_record_of_another_format_is_told(folder):
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        Checkpoint.load(folder)
    del record["panel"]
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(DataError, match="panel"):
        Checkpoint.load(folder)


def test_weights_of_another_shape_are_told(checkpoint):
    broken = {**checkpoint.nets[0], "stranger": torch.ones(2)}
    with pytest.raises(MismatchError, match="stranger"):
        Checkpoint(**{**vars(checkpoint), "nets": (broken,), "_packed": {}}).build()


def test_a_model_is_made_from_its_seed_and_leaves_the_global_state(checkpoint):
    before = torch.random.get_rng_state()
    nets = [build_model("bitro", checkpoint.model_settings, seed) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.random.get_rng_state())
    a, b, c = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    with pytest.raises(ConfigError, match="no setting 'nose'"):
        build_model("bitro", {"nose": 1}, 0)
