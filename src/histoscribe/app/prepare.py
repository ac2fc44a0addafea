"""Prepare: the nuclei and tiles of every sample of a study, each made once."""

import time
from collections.abc import Sequence
from typing import Any

from histoscribe.app.console import Voice
from histoscribe.app.study import Sample, Study, write_json
from histoscribe.data.regions import Regions
from histoscribe.data.store import is_current, read_regions, write_cells, write_tiles
from histoscribe.preprocess.preparation import PrepareConfig, plan_preparation
from histoscribe.preprocess.run import carry_out
from histoscribe.slides.open import open_slide


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
