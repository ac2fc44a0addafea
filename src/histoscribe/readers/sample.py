"""One row of a manifest to regions, by its platform."""

from histoscribe.data.regions import Regions
from histoscribe.data.slide import Slide
from histoscribe.errors import DataError
from histoscribe.readers.bulk.whole_sample import read_whole_sample
from histoscribe.readers.legacy_st import read_legacy_st
from histoscribe.readers.manifest import SampleRow
from histoscribe.readers.report import ProfileReport, ReadReport
from histoscribe.readers.spot_table import read_spot_table


def read_sample(row: SampleRow, slide: Slide) -> tuple[Regions, ReadReport | ProfileReport] | None:
    """The regions of a row; None where nothing was measured.

    Args:
        row: From `read_manifest`.
        slide: The row's slide, opened under the sample's name.

    Raises:
        DataError: As the platform's reader has it.
    """
    if row.expression is None:
        return None
    if row.platform == "bulk":
        return read_whole_sample(
            row.expression,
            slide,
            patient_id=row.patient,
            profile=row.profile or row.patient,
            unit=row.unit,
            log=row.log,
        )
    if row.sizes is None:
        return None
    if row.platform == "h5ad":
        return read_spot_table(
            row.expression, slide, sample_id=row.sample, patient_id=row.patient, sizes=row.sizes
        )
    if row.spots is None:
        msg = f"sample {row.sample}: no table of spots; fill the column spots of the manifest."
        raise DataError(msg)
    return read_legacy_st(
        row.expression,
        row.spots,
        slide,
        sample_id=row.sample,
        patient_id=row.patient,
        sizes=row.sizes,
        genes=row.genes,
    )
