"""Which slides the doctor is to look at: files, folders of files, and manifests."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from histoscribe.errors import ConfigError, HistoscribeError
from histoscribe.readers.manifest import SampleRow, read_manifest
from histoscribe.slides.dicom_series import files_by_series, is_other_dicom
from histoscribe.slides.formats import backend_of

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".dcm", ".jpg", ".jpeg", ".png")
"""Files of these names are looked at even if their content is of no known format."""


@dataclass(frozen=True)
class Patient:
    """One slide to look at.

    Attributes:
        path: The slide.
        mpp: µm per pixel where the slide does not say it, or None.
        row: Its manifest row, where it has one; what it says of µm per pixel counts first.
    """

    path: Path
    mpp: float | None
    row: SampleRow | None = None

    @property
    def name(self) -> str:
        """What findings call it: the sample, or the path as it was given."""
        return str(self.path) if self.row is None else self.row.sample


def find_patients(paths: list[Path], mpp: float | None) -> list[Patient]:
    """Slides of the paths: files, folders of files, and manifests (CSV).

    A folder of OME-Zarr is one slide. Any other gives its slides: files, OME-Zarr folders, and
    of DICOM one for each series, in folders below it too; other DICOM objects are passed over.

    Raises:
        ConfigError: A folder without a slide.
        DataError: A manifest with faults.
    """
    return [patient for path in paths for patient in _patients_at(path, mpp)]


def _patients_at(path: Path, mpp: float | None) -> Iterator[Patient]:
    if path.suffix.lower() == ".csv":
        for row in read_manifest(path):
            yield Patient(row.slide, mpp, row)
        return
    slides = _slides_within(path) if _backend_of(path) != "ome-zarr" and path.is_dir() else [path]
    if not slides:
        raise ConfigError(f"{path} holds no slide; name slides, a folder of slides or a manifest")
    for one in slides:
        yield Patient(one, mpp)


def slides_below(path: Path) -> Iterator[Path]:
    """A slide itself; of a folder, its slides as `find_patients` has them, at any depth."""
    if not path.is_dir() or _backend_of(path) == "ome-zarr":
        yield path
        return
    found = _slides_within(path)
    yield from found
    for folder in sorted(one for one in path.iterdir() if one.is_dir()):
        if _backend_of(folder) is None and path not in found:
            yield from slides_below(folder)


def _slides_within(folder: Path) -> list[Path]:
    """The slides of a folder; the folder itself where all it holds is one DICOM series."""
    try:
        series = list(files_by_series(folder).values())
    except OSError:  # of one file: each is looked at by itself, and that one's fault is told
        series = []
    told = {file for files in series for file in files}
    slides = [files[0] for files in series]
    for one in folder.iterdir():
        backend = _backend_of(one)
        if backend == "dicom" and one.is_dir():
            slides += _slides_within(one)
        elif backend == "dicom" and is_other_dicom(one):
            continue
        elif one not in told and (backend is not None or one.suffix.lower() in SUFFIXES):
            slides.append(one)
    return [folder] if len(series) == len(slides) == 1 else sorted(slides)


def _backend_of(path: Path) -> str | None:
    """What reads it, by its content; None for what is no slide."""
    try:
        return backend_of(path)
    except (HistoscribeError, OSError):
        return None
