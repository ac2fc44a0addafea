import json

import numpy as np
import pytest

from histoscribe.errors import DataError
from histoscribe.train.cox import CoxConfig, CoxHead, fit_cox
from histoscribe.train.cox_store import ARRAYS, FIELDS, RECORD, read_cox, write_cox


@pytest.fixture(scope="module")
def head() -> CoxHead:
    rng = np.random.default_rng(0)
    x, times = rng.normal(size=(43, 3)), rng.exponential(500, 43)
    config = CoxConfig(penalties=(0.1, 1.0))
    return fit_cox(x, times, rng.random(43) < 0.5, ["age", "stage", "IFNG µ"], config)


@pytest.fixture
def folder(head, tmp_path):
    write_cox(head, tmp_path / "cox")
    return tmp_path / "cox"


def test_saved_and_loaded_are_equal_and_say_the_same(head, folder, tmp_path):
    loaded = read_cox(folder)
    for name in FIELDS:
        assert getattr(loaded, name).tobytes() == getattr(head, name).tobytes()
    for name in ("names", "penalty", "score_of_penalty"):
        assert getattr(loaded, name) == getattr(head, name)
    rows = np.random.default_rng(1).normal(size=(5, 3))
    assert loaded.risk(rows).tobytes() == head.risk(rows).tobytes()
    write_cox(loaded, tmp_path / "again")
    for name in (ARRAYS, RECORD):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_there_is_nothing_else_in_it(folder):
    assert {path.name for path in folder.iterdir()} == {ARRAYS, RECORD}


def test_what_is_missing_cut_or_changed_is_told(head, folder):
    path = folder / ARRAYS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="was changed"):
        read_cox(folder)
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        read_cox(folder)
    path.write_bytes(whole)
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, "format": 9}))
    with pytest.raises(DataError, match="format 9"):
        read_cox(folder)
    del record["penalty"]
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(DataError, match="penalty"):
        read_cox(folder)
    (folder / RECORD).write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_cox(folder)
    (folder / RECORD).write_text("[]")
    with pytest.raises(DataError, match="format"):
        read_cox(folder)
    with pytest.raises(DataError, match="no Cox head"):
        read_cox(folder / "elsewhere")
