"""Survival of a run: describe the patients of a study, then score what is said of them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from histoscribe.app.console import Voice
from histoscribe.app.prepare import load_slide
from histoscribe.app.runs import config_of
from histoscribe.app.study import Sample, Study
from histoscribe.app.survival import (
    DescribedPatients,
    SurvivalOutcome,
    SurvivalRequest,
    check_patients,
    mean_by_patient,
    read_tables,
    score_patients,
)
from histoscribe.data.grid import sample_regions
from histoscribe.evaluate.covariates import PatientFeatures
from histoscribe.predict import describe_departure, predict_regions, represent_samples
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import Checkpoint

WHOLE = "Slides without expression are among them: each patient is described as one whole sample."


def survive_study(
    study: Study, run: str, request: SurvivalRequest, folder: Path | None, voice: Voice
) -> SurvivalOutcome:
    """Score what a run says of the study's patients by their follow-up.

    Args:
        study: A prepared study.
        run: Name of the run.
        request: Follow-up, signatures, settings.
        folder: Where to write; `survival` in the run's folder if None.
        voice: Told what happens.

    Raises:
        DataError: A sample is not prepared, or the tables do not hold up.
        MismatchError: The slides were described by another encoder than the run's.
    """
    tables = read_tables(request)
    config_of(study, run)  # says which runs there are, if it is none of them
    home = study.run_folder(run)
    checkpoint = Checkpoint.load(home / "checkpoint")
    with_slides = frozenset(sample.patient for sample in study.samples)
    known = check_patients(tables, request, with_slides)
    slides = load_patients(study, [one for one in study.samples if one.patient in known])
    voice.say(f"{len(slides)} slides of {len(known)} patients with follow-up")
    described = describe_patients(checkpoint, slides)
    described = replace(described, not_described=with_slides - known)
    title = f"histoscribe: survival in study {study.folder.resolve().name}, run {run}"
    outcome = score_patients(described, tables, request, title, folder or home / "survival", voice)
    study.log("survival", run=run, n_patients=len(outcome.table.follow_up))
    return outcome


def load_patients(study: Study, samples: Sequence[Sample]) -> list[SlideData]:
    """The slides of patients, with the regions that were measured on them.

    Where one of them has none, each patient is one whole sample: patients are compared with each
    other, and must be described in one way.

    Raises:
        DataError: A sample is not prepared.
        MismatchError: A slide that is to be taken whole was prepared around its spots only.
    """
    if all(sample.expression for sample in samples):
        return [load_slide(study, sample) for sample in samples]
    return [
        load_slide(study, sample, partial(sample_regions, patient_id=sample.patient))
        for sample in samples
    ]


def describe_patients(checkpoint: Checkpoint, slides: Sequence[SlideData]) -> DescribedPatients:
    """All that a checkpoint says of the patients of these slides, each the mean of its regions.

    Patients none of whose regions has a nucleus are left out.

    Raises:
        DataError: None has.
        MismatchError: If a slide was described by another encoder.
        ConfigError: If the model has no representation.
    """
    representation = represent_samples(checkpoint, slides)
    prediction = predict_regions(checkpoint, slides)
    represented, vector = mean_by_patient(representation.vector, representation.patient_id)
    patient_of_region = [name for slide in slides for name in slide.regions.patient_id]
    patients, expression = mean_by_patient(prediction.mean, patient_of_region)
    names = tuple(f"{checkpoint.model_id}/{i}" for i in range(vector.shape[1]))
    known = {key for name, key in checkpoint.provenance.inputs.items() if name.endswith("/cells")}
    notes = [describe_departure(checkpoint, slides)]
    if slides[0].regions.kind == "bulk" and slides[0].regions.expression is None:
        notes.insert(0, WHOLE)
    return DescribedPatients(
        representation=PatientFeatures(represented, names, vector),
        patient_id=patients,
        genes=prediction.genes,
        expression=expression,
        model_id=checkpoint.model_id,
        trained_on=frozenset(
            slide.patient_id for slide in slides if slide.cells.provenance.key in known
        ),
        notes=tuple(filter(None, notes)),
    )
