import json

import pytest
import torch

from histoscribe.data.splits import Split
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.evaluate.benchmark import benchmark
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
    assert (loaded.report, loaded.provenance) == (checkpoint.report, checkpoint.provenance)
    for name in ("model_settings", "panel", "bags", "encoder_id", "region_size", "split"):
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


def test_it_knows_what_regions_it_was_trained_on(checkpoint, slides, folder):
    size = Checkpoint.load(folder).region_size
    assert size == slides[0].regions.size
    assert (size.kind, size.radius_um, size.pitch_um) == ("spot", 27.5, 100.0)
    assert str(size) == "spots of 55 µm, 100 µm apart"


def test_one_that_does_not_say_what_regions_is_refused_with_the_mend(folder):
    record = json.loads((folder / RECORD).read_text())
    del record["regions"]
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"does not say what regions.*Fit again"):
        Checkpoint.load(folder)


def test_a_fit_on_all_slides_keeps_none(slides, panel, quick, small, tmp_path):
    names = tuple(slide.slide_id for slide in slides[:2])
    made = fit(slides, Split(names, (), "none"), panel, config=quick, model_settings=small)
    made.save(tmp_path / "all")
    assert Checkpoint.load(tmp_path / "all").split == made.split
    with pytest.raises(DataError, match="kept none to be scored on"):
        benchmark(made, slides)


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
