"""HEST-1k's folders as rows of a manifest.

    DATA/st/{id}.h5ad                  counts; full-resolution pixels in obsm["spatial"]
    DATA/wsis/{id}.tif                 the slide
    DATA/metadata/{id}.json            pixel_size_um_estimated, spot_diameter, inter_spot_dist, patient
    DATA/cellvit_seg/{id}_cellvit_seg  .parquet or .geojson: nuclei, where the recipe takes them

patches/ is not wanted: regions are cut from the slide itself.
"""  # noqa: E501 - a table

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe import Recipe

from histoscribe.errors import DataError

NUCLEI_ENDINGS = ("parquet", "geojson", "geojson.zip", "geojson.gz")
N_NAMED = 3


def hest_rows(
    recipe: Recipe, data: Path, out: Path, *, is_by_section: bool
) -> tuple[list[dict[str, str]], list[str]]:
    """Rows of a manifest in the folder `out`, and what is to be said of them.

    Nothing in the metadata is believed that can be checked: a diameter above the pitch is refused
    here, and `ingest` holds pitch and pixel size against the distances of the spots.

    Patients of two data sets that go by one name count as one: no split then parts them.

    Args:
        recipe: Of the layout hest.
        data: The folder of HEST-1k.
        out: Where the manifest will lie.
        is_by_section: The user allows a split by section, so that patients need not be known.

    Raises:
        DataError: The first thing that is missing or does not hold up, in one sentence.
    """
    _check_there(recipe, data)
    facts = {one: _read_metadata(data, one) for one in recipe.samples}
    patients = {one: _patient_of(record) for one, record in facts.items()}
    unknown = [one for one, patient in patients.items() if patient is None]
    if unknown and not is_by_section:
        raise DataError(
            f"the metadata of {len(unknown)} of {len(facts)} samples ({_some(unknown)}) name no "
            "patient, so that no patient can be kept apart; split by section with --by-section, "
            "knowing that sections of one patient then stand on both sides"
        )
    said = []
    if unknown:
        said.append(f"of {len(unknown)} samples no patient is known ({_some(unknown)})")
    if recipe.diameter_um is not None:
        said.append(
            f"spots of {recipe.diameter_um:g} µm {recipe.pitch_um:g} µm apart by the assay, not by "
            "the metadata"
        )
    rows = [
        _row(recipe, data, out, one, facts[one], patients[one] or f"unknown-{one}")
        for one in recipe.samples
    ]
    return rows, said


def _row(
    recipe: Recipe, data: Path, out: Path, one: str, facts: Mapping[str, Any], patient: str
) -> dict[str, str]:
    diameter_um, pitch_um = _sizes(recipe, facts, one)
    row = {
        "sample": one,
        "patient": patient,
        "slide": _relative(data / "wsis" / f"{one}.tif", out),
        "mpp": repr(_number(facts, "pixel_size_um_estimated", one)),
        "expression": _relative(data / "st" / f"{one}.h5ad", out),
        "platform": "h5ad",
        "diameter_um": repr(diameter_um),
        "pitch_um": repr(pitch_um),
    }
    if recipe.nuclei == "hest":
        nuclei = _nuclei_of(data, one)
        assert nuclei is not None  # `_check_there` has seen it
        row["nuclei"] = _relative(nuclei, out)
    return row


def _check_there(recipe: Recipe, data: Path) -> None:
    """DataError that names the first files that are not there, and how many."""
    wanted = [
        file
        for one in recipe.samples
        for file in (f"st/{one}.h5ad", f"wsis/{one}.tif", f"metadata/{one}.json")
    ]
    missing = [file for file in wanted if not (data / file).is_file()]
    if recipe.nuclei == "hest":
        missing += [
            f"cellvit_seg/{one}_cellvit_seg.parquet"
            for one in recipe.samples
            if _nuclei_of(data, one) is None
        ]
    if missing:
        mend = "; or take our own nuclei, with --nuclei ours" if recipe.nuclei == "hest" else ""
        raise DataError(
            f"{len(missing)} files of recipe {recipe.name} are not in {data} ({_some(missing)}); "
            f"download these samples of HEST-1k{mend}"
        )


def _nuclei_of(data: Path, one: str) -> Path | None:
    names = [data / "cellvit_seg" / f"{one}_cellvit_seg.{ending}" for ending in NUCLEI_ENDINGS]
    return next((path for path in names if path.is_file()), None)


def _read_metadata(data: Path, one: str) -> dict[str, Any]:
    path = data / "metadata" / f"{one}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise DataError(f"{path} cannot be read as JSON ({fault}); download it again") from fault
    if not isinstance(record, dict):
        raise DataError(f"{path} holds no JSON object; download it again")
    return record


def _patient_of(record: Mapping[str, Any]) -> str | None:
    """The patient; None where it is null, NaN or empty."""
    patient = record.get("patient")
    if patient is None or patient != patient or str(patient).strip().lower() in ("", "nan", "none"):
        return None
    return str(patient).strip()


def _sizes(recipe: Recipe, facts: Mapping[str, Any], one: str) -> tuple[float, float]:
    """Diameter and pitch in µm, by the recipe, else by the metadata."""
    if recipe.diameter_um is not None and recipe.pitch_um is not None:
        return recipe.diameter_um, recipe.pitch_um
    diameter_um = _number(facts, "spot_diameter", one)
    pitch_um = _number(facts, "inter_spot_dist", one)
    if diameter_um > pitch_um:
        raise DataError(
            f"metadata/{one}.json has spots of {diameter_um:g} µm {pitch_um:g} µm apart, a "
            "diameter above the pitch; if the two are swapped, write diameter_um and pitch_um into "
            "the recipe"
        )
    return diameter_um, pitch_um


def _number(facts: Mapping[str, Any], key: str, one: str) -> float:
    value = facts.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise DataError(
            f"metadata/{one}.json has {key} = {value!r}; a number of µm above 0 is wanted there"
        )
    return float(value)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _some(names: list[str]) -> str:
    return ", ".join(names[:N_NAMED]) + (", ..." if len(names) > N_NAMED else "")
