"""Regions where nothing was measured: discs on a grid over the tissue, or the whole of a slide."""

import numpy as np

from histoscribe import __version__
from histoscribe.data.cells import Cells
from histoscribe.data.genes import GenePanel
from histoscribe.data.join import assign_cells
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions
from histoscribe.errors import ConfigError, DataError

NO_GENES = GenePanel((), (), "ensembl")


def grid_regions(cells: Cells, patient_id: str, radius_um: float, pitch_um: float) -> Regions:
    """Discs on a square lattice, all those with a nucleus inside, row by row.

    The lattice is that of the slide, not of the tissue: column i and row j stand at
    ((i + 1/2) pitch, (j + 1/2) pitch) from the slide's corner and are named "ixj", so that a disc
    keeps its name and place whatever nuclei are found elsewhere.

    Args:
        cells: Of one slide.
        patient_id: Whose it is.
        radius_um: Of the discs.
        pitch_um: Distance between neighbouring centres; at least the diameter.

    Raises:
        ConfigError: If the discs overlap, or a length is none.
        DataError: If no disc has a nucleus.
    """
    if not (0 < radius_um < np.inf and 2 * radius_um <= pitch_um < np.inf):
        raise ConfigError(
            f"discs of {2 * radius_um:g} µm cannot lie {pitch_um:g} µm apart; give a pitch of "
            f"{2 * radius_um:g} µm or more"
        )
    _check_nuclei(cells)
    # A nucleus is nearest to the centre of the square it is in.
    square = np.unique(np.floor(cells.xy_um.astype(np.float64) / pitch_um)[:, ::-1], axis=0)
    places = square[:, ::-1].astype(np.int64)
    xy_um = ((places + 0.5) * pitch_um).astype(np.float32)
    filled = np.unique(assign_cells(cells.xy_um, xy_um, radius_um, 0.0).region)
    if not len(filled):
        raise DataError(
            f"none of the {len(cells)} nuclei of slide {cells.slide_id} lies in a disc of "
            f"{2 * radius_um:g} µm on a lattice of {pitch_um:g} µm; give a smaller pitch"
        )
    return Regions(
        kind="spot",
        region_id=tuple(f"{column}x{row}" for column, row in places[filled]),
        slide_id=(cells.slide_id,) * len(filled),
        patient_id=(patient_id,) * len(filled),
        xy_um=xy_um[filled],
        radius_um=radius_um,
        pitch_um=pitch_um,
        genes=NO_GENES,
        expression=None,
        expression_unit="counts",
        gene_observed=np.zeros(0, dtype=bool),
        platform="grid",
        provenance=Provenance(
            f"histoscribe {__version__} grid_regions",
            {"patient_id": patient_id, "radius_um": radius_um, "pitch_um": pitch_um},
            {"cells": cells.provenance.key},
        ),
    )


def sample_regions(cells: Cells, patient_id: str) -> Regions:
    """One bulk region: all cells of the slide, and of the patient's other slides made likewise.

    It is named after the patient, so that slides of one patient are parts of one region.

    Args:
        cells: Of one slide.
        patient_id: Whose it is.

    Raises:
        DataError: If the slide has no nucleus.
    """
    _check_nuclei(cells)
    return Regions(
        kind="bulk",
        region_id=(patient_id,),
        slide_id=(cells.slide_id,),
        patient_id=(patient_id,),
        xy_um=np.full((1, 2), np.nan, dtype=np.float32),
        radius_um=np.inf,
        pitch_um=np.nan,
        genes=NO_GENES,
        expression=None,
        expression_unit="counts",
        gene_observed=np.zeros(0, dtype=bool),
        platform="sample",
        provenance=Provenance(
            f"histoscribe {__version__} sample_regions",
            {"patient_id": patient_id},
            {"cells": cells.provenance.key},
        ),
    )


def _check_nuclei(cells: Cells) -> None:
    if not len(cells):
        raise DataError(
            f"slide {cells.slide_id} has no nucleus, so nothing can be said of it; look at its "
            "tissue mask and its mpp, and prepare it again"
        )
