"""The doctor of slides: can they be read, is their scale true, what will they cost?

The scale is held against two witnesses: nuclei are of a known size on any H&E slide, and the spots
of a manifest row lie at the pitch of their array.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from histoscribe.app.doctor import Finding
from histoscribe.data.slide import Slide
from histoscribe.errors import ConfigError, HistoscribeError
from histoscribe.preprocess.artefacts import Artefacts, describe_artefacts
from histoscribe.preprocess.preparation import check_scale, load_segmenter
from histoscribe.preprocess.quality import USUAL_AREA_UM2, check_size
from histoscribe.preprocess.segmenters.instanseg import NAME as INSTANSEG
from histoscribe.preprocess.segmenters.segmenter import Segmenter
from histoscribe.preprocess.stain import StainConfig
from histoscribe.preprocess.survey import Survey, SurveyConfig, survey
from histoscribe.preprocess.tissue import TissueMask
from histoscribe.preprocess.weights import list_weights
from histoscribe.readers.manifest import SampleRow, read_manifest
from histoscribe.readers.sample import read_sample
from histoscribe.slides.open import backend_of, open_slide
from histoscribe.slides.pyramid import PyramidSlide
from histoscribe.types import Box

SECONDS_PER_MM2 = 25.0  # InstanSeg with features on two CPU cores, benchmarks/RESULTS.md
MEMORY_GB = 4.0  # what `prepare --memory` keeps below unless told otherwise
MPP_OF_SCANNERS = (0.1, 1.1)  # 100x to about 10x: outside is possible, but worth a second look
LARGEST_PLAIN_PX = 400_000_000  # beyond, a slide of one level costs minutes to look over
SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".dcm", ".jpg", ".jpeg", ".png")
"""Files of these names are looked at even if their content is of no known format."""
SPOILT = 0.1  # share of tissue under ink or out of focus that is worth a word
N_WINDOWS, WINDOW_UM = 6, 200.0  # some hundred nuclei
FEW_NUCLEI = 30
CALIBRATION_PIXELS = 20_000
FEW_PER_MM2 = 800.0  # breast, brain, skin and lung have 1,500 to 6,000
USUAL_UM2 = (20.0, 100.0)  # medians of human and mouse tissue; beyond, the mpp deserves a look


@dataclass(frozen=True)
class Patient:
    """One slide to look at.

    Attributes:
        path: The slide.
        mpp: µm per pixel as given, or None to take what the file says.
        row: Its manifest row, where it has one.
    """

    path: Path
    mpp: float | None
    row: SampleRow | None = None


def find_patients(paths: list[Path], mpp: float | None) -> list[Patient]:
    """Slides of the paths: files, folders of files, and manifests (CSV).

    Raises:
        ConfigError: A folder without a file.
        DataError: A manifest with faults.
    """
    return [patient for path in paths for patient in _patients_at(path, mpp)]


def _patients_at(path: Path, mpp: float | None) -> Iterator[Patient]:
    if path.suffix.lower() == ".csv":
        for row in read_manifest(path):
            yield Patient(row.slide, mpp if row.mpp is None else row.mpp, row)
        return
    if not path.is_dir() or _is_slide(path):
        yield Patient(path, mpp)
        return
    inside = sorted(
        one for one in path.iterdir() if one.suffix.lower() in SUFFIXES or _is_slide(one)
    )
    if not inside:
        raise ConfigError(f"{path} holds no slide; name slides, a folder of slides or a manifest")
    for one in inside:
        yield Patient(one, mpp)


def _is_slide(path: Path) -> bool:
    """Whether it is one slide, by its content; a folder is, of OME-Zarr or DICOM."""
    try:
        backend_of(path)
    except HistoscribeError:
        return False
    return True


def examine_slide(patient: Patient) -> list[Finding]:
    """All that can be said of a slide before hours are spent on it.

    Never raises for a bad slide: the fault becomes a finding, so that the others are looked at.
    """
    name = patient.path.name
    try:
        slide = open_slide(patient.path, mpp=patient.mpp)
        segmenter = load_segmenter(_best_segmenter())
        seen = survey(
            slide,
            None,
            max(segmenter.mpp, *slide.mpp),
            SurveyConfig(StainConfig(), False, CALIBRATION_PIXELS, 0),
        )
        return [
            *_examine_scale(name, slide),
            _examine_levels(name, slide),
            _examine_cost(name, seen.mask),
            _examine_artefacts(name, seen.artefacts),
            *_ask_nuclei(name, slide, segmenter, seen),
            *_ask_spots(name, patient, slide),
        ]
    except HistoscribeError as fault:
        return [Finding(name, "bad", str(fault))]
    except OSError as fault:
        return [Finding(name, "bad", f"cannot be read: {fault}")]


def _best_segmenter() -> str:
    """InstanSeg where its weights are at hand, else the classical one; nothing is fetched."""
    ready = {status.name for status in list_weights() if status.state == "ready"}
    return "instanseg" if INSTANSEG in ready else "threshold"


def _examine_scale(name: str, slide: PyramidSlide) -> Iterator[Finding]:
    width_um, height_um = (n * one for n, one in zip(slide.size_px, slide.mpp, strict=True))
    yield Finding(
        name,
        "good",
        f"{slide.size_px[0]} x {slide.size_px[1]} px at {slide.mpp[0]:.4g} µm/px = "
        f"{width_um / 1000:.2f} x {height_um / 1000:.2f} mm",
    )
    for note in slide.notes:
        yield Finding(name, "warning", note)
    low, high = MPP_OF_SCANNERS
    if not all(low <= scale <= high for scale in slide.mpp):
        yield Finding(
            name,
            "warning",
            f"{slide.mpp[0]:.4g} µm/px is unusual for a scanner ({low}-{high}); if it is wrong, "
            "every distance is: give the right one with --mpp",
        )


def _examine_levels(name: str, slide: PyramidSlide) -> Finding:
    levels = ", ".join(f"{x:.3g}" for x, _ in slide.level_mpp)
    n_px = slide.size_px[0] * slide.size_px[1]
    if len(slide.level_mpp) == 1 and n_px > LARGEST_PLAIN_PX:
        return Finding(
            name,
            "warning",
            f"{n_px / 1e6:.0f} Mpx and no smaller level: every look at the whole reads all of it. "
            "Write it as a pyramid, e.g. with 'vips tiffsave in.tif out.tif --tile --pyramid'",
        )
    return Finding(name, "good", f"{len(slide.level_mpp)} level(s): {levels} µm/px")


def _examine_cost(name: str, mask: TissueMask) -> Finding:
    minutes = max(1, round(mask.area_mm2 * SECONDS_PER_MM2 / 60))
    return Finding(
        name,
        "good" if mask.area_mm2 > 0 else "warning",
        f"{mask.area_mm2:.2f} mm² of tissue; about {minutes} min to prepare whole on two CPU cores,"
        f" in {MEMORY_GB:g} GB of memory ('prepare --memory' sets it)",
    )


def _examine_artefacts(name: str, artefacts: Artefacts) -> Finding:
    spoilt = artefacts.pen_share + (artefacts.blur_share or 0.0)
    text = describe_artefacts(artefacts)
    if spoilt > SPOILT:
        return Finding(
            name, "warning", f"{text}; leave it out with 'prepare -s prepare.skip_artefacts=true'"
        )
    return Finding(name, "good", text)


def _ask_nuclei(name: str, slide: Slide, segmenter: Segmenter, seen: Survey) -> Iterator[Finding]:
    """Hold the scale against the size of nuclei in a few windows of tissue."""
    check_scale(slide, segmenter.mpp)
    calibration = segmenter.calibrate(seen.pixels)
    areas = []
    for x_um, y_um in _places(seen.mask):
        half = WINDOW_UM / 2
        image = slide.read(Box(x_um - half, y_um - half, WINDOW_UM, WINDOW_UM), segmenter.mpp)
        labels = segmenter.segment(image[None], calibration)[0].labels
        areas.append(np.bincount(labels.ravel())[1:] * segmenter.mpp**2)
    area_um2 = np.concatenate(areas)
    area_um2 = area_um2[area_um2 > 0]
    if len(area_um2) < FEW_NUCLEI:
        yield Finding(
            name,
            "warning",
            f"only {len(area_um2)} nuclei in {N_WINDOWS} windows of {WINDOW_UM:g} µm of tissue: no "
            "witness of the scale. Look at the slide, its stain and --mpp",
        )
        return
    median = float(np.median(area_um2))
    check_size(slide.slide_id, median)
    low, high = USUAL_UM2
    factor = (median / USUAL_AREA_UM2) ** 0.5
    per_mm2 = len(area_um2) / (len(areas) * WINDOW_UM**2 / 1e6)
    if per_mm2 < FEW_PER_MM2:
        yield Finding(
            name,
            "warning",
            f"only {per_mm2:.0f} nuclei per mm² of tissue, {FEW_PER_MM2:g} and more are usual: fat "
            "or necrosis, or an mpp that is too small; look, and give the right one with --mpp",
        )
    elif low <= median <= high:
        yield Finding(
            name,
            "good",
            f"nuclei of {median:.0f} µm² (median), {per_mm2:.0f} per mm², agree with the scale",
        )
    if low <= median <= high:
        return
    yield Finding(
        name,
        "warning",
        f"nuclei of {median:.0f} µm² (median), {low:g} to {high:g} is usual: the mpp may be "
        f"{'too large' if factor > 1 else 'too small'} by about {max(factor, 1 / factor):.1f}; "
        f"check it ({slide.mpp[0] / factor:.2g} µm/px?) and give the right one with --mpp",
    )


def _places(mask: TissueMask) -> Float64[np.ndarray, "place 2"]:
    """Places of tissue, drawn over it, in µm."""
    places = np.argwhere(mask.mask)
    chosen = np.random.default_rng(0).choice(len(places), min(N_WINDOWS, len(places)), False)
    return (places[np.sort(chosen)][:, ::-1] + 0.5) * mask.mpp


def _ask_spots(name: str, patient: Patient, slide: Slide) -> Iterator[Finding]:
    """Hold the scale against the pitch of the spots; the readers refuse what disagrees."""
    if patient.row is None:
        return
    found = read_sample(patient.row, slide)
    if found is None:
        return
    regions, report = found
    yield Finding(
        name,
        "good",
        f"{len(regions)} spots of {2 * regions.radius_um:g} µm lie on the slide at the pitch of "
        f"their array; {report.n_genes} genes",
    )
