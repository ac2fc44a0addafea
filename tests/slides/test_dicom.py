import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, RLELossless
from tests.slides.conftest import dicom_picture, save_dicom

from histoscribe.app.doctor_patients import slides_below
from histoscribe.errors import DataError
from histoscribe.slides import dicom_series
from histoscribe.slides.dicom import open_dicom
from histoscribe.slides.formats import backend_of
from histoscribe.slides.open import open_slide
from histoscribe.slides.openslide import open_openslide
from histoscribe.types import Box

LOSSLESS = ["native", "implicit", "planar", "jpeg2000"]
WRITTEN = [*LOSSLESS, "jpeg", "jpeg-rgb"]


@pytest.mark.parametrize("encoding", LOSSLESS)
def test_every_level_reads_as_written(
    pyramid: list[np.ndarray], write_dicom: Callable[..., Path], encoding: str
) -> None:
    source = open_dicom(write_dicom(pyramid, encoding))
    assert source.level_size_px == ((211, 173), (105, 86), (52, 43))
    for level, image in enumerate(pyramid):
        height, width = image.shape[:2]
        assert (source.read_pixels(level, (0, 0), (width, height)) == image).all()
        assert (source.read_pixels(level, (31, 9), (17, 29)) == image[9:38, 31:48]).all()


@pytest.mark.parametrize("encoding", ["native", "jpeg", "jpeg-rgb", "jpeg2000"])
def test_the_full_level_is_what_openslide_reads(
    smooth: np.ndarray, write_dicom: Callable[..., Path], encoding: str
) -> None:
    folder = write_dicom([smooth], encoding)
    ours, theirs = open_dicom(folder), open_openslide(folder / "level0.dcm")
    assert ours.level_size_px == theirs.level_size_px
    place, size = (40, 30), (301, 222)
    made = ours.read_pixels(0, place, size)
    assert (made == theirs.read_pixels(0, place, size)).all()
    assert np.abs(made.astype(float) - smooth[30:252, 40:341]).mean() < 2


def test_the_series_opens_by_any_of_its_files_and_by_its_folder(
    pyramid: list[np.ndarray], write_dicom: Callable[..., Path]
) -> None:
    folder = write_dicom(pyramid)
    (folder / "notes.txt").write_text("scanned in spring")
    slides = [open_slide(folder / name) for name in ("", "level2.dcm", "level0.dcm", "a-label.dcm")]
    assert {backend_of(slide.path) for slide in slides} == {"dicom"}
    assert [slide.slide_id for slide in slides] == ["series", "level2", "level0", "a-label"]
    for slide in slides:
        assert (slide.size_px, slide.mpp) == ((211, 173), (0.5, 0.5))
        assert [level[0] for level in slide.level_mpp] == [0.5, 1.0, 2.0]
        assert (slide.read(Box(20.0, 30.0, 60.0, 45.0), 1.0) == pyramid[1][30:75, 20:80]).all()


def test_a_file_of_the_series_that_cannot_be_read_is_not_left_out(
    pyramid: list[np.ndarray],
    write_dicom: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_dicom(pyramid)

    def denied(*_given: object, **_named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(dicom_series, "read_partial", denied)
    with pytest.raises(PermissionError):
        dicom_series.files_by_series(folder)
    listed = {file.name for file in slides_below(folder)}
    assert listed == {file.name for file in folder.iterdir()}  # the doctor goes on


def test_a_file_named_by_its_uid_keeps_the_whole_of_it(
    noise: np.ndarray, write_dicom: Callable[..., Path]
) -> None:
    file = write_dicom([noise]) / "level0.dcm"
    renamed = file.rename(file.with_name("1.2.826.0.1.73.dcm"))
    assert open_slide(renamed).slide_id == "1.2.826.0.1.73"


@pytest.mark.parametrize("encoding", ["jpeg", "jpeg2000"])
@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_frames_are_found_with_any_table_of_offsets(
    smooth: np.ndarray, write_dicom: Callable[..., Path], table: str, encoding: str
) -> None:
    slide = open_slide(write_dicom([smooth], encoding, table=table))
    made = slide.read(Box(0.0, 0.0, 203.5, 150.5), 0.5)
    assert np.abs(made.astype(float) - smooth).mean() < 2


def test_a_sparse_level_is_white_where_it_has_no_frame(
    tmp_path: Path, noise: np.ndarray, write_dicom: Callable[..., Path]
) -> None:
    def scatter(header: Dataset) -> None:
        header.DimensionOrganizationType = "TILED_SPARSE"
        groups = []
        for row in (2, 1, 0):
            for column in range(5):
                place, group = Dataset(), Dataset()
                place.ColumnPositionInTotalImagePixelMatrix = column * 48 + 1
                place.RowPositionInTotalImagePixelMatrix = row * 64 + 1
                group.PlanePositionSlideSequence = [place]
                groups.append(group)
        header.PerFrameFunctionalGroupsSequence = groups[:-1]  # row 0 lacks its last tile
        header.NumberOfFrames = 14

    turned = np.full((192, 211, 3), 255, dtype=np.uint8)
    turned[:173] = noise
    rows = turned.reshape(3, 64, 211, 3)[::-1].reshape(192, 211, 3)
    folder = write_dicom([rows], edit=scatter)
    slide = open_slide(folder)
    made = slide.read(Box(0.0, 0.0, 105.5, 96.0), 0.5)
    assert (made[:, :192] == turned[:, :192]).all()
    assert (made[64:, 192:] == turned[64:, 192:]).all()
    assert (made[:64, 192:] == 255).all()


def _placed(n_planes: int) -> Callable[[Dataset], None]:
    """Positions of all frames, last row of tiles first, and again for every plane."""

    def edit(header: Dataset) -> None:
        groups = []
        for _ in range(n_planes):
            for row in (2, 1, 0):
                for column in range(5):
                    place, group = Dataset(), Dataset()
                    place.ColumnPositionInTotalImagePixelMatrix = column * 48 + 1
                    place.RowPositionInTotalImagePixelMatrix = row * 64 + 1
                    group.PlanePositionSlideSequence = [place]
                    groups.append(group)
        header.PerFrameFunctionalGroupsSequence = groups
        header.NumberOfFrames = len(groups)

    return edit


def test_two_focal_planes_that_only_their_positions_show_are_refused(
    tmp_path: Path, noise: np.ndarray
) -> None:
    header, frames = dicom_picture(noise, "VOLUME", "native", (0.5, 0.5), 0)
    _placed(2)(header)
    header.DimensionOrganizationType = "TILED_SPARSE"
    del header.TotalPixelMatrixFocalPlanes
    save_dicom(tmp_path / "a.dcm", header, [*frames, *frames])
    with pytest.raises(DataError, match=r"two frames at pixel \(0, 128\).*Export one plane"):
        open_slide(tmp_path / "a.dcm")


def test_a_frame_off_the_slide_is_refused(tmp_path: Path, noise: np.ndarray) -> None:
    for column, row in ((-48, 0), (0, -64), (240, 0), (0, 192)):
        header, frames = dicom_picture(noise, "VOLUME", "native", (0.5, 0.5), 0)
        _placed(1)(header)
        place = header.PerFrameFunctionalGroupsSequence[3].PlanePositionSlideSequence[0]
        place.ColumnPositionInTotalImagePixelMatrix = column + 1
        place.RowPositionInTotalImagePixelMatrix = row + 1
        header.DimensionOrganizationType = "TILED_SPARSE"
        save_dicom(tmp_path / "a.dcm", header, frames)
        with pytest.raises(DataError, match=rf"a frame at pixel \({column}, {row}\), off its 211"):
            open_slide(tmp_path / "a.dcm")


def test_positions_count_where_no_organization_is_stated(tmp_path: Path, noise: np.ndarray) -> None:
    turned = np.full((192, 211, 3), 255, dtype=np.uint8)
    turned[:173] = noise
    rows = turned.reshape(3, 64, 211, 3)[::-1].reshape(192, 211, 3)  # as they lie in the file
    header, frames = dicom_picture(rows, "VOLUME", "native", (0.5, 0.5), 0)
    _placed(1)(header)
    del header.DimensionOrganizationType
    save_dicom(tmp_path / "a.dcm", header, frames)
    made = open_slide(tmp_path / "a.dcm").read(Box(0.0, 0.0, 105.5, 96.0), 0.5)
    assert (made == turned).all()
    header, frames = dicom_picture(noise, "VOLUME", "native", (0.5, 0.5), 0)
    del header.DimensionOrganizationType  # and no positions either: side by side
    save_dicom(tmp_path / "a.dcm", header, frames)
    assert (open_slide(tmp_path / "a.dcm").read(Box(0.0, 0.0, 105.5, 86.5), 0.5) == noise).all()


def test_a_folder_of_several_slides_is_refused_and_a_file_of_it_is_not(
    pyramid: list[np.ndarray], write_dicom: Callable[..., Path]
) -> None:
    folder = write_dicom(pyramid)
    other = dcmread(folder / "level0.dcm")
    other.SeriesInstanceUID = "1.2.3.4.5.6"
    other.save_as(folder / "other.dcm")
    with pytest.raises(DataError, match=r"2 DICOM slides \(a-label\.dcm, other\.dcm\); wanted one"):
        open_slide(folder)
    assert len(open_slide(folder / "other.dcm").level_mpp) == 1
    assert len(open_slide(folder / "level1.dcm").level_mpp) == 3


def test_what_is_no_scan_is_refused(noise: np.ndarray, write_dicom: Callable[..., Path]) -> None:
    folder = write_dicom([noise])
    (folder / "level0.dcm").unlink()
    with pytest.raises(DataError, match="no image of type VOLUME"):
        open_slide(folder)
    header = dcmread(folder / "a-label.dcm")
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    header.save_as(folder / "ct.dcm")
    with pytest.raises(DataError, match="of the kind CT Image Storage"):
        open_slide(folder / "ct.dcm")


def _is_deep(header: Dataset) -> None:
    header.BitsAllocated = header.BitsStored = 16


def _is_grey(header: Dataset) -> None:
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"


def _has_planes(header: Dataset) -> None:
    header.TotalPixelMatrixFocalPlanes = 3


def _has_unknown_syntax(header: Dataset) -> None:
    header.file_meta.TransferSyntaxUID = RLELossless


def _lacks_rows(header: Dataset) -> None:
    del header.Rows


def _lacks_frames(header: Dataset) -> None:
    header.NumberOfFrames = 3


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (_is_deep, "3 samples of 16 bits"),
        (_is_grey, "1 samples of 8 bits, MONOCHROME2"),
        (_has_planes, "3 focal planes"),
        (_has_unknown_syntax, "transfer syntax RLE Lossless"),
        (_lacks_rows, "'Rows'"),
        (_lacks_frames, r"3 frames; 211 x 173 px in tiles of 48 x 64 are 15"),
    ],
)
def test_what_is_not_read_is_named(
    noise: np.ndarray, write_dicom: Callable[..., Path], edit: Callable, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        open_slide(write_dicom([noise], edit=edit))


def test_two_pictures_in_one_series_are_refused(
    noise: np.ndarray, write_dicom: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match="211 x 173, 211 x 173 px in one series"):
        open_slide(write_dicom([noise, noise]))
    with pytest.raises(DataError, match="211 x 173, 99 x 173 px in one series"):
        open_slide(write_dicom([noise, noise[:, :99]]))


@pytest.mark.parametrize("encoding", WRITTEN)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_level_is_refused_when_opened(
    noise: np.ndarray, write_dicom: Callable[..., Path], encoding: str, share: float
) -> None:
    path = write_dicom([noise], encoding) / "level0.dcm"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"Copy it again|no image format"):
        open_slide(path)


@pytest.mark.parametrize("encoding", ["jpeg", "jpeg2000"])
def test_a_broken_frame_stops_the_reading_there_and_only_there(
    noise: np.ndarray, write_dicom: Callable[..., Path], encoding: str
) -> None:
    path = write_dicom([noise], encoding) / "level0.dcm"
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xd8\xff" if encoding == "jpeg" else b"\xff\x4f\xff\x51")
    content[at : at + 40] = bytes(40)
    path.write_bytes(bytes(content))
    slide = open_slide(path)
    assert slide.read(Box(60.0, 40.0, 20.0, 20.0), 0.5).shape == (40, 40, 3)
    with pytest.raises(DataError, match=r"level0\.dcm: truncated or damaged DICOM"):
        slide.read(Box(2.0, 2.0, 20.0, 20.0), 0.5)


def test_threads_and_pickled_copies_read_the_same(
    pyramid: list[np.ndarray], write_dicom: Callable[..., Path]
) -> None:
    slide = open_slide(write_dicom(pyramid, "jpeg2000"))
    copy = pickle.loads(pickle.dumps(slide))
    boxes = [Box(3.0 * n, 2.0 * n, 30.0, 25.0) for n in range(24)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda box: slide.read(box, 0.7), boxes))
    for box, pixels in zip(boxes, made, strict=True):
        assert (copy.read(box, 0.7) == pixels).all()
