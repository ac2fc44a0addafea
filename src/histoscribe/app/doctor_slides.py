"""The doctor of slides: can they be read, is their scale true, what will they cost?

The scale is held against two witnesses: nuclei are of a known size on any H&E slide, and the spots
of a manifest row lie at the pitch of their array.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from histoscribe.app.doctor import Finding
from histoscribe.app.doctor_patients import Patient
from histoscribe.app.faults import explain
from histoscribe.app.prepare_sample import gather_warnings
from histoscribe.data.slide import Slide
from histoscribe.preprocess.artefacts import Artefacts, describe_artefacts
from histoscribe.preprocess.given_check import check_given
from histoscribe.preprocess.mask_geojson import read_mask
from histoscribe.preprocess.preparation import check_scale, load_segmenter
from histoscribe.preprocess.quality import USUAL_AREA_UM2, check_size
from histoscribe.preprocess.segmenters.instanseg import NAME as INSTANSEG
from histoscribe.preprocess.segmenters.segmenter import Segmenter
from histoscribe.preprocess.stain import StainConfig
from histoscribe.preprocess.survey import Survey, SurveyConfig, survey
from histoscribe.preprocess.tissue import TissueMask
from histoscribe.preprocess.weights import list_weights
from histoscribe.readers.manifest import SampleRow
from histoscribe.readers.nuclei import read_nuclei
from histoscribe.readers.sample import read_sample
from histoscribe.slides.open import open_slide
from histoscribe.slides.pixels import DECODING_BYTES
from histoscribe.slides.pyramid import PyramidSlide
from histoscribe.types import Box

SECONDS_PER_MM2 = 25.0  # InstanSeg with features on two CPU cores, benchmarks/RESULTS.md
MEMORY_GB = 4.0  # what `prepare --memory` keeps below unless told otherwise
MPP_OF_SCANNERS = (0.1, 1.1)  # 100x to about 10x: outside is possible, but worth a second look
LARGEST_PLAIN_PX = 400_000_000  # beyond, a slide of one level costs minutes to look over
SPOILT = 0.1  # share of tissue under ink or out of focus that is worth a word
N_WINDOWS, WINDOW_UM = 6, 200.0  # some hundred nuclei
FEW_NUCLEI = 30
CALIBRATION_PIXELS = 20_000
FEW_PER_MM2 = 800.0  # breast, brain, skin and lung have 1,500 to 6,000
USUAL_UM2 = (20.0, 100.0)  # medians of human and mouse tissue; beyond, the mpp deserves a look
MEND_MPP = "give the right one in the column mpp of the manifest"


def examine_slide(patient: Patient) -> list[Finding]:
    """All that can be said of a slide before hours are spent on it.

    Never raises for a bad slide, whatever is wrong with it: the fault becomes the last finding,
    after all that was found before, so that the others are looked at.
    """
    return list(_guarded(patient.name, _examine(patient)))


def _guarded(name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Findings as they come; what stops them is one more."""
    try:
        yield from findings
    except Exception as fault:  # noqa: BLE001 - one slide must not stop the others
        yield Finding(name, "bad", explain(fault).message)


def _examine(patient: Patient) -> Iterator[Finding]:
    name, row = patient.name, patient.row
    slide = open_slide(
        patient.path,
        mpp=row.mpp if row else None,
        slide_id=row.sample if row else None,
        default_mpp=patient.mpp,
    )
    yield from _examine_scale(name, slide, patient)
    yield from _examine_levels(name, slide)
    given = None
    if row and row.tissue:
        given, finding = _read_tissue(name, row.tissue, slide)
        yield finding
    yield from _guarded(name, _examine_tissue(name, slide, given))
    if row:
        yield from _guarded(name, _ask_expression(name, row, slide))
        yield from _guarded(name, _ask_given_nuclei(name, row, slide))


def _examine_tissue(name: str, slide: PyramidSlide, given: TissueMask | None) -> Iterator[Finding]:
    segmenter = load_segmenter(_best_segmenter())
    config = SurveyConfig(StainConfig(), False, CALIBRATION_PIXELS, 0)
    seen = survey(slide, given, max(segmenter.mpp, *slide.mpp), config)
    yield _examine_cost(name, seen.mask)
    yield _examine_artefacts(name, seen.artefacts)
    yield from _ask_nuclei(name, slide, segmenter, seen)


def _best_segmenter() -> str:
    """InstanSeg where its weights are at hand, else the classical one; nothing is fetched."""
    ready = {status.name for status in list_weights() if status.state == "ready"}
    return "instanseg" if INSTANSEG in ready else "threshold"


def _examine_scale(name: str, slide: PyramidSlide, patient: Patient) -> Iterator[Finding]:
    width_um, height_um = (n * one for n, one in zip(slide.size_px, slide.mpp, strict=True))
    yield Finding(
        name,
        "good",
        f"{slide.size_px[0]} x {slide.size_px[1]} px at {slide.mpp[0]:.4g} µm/px = "
        f"{width_um / 1000:.2f} x {height_um / 1000:.2f} mm{_unused(slide, patient)}",
    )
    for note in slide.notes:
        yield Finding(name, "warning", note)
    low, high = MPP_OF_SCANNERS
    if not all(low <= scale <= high for scale in slide.mpp):
        yield Finding(
            name,
            "warning",
            f"{slide.mpp[0]:.4g} µm/px is unusual for a scanner ({low}-{high}); if it is wrong, "
            f"every distance is: {MEND_MPP}",
        )


def _unused(slide: PyramidSlide, patient: Patient) -> str:
    """That --mpp was not taken, and why; nothing where it was, or was not given."""
    if patient.mpp is None or slide.mpp == (patient.mpp, patient.mpp):
        return ""
    if patient.row and patient.row.mpp is not None:
        where = "its manifest row"
    else:
        where = slide.stated_mpp.where if slide.stated_mpp else "the file"
    return f", by {where}; --mpp {patient.mpp:g} is for slides that state none"


def _examine_levels(name: str, slide: PyramidSlide) -> Iterator[Finding]:
    levels = ", ".join(f"{x:.3g}" for x, _ in slide.level_mpp)
    n_px = slide.size_px[0] * slide.size_px[1]
    mend = "Write it as a pyramid, e.g. with 'vips tiffsave in.tif out.tif --tile --pyramid'"
    if len(slide.level_mpp) == 1 and n_px > LARGEST_PLAIN_PX:
        yield Finding(
            name,
            "warning",
            f"{n_px / 1e6:.0f} Mpx and no smaller level: every look at the whole reads all of it. "
            f"{mend}",
        )
    else:
        yield Finding(name, "good", f"{len(slide.level_mpp)} level(s): {levels} µm/px")
    width, height = max(slide.level_piece_px, key=lambda piece: piece[0] * piece[1])
    most_gb = width * height * DECODING_BYTES / 1e9
    if most_gb > MEMORY_GB:
        yield Finding(
            name,
            "warning",
            f"{width} x {height} px are decoded at once, in up to {most_gb:.1f} GB of memory, more "
            f"than the {MEMORY_GB:g} GB that preparing is kept to. {mend}",
        )


def _read_tissue(name: str, path: Path, slide: PyramidSlide) -> tuple[TissueMask | None, Finding]:
    """The tissue that the manifest gives, None where it cannot be read."""
    try:
        given = read_mask(path, slide)
    except Exception as fault:  # noqa: BLE001 - the slide itself is still looked at
        return None, Finding(name, "bad", explain(fault).message)
    return given, Finding(name, "good", f"{path.name}: {given.area_mm2:.2f} mm² of tissue")


def _examine_cost(name: str, mask: TissueMask) -> Finding:
    minutes = max(1, round(mask.area_mm2 * SECONDS_PER_MM2 / 60))
    return Finding(
        name,
        "good",
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
            "witness of the scale. Look at the slide, its stain and its mpp",
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
            f"or necrosis, or an mpp that is too small; look, and {MEND_MPP}",
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
        f"check it ({slide.mpp[0] / factor:.2g} µm/px?) and {MEND_MPP}",
    )


def _places(mask: TissueMask) -> Float64[np.ndarray, "place 2"]:
    """Places of tissue, drawn over it, in µm."""
    places = np.argwhere(mask.mask)
    chosen = np.random.default_rng(0).choice(len(places), min(N_WINDOWS, len(places)), False)
    return (places[np.sort(chosen)][:, ::-1] + 0.5) * mask.mpp


def _ask_expression(name: str, row: SampleRow, slide: Slide) -> Iterator[Finding]:
    """Read it, and hold the scale against the pitch of spots; the readers refuse what disagrees."""
    found = read_sample(row, slide)
    if found is None:
        return
    regions, report = found
    text = report.describe()
    if regions.kind == "spot":
        text = (
            f"{len(regions)} spots of {2 * regions.radius_um:g} µm lie on the slide at the pitch "
            f"of their array; {report.n_genes} genes"
        )
    yield Finding(name, "good", text)


def _ask_given_nuclei(name: str, row: SampleRow, slide: Slide) -> Iterator[Finding]:
    """Read the nuclei that the manifest gives, and hold them against the slide."""
    if row.nuclei is None:
        return
    notes: list[str] = []
    with gather_warnings(notes):
        nuclei, report = read_nuclei(row.nuclei, slide, row.nuclei_config)
    yield Finding(
        name,
        "good",
        f"{row.nuclei.name}: {report.n_kept:,} of {report.n_listed:,} nuclei, {report.format}",
    )
    try:
        with gather_warnings(notes):
            check_given(slide, nuclei)
    finally:
        for note in notes:
            yield Finding(name, "warning", note)
