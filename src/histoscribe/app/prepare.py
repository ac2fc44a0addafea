"""Prepare: the nuclei and tiles of every sample of a study, each made once."""

import time
from collections.abc import Sequence
from typing import Any

from histoscribe.app.console import Voice
from histoscribe.app.study import Sample, Study, write_json
from histoscribe.data.cells import Cells
from histoscribe.data.regions import Regions
from histoscribe.data.store import (
    is_current,
    read_cells,
    read_regions,
    read_tiles,
    write_cells,
    write_tiles,
)
from histoscribe.errors import DataError, MismatchError
from histoscribe.preprocess.preparation import (
    CENTRES,
    PrepareConfig,
    hash_centres,
    plan_preparation,
)
from histoscribe.preprocess.run import carry_out
from histoscribe.slides.open import open_slide
from histoscribe.train.assemble import SlideData


def prepare_study(
    study: Study, config: PrepareConfig, names: Sequence[str], voice: Voice
) -> list[dict[str, Any]]:
    """Segment and describe samples; those that are stored from the same input are kept.

    Args:
        study: The study.
        config: How.
        names: Samples; all if empty.
        voice: Told what happens.

    Returns:
        One record a sample: name, nuclei, area, whether it was made now.

    Raises:
        MismatchError: A file is no longer the one that was ingested.
        DataError, ConfigError, MissingExtra: As `prepare_slide`.
    """
    samples = [study.find(name) for name in names] or list(study.samples)
    return [_prepare_sample(study, sample, config, voice) for sample in samples]


def read_measured(study: Study, sample: Sample) -> Regions | None:
    """The regions of a sample, or None where nothing was measured."""
    return read_regions(study.folder_of(sample)) if sample.expression else None


def load_slide(study: Study, sample: Sample) -> SlideData:
    """All that is stored of a sample, if it is of what was last ingested.

    Raises:
        DataError: A step was not run; its command is named.
        MismatchError: The sample was ingested anew, from another slide, scale or table of spots,
            since its nuclei were found.
    """
    if study.prepared_record(sample) is None:
        raise DataError(
            f"Sample '{sample.sample}' is not prepared. Run 'histoscribe prepare {study.folder}'."
        )
    regions = read_measured(study, sample)
    if regions is None:
        raise DataError(
            f"Sample '{sample.sample}' has no regions: its manifest row names no expression. "
            "Name other samples with --sample."
        )
    home = study.folder_of(sample)
    cells, tiles = read_cells(home), read_tiles(home)
    if not set(regions.provenance.inputs.values()) <= set(sample.inputs.values()):
        raise MismatchError(
            f"The regions of sample '{sample.sample}' were not read from the files that the study "
            "names: an ingest was interrupted. Run 'histoscribe ingest' again, then 'prepare'."
        )
    other = _what_changed(sample, cells, regions)
    if tiles.provenance.key != cells.provenance.key:
        other = "settings (its tiles and its cells are of two runs of prepare)"
    if other:
        raise MismatchError(
            f"The nuclei of sample '{sample.sample}' are of another {other} than was ingested "
            f"last. Run 'histoscribe prepare {study.folder}' again."
        )
    return SlideData(cells, tiles, regions)


def _what_changed(sample: Sample, cells: Cells, regions: Regions) -> str:
    """What the cells were made from that is no longer so, in words; "" if nothing."""
    made = cells.provenance
    if made.inputs.get("slide") != sample.inputs["slide"]:
        return "slide file"
    mpp = regions.provenance.settings.get("mpp")
    if made.settings.get("slide_mpp") != mpp:
        return f"scale ({made.settings.get('slide_mpp')} µm/px against {mpp})"
    centres = made.inputs.get(CENTRES)
    if centres is not None and centres != hash_centres(regions.xy_um):
        return "table of spots"
    return ""


def _prepare_sample(
    study: Study, sample: Sample, config: PrepareConfig, voice: Voice
) -> dict[str, Any]:
    study.check_inputs(sample)
    slide = open_slide(study.path_of(sample.slide), mpp=sample.mpp, slide_id=sample.sample)
    home = study.folder_of(sample)
    preparation = plan_preparation(slide, read_measured(study, sample), config)
    record_path = home / "prepare.json"
    is_stored = all(is_current(home, noun, preparation.provenance) for noun in ("cells", "tiles"))
    if is_stored and record_path.exists():
        record = study.prepared_record(sample) or {}
        voice.say(f"{sample.sample}: {record.get('n_nuclei', '?')} nuclei, as stored")
        return {**record, "is_new": False}
    started = time.monotonic()
    with voice.progress(f"{sample.sample}: nuclei") as advance:
        cells, tiles = carry_out(preparation, lambda done, total, _: advance(done, total))
    write_cells(cells, home)
    write_tiles(tiles, home)
    record = {
        "sample": sample.sample,
        "key": preparation.provenance.key,
        "n_nuclei": len(cells),
        "n_tiles": len(tiles),
        "tissue_mm2": round(preparation.searched_mm2, 4),
        "encoder_id": cells.encoder_id,
        "segmenter_id": cells.segmenter_id,
    }
    write_json(record_path, record)
    seconds = time.monotonic() - started
    study.log("prepare", sample=sample.sample, seconds=round(seconds, 1), n_nuclei=len(cells))
    voice.say(
        f"{sample.sample}: {len(cells):,} nuclei in {preparation.searched_mm2:.2f} mm² of tissue "
        f"by {cells.segmenter_id}, {seconds:.0f} s"
    )
    return {**record, "is_new": True}
