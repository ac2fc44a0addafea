"""Which pages make a slide, and what of their samples is colour."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from histoscribe.errors import DataError
from histoscribe.slides.open import open_slide
from histoscribe.slides.pyramid import PyramidSlide
from histoscribe.types import Box

MARKERS = ["DAPI", "CD3", "CD8"]
OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def write_planes(path: Path, image: np.ndarray, channel: dict[str, list] | None = None) -> Path:
    """An OME-TIFF with a grey page for each channel."""
    metadata: dict = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    if channel:
        metadata["Channel"] = channel
    tifffile.imwrite(
        path, image.transpose(2, 0, 1), photometric="minisblack", ome=True, metadata=metadata
    )
    return path


def whole(slide: PyramidSlide) -> np.ndarray:
    width, height = slide.size_px
    return slide.read(Box(0.0, 0.0, width * 0.5, height * 0.5), 0.5)


@pytest.mark.parametrize(
    "channel",
    [
        None,
        {"Name": ["red", "green", "blue"]},
        {"Name": ["Brightfield R", "Brightfield G", "Brightfield B"]},
        {"Name": ["Channel 0", "Channel:0:1", "2"]},
        {"Name": ["R", "G", "B"], "Color": [-16776961, 16711935, 65535]},
        {"Color": [0xFF0000FF, 0x00FF00FF, 0x0000FFFF]},
        {"Color": [-1, -1, -1]},
    ],
)
def test_grey_pages_that_may_be_red_green_and_blue_are_read(
    tmp_path: Path, noise: np.ndarray, channel: dict | None
) -> None:
    assert (whole(open_slide(write_planes(tmp_path / "a.ome.tif", noise, channel))) == noise).all()


@pytest.mark.parametrize(
    ("channel", "told"),
    [
        ({"Name": MARKERS}, "named DAPI, CD3, CD8"),
        ({"Name": ["405", "488", "561"]}, "named 405, 488, 561"),
        ({"Name": ["blue", "green", "red"]}, "named blue, green, red"),
        ({"Name": MARKERS, "Color": [-16776961, 16711935, 65535]}, "named DAPI"),
        ({"Color": [65535, 16711935, -16776961]}, "shown in 0000FF, 00FF00, FF0000"),
        ({"Color": [-16776961, -1, -1]}, "shown in FF0000, none, none"),
    ],
)
def test_grey_pages_of_a_fluorescence_image_are_refused(
    tmp_path: Path, noise: np.ndarray, channel: dict, told: str
) -> None:
    path = write_planes(tmp_path / "a.ome.tif", noise, channel)
    with pytest.raises(DataError, match=f"its channels are {told}.*; wanted red, green and blue"):
        open_slide(path)


@pytest.mark.parametrize("names", [MARKERS, None])
def test_a_fourth_grey_page_is_no_transparency(
    tmp_path: Path, noise: np.ndarray, names: list[str] | None
) -> None:
    image = np.dstack([noise, noise[:, :, 0]])
    channel = {"Name": [*names, "PanCK"]} if names else None
    with pytest.raises(DataError, match=r"holds uint8 of shape \(4, 173, 211\).*wanted one 8-bit"):
        open_slide(write_planes(tmp_path / "a.ome.tif", image, channel))


def test_a_composite_of_imagej_is_refused_and_its_rgb_is_not(
    tmp_path: Path, noise: np.ndarray
) -> None:
    planes = np.ascontiguousarray(noise.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "a.tif", planes, imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(DataError, match="an ImageJ stack of 3 grey channels; wanted one RGB"):
        open_slide(tmp_path / "a.tif", mpp=0.5)
    tifffile.imwrite(tmp_path / "b.tif", noise, imagej=True, photometric="rgb")
    assert (whole(open_slide(tmp_path / "b.tif", mpp=0.5)) == noise).all()


def test_interleaved_colour_may_have_any_name(tmp_path: Path, noise: np.ndarray) -> None:
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        noise,
        photometric="rgb",
        metadata=metadata | {"Channel": {"Name": ["H&E of CD3"], "Color": [-1]}},
    )
    assert (whole(open_slide(tmp_path / "a.ome.tif")) == noise).all()


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["UNASSALPHA", "ASSOCALPHA", "UNSPECIFIED"])
def test_a_fourth_sample_is_what_the_file_says_it_is(
    tmp_path: Path, noise: np.ndarray, kind: str, planar: str
) -> None:
    alpha = np.full((*noise.shape[:2], 1), 255, dtype=np.uint8)
    alpha[:40], alpha[40:80] = 0, 100
    share = alpha / 255
    stored = np.rint(noise * share).astype(np.uint8) if kind == "ASSOCALPHA" else noise
    image = np.concatenate([stored, alpha], axis=2)
    tifffile.imwrite(
        tmp_path / "a.tif",
        image if planar == "contig" else image.transpose(2, 0, 1),
        photometric="rgb",
        planarconfig=planar,
        extrasamples=[kind],
        tile=(64, 64),
    )
    slide = open_slide(tmp_path / "a.tif", mpp=0.5)
    on_white = noise * share + 255 * (1 - share)
    wanted = noise if kind == "UNSPECIFIED" else on_white
    assert np.abs(whole(slide) - wanted).max() <= 1
    assert ("fourth sample" in " ".join(slide.notes)) == (kind == "UNSPECIFIED")


def write_split(folder: Path, image: np.ndarray) -> Path:
    """An OME-TIFF whose first file holds red, and another one green and blue."""
    planes = image.transpose(2, 0, 1)
    uuids = ("urn:uuid:11111111-1111-1111-1111-111111111111", "urn:uuid:2" + "2" * 7 + "-2")
    places = [
        ("one.ome.tif", uuids[0], 0),
        ("two.ome.tif", uuids[1], 0),
        ("two.ome.tif", uuids[1], 1),
    ]
    data = "".join(
        f'<TiffData FirstC="{channel}" FirstZ="0" FirstT="0" IFD="{page}" PlaneCount="1">'
        f'<UUID FileName="{name}">{uuid}</UUID></TiffData>'
        for channel, (name, uuid, page) in enumerate(places)
    )
    height, width = image.shape[:2]
    for name, uuid, pages in (
        ("one.ome.tif", uuids[0], planes[:1]),
        ("two.ome.tif", uuids[1], planes[1:]),
    ):
        xml = (
            f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{OME}" UUID="{uuid}">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
            f'SizeX="{width}" SizeY="{height}" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="0.5" '
            f'PhysicalSizeY="0.5">{data}</Pixels></Image></OME>'
        )
        with tifffile.TiffWriter(folder / name) as file:
            for number, page in enumerate(pages):
                file.write(
                    page,
                    photometric="minisblack",
                    metadata=None,
                    contiguous=False,
                    description=xml if number == 0 else None,
                )
    return folder / "one.ome.tif"


def test_pixels_in_several_files_are_refused(tmp_path: Path, noise: np.ndarray) -> None:
    path = write_split(tmp_path, noise)
    assert tifffile.imread(path).shape == (3, 173, 211)
    with pytest.raises(DataError, match=r"one\.ome\.tif: its pixels lie in several files.*Export"):
        open_slide(path)
    (tmp_path / "two.ome.tif").unlink()
    with pytest.raises(DataError, match="its pixels lie in several files"):
        open_slide(path)


def test_an_orientation_is_noted_and_not_applied(tmp_path: Path, noise: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    tifffile.imwrite(tmp_path / "b.tif", noise, photometric="rgb", extratags=[(274, 3, 1, 1, True)])
    turned, upright = (open_slide(tmp_path / name, mpp=0.5) for name in ("a.tif", "b.tif"))
    assert (whole(turned) == noise).all()
    assert "Orientation tag says 6" in turned.notes[0]
    assert upright.notes == ()


def test_a_piece_too_large_to_decode_is_refused(
    tmp_path: Path, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("histoscribe.slides.tiff_pages.LARGEST_PIECE_PX", 10_000)
    common: dict = {"photometric": "rgb", "compression": "deflate"}
    for name, layout in (("strip", {"rowsperstrip": 173}), ("tile", {"tile": (128, 80)})):
        tifffile.imwrite(tmp_path / name, noise, **common, **layout)
        with pytest.raises(DataError, match=r"in pieces of \d+ x \d+ px, too many to hold decoded"):
            open_slide(tmp_path / name, mpp=0.5)
    tifffile.imwrite(tmp_path / "strips", noise, **common, rowsperstrip=40)
    assert open_slide(tmp_path / "strips", mpp=0.5).level_piece_px == ((211, 40),)


def test_every_tile_of_a_wide_slide_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decodings: Callable[..., list]
) -> None:
    # a row of tiles, 147 kB, is more than the cache may hold, and more than a block
    monkeypatch.setattr("histoscribe.slides.tiles.CACHE_BYTES", 100_000)
    monkeypatch.setattr("histoscribe.slides.pyramid.BLOCK_PX", 16_000)
    image = np.random.default_rng(7).integers(0, 256, (203, 1021, 3), dtype=np.uint8)
    for name, layout in (("a.tif", {"tile": (48, 64)}), ("b.tif", {"rowsperstrip": 48})):
        tifffile.imwrite(tmp_path / name, image, photometric="rgb", **layout)
        slide = open_slide(tmp_path / name, mpp=0.5)
        decoded = decodings(slide)
        for mpp in (0.5, 0.83, 8.0):
            decoded.clear()
            slide._source._segments.__init__()
            box = Box(0.0, 0.0, 510.5, 101.5)
            made = slide.read(box, mpp)
            assert len(set(decoded)) == (5 * 16 if "tile" in layout else 5)
            assert len(decoded) <= 1.25 * len(set(decoded)), (name, mpp)
            monkeypatch.setattr("histoscribe.slides.pyramid.BLOCK_PX", 10**9)
            assert (slide.read(box, mpp) == made).all()
            monkeypatch.setattr("histoscribe.slides.pyramid.BLOCK_PX", 16_000)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list]:
    """Keeps a list of the segments that a slide decodes."""

    def follow(slide: PyramidSlide) -> list:
        source, seen = slide._source, []
        decode = source._decode

        def followed(file: object, key: tuple) -> np.ndarray:
            seen.append(key)
            return decode(file, key)

        monkeypatch.setattr(source, "_decode", followed)
        return seen

    return follow
