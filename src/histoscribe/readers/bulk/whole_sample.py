"""One slide of a patient and the profile of its whole tissue: one bulk region."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from histoscribe import __version__
from histoscribe.data.atomic import hash_file
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions
from histoscribe.data.slide import Slide
from histoscribe.errors import DataError
from histoscribe.readers.bulk.expression import (
    PLATFORM,
    BulkExpression,
    is_ours,
    read_expression,
    tell,
)
from histoscribe.readers.bulk.matrix import read_matrix
from histoscribe.readers.bulk.units import BulkUnit, LogState
from histoscribe.readers.report import ProfileReport


class Profile(NamedTuple):
    """One profile, and how its unit and log state are known."""

    expression: BulkExpression
    log: LogState
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def read_whole_sample(
    table: Path,
    slide: Slide,
    *,
    patient_id: str,
    profile: str,
    unit: BulkUnit | None = None,
    log: LogState | None = None,
) -> tuple[Regions, ProfileReport]:
    """The one region of a slide whose patient's tissue was sequenced whole.

    The region is named after the profile: slides of one patient with the same profile are parts
    of one region.

    Args:
        table: What `histoscribe match` wrote, or any matrix that `read_matrix` reads.
        slide: The slide.
        patient_id: What splits are made by.
        profile: Which column (or line) of the table, by its name as it stands.
        unit: Of the values once linear; None to find it.
        log: What was done to the values; None to find it.

    Raises:
        DataError: As `read_matrix`; or there is no such profile, or it holds no value.
    """
    found = _read_profile(table, profile, unit, log)
    expression = found.expression
    values = expression.values[0]
    is_observed = ~np.isnan(values)
    if not is_observed.any():
        raise DataError(f"{table}: profile {profile} holds no value; remove its row")
    provenance = Provenance(
        made_by=f"histoscribe {__version__} read_whole_sample",
        settings={
            "sample_id": slide.slide_id,
            "patient_id": patient_id,
            "mpp": list(slide.mpp),
            "profile": profile,
            "unit": expression.unit,
            "log": found.log,
        },
        inputs={"expression": hash_file(table)},
    )
    regions = Regions(
        kind="bulk",
        region_id=(profile,),
        slide_id=(slide.slide_id,),
        patient_id=(patient_id,),
        xy_um=np.full((1, 2), np.nan, dtype=np.float32),
        radius_um=np.inf,
        pitch_um=np.nan,
        genes=expression.genes,
        expression=csr_array(np.where(is_observed, values, 0.0)[None]),
        expression_unit=expression.unit,
        gene_observed=is_observed,
        platform=PLATFORM,
        provenance=provenance,
    )
    return regions, ProfileReport(
        profile=profile,
        n_genes=len(expression.genes),
        n_missing=int((~is_observed).sum()),
        unit=expression.unit,
        log=found.log,
        reasons=found.reasons,
        aliquots=expression.aliquots[0],
        notes=found.notes,
    )


def _read_profile(
    table: Path, profile: str, unit: BulkUnit | None, log: LogState | None
) -> Profile:
    if is_ours(table):
        expression = read_expression(table, [profile])
        if (unit or expression.unit, log or "none") != (expression.unit, "none"):
            raise DataError(
                f"{table}: given as {unit or 'any unit'}, log {log or 'not said'}; 'histoscribe "
                f"match' wrote it in {expression.unit}, linear. Leave unit and log empty"
            )
        return Profile(
            expression, "none", (f"'histoscribe match' wrote it in {expression.unit}",), ()
        )
    matrix = read_matrix(table, unit, log)
    samples, scale = matrix.samples, matrix.scale
    if profile not in samples.profile_id:
        of_patient = [
            name
            for name, patient in zip(samples.profile_id, matrix.patients, strict=True)
            if patient == profile
        ]
        mend = (
            f"Name one of {tell(of_patient)}, or let 'histoscribe match' choose and average them"
            if of_patient
            else f"It has {tell(samples.profile_id)}"
        )
        raise DataError(f"{table}: no profile is called {profile}. {mend}")
    one = samples.take(np.array([samples.profile_id.index(profile)]))
    return Profile(one, scale.log, (scale.unit_reason, scale.log_reason), scale.notes)
