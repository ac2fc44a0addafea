"""Who is trained on and who is tested: split by patient, or say loudly that it is not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64

from histoscribe.errors import ConfigError, DataError

SplitUnit = Literal["patient", "section", "strip", "none"]


@dataclass(frozen=True)
class Split:
    """Slides to train on and slides to test on.

    Attributes:
        train: Slide ids.
        test: Slide ids; none is in `train`.
        unit: What was kept apart. "patient" is honest; "section" lets sections of one patient
            stand on both sides and is optimistic; "strip" splits within a slide; "none" trains on
            all and tests nothing, and is the only one without test slides.
        seed: Seed of a random split, or None.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    unit: SplitUnit
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.train or (not self.test and self.unit != "none"):
            raise DataError(
                "a split needs slides on both sides; add slides to the study, or train on all and "
                "test nothing with unit='none'"
            )
        if self.test and self.unit == "none":
            raise DataError(
                f"slide {self.test[0]} is to be tested by a split with unit='none', which tests "
                "nothing; give a unit, or no test slides"
            )
        if self.unit == "strip":
            return
        both = sorted(set(self.train) & set(self.test))
        if both:
            raise DataError(f"slide {both[0]} is both trained on and tested; name it once")


def leave_one_out(
    slide_ids: Sequence[str], patient_ids: Sequence[str], by: Literal["patient", "section"]
) -> list[Split]:
    """One split for each patient (or section), tested after training on all the others.

    Args:
        slide_ids: Slides; repeats are allowed, as in a table of regions.
        patient_ids: The patient of each.
        by: "patient" never has a patient on both sides; "section" does not care.

    Raises:
        DataError: If there is only one patient (section), or a slide has two patients.
    """
    patient_of = _patient_of(slide_ids, patient_ids)
    unit_of = patient_of if by == "patient" else {slide: slide for slide in patient_of}
    units = list(dict.fromkeys(unit_of.values()))
    if len(units) < 2:
        mend = " or split by='section' and say so" if len(patient_of) > 1 else ""
        raise DataError(f"one {by} only ({units[0]}); leaving one out needs two: add another{mend}")
    return [
        Split(
            train=tuple(slide for slide, unit in unit_of.items() if unit != left_out),
            test=tuple(slide for slide, unit in unit_of.items() if unit == left_out),
            unit=by,
        )
        for left_out in units
    ]


def check_split(split: Split, slide_ids: Sequence[str], patient_ids: Sequence[str]) -> None:
    """Refuse a split by patient that has a patient on both sides, or names an unknown slide."""
    patient_of = _patient_of(slide_ids, patient_ids)
    unknown = [slide for slide in (*split.train, *split.test) if slide not in patient_of]
    if unknown:
        raise DataError(f"the split names slide {unknown[0]}, which is not in the data")
    if split.unit != "patient":
        return
    leaked = sorted({patient_of[s] for s in split.train} & {patient_of[s] for s in split.test})
    if leaked:
        raise DataError(
            f"patient {leaked[0]} is on both sides of the split; move all slides of a patient to "
            "one side, or declare unit='section'"
        )


def strips(
    xy_um: Float[np.ndarray, "region 2"], n_strips: int, buffer_um: float
) -> Int64[np.ndarray, " region"]:
    """Cut a slide into strips along x, as a last resort where there is one slide only.

    Strip borders lie at quantiles of x, so that strips hold about as many regions each. A region
    nearer than half the buffer to an inner border is in no strip: two regions of different strips
    are at least `buffer_um` apart.

    Args:
        xy_um: Centres of the regions of one slide.
        n_strips: Number of strips.
        buffer_um: At least a receptive field: how far a region sees into its surroundings.

    Returns:
        Strip of each region, -1 = buffer.

    Raises:
        DataError: If a strip is left without a region.
    """
    if n_strips < 2 or not buffer_um >= 0:
        raise ConfigError(f"n_strips = {n_strips}, buffer_um = {buffer_um}; give >= 2 and >= 0")
    x = np.asarray(xy_um, dtype=np.float64)[:, 0]
    if not len(x) or not np.isfinite(x).all():
        raise DataError("strips need regions with finite positions")
    borders = np.quantile(x, np.arange(1, n_strips) / n_strips)
    strip = np.searchsorted(borders, x, side="right")
    distance = np.abs(x[:, None] - borders).min(axis=1)
    fold = np.where(2 * distance < buffer_um, -1, strip)
    left = np.bincount(fold[fold >= 0], minlength=n_strips)
    if (left == 0).any():
        raise DataError(
            f"strip {int(left.argmin())} of {n_strips} has no region left: the buffer of "
            f"{buffer_um:g} µm swallows it; take fewer strips or a narrower buffer"
        )
    return fold.astype(np.int64)


def _patient_of(slide_ids: Sequence[str], patient_ids: Iterable[str]) -> dict[str, str]:
    """Slide to patient, in order of first appearance."""
    patient_of: dict[str, str] = {}
    for slide, patient in zip(slide_ids, patient_ids, strict=True):
        if patient_of.setdefault(slide, patient) != patient:
            raise DataError(
                f"slide {slide} belongs to patients {patient_of[slide]} and {patient}; "
                "correct the manifest"
            )
    if not patient_of:
        raise DataError("there are no slides to split")
    return patient_of
