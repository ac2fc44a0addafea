"""Regions: sets of cells with (perhaps) an expression vector. Bulk, spot and cell are one thing."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32
from scipy.sparse import csr_array

from histoscribe.data.genes import GenePanel
from histoscribe.data.provenance import Provenance

RegionKind = Literal["bulk", "spot", "cell"]
ExpressionUnit = Literal["counts", "tpm", "fpkm", "rsem", "log1p_cp10k"]


@dataclass(frozen=True)
class Regions:
    """Regions of one or more slides, with what was measured in them.

    Attributes:
        kind: The size of the regions; data, not behaviour.
        region_id: One name a region, unique within its slide (a barcode, "10x21", ...).
        slide_id: The slide of each region.
        patient_id: The patient of each region, what splits are made by.
        xy_um: Centres, slide frame; NaN for bulk.
        radius_um: Half the diameter; infinite for bulk.
        pitch_um: Distance between neighbouring centres; NaN where there is no lattice.
        genes: Columns of the expression.
        expression: region x gene, CSR, or None where nothing was measured.
        expression_unit: Unit of `expression`.
        gene_observed: Genes the platform could have seen; False is "not measured", not zero.
        platform: E.g. "legacy-st", "visium".
        provenance: What made them.
        text_key: A key into a table of texts, for image-text pairs, or None.
    """

    kind: RegionKind
    region_id: tuple[str, ...]
    slide_id: tuple[str, ...]
    patient_id: tuple[str, ...]
    xy_um: Float32[np.ndarray, "region 2"]
    radius_um: float
    pitch_um: float
    genes: GenePanel
    expression: csr_array | None
    expression_unit: ExpressionUnit
    gene_observed: Bool[np.ndarray, " gene"]
    platform: str
    provenance: Provenance
    text_key: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.region_id)
