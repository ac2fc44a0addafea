from pathlib import Path

import numpy as np
import pytest

from histoscribe.errors import DataError
from histoscribe.slides.open import open_slide
from histoscribe.slides.openslide import open_openslide
from histoscribe.slides.tiff import open_tiff
from histoscribe.types import Box


def test_aperio_has_its_scale(data_dir: Path) -> None:
    slide = open_slide(data_dir / "wsi" / "cmu-1-small-region.svs")
    assert (slide.size_px, slide.mpp) == ((2220, 2967), (0.499, 0.499))


def test_a_scan_without_scale_is_refused_and_opens_with_one(data_dir: Path) -> None:
    path = data_dir / "wsi" / "tcga-cr-7395-01a-01-ts1.svs"
    with pytest.raises(DataError, match="--mpp"):
        open_slide(path)
    slide = open_slide(path, mpp=0.5)
    assert slide.level_mpp == ((0.5, 0.5), (1.0, 1.0))
    # the two levels show one picture in one place: half a coarse pixel aside is worse
    box = Box(1400.0, 1100.0, 600.0, 500.0)
    coarse = slide.read(box, 1.0).astype(float)

    def miss(x_um: float, y_um: float) -> float:
        fine = slide.read(box._replace(x_um=box.x_um + x_um, y_um=box.y_um + y_um), 0.5)
        return float(np.abs(coarse - fine.reshape(500, 2, 600, 2, 3).mean(axis=(1, 3))).mean())

    aside = [miss(x, y) for x, y in ((0.5, 0.0), (-0.5, 0.0), (0.0, 0.5), (0.0, -0.5))]
    assert miss(0.0, 0.0) < min(aside)
    assert miss(0.0, 0.0) < 8


def test_a_scale_wrong_by_a_hundred_is_refused(data_dir: Path) -> None:
    path = data_dir / "wsi" / "CMU-1-Small-Region.jpeg.tiff"
    with pytest.raises(DataError, match=r"0\.00499 µm/px; wanted 0\.05 to 5"):
        open_slide(path)
    twin = open_slide(data_dir / "wsi" / "cmu-1-small-region.svs")
    slide = open_slide(path, mpp=0.499)
    box = Box(200.0, 300.0, 400.0, 300.0)
    assert np.abs(slide.read(box, 2.0).astype(float) - twin.read(box, 2.0)).mean() < 3


@pytest.mark.parametrize("name", ["cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
def test_tifffile_and_openslide_decode_the_same_pixels(data_dir: Path, name: str) -> None:
    path = data_dir / "wsi" / name
    one, other = open_tiff(path), open_openslide(path)
    assert one.level_size_px == other.level_size_px
    place, size = (301, 205), (333, 401)
    assert (one.read_pixels(0, place, size) == other.read_pixels(0, place, size)).all()


def test_a_lower_level_reads_as_stored_whatever_the_place(data_dir: Path) -> None:
    # its width is 2221 of 4443: OpenSlide interpolates it, by another shift at each place
    import tifffile

    path = data_dir / "wsi" / "tcga-cr-7395-01a-01-ts1.svs"
    with tifffile.TiffFile(path) as file:
        wanted = file.series[0].levels[1].asarray()
    slide = open_slide(path, mpp=0.5)
    for x, y in ((0, 0), (997, 1201), (1800, 1400)):
        made = slide.read(Box(float(x), float(y), 301.0, 203.0), 1.0)
        assert (made == wanted[y : y + 203, x : x + 301]).all()


def test_a_thumbnail_shows_the_whole_of_a_real_slide(data_dir: Path) -> None:
    slide = open_slide(data_dir / "wsi" / "tcga-cr-7395-01a-01-ts1.svs", mpp=0.5)
    small = slide.thumbnail(500)
    assert small.shape == (401, 500, 3)
    stored = open_tiff(slide.path).read_thumbnail()  # the scanner's own, 956 x 768
    assert stored is not None
    assert stored.shape == (768, 956, 3)
    grey, other = small.mean(axis=2), stored[::2, ::2].mean(axis=2)[:384, :478]
    rows, columns = np.linspace(0, 400, 384).round(), np.linspace(0, 499, 478).round()
    matched = grey[rows.astype(int)[:, None], columns.astype(int)]
    assert np.corrcoef(matched.ravel(), other.ravel())[0, 1] > 0.9


def test_a_published_section_reads_where_its_pixels_are(data_dir: Path) -> None:
    path = next((data_dir / "her2st" / "ST-imgs" / "C" / "C2").glob("*.jpg"))
    slide = open_slide(path, mpp=0.69, slide_id="C2")
    assert slide.size_px == (9274, 9911)  # 92 million pixels: Pillow's own guard would warn
    box = Box(4000 * 0.69, 3000 * 0.69, 101 * 0.69, 77 * 0.69)
    from PIL.JpegImagePlugin import JpegImageFile

    with JpegImageFile(path) as image:
        image.load()
        wanted = np.asarray(image)[3000:3077, 4000:4101]
    assert (slide.read(box, 0.69) == wanted).all()
