import pickle
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from histoscribe.errors import DataError
from histoscribe.slides.formats import backend_of
from histoscribe.slides.ome_zarr import open_ome_zarr
from histoscribe.slides.open import open_slide
from histoscribe.types import Box

VERSIONS = ["0.4", "0.5"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("axes", ["cyx", "yxc", "tczyx", "zcyx", "cxy"])
def test_every_level_reads_as_written(
    pyramid: list[np.ndarray], write_ome_zarr: Callable[..., Path], version: str, axes: str
) -> None:
    path = write_ome_zarr(pyramid, version, axes)
    slide, source = open_slide(path), open_ome_zarr(path)
    assert backend_of(path) == "ome-zarr"
    assert (slide.slide_id, slide.size_px, slide.mpp) == ("slide", (211, 173), (0.5, 0.5))
    assert [level[0] for level in slide.level_mpp] == [0.5, 1.0, 2.0]
    for level, image in enumerate(pyramid):
        height, width = image.shape[:2]
        assert (source.read_pixels(level, (0, 0), (width, height)) == image).all()
        assert (source.read_pixels(level, (31, 9), (17, 29)) == image[9:38, 31:48]).all()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("compressors", [None, "auto"])
def test_either_separator_and_any_compressor(
    noise: np.ndarray,
    write_ome_zarr: Callable[..., Path],
    version: str,
    separator: str,
    compressors: str | None,
) -> None:
    name = "v2" if version == "0.4" else "default"
    encoding = {"name": name, "separator": separator}
    path = write_ome_zarr([noise], version, chunk_key_encoding=encoding, compressors=compressors)
    assert (open_slide(path).read(Box(0, 0, 105.5, 86.5), 0.5) == noise).all()


def test_shards_are_read(noise: np.ndarray, write_ome_zarr: Callable[..., Path]) -> None:
    path = write_ome_zarr([noise], "0.5", "yxc", chunks=(32, 24, 3), shards=(64, 96, 3))
    assert (open_slide(path).read(Box(0, 0, 105.5, 86.5), 0.5) == noise).all()


@pytest.mark.parametrize(
    ("unit", "scale", "mpp"),
    [
        ("micrometer", (0.5, 0.25), (0.5, 0.25)),
        ("nanometer", (500.0, 250.0), (0.5, 0.25)),
        ("millimeter", (0.0005, 0.00025), (0.5, 0.25)),
        ("micrometer", (1.0, 1.0), (1.0, 1.0)),
    ],
)
def test_the_scale_is_read_in_its_unit(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path], unit: str, scale: tuple, mpp: tuple
) -> None:
    assert open_slide(write_ome_zarr([noise], scale=scale, unit=unit)).mpp == pytest.approx(mpp)


@pytest.mark.parametrize(
    ("unit", "scale"), [(None, (1.0, 1.0)), ("pixel", (0.5, 0.5)), ("second", (0.5, 0.5))]
)
def test_a_scale_that_says_nothing_is_refused(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path], unit: str | None, scale: tuple
) -> None:
    path = write_ome_zarr([noise], scale=scale, unit=unit)
    with pytest.raises(DataError, match=r"does not say how many µm.*--mpp"):
        open_slide(path)
    assert open_slide(path, mpp=0.25).mpp == (0.25, 0.25)


def test_a_scale_without_unit_is_taken_as_micrometres_and_noted(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path]
) -> None:
    slide = open_slide(write_ome_zarr([noise], scale=(0.5, 0.5), unit=None))
    assert slide.mpp == (0.5, 0.5)
    assert slide.notes == ("the scale 0.5 of its OME-Zarr has no unit; taken as µm",)


def test_the_scale_of_the_whole_image_is_applied_after_that_of_a_level(
    pyramid: list[np.ndarray], write_ome_zarr: Callable[..., Path]
) -> None:
    def scale_all(multiscale: dict) -> None:
        multiscale["coordinateTransformations"] = [{"type": "scale", "scale": [1.0, 0.25, 0.5]}]

    path = write_ome_zarr(pyramid[:2], scale=(1.0, 1.0), edit=scale_all)
    assert open_slide(path).mpp == (0.5, 0.25)

    def shift_and_scale_all(multiscale: dict) -> None:
        scale_all(multiscale)
        step = {"type": "translation", "translation": [0.0, 3.0, 3.0]}  # 1.5 coarse pixels
        multiscale["datasets"][1]["coordinateTransformations"].append(step)

    with pytest.raises(DataError, match=r"level 1 starts 1\.5, 1\.5 of its pixels"):
        open_slide(write_ome_zarr(pyramid[:2], scale=(1.0, 1.0), edit=shift_and_scale_all))


def test_a_level_may_start_half_a_pixel_aside_but_not_elsewhere(
    pyramid: list[np.ndarray], write_ome_zarr: Callable[..., Path]
) -> None:
    def shift(by_um: float) -> Callable[[dict], None]:
        def edit(multiscale: dict) -> None:
            step = {"type": "translation", "translation": [0.0, by_um, by_um]}
            multiscale["datasets"][1]["coordinateTransformations"].append(step)

        return edit

    box = Box(20.0, 30.0, 60.0, 45.0)
    slide = open_slide(write_ome_zarr(pyramid, edit=shift(0.25)))
    assert (slide.read(box, 1.0) == pyramid[1][30:75, 20:80]).all()
    with pytest.raises(DataError, match="level 1 starts 40, 40 of its pixels"):
        open_slide(write_ome_zarr(pyramid, edit=shift(40.0)))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_chunk_that_is_gone_is_an_error_and_not_black(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path], version: str
) -> None:
    path = write_ome_zarr([noise], version)
    chunk = "0/1/1/2" if version == "0.4" else "0/c/1/1/2"
    (path / chunk).unlink()
    slide = open_slide(path)
    assert slide.read(Box(0.0, 0.0, 40.0, 60.0), 0.5).shape == (120, 80, 3)
    with pytest.raises(DataError, match=r"level 0 lacks the chunk at pixel \(96, 64\)"):
        slide.read(Box(50.0, 40.0, 10.0, 10.0), 0.5)


def test_a_chunk_gone_from_a_shard_is_an_error(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path]
) -> None:
    holed = noise.copy()
    holed[32:64, 24:48] = 0  # zarr leaves chunks of the fill value out of a shard
    path = write_ome_zarr([holed], "0.5", "yxc", chunks=(32, 24, 3), shards=(64, 96, 3))
    slide = open_slide(path)
    with pytest.raises(DataError, match=r"lacks the chunk at pixel \(24, 32\)"):
        slide.read(Box(0.0, 0.0, 20.0, 20.0), 0.5)


def test_black_that_is_written_is_read(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path]
) -> None:
    black = noise.copy()
    black[64:128, 48:96] = 0
    path = write_ome_zarr([black], config={"write_empty_chunks": True})
    assert (open_slide(path).read(Box(0, 0, 105.5, 86.5), 0.5) == black).all()


def test_chunks_left_out_are_what_the_store_says_they_are(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path]
) -> None:
    bright = noise.copy()
    bright[64:128, 48:96] = 255
    path = write_ome_zarr([bright], fill_value=255)
    assert not (path / "0/c/1/1/1").exists()
    assert (open_slide(path).read(Box(0, 0, 105.5, 86.5), 0.5) == bright).all()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("compressors", [None, "auto"])
def test_a_truncated_chunk_is_refused_in_our_words(
    noise: np.ndarray,
    write_ome_zarr: Callable[..., Path],
    version: str,
    share: float,
    compressors: str | None,
) -> None:
    path = write_ome_zarr([noise], version, compressors=compressors)
    chunk = path / ("0/1/1/2" if version == "0.4" else "0/c/1/1/2")
    content = chunk.read_bytes()
    chunk.write_bytes(content[: int(share * len(content))])
    slide = open_slide(path)
    with pytest.raises(DataError, match=r"level 0 at pixel \(96, 64\).*Copy it again"):
        slide.read(Box(50.0, 40.0, 10.0, 10.0), 0.5)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("lost", ["root", "level", "root cut", "level cut"])
def test_broken_metadata_are_refused_in_our_words(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path], version: str, lost: str
) -> None:
    path = write_ome_zarr([noise], version)
    names = {"0.4": (".zgroup", "0/.zarray"), "0.5": ("zarr.json", "0/zarr.json")}[version]
    file = path / names["level" in lost]
    content = file.read_bytes()
    file.unlink()
    if "cut" in lost:
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"Copy it again|a folder; wanted a slide"):
        open_slide(path)


def test_what_is_no_8_bit_rgb_is_named(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match=r"uint16 of 3 c x 173 y x 211 x; wanted one 8-bit RGB"):
        open_slide(write_ome_zarr([noise], dtype="uint16"))
    with pytest.raises(DataError, match=r"float32 of 3 c"):
        open_slide(write_ome_zarr([noise], dtype="float32"))
    with pytest.raises(DataError, match=r"uint8 of 173 y x 211 x x 4 c"):
        open_slide(write_ome_zarr([np.dstack([noise, noise[:, :, 0]])], axes="yxc"))

    def call_it_depth(multiscale: dict) -> None:
        multiscale["axes"][0] = {"name": "z", "type": "space"}

    with pytest.raises(DataError, match=r"uint8 of 3 z x 173 y x 211 x"):
        open_slide(write_ome_zarr([noise], edit=call_it_depth))


def test_channels_of_other_colours_are_refused(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path]
) -> None:
    path = write_ome_zarr([noise], "0.4")
    root = zarr.open_group(path)
    root.attrs["omero"] = {"channels": [{"color": one} for one in ("FF0000", "00FF00", "0000FF")]}
    assert open_slide(path).size_px == (211, 173)
    root.attrs["omero"] = {"channels": [{"color": one} for one in ("0000FF", "00FF00", "FF0000")]}
    with pytest.raises(DataError, match=r"shown in 0000FF, 00FF00, FF0000; wanted red, green"):
        open_slide(path)


def test_channels_of_a_fluorescence_image_are_refused(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path]
) -> None:
    path = write_ome_zarr([noise], "0.4")
    root = zarr.open_group(path)
    markers = ("DAPI", "CD3", "CD8")
    root.attrs["omero"] = {"channels": [{"label": one, "color": "FFFFFF"} for one in markers]}
    with pytest.raises(DataError, match=r"shown in FFFFFF, FFFFFF, FFFFFF; wanted red, green"):
        open_slide(path)
    root.attrs["omero"] = {"channels": [{"label": one} for one in markers]}
    with pytest.raises(DataError, match=r"named DAPI, CD3, CD8; wanted red, green"):
        open_slide(path)
    for names in (("r", "g", "b"), ("0", "1", "2"), ("Channel 0", "Channel 1", "Channel 2")):
        root.attrs["omero"] = {"channels": [{"label": one} for one in names]}
        assert open_slide(path).size_px == (211, 173)


def test_levels_of_another_picture_are_refused(
    pyramid: list[np.ndarray], write_ome_zarr: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match="levels of 211 x 173, 86 x 105 px"):
        open_slide(write_ome_zarr([pyramid[0], pyramid[1].transpose(1, 0, 2)]))
    with pytest.raises(DataError, match="levels of 105 x 86, 211 x 173 px"):
        open_slide(write_ome_zarr([pyramid[1], pyramid[0]]))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_scan_of_a_converted_series_is_its_first_image(
    pyramid: list[np.ndarray], write_ome_zarr: Callable[..., Path], version: str
) -> None:
    write_ome_zarr(pyramid, version, name="raw.zarr/0")
    path = write_ome_zarr([pyramid[2]], version, name="raw.zarr/1").parent
    assert (path / "0").is_dir()
    root = zarr.open_group(path, mode="a", zarr_format=2 if version == "0.4" else 3)
    layout = {"bioformats2raw.layout": 3}
    root.attrs.update(layout if version == "0.4" else {"ome": layout | {"version": "0.5"}})
    slide = open_slide(path)
    assert (slide.slide_id, slide.size_px) == ("raw", (211, 173))
    assert (slide.read(Box(0, 0, 105.5, 86.5), 0.5) == pyramid[0]).all()


def test_a_store_without_an_image_at_its_root_names_those_within(
    noise: np.ndarray, tmp_path: Path, write_ome_zarr: Callable[..., Path]
) -> None:
    path = write_ome_zarr([noise], name="study.zarr/images/he").parents[1]
    root = zarr.open_group(path, mode="a")
    root.require_group("tables")
    root.require_group("images")
    with pytest.raises(DataError, match=r"no OME-Zarr image.*image itself: images/he\."):
        open_slide(path)
    assert open_slide(path / "images" / "he").size_px == (211, 173)


def test_an_older_version_is_refused(
    noise: np.ndarray, write_ome_zarr: Callable[..., Path]
) -> None:
    def set_back(multiscale: dict) -> None:
        multiscale["version"] = "0.2"
        del multiscale["axes"]

    with pytest.raises(DataError, match=r"NGFF 0\.2; wanted 0\.4 or 0\.5"):
        open_slide(write_ome_zarr([noise], "0.4", edit=set_back))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_zip_of_the_store_is_read_too(
    pyramid: list[np.ndarray], write_ome_zarr: Callable[..., Path], version: str
) -> None:
    path = write_ome_zarr(pyramid, version)
    packed = Path(shutil.make_archive(str(path.parent / "slide"), "zip", path))
    slide = open_slide(packed)
    assert (slide.read(Box(0, 0, 105.5, 86.5), 0.5) == pyramid[0]).all()
    with zipfile.ZipFile(path.parent / "other.zip", "w") as file:
        file.writestr("readme.txt", "no slide")
    with pytest.raises(DataError, match=r"other\.zip: truncated or damaged OME-Zarr"):
        open_slide(path.parent / "other.zip")


@pytest.mark.parametrize("is_packed", [False, True])
def test_threads_and_pickled_copies_read_the_same(
    pyramid: list[np.ndarray], write_ome_zarr: Callable[..., Path], is_packed: bool
) -> None:
    path = write_ome_zarr(pyramid)
    if is_packed:
        path = Path(shutil.make_archive(str(path.parent / "slide"), "zip", path))
    slide = open_slide(path)
    stored = pickle.dumps(slide)
    assert len(stored) < 1000
    copy = pickle.loads(stored)
    boxes = [Box(3.0 * n, 2.0 * n, 30.0, 25.0) for n in range(24)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda box: slide.read(box, 0.7), boxes))
    for box, pixels in zip(boxes, made, strict=True):
        assert (copy.read(box, 0.7) == pixels).all()
