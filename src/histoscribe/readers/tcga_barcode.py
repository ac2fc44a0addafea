"""TCGA barcodes: whose a sample or slide is, what tissue it is of, and what kind of slide.

    TCGA-38-6178-01A-11R-1755-07     an aliquot: case, sample type 01, vial A, portion 11, RNA
    TCGA-38-6178-01Z-00-DX1          a slide: case, sample type 01, vial Z, diagnostic slide 1
    TCGA-69-7764-01A-01-TS1          a slide: the top section of the frozen portion 01

Source: the barcode pages and the sample type code table of the Genomic Data Commons.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from histoscribe.errors import ConfigError, DataError

SAMPLE_TYPES = {
    "01": "primary solid tumour",
    "02": "recurrent solid tumour",
    "03": "primary blood cancer, peripheral blood",
    "04": "recurrent blood cancer, bone marrow",
    "05": "additional new primary",
    "06": "metastasis",
    "07": "additional metastasis",
    "08": "original tumour cells",
    "09": "primary blood cancer, bone marrow",
    "10": "blood, normal",
    "11": "solid tissue, normal",
    "12": "buccal cells, normal",
    "13": "EBV immortalised, normal",
    "14": "bone marrow, normal",
    "20": "control analyte",
    "40": "recurrent blood cancer, peripheral blood",
    "50": "cell line",
    "60": "xenograft",
    "61": "cell line derived xenograft",
}
"""The two digits after the case, and what they stand for."""

NORMAL = frozenset({"10", "11", "12", "13", "14"})
SLIDE_TYPES = {
    "DX": "diagnostic, formalin-fixed",
    "TS": "top section, frozen",
    "MS": "middle section, frozen",
    "BS": "bottom section, frozen",
}
"""The letters of the slide part, and what they stand for."""

# dashes as published; dots as R makes of them in names of columns, underscores as people do
BARCODE = re.compile(
    r"(?<![A-Z0-9])TCGA[-._]([A-Z0-9]{2})[-._]([A-Z0-9]{4})(?![A-Z0-9])"
    r"(?:[-._](\d{2})([A-Z])?(?![A-Z0-9])"
    r"(?:[-._](\d{2})[A-Z]?(?![A-Z0-9])"
    r"(?:[-._]((?:DX|TS|MS|BS)[A-Z0-9]{0,2})(?![A-Z0-9]))?)?)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Barcode:
    """What a barcode says; "" for the parts that it has not got.

    Attributes:
        case: The patient, e.g. "TCGA-38-6178".
        sample_type: Two digits of `SAMPLE_TYPES`, e.g. "01".
        vial: A letter, e.g. "A"; "Z" is the formalin-fixed block of diagnostic slides.
        portion: Two digits.
        slide: The slide part, e.g. "DX1".
    """

    case: str
    sample_type: str = ""
    vial: str = ""
    portion: str = ""
    slide: str = ""

    @property
    def slide_type(self) -> str:
        """The kind of slide, a key of `SLIDE_TYPES`; "" where it is none."""
        return self.slide[:2]

    @property
    def is_normal(self) -> bool:
        """Whether the tissue is known to be normal."""
        return self.sample_type in NORMAL


def parse_barcode(name: str) -> Barcode:
    """The barcode in a name: of a sample, an aliquot, or a slide file.

    Raises:
        DataError: There is none, or its sample type is not known.
    """
    found = find_barcode(name)
    if found is None:
        raise DataError(
            f"{name!r} holds no TCGA barcode; wanted one such as TCGA-38-6178-01A (a sample) or "
            "TCGA-38-6178-01Z-00-DX1 (a slide). Say whose it is with --patients"
        )
    return found


def find_barcode(name: str) -> Barcode | None:
    """The barcode in a name, or None.

    Raises:
        DataError: Its sample type is not known.
    """
    match = BARCODE.search(name)
    if match is None:
        return None
    site, participant, *rest = (part.upper() if part else "" for part in match.groups())
    barcode = Barcode(f"TCGA-{site}-{participant}", *rest)
    if barcode.sample_type and barcode.sample_type not in SAMPLE_TYPES:
        raise DataError(
            f"{name!r} is of sample type {barcode.sample_type}, which TCGA has not got; wanted one "
            f"of {', '.join(SAMPLE_TYPES)}. Correct the name"
        )
    return barcode


def patient_of(name: str) -> str:
    """Whose a sample of that name is: the case of its TCGA barcode, else the name itself.

    Raises:
        DataError: Its sample type is not known.
    """
    barcode = find_barcode(name)
    return name if barcode is None else barcode.case


def check_sample_types(chosen: Sequence[str]) -> None:
    """Refuse sample types that are none, or that must not be in one table.

    Raises:
        ConfigError: None is chosen, one is unknown or stands twice, or normal tissue is mixed
            with tumour.
    """
    unknown = [one for one in chosen if one not in SAMPLE_TYPES]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        known = ", ".join(f"{code} ({text})" for code, text in SAMPLE_TYPES.items())
        raise ConfigError(
            f"sample types {', '.join(chosen) or 'none'}: wanted one or more, each once, of {known}"
        )
    normal = [one for one in chosen if one in NORMAL]
    if normal and len(normal) < len(chosen):
        raise ConfigError(
            f"sample types {', '.join(chosen)} mix normal tissue ({', '.join(normal)}) with "
            "tumour; make a table of each"
        )


def check_slide_types(chosen: Sequence[str]) -> None:
    """ConfigError if no slide type is chosen, or one is unknown or stands twice."""
    if not chosen or set(chosen) - set(SLIDE_TYPES) or len(set(chosen)) < len(chosen):
        known = ", ".join(f"{code} ({text})" for code, text in SLIDE_TYPES.items())
        raise ConfigError(
            f"slide types {', '.join(chosen) or 'none'}: wanted one or more, each once, of {known}"
        )
