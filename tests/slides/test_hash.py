import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histoscribe.errors import DataError
from histoscribe.slides.open import hash_slide_file


def test_a_file_is_its_content(tmp_path: Path, noise: np.ndarray) -> None:
    Image.fromarray(noise).save(tmp_path / "a.png")
    wanted = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert hash_slide_file(tmp_path / "a.png") == wanted


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_store_is_its_names_and_contents(
    tmp_path: Path, pyramid: list[np.ndarray], write_ome_zarr: Callable[..., Path], version: str
) -> None:
    path = write_ome_zarr(pyramid, version)
    first = hash_slide_file(path)
    moved = Path(shutil.copytree(path, tmp_path / "elsewhere" / "other.zarr"))
    assert hash_slide_file(moved) == first
    root, chunk = (".zgroup", "0/1/0/2") if version == "0.4" else ("zarr.json", "0/c/1/0/2")
    for name in (root, chunk):
        content = (moved / name).read_bytes()
        (moved / name).write_bytes(content + b" ")
        assert hash_slide_file(moved) != first
        (moved / name).write_bytes(content)
    assert hash_slide_file(moved) == first
    (moved / chunk).rename((moved / chunk).with_name("77"))
    assert hash_slide_file(moved) != first


def test_a_series_is_one_whichever_file_names_it(
    pyramid: list[np.ndarray], write_dicom: Callable[..., Path]
) -> None:
    folder = write_dicom(pyramid)
    first = hash_slide_file(folder)
    (folder / "notes.txt").write_text("beside it")
    for name in ("level0.dcm", "level2.dcm", "a-label.dcm"):
        assert hash_slide_file(folder / name) == first
    lower = folder / "level2.dcm"
    content = bytearray(lower.read_bytes())
    content[-1] ^= 1
    lower.write_bytes(bytes(content))
    assert hash_slide_file(folder / "level0.dcm") != first


def test_what_is_no_slide_has_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such slide"):
        hash_slide_file(tmp_path / "none.svs")
    with pytest.raises(DataError, match="a folder; wanted a slide"):
        hash_slide_file(tmp_path)
