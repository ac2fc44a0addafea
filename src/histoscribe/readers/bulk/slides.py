"""Which slide is whose: by TCGA barcodes in file names, or by a CSV that says it."""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from histoscribe.errors import DataError
from histoscribe.readers.bulk.expression import BulkExpression, tell
from histoscribe.readers.tables import UNREADABLE, must_exist, unreadable
from histoscribe.readers.tcga_barcode import (
    SAMPLE_TYPES,
    SLIDE_TYPES,
    Barcode,
    check_sample_types,
    check_slide_types,
    find_barcode,
)

PATIENT_COLUMNS = ("slide", "patient")
BLOCK_VIAL = "Z"  # of formalin-fixed blocks, which no RNA is of

NOT_TOLD = "nothing says whose they are: no TCGA barcode in the name, no line in --patients"
NOT_LISTED = "not in the table of patients"
NO_PROFILE = "of patients without a profile"
NO_SLIDE_TYPE = "their names do not say the slide type"
OTHER_SLIDE_TYPE = "of a slide type that was not chosen"


class Whose(NamedTuple):
    """A line of the table of patients."""

    patient: str
    profile: str


class MatchedSlide(NamedTuple):
    """A slide that goes with a profile.

    Attributes:
        sample: Its name in the manifest, distinct.
        path: The slide.
        patient: What splits are made by.
        profile: Its profile in the expression.
    """

    sample: str
    path: Path
    patient: str
    profile: str


@dataclass(frozen=True)
class SlideMatch:
    """What became of slides and profiles.

    Attributes:
        matched: Slides with a profile, by patient and name.
        left_out: The others, by reason.
        without_slide: Profiles that no slide is of.
        notes: What a user should know though nothing stops.
    """

    matched: tuple[MatchedSlide, ...]
    left_out: Mapping[str, tuple[str, ...]]
    without_slide: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The same for people, a line each."""
        n_patients = len({one.patient for one in self.matched})
        lines = [f"{len(self.matched)} slides of {n_patients} patients go with a profile"]
        several = [
            f"{patient} {n}"
            for patient, n in Counter(m.patient for m in self.matched).items()
            if n > 1
        ]
        if several:
            lines.append(f"patients of several slides, which form one region: {tell(several)}")
        lines += [f"left out, {why}: {tell(names)}" for why, names in self.left_out.items()]
        if self.without_slide:
            lines.append(f"profiles without a slide: {tell(self.without_slide)}")
        return lines + list(self.notes)


@dataclass(frozen=True)
class Rules:
    """What a slide is judged by.

    Attributes:
        slide_types: Which slides of TCGA are wanted.
        sample_types: Of which tissue, where a profile does not say of which it is.
        sample_type: Of each profile, "" where it is not known.
        told: What the table of patients says, by name of the slide; None without one.
    """

    slide_types: tuple[str, ...]
    sample_types: tuple[str, ...]
    sample_type: Mapping[str, str]
    told: Mapping[str, Whose] | None


def match_slides(
    slides: Sequence[Path],
    expression: BulkExpression,
    *,
    slide_types: Sequence[str] = ("DX",),
    sample_types: Sequence[str] = ("01",),
    patients: Path | None = None,
) -> SlideMatch:
    """Find the slides of each profile.

    By the barcode of its name, a slide goes with the profile of its patient if it is of one of
    the slide types, and of the sample type that the profile is of: never normal tissue with a
    tumour's profile. Several slides of a patient go with one profile.

    Args:
        slides: The files.
        expression: One profile a patient.
        slide_types: Of TCGA slides: DX diagnostic; TS, MS, BS frozen sections.
        sample_types: Those that profiles of unknown type are taken to be of.
        patients: A CSV with the columns slide (a file name, with or without its ending) and
            patient, and if wanted profile, for slides whose names do not say it.

    Raises:
        ConfigError: Types that are none, or must not be mixed.
        DataError: No slide goes with a profile, or the table of patients does not hold up.
    """
    check_slide_types(slide_types)
    check_sample_types(sample_types)
    rules = Rules(
        tuple(slide_types),
        tuple(sample_types),
        dict(zip(expression.profile_id, expression.sample_type, strict=True)),
        read_patients(patients) if patients else None,
    )
    found: list[tuple[Path, Whose]] = []
    left_out: dict[str, list[str]] = {}
    for path in sorted(set(slides)):
        verdict = _judge(path, rules)
        if isinstance(verdict, Whose):
            found.append((path, verdict))
        else:
            left_out.setdefault(verdict, []).append(path.name)
    if not found:
        raise DataError(_nothing_matched(len(slides), left_out, rules))
    _check_one_patient(found)
    with_slide = {whose.profile for _, whose in found}
    return SlideMatch(
        matched=_name_samples(found),
        left_out={why: tuple(names) for why, names in left_out.items()},
        without_slide=tuple(one for one in expression.profile_id if one not in with_slide),
        notes=_vial_notes(found, expression),
    )


def read_patients(path: Path) -> dict[str, Whose]:
    """The table of patients, by each slide's file name without its ending.

    Raises:
        DataError: A column or cell is missing, or a slide is two patients'.
    """
    must_exist(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header, lines = list(reader.fieldnames or []), list(reader)
    except (*UNREADABLE, csv.Error) as fault:
        raise unreadable(path, fault) from fault
    lacking = [name for name in PATIENT_COLUMNS if name not in header]
    if lacking or not lines:
        raise DataError(
            f"{path}: {'no column ' + ', '.join(lacking) if lacking else 'no line'}; wanted a CSV "
            "with the columns slide, patient and, if the table of expression names them otherwise, "
            "profile"
        )
    told: dict[str, Whose] = {}
    for number, line in enumerate(lines, start=2):
        slide, patient, profile = (
            (line.get(one) or "").strip() for one in (*PATIENT_COLUMNS, "profile")
        )
        if not slide or not patient:
            raise DataError(
                f"{path}: row {number} lacks its slide or patient; fill it, or remove it"
            )
        whose = Whose(patient, profile or patient)
        if told.setdefault(_stem(slide), whose) != whose:
            raise DataError(
                f"{path}: row {number}, slide {slide} is {told[_stem(slide)].patient}'s in a row "
                f"before and {patient}'s here; correct one"
            )
    return told


def _judge(path: Path, rules: Rules) -> Whose | str:
    """Whose a slide is, or why it is left out."""
    barcode = find_barcode(path.name)
    if rules.told is not None:
        whose = rules.told.get(_stem(path.name))
        if whose is None:
            return NOT_LISTED
    elif barcode is not None:
        whose = Whose(barcode.case, barcode.case)
    else:
        return NOT_TOLD
    if whose.profile not in rules.sample_type:
        return NO_PROFILE
    return (_judge_barcode(barcode, whose, rules) if barcode else "") or whose


def _judge_barcode(barcode: Barcode, whose: Whose, rules: Rules) -> str:
    """Why a slide of this barcode does not go with the profile; "" if it does."""
    known = rules.sample_type[whose.profile]
    wanted = (known,) if known else rules.sample_types
    if barcode.sample_type and barcode.sample_type not in wanted:
        words = f"{barcode.sample_type}, {SAMPLE_TYPES[barcode.sample_type]}"
        return f"of sample type {words}, with profiles of {', '.join(wanted)}"
    if not barcode.slide_type:
        return "" if rules.told is not None else NO_SLIDE_TYPE
    if barcode.slide_type not in rules.slide_types:
        return f"{OTHER_SLIDE_TYPE}: {barcode.slide_type}, {SLIDE_TYPES[barcode.slide_type]}"
    return ""


def _nothing_matched(n_slides: int, left_out: Mapping[str, Sequence[str]], rules: Rules) -> str:
    reasons = "; ".join(f"{why}: {tell(names)}" for why, names in left_out.items())
    other = [why for why in left_out if why.startswith(OTHER_SLIDE_TYPE)]
    mend = "Name the slides and the expression of the same patients"
    if other:
        there = [why.removeprefix(f"{OTHER_SLIDE_TYPE}: ")[:2] for why in other]
        mend = f"Choose with {' '.join(f'--slide-type {one}' for one in sorted(there))}"
    elif NOT_TOLD in left_out:
        mend = "Say whose they are in a CSV (slide,patient) with --patients"
    return (
        f"none of {n_slides} slides goes with a profile (of slide type "
        f"{', '.join(rules.slide_types)}): {reasons or 'there are none'}. {mend}"
    )


def _check_one_patient(found: Sequence[tuple[Path, Whose]]) -> None:
    """Refuse a profile of two patients: it could be on both sides of a split."""
    patient_of: dict[str, str] = {}
    for path, whose in found:
        if patient_of.setdefault(whose.profile, whose.patient) != whose.patient:
            raise DataError(
                f"profile {whose.profile} is {patient_of[whose.profile]}'s and, by {path.name}, "
                f"{whose.patient}'s; a profile is one patient's"
            )


def _name_samples(found: Sequence[tuple[Path, Whose]]) -> tuple[MatchedSlide, ...]:
    """Slides with distinct names, by patient: that of the file, with its patient if it must be."""
    plain = [_as_name(path.name.split(".")[0]) for path, _ in found]
    n_of = Counter(plain)
    used: Counter[str] = Counter()
    matched = []
    for name, (path, whose) in zip(plain, found, strict=True):
        is_alone = name and n_of[name] == 1
        sample = name if is_alone else _as_name(f"{whose.patient}-{name}").rstrip("-")
        used[sample] += 1
        if used[sample] > 1:
            sample = f"{sample}-{used[sample]}"
        matched.append(MatchedSlide(sample, path, whose.patient, whose.profile))
    return tuple(sorted(matched, key=lambda one: (one.patient, one.sample)))


def _as_name(text: str) -> str:
    """Text as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip("._-")


def _vial_notes(found: Sequence[tuple[Path, Whose]], expression: BulkExpression) -> tuple[str, ...]:
    """Frozen slides of another vial than any of the RNA: another piece of the same tumour."""
    vials = {
        profile: {barcode.vial for name in aliquots if (barcode := find_barcode(name))} - {""}
        for profile, aliquots in zip(expression.profile_id, expression.aliquots, strict=True)
    }
    others = []
    for path, whose in found:
        barcode, of_rna = find_barcode(path.name), vials[whose.profile]
        if (
            barcode
            and barcode.vial not in {"", BLOCK_VIAL}
            and of_rna
            and barcode.vial not in of_rna
        ):
            others.append(f"{path.name} ({barcode.vial}, RNA {' '.join(sorted(of_rna))})")
    if not others:
        return ()
    return (f"slides of another vial than the RNA, so of another piece of tissue: {tell(others)}",)


def _stem(name: str) -> str:
    """A file's name without folder and ending; a barcode's identifier after it stays."""
    file = name.replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(
        r"\.(svs|tiff?|ndpi|mrxs|scn|dcm|jpe?g|png|zarr|ome)$", "", file, flags=re.IGNORECASE
    )
