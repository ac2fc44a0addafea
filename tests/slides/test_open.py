import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from histoscribe.data.slide import Slide
from histoscribe.errors import DataError
from histoscribe.slides.formats import backend_of
from histoscribe.slides.open import open_slide
from histoscribe.types import Box

APERIO = "Aperio Image Library v12.0\r\n211x173 |AppMag = 20|MPP = 0.5000|Filename = a"


def read_all(slide: Slide, mpp: float) -> np.ndarray:
    width, height = (n * one for n, one in zip(slide.size_px, slide.mpp, strict=True))
    return slide.read(Box(0.0, 0.0, width, height), mpp)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{"tile": (48, 32)}, {"rowsperstrip": 23}, {}])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_plain_tiff_reads_as_written(
    tmp_path: Path, noise: np.ndarray, layout: dict, planar: str, compression: str | None
) -> None:
    image = noise if planar == "contig" else noise.transpose(2, 0, 1)
    tifffile.imwrite(
        tmp_path / "a.tif",
        image,
        photometric="rgb",
        planarconfig=planar,
        compression=compression,
        **layout,
    )
    slide = open_slide(tmp_path / "a.tif", mpp=0.5)
    assert slide.size_px == (211, 173)
    assert (read_all(slide, 0.5) == noise).all()
    assert (slide.read(Box(20.5, 30.0, 40.0, 33.5), 0.5) == noise[60:127, 41:121]).all()


def test_ome_tiff_with_a_page_per_colour_reads_as_written(
    tmp_path: Path, noise: np.ndarray
) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        noise.transpose(2, 0, 1),
        photometric="minisblack",
        metadata={
            "axes": "CYX",
            "PhysicalSizeX": 500.0,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.0005,
            "PhysicalSizeYUnit": "mm",
        },
    )
    slide = open_slide(tmp_path / "a.ome.tif")
    assert slide.mpp == pytest.approx((0.5, 0.5))
    assert slide.slide_id == "a"
    assert (read_all(slide, slide.mpp[0]) == noise).all()


@pytest.mark.parametrize("subifds", [True, False])
def test_pyramid_uses_the_level_just_finer_than_needed(
    noise: np.ndarray, write_pyramid: Callable[..., Path], subifds: bool
) -> None:
    path = write_pyramid(
        noise, "p.ome.tif" if subifds else "p.tif", subifds=subifds, resolutionunit="CENTIMETER",
        resolution=(40_000, 40_000), **({"metadata": {"axes": "YXS", "PhysicalSizeX": 0.25,
        "PhysicalSizeY": 0.25}} if subifds else {}),
    )  # fmt: skip
    slide = open_slide(path)
    assert slide.mpp == pytest.approx((0.25, 0.25))
    assert [round(level[0], 6) for level in slide.level_mpp] == [0.25, 0.5, 1.0]
    wanted = {0.125: 0, 0.25: 0, 0.4999: 0, 0.5: 1, 0.8: 1, 1.0: 2, 7.0: 2}
    assert {mpp: slide.describe_reading(mpp).level for mpp in wanted} == wanted
    blocks = noise[:160, :200].reshape(80, 2, 100, 2, 3).mean(axis=(1, 3))
    made = slide.read(Box(0.0, 0.0, 50.0, 40.0), 0.5)
    assert np.abs(made - blocks).max() <= 0.5


def test_every_format_shows_the_same_picture(tmp_path: Path, smooth: np.ndarray) -> None:
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(smooth).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", smooth, photometric="rgb", tile=(64, 64))
    tifffile.imwrite(
        tmp_path / "a.svs",
        smooth,
        photometric="rgb",
        tile=(64, 64),
        compression="jpeg",
        compressionargs={"level": 95},
        description=APERIO,
        metadata=None,
    )
    slides = [open_slide(tmp_path / name, mpp=0.5) for name in ("a.png", "a.jpg", "a.tif", "a.svs")]
    assert [backend_of(slide.path) for slide in slides] == ["image", "image", "tiff", "tiff"]
    for mpp in (0.31, 0.5, 0.69, 2.3):
        box = Box(-7.3, 11.2, 90.0, 71.0)
        first, *others = (slide.read(box, mpp).astype(float) for slide in slides)
        assert first.shape == (round(71 / mpp), round(90 / mpp), 3)
        for other in others:
            assert np.abs(other - first).mean() < 2


@pytest.mark.parametrize("mpp", [0.3, 0.5, 1.7])
def test_reading_in_pieces_is_reading_whole(
    noise: np.ndarray, write_pyramid: Callable[..., Path], mpp: float
) -> None:
    slide = open_slide(write_pyramid(noise, "p.tif", subifds=False), mpp=0.25 if mpp > 1 else 0.5)
    n_x, n_y, left, top = 41, 29, -3.7, 12.9
    whole = slide.read(Box(left, top, n_x * mpp, n_y * mpp), mpp)
    pieces = [
        slide.read(Box(left, top + row * mpp, n_x * mpp, 7 * mpp), mpp) for row in range(0, 28, 7)
    ]
    assert (np.concatenate(pieces) == whole[:28]).all()


def test_a_block_at_a_time_is_the_whole(
    noise: np.ndarray, write_pyramid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = open_slide(write_pyramid(noise, "p.tif", subifds=False), mpp=0.25)
    whole = read_all(slide, 0.37)
    monkeypatch.setattr("histoscribe.slides.pyramid.BLOCK_PX", 1500)
    assert (read_all(slide, 0.37) == whole).all()


def test_enlargement_is_recorded_and_ends_at_two(tmp_path: Path, noise: np.ndarray) -> None:
    Image.fromarray(noise).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png", mpp=0.69)
    reading = slide.describe_reading(0.5)
    assert (reading.filter, reading.level) == ("bilinear", 0)
    assert reading.enlargement == pytest.approx(1.38)
    assert slide.describe_reading(0.69).enlargement == 1.0
    assert slide.read(Box(0, 0, 10, 10), 0.345).shape == (29, 29, 3)
    with pytest.raises(DataError, match=r"0\.69 µm/px, 0\.3 were asked, an enlargement of 2\.30x"):
        slide.read(Box(0, 0, 10, 10), 0.3)


@pytest.mark.parametrize("mpp", [0.0, -0.5, float("nan"), float("inf"), 0.049, 5.1])
def test_an_implausible_mpp_is_refused(tmp_path: Path, noise: np.ndarray, mpp: float) -> None:
    Image.fromarray(noise).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"--mpp says .* wanted 0\.05 to 5\.0.*--mpp 0\.25"):
        open_slide(tmp_path / "a.png", mpp=mpp)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_missing_mpp_is_refused_with_the_way_to_give_it(
    tmp_path: Path, noise: np.ndarray, name: str
) -> None:
    Image.fromarray(noise).save(tmp_path / name)
    with pytest.raises(DataError, match=r"does not say how many µm.*--mpp.*column mpp"):
        open_slide(tmp_path / name)


@pytest.mark.parametrize(
    ("resolution", "unit", "came"),
    [((72, 72), "INCH", "352.78"), ((2_004_008, 2_004_008), "CENTIMETER", "0.00499")],
)
def test_tags_no_scanner_writes_are_refused(
    tmp_path: Path, noise: np.ndarray, resolution: tuple[int, int], unit: str, came: str
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", noise, photometric="rgb", resolution=resolution, resolutionunit=unit
    )
    with pytest.raises(DataError, match=f"its resolution tag says {came} µm/px"):
        open_slide(tmp_path / "a.tif")
    slide = open_slide(tmp_path / "a.tif", mpp=0.5)
    assert slide.notes == (f"0.5 µm/px given; its resolution tag says {float(came):.4g}",)


def test_pixels_that_are_not_square_are_noted_and_read_by_their_own_axis(
    tmp_path: Path, noise: np.ndarray
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        noise,
        photometric="rgb",
        resolution=(40_000, 20_000),
        resolutionunit="CENTIMETER",
    )
    slide = open_slide(tmp_path / "a.tif")
    assert slide.mpp == pytest.approx((0.25, 0.5))
    assert "not square" in slide.notes[0]
    made = slide.read(Box(0, 0, 50, 60), 0.5)
    assert np.abs(made - noise[:120, :200].reshape(120, 100, 2, 3).mean(axis=2)).max() <= 0.5


def test_a_default_scale_is_for_files_that_state_none_or_what_cannot_be(
    tmp_path: Path, noise: np.ndarray
) -> None:
    Image.fromarray(noise).save(tmp_path / "none.png")
    for name, px_per_cm in (("half.tif", 20_000), ("screen.tif", 28)):
        tifffile.imwrite(
            tmp_path / name,
            noise,
            photometric="rgb",
            resolution=(px_per_cm, px_per_cm),
            resolutionunit="CENTIMETER",
        )
    for name, mpp in (("none.png", 0.25), ("half.tif", 0.5), ("screen.tif", 0.25)):
        slide = open_slide(tmp_path / name, default_mpp=0.25)
        assert slide.mpp == pytest.approx((mpp, mpp))
        assert pickle.loads(pickle.dumps(slide)).mpp == slide.mpp
    with pytest.raises(DataError, match="--mpp says 50 µm/px"):
        open_slide(tmp_path / "none.png", default_mpp=50.0)


def test_aperio_states_its_mpp_through_either_backend(tmp_path: Path, smooth: np.ndarray) -> None:
    from histoscribe.slides.openslide import open_openslide
    from histoscribe.slides.tiff import open_tiff

    tifffile.imwrite(
        tmp_path / "a.svs",
        smooth,
        photometric="rgb",
        tile=(64, 64),
        compression="jpeg",
        description=APERIO,
        metadata=None,
    )
    slide = open_slide(tmp_path / "a.svs")
    assert slide.mpp == (0.5, 0.5)
    for opener, where in ((open_tiff, "its Aperio description"), (open_openslide, "its header")):
        stated = opener(tmp_path / "a.svs").stated_mpp
        assert stated is not None
        assert (stated.x, stated.y, stated.where) == (0.5, 0.5, where)


def test_a_slide_pickles_by_its_path(tmp_path: Path, noise: np.ndarray) -> None:
    Image.fromarray(noise).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png", mpp=0.5, slide_id="C2")
    stored = pickle.dumps(slide)
    assert len(stored) < 1000
    again = pickle.loads(stored)
    assert (again.slide_id, again.mpp, again.path) == ("C2", (0.5, 0.5), slide.path)
    assert isinstance(again, Slide)
    assert (read_all(again, 0.7) == read_all(slide, 0.7)).all()


def test_transparent_is_white(tmp_path: Path, noise: np.ndarray) -> None:
    alpha = np.full((*noise.shape[:2], 1), 255, dtype=np.uint8)
    alpha[:40] = 0
    rgba = np.concatenate([noise, alpha], axis=2)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    tifffile.imwrite(
        tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["UNASSALPHA"], tile=(64, 64)
    )
    for name in ("a.png", "a.tif"):
        made = read_all(open_slide(tmp_path / name, mpp=0.5), 0.5)
        assert (made[:40] == 255).all()
        assert (made[40:] == noise[40:]).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.svs"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused_in_our_words(
    tmp_path: Path, noise: np.ndarray, name: str, share: float
) -> None:
    path = tmp_path / name
    if name in ("a.tif", "a.svs"):
        tifffile.imwrite(
            path,
            noise,
            photometric="rgb",
            tile=(64, 64),
            compression="jpeg",
            description=APERIO if name == "a.svs" else None,
            metadata=None,
        )
    else:
        Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"Copy it again|no image format"):
        read_all(open_slide(path, mpp=0.5), 0.5)


def test_a_truncated_jpeg_is_found_when_opened(tmp_path: Path, noise: np.ndarray) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"a\.jpg: truncated or damaged image"):
        open_slide(path, mpp=0.5)


def test_what_is_no_slide_is_refused(tmp_path: Path, noise: np.ndarray) -> None:
    with pytest.raises(DataError, match="no such slide"):
        open_slide(tmp_path / "none.svs", mpp=0.5)
    with pytest.raises(DataError, match="a folder"):
        open_slide(tmp_path, mpp=0.5)
    (tmp_path / "text.svs").write_text("no slide at all")
    with pytest.raises(DataError, match="no image format that is known"):
        open_slide(tmp_path / "text.svs", mpp=0.5)
    Image.fromarray(noise[:, :, 0]).save(tmp_path / "grey.png")
    with pytest.raises(DataError, match="mode L; wanted 8-bit colour"):
        open_slide(tmp_path / "grey.png", mpp=0.5)
    tifffile.imwrite(tmp_path / "grey.tif", noise[:, :, 0])
    with pytest.raises(DataError, match="wanted one 8-bit RGB image"):
        open_slide(tmp_path / "grey.tif", mpp=0.5)
    tifffile.imwrite(tmp_path / "deep.tif", noise.astype(np.uint16), photometric="rgb")
    with pytest.raises(DataError, match="holds uint16"):
        open_slide(tmp_path / "deep.tif", mpp=0.5)


def test_a_box_without_a_pixel_is_refused(tmp_path: Path, noise: np.ndarray) -> None:
    Image.fromarray(noise).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png", mpp=0.5)
    with pytest.raises(DataError, match="holds no pixel"):
        slide.read(Box(0, 0, 0.2, 30), 0.5)


def test_a_section_of_a_hundred_million_pixels_opens(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (10_007, 10_009), (210, 190, 205)).save(path, compress_level=1)
    slide = open_slide(path, mpp=0.5)  # Pillow's own guard warns from 89 million on
    assert slide.size_px == (10_007, 10_009)
    assert (slide.read(Box(4990.0, 4990.0, 5.0, 5.0), 0.5) == (210, 190, 205)).all()


def test_crops_all_over_a_pyramid_are_neither_black_nor_duplicates(tmp_path: Path) -> None:
    # the paper's code clipped level-0 places to level-1 sizes: every crop beyond half the width
    # or height was black. Here each block has a colour of its own, which says where it lies.
    side, n_x, n_y = 64, 13, 9
    y, x = np.mgrid[: n_y * side, : n_x * side] // side
    image = np.stack([40 + 15 * x, 40 + 20 * y, 120 + 0 * x], axis=2).astype(np.uint8)
    common = {"tile": (128, 128), "photometric": "rgb", "metadata": None, "compression": "jpeg"}
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        file.write(image, description=APERIO, compressionargs={"level": 98}, **common)
        file.write(image[::8, ::8], description=APERIO, **(common | {"tile": None}))
        file.write(image[::2, ::2], description=APERIO, compressionargs={"level": 98}, **common)
    slide = open_slide(tmp_path / "a.svs")
    assert [level[0] for level in slide.level_mpp] == pytest.approx([0.5, 1.0])
    for mpp, level in ((0.5, 0), (1.3, 1), (4.0, 1)):
        assert slide.describe_reading(mpp).level == level
        for row in range(n_y):
            for column in range(n_x):
                box = Box(column * 32.0 + 8, row * 32.0 + 8, 16.0, 16.0)
                colour = slide.read(box, mpp).mean(axis=(0, 1))
                wanted = (40 + 15 * column, 40 + 20 * row, 120)
                assert np.abs(colour - wanted).max() < 5, (mpp, column, row)
