"""Which backend reads a file or a folder, told by its content."""

from pathlib import Path

from histoscribe.errors import DataError

SIGNATURES = {
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"\xff\xd8\xff": "image",
    b"\x89PNG": "image",
    b"PK\3\4": "ome-zarr",
}
# OpenSlide misses OME's SubIFDs and striped files, and interpolates lower levels whose width is
# no whole fraction of the full one: up to 63 grey values aside on a scan from TCGA
READ_BY_OURS = (None, "generic-tiff", "aperio", "dicom")
DICOM_MARK, DICOM_MARK_AT = b"DICM", 128
ZARR_MARKS = ("zarr.json", ".zgroup", ".zattrs")


def backend_of(path: Path) -> str:
    """Which backend reads the file or folder, by its content.

    Raises:
        DataError: Missing, empty, or of no known format.
    """
    if not path.exists():
        msg = f"{path}: no such slide. Check the path (in a manifest, relative to its folder)."
        raise DataError(msg)
    if path.is_dir():
        return _backend_of_folder(path)
    from openslide import OpenSlide

    if OpenSlide.detect_format(str(path)) not in READ_BY_OURS:
        return "openslide"
    if is_dicom(path):
        return "dicom"
    with path.open("rb") as file:
        head = file.read(8)
    for signature, name in SIGNATURES.items():
        if head.startswith(signature):
            return name
    came = "empty" if not head else f"begins with {head!r}"
    msg = (
        f"{path}: no image format that is known ({came}); wanted SVS, TIFF, OME-TIFF, DICOM, "
        "OME-Zarr, JPEG, PNG or an OpenSlide format. Convert it, e.g. to OME-TIFF."
    )
    raise DataError(msg)


def _backend_of_folder(path: Path) -> str:
    if any((path / mark).is_file() for mark in ZARR_MARKS):
        return "ome-zarr"
    if any(file.is_file() and is_dicom(file) for file in path.iterdir()):
        return "dicom"
    msg = (
        f"{path}: a folder; wanted a slide file, an OME-Zarr or a folder with the files of one "
        "DICOM series. Give the slide itself."
    )
    raise DataError(msg)


def is_dicom(path: Path) -> bool:
    """Whether the file bears DICOM's mark."""
    with path.open("rb") as file:
        file.seek(DICOM_MARK_AT)
        return file.read(len(DICOM_MARK)) == DICOM_MARK
