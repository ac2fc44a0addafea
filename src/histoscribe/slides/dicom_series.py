"""Which files of a folder make one DICOM slide: those of one series."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from pydicom.filereader import read_partial
from pydicom.tag import Tag
from pydicom.uid import UID, VLWholeSlideMicroscopyImageStorage

from histoscribe.errors import DataError
from histoscribe.slides.formats import is_dicom

SERIES_TAG = Tag(0x0020, 0x000E)


class Membership(NamedTuple):
    """What a file is, and the series it belongs to."""

    kind: UID
    series: str


def series_files(path: Path) -> tuple[Path, ...]:
    """The files of the slide, by name: levels, and what else was put in their series.

    Args:
        path: One file of the series, or the folder that holds it and no other.

    Raises:
        DataError: A file that is no whole slide image or is broken, or a folder with no series
            or more than one.
    """
    if path.is_dir():
        return _only_series(path)
    wanted = _membership(path)
    if wanted is None:
        msg = f"{path}: its DICOM header is broken. Copy it again from its source."
        raise DataError(msg)
    if wanted.kind != VLWholeSlideMicroscopyImageStorage:
        msg = (
            f"{path}: DICOM of the kind {wanted.kind.name}; wanted VL Whole Slide Microscopy. "
            "Give a file of the scan."
        )
        raise DataError(msg)
    return tuple(files_by_series(path.parent)[wanted.series])


def is_other_dicom(file: Path) -> bool:
    """Whether it is sound DICOM of another kind, as annotations or an index (DICOMDIR) are."""
    try:
        with file.open("rb") as opened:
            header = read_partial(opened, stop_when=lambda tag, _vr, _n: tag > SERIES_TAG)
        return header.file_meta.MediaStorageSOPClassUID != VLWholeSlideMicroscopyImageStorage
    except Exception:  # noqa: BLE001 - as above; a broken file may have been a slide
        return False


def _only_series(folder: Path) -> tuple[Path, ...]:
    by_series = files_by_series(folder)
    if len(by_series) != 1:
        names = ", ".join(files[0].name for files in by_series.values())
        msg = (
            f"{folder}: a folder of {len(by_series)} DICOM slides ({names or 'none'}); wanted one. "
            "Give a file of the slide that is meant."
        )
        raise DataError(msg)
    return tuple(next(iter(by_series.values())))


def files_by_series(folder: Path) -> dict[str, list[Path]]:
    """The whole slide images of a folder, by the series they belong to, sorted by name."""
    by_series = defaultdict(list)
    for file in sorted(folder.iterdir()):
        member = _membership(file) if file.is_file() and is_dicom(file) else None
        if member is not None and member.kind == VLWholeSlideMicroscopyImageStorage:
            by_series[member.series].append(file)
    return by_series


def _membership(file: Path) -> Membership | None:
    try:
        with file.open("rb") as opened:
            header = read_partial(opened, stop_when=lambda tag, _vr, _n: tag > SERIES_TAG)
        return Membership(header.SOPClassUID, header.SeriesInstanceUID)
    except OSError:
        raise  # it cannot be read now: without it a slide would lack a part, and nobody be told
    except Exception:  # noqa: BLE001 - pydicom's are of many classes; such a file is of no series
        return None
