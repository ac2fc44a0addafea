"""First-generation Spatial Transcriptomics: a table of counts and a table of spots.

Layouts: her2st (Andersson et al. 2021) and the olfactory bulb set (Stahl et al. 2016). Counts
are tab-separated, spots x genes, rows named {x}x{y} after the place on the array. Spots have
the columns x, y, pixel_x, pixel_y and, where spots off the tissue are listed too, selected.
"""

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from histoscribe import __version__
from histoscribe.data.atomic import hash_file
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions
from histoscribe.data.slide import Slide
from histoscribe.errors import DataError
from histoscribe.readers import lattice
from histoscribe.readers.counts import checked_counts, distinct, gene_panel
from histoscribe.readers.report import ReadReport
from histoscribe.readers.section import (
    LEGACY_ST,
    Origin,
    SpotCounts,
    SpotPlaces,
    SpotSizes,
    make_regions,
)
from histoscribe.readers.tables import read_count_table, read_table

SPOT_NAME = re.compile(r"\d+x\d+")
SPOT_COLUMNS = ("x", "y", "pixel_x", "pixel_y")
GENE_COLUMNS = ("gene_id", "gene_name")


def read_legacy_st(
    counts: Path,
    spots: Path,
    slide: Slide,
    *,
    sample_id: str,
    patient_id: str,
    sizes: SpotSizes = LEGACY_ST,
    genes: Path | None = None,
) -> tuple[Regions, ReadReport]:
    """Read one section.

    Args:
        counts: Spots x genes, raw counts, .tsv or .tsv.gz.
        spots: Where each spot lies on the slide, in full-resolution pixels.
        slide: The slide; its mpp is held against the spots' distances.
        sample_id: Name of the section; the regions' slide_id is the slide's.
        patient_id: What splits are made by.
        sizes: Spot diameter and pitch, and the least counts of a spot.
        genes: Table with the columns gene_id and gene_name: symbols for Ensembl ids.

    Returns:
        The spots that have counts, in the order of the spot table, and what was left out.

    Raises:
        DataError: Anything in the files that does not hold up.
    """
    lattice.check_sizes(sizes.diameter_um, sizes.pitch_um)
    places = _read_places(spots, slide, sizes)
    provenance = Provenance(
        made_by=f"histoscribe {__version__} read_legacy_st",
        settings={
            "sample_id": sample_id,
            "patient_id": patient_id,
            "mpp": list(slide.mpp),
            **asdict(sizes),
        },
        inputs={
            name: hash_file(path)
            for name, path in (("counts", counts), ("spots", spots), ("genes", genes))
            if path is not None and path.is_file()
        },
    )
    origin = Origin(patient_id, "legacy-st", provenance)
    return make_regions(places, _read_counts(counts, genes), slide, sizes, origin)


def her2st_manifest(folder: Path, mpp: float) -> list[dict[str, str]]:
    """Rows of a manifest for a folder laid out as her2st was published.

    ST-imgs/<patient>/<section>/<one image>, ST-cnts/<section>.tsv.gz (or .tsv) and
    ST-spotfiles/<section>_selection.tsv.

    Args:
        folder: That folder.
        mpp: µm per pixel of the images, which say nothing of it (0.690 for patient C).

    Returns:
        One row per section that has all three, by name; paths are absolute.

    Raises:
        DataError: No section is whole; lists what each lacks.
    """
    rows, lacking = [], []
    for home in sorted(Path(folder).resolve().glob("ST-imgs/*/*")):
        section, patient = home.name, home.parent.name
        found = {
            "slide": sorted(one for one in home.glob("*") if one.suffix.lower() != ".txt"),
            "expression": sorted(home.parents[2].glob(f"ST-cnts/{section}.tsv*")),
            "spots": sorted(home.parents[2].glob(f"ST-spotfiles/{section}_selection.tsv*")),
        }
        if all(len(paths) == 1 for paths in found.values()):
            files = {name: str(paths[0]) for name, paths in found.items()}
            row = {"sample": section, "patient": patient, "mpp": f"{mpp:g}"}
            rows.append({**row, **files, "platform": "legacy-st"})
        else:
            counted = ", ".join(f"{len(paths)} {name}" for name, paths in found.items())
            lacking.append(f"{section}: {counted}")
    if not rows:
        came = "; ".join(lacking) or "no folder ST-imgs/<patient>/<section>"
        msg = (
            f"{folder}: no section with one slide, one table of counts and one of spots ({came})."
            " Wanted ST-imgs/<patient>/<section>/*.jpg, ST-cnts/<section>.tsv.gz and "
            "ST-spotfiles/<section>_selection.tsv."
        )
        raise DataError(msg)
    return rows


def _read_places(path: Path, slide: Slide, sizes: SpotSizes) -> SpotPlaces:
    listed = read_table(path, SPOT_COLUMNS)
    wanted = [*SPOT_COLUMNS, "selected"] if "selected" in listed.columns else [*SPOT_COLUMNS]
    numbers = np.column_stack(
        [np.asarray(pd.to_numeric(listed[one], errors="coerce"), np.float64) for one in wanted]
    )
    chosen = numbers[numbers[:, -1] == 1] if "selected" in wanted else numbers
    if len(chosen) == 0:
        msg = f"{path}: none of {len(listed)} spots is selected; wanted selected = 1 under tissue."
        raise DataError(msg)
    array_xy = chosen[:, :2]
    if not (np.isfinite(array_xy) & (array_xy == np.rint(array_xy))).all():
        msg = f"{path}: x and y must be whole numbers, the place on the array."
        raise DataError(msg)
    array_xy = array_xy.astype(np.int64)
    names = tuple(f"{x}x{y}" for x, y in array_xy)
    distinct(names, "spots", path)
    xy_px = chosen[:, 2:4]
    lattice.check_finite(xy_px, names, path)
    distance_px = lattice.lattice_distance_px(array_xy, xy_px, path)
    lattice.check_on_slide(xy_px, names, slide, path)
    pitch_um = lattice.check_pitch(distance_px, slide.mpp, sizes.pitch_um, path)
    return SpotPlaces(path, names, xy_px, len(listed), pitch_um)


def _read_counts(path: Path, genes: Path | None) -> SpotCounts:
    table = read_count_table(path)
    is_spot = [SPOT_NAME.fullmatch(name) is not None for name in table.rows]
    if not all(is_spot):
        is_turned = sum(SPOT_NAME.fullmatch(name) is not None for name in table.columns)
        mend = "Transpose it." if is_turned else "Name the rows after the array, e.g. 10x21."
        msg = (
            f"{path}: row {table.rows[is_spot.index(False)]!r} names no spot; wanted spots x genes "
            f"with rows named {{x}}x{{y}}. {mend}"
        )
        raise DataError(msg)
    distinct(table.rows, "spots", path)
    panel = gene_panel(table.columns, path, _symbols(genes))
    matrix = checked_counts(table.values, table.rows, path)
    return SpotCounts(path, table.rows, matrix, "counts", panel)


def _symbols(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    table = read_table(path, GENE_COLUMNS).dropna(subset=list(GENE_COLUMNS))
    ids = table["gene_id"].astype(str).str.replace(r"\.\d+$", "", regex=True)
    return dict(zip(ids, table["gene_name"].astype(str), strict=True))
