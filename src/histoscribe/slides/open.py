"""open_slide: any H&E image file as a Slide, with a physical scale that is known or refused."""

import hashlib
import importlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

from histoscribe.data.atomic import hash_file
from histoscribe.errors import DataError
from histoscribe.slides.formats import backend_of
from histoscribe.slides.pixels import PixelSource, StatedMpp
from histoscribe.slides.pyramid import PyramidSlide

SMALLEST_MPP, LARGEST_MPP = 0.05, 5.0  # µm/px: finer than any objective, coarser than a nucleus
ANISOTROPY_NOTED = 0.01
DISAGREEMENT_NOTED = 0.05

BACKENDS = {
    "openslide": "histoscribe.slides.openslide:open_openslide",
    "tiff": "histoscribe.slides.tiff:open_tiff",
    "image": "histoscribe.slides.image:open_image",
    "dicom": "histoscribe.slides.dicom:open_dicom",
    "ome-zarr": "histoscribe.slides.ome_zarr:open_ome_zarr",
}
UID = re.compile(r"[0-9]+(\.[0-9]+){3,}")  # a DICOM file is often named after one


def open_slide(
    path: str | Path,
    mpp: float | None = None,
    slide_id: str | None = None,
    *,
    default_mpp: float | None = None,
) -> PyramidSlide:
    """Open a slide.

    The format is told by the content, not by the name: Aperio SVS, tiled and plain TIFF,
    OME-TIFF, DICOM, OME-Zarr, JPEG and PNG, and what else OpenSlide reads.

    Args:
        path: The file; for OME-Zarr its folder or a zip of it, for DICOM any file of the series
            or the folder that holds it.
        mpp: µm per pixel of the full-resolution level, in place of what the file says; JPEG and
            PNG have none and need it.
        slide_id: Name of the slide; the file's name without its ending by default.
        default_mpp: The same as `mpp`, but only where the file says nothing or what cannot be.

    Raises:
        DataError: The file is missing, broken or of no known format, or its scale is missing,
            zero or outside 0.05 to 5 µm/px.
    """
    path = Path(path)
    source = _open_source(path)
    stated = source.stated_mpp
    if mpp is None and default_mpp is not None and not (stated and _is_plausible(stated)):
        mpp = default_mpp
    return PyramidSlide(
        source,
        mpp=_plausible_mpp(path, StatedMpp(mpp, mpp, "--mpp") if mpp is not None else stated),
        slide_id=slide_id or _name(path),
        notes=(*source.notes, *_notes(stated, mpp)),
        reopen=(open_slide, (path, mpp, slide_id)),
    )


def hash_slide_file(path: Path) -> str:
    """SHA-256 of all that the slide is read from, block by block.

    Of one file, its content. Where files go together (an OME-Zarr folder, a DICOM series, a
    MIRAX index and its folder), of their sorted names and contents; other files beside them do
    not count.

    Raises:
        DataError: As `backend_of`, or a file that cannot be read.
    """
    home = path if path.is_dir() else path.parent
    files = sorted(_files_of(path), key=lambda file: file.relative_to(home).as_posix())
    if files == [path]:
        return hash_file(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(home).as_posix()}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


def _files_of(path: Path) -> Sequence[Path]:
    backend = backend_of(path)
    if backend == "dicom":
        from histoscribe.slides.dicom_series import series_files

        return series_files(path)
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file()]
    companion = path.with_suffix("")  # MIRAX: slide.mrxs is an index to what slide/ holds
    if path.suffix.lower() == ".mrxs" and companion.is_dir():
        return [path, *(file for file in companion.rglob("*") if file.is_file())]
    return [path]


def _name(path: Path) -> str:
    name = path.name or path.resolve().name
    uid = UID.match(name)
    return uid.group() if uid else name.split(".")[0]


def _open_source(path: Path) -> PixelSource:
    module, function = BACKENDS[backend_of(path)].split(":")
    return getattr(importlib.import_module(module), function)(path)


def _plausible_mpp(path: Path, stated: StatedMpp | None) -> tuple[float, float]:
    if stated is None:
        msg = (
            f"{path}: the file does not say how many µm a pixel has. Give it: --mpp 0.25 for a "
            "40x scan, --mpp 0.5 for 20x, or the column mpp of the manifest."
        )
        raise DataError(msg)
    scale = float(stated.x), float(stated.y)
    if _is_plausible(stated):
        return scale
    pair = f"{scale[0]:.5g}" if scale[0] == scale[1] else f"{scale[0]:.5g} x {scale[1]:.5g}"
    msg = (
        f"{path}: {stated.where} says {pair} µm/px; wanted {SMALLEST_MPP} to {LARGEST_MPP}. "
        "Give the true one: --mpp 0.25 for a 40x scan, --mpp 0.5 for 20x, or the column mpp of "
        "the manifest."
    )
    raise DataError(msg)


def _is_plausible(stated: StatedMpp) -> bool:
    return all(
        math.isfinite(one) and SMALLEST_MPP <= one <= LARGEST_MPP for one in (stated.x, stated.y)
    )


def _notes(stated: StatedMpp | None, mpp: float | None) -> tuple[str, ...]:
    notes = [stated.doubt] if mpp is None and stated and stated.doubt else []
    if mpp is None and stated and abs(stated.x / stated.y - 1) > ANISOTROPY_NOTED:
        notes.append(
            f"pixels are not square: {stated.x:.4g} x {stated.y:.4g} µm; each axis is "
            "resampled by its own"
        )
    if mpp is not None and stated:
        values = [one for one in (stated.x, stated.y) if math.isfinite(one) and one > 0]
        if any(abs(one / mpp - 1) > DISAGREEMENT_NOTED for one in values):
            notes.append(f"{mpp:.4g} µm/px given; {stated.where} says {stated.x:.4g}")
    return tuple(notes)
