"""open_slide: any H&E image file as a Slide, with a physical scale that is known or refused."""

import importlib
import math
from pathlib import Path

from histoscribe.errors import DataError
from histoscribe.slides.pixels import PixelSource, StatedMpp
from histoscribe.slides.pyramid import PyramidSlide

SMALLEST_MPP, LARGEST_MPP = 0.05, 5.0  # µm/px: finer than any objective, coarser than a nucleus
ANISOTROPY_NOTED = 0.01
DISAGREEMENT_NOTED = 0.05

BACKENDS = {
    "openslide": "histoscribe.slides.openslide:open_openslide",
    "tiff": "histoscribe.slides.tiff:open_tiff",
    "image": "histoscribe.slides.image:open_image",
}
SIGNATURES = {
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"\xff\xd8\xff": "image",
    b"\x89PNG": "image",
}
READ_BY_TIFFFILE = (None, "generic-tiff")  # OpenSlide misses OME's SubIFDs and striped files


def open_slide(
    path: str | Path, mpp: float | None = None, slide_id: str | None = None
) -> PyramidSlide:
    """Open a slide.

    The format is told by the file's content, not by its name: OpenSlide's formats, tiled and
    plain TIFF and OME-TIFF, JPEG and PNG.

    Args:
        path: The file.
        mpp: µm per pixel of the full-resolution level, in place of what the file says; JPEG and
            PNG have none and need it.
        slide_id: Name of the slide; the file's name without its ending by default.

    Raises:
        DataError: The file is missing, broken or of no known format, or its scale is missing,
            zero or outside 0.05 to 5 µm/px.
    """
    path = Path(path)
    source = _open_source(path)
    stated = source.stated_mpp
    return PyramidSlide(
        source,
        mpp=_plausible_mpp(path, StatedMpp(mpp, mpp, "--mpp") if mpp is not None else stated),
        slide_id=slide_id or path.name.split(".")[0],
        notes=_notes(stated, mpp),
        reopen=(open_slide, (path, mpp, slide_id)),
    )


def backend_of(path: Path) -> str:
    """Which backend reads the file, by its content.

    Raises:
        DataError: Missing, empty, or of no known format.
    """
    if not path.exists():
        msg = f"{path}: no such slide. Check the path (in a manifest, relative to its folder)."
        raise DataError(msg)
    if path.is_dir():
        msg = f"{path}: a folder; wanted a slide file."
        raise DataError(msg)
    from openslide import OpenSlide

    if OpenSlide.detect_format(str(path)) not in READ_BY_TIFFFILE:
        return "openslide"
    with path.open("rb") as file:
        head = file.read(8)
    for signature, name in SIGNATURES.items():
        if head.startswith(signature):
            return name
    came = "empty" if not head else f"begins with {head!r}"
    msg = (
        f"{path}: no image format that is known ({came}); wanted an OpenSlide format, TIFF, "
        "OME-TIFF, JPEG or PNG. Convert it, e.g. to OME-TIFF."
    )
    raise DataError(msg)


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
    if all(math.isfinite(one) and SMALLEST_MPP <= one <= LARGEST_MPP for one in scale):
        return scale
    pair = f"{scale[0]:.5g}" if scale[0] == scale[1] else f"{scale[0]:.5g} x {scale[1]:.5g}"
    msg = (
        f"{path}: {stated.where} says {pair} µm/px; wanted {SMALLEST_MPP} to {LARGEST_MPP}. "
        "Give the true one: --mpp 0.25 for a 40x scan, --mpp 0.5 for 20x, or the column mpp of "
        "the manifest."
    )
    raise DataError(msg)


def _notes(stated: StatedMpp | None, mpp: float | None) -> tuple[str, ...]:
    notes = []
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
