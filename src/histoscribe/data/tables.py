"""Nouns as AnnData and back: the form in which other programs read them.

Every table says in `uns` which noun it is, in which units, and what made it (`provenance`, JSON).
"""

import json
from typing import Any, get_args

import anndata as ad
import numpy as np
import pandas as pd

from histoscribe.data.annotation import Annotation, Calibration, Route
from histoscribe.data.cells import Cells, Outlines
from histoscribe.data.genes import GenePanel
from histoscribe.data.prediction import Prediction
from histoscribe.data.profiles import PER_ROW, Profiles
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions
from histoscribe.data.tiles import Tiles
from histoscribe.errors import DataError

SCHEMA = 1
"""Version of the layout on disk; raised when a reader of the old would misread the new."""

FRAME = "um from the top left corner of the slide, x right, y down"


def cells_as_table(cells: Cells) -> ad.AnnData:
    """X raw features (float16); obs `area_um2` and labels; obsm `xy_um`. Without outlines.

    Labels are `cell_type` (categorical) and `type_probability`, each where cells have it.
    """
    obs: dict[str, Any] = {"area_um2": cells.area_um2}
    if cells.cell_type is not None:
        names = sorted(set(cells.cell_type))
        obs["cell_type"] = pd.Categorical(list(cells.cell_type), categories=names)
    if cells.type_probability is not None:
        obs["type_probability"] = cells.type_probability
    return _table(
        X=cells.features,
        obs=pd.DataFrame(obs, index=_numbered(len(cells))),
        var=pd.DataFrame(index=_numbered(cells.features.shape[1], "feature")),
        obsm={"xy_um": cells.xy_um},
        uns=_facts(
            "cells",
            cells.provenance,
            slide_id=cells.slide_id,
            encoder_id=cells.encoder_id,
            segmenter_id=cells.segmenter_id,
        ),
    )


def table_as_cells(table: ad.AnnData, outlines: Outlines | None) -> Cells:
    """What `cells_as_table` wrote, with its outlines."""
    uns = _checked(table, "cells")
    return Cells(
        slide_id=str(uns["slide_id"]),
        xy_um=_floats(table.obsm["xy_um"]),
        area_um2=_floats(table.obs["area_um2"]),
        features=np.asarray(table.X, dtype=np.float16),
        encoder_id=str(uns["encoder_id"]),
        segmenter_id=str(uns["segmenter_id"]),
        provenance=Provenance.from_json(str(uns["provenance"])),
        outlines=outlines,
        cell_type=_strings(table.obs, "cell_type"),
        type_probability=(
            _floats(table.obs["type_probability"]) if "type_probability" in table.obs else None
        ),
    )


def tiles_as_table(tiles: Tiles) -> ad.AnnData:
    """X raw features (float16); obsm `xy_um` and `colour` (mean r, g, b, then deviations)."""
    return _table(
        X=tiles.features,
        obs=pd.DataFrame(index=_numbered(len(tiles))),
        var=pd.DataFrame(index=_numbered(tiles.features.shape[1], "feature")),
        obsm={"xy_um": tiles.xy_um, "colour": tiles.colour},
        uns=_facts(
            "tiles",
            tiles.provenance,
            slide_id=tiles.slide_id,
            encoder_id=tiles.encoder_id,
            side_um=float(tiles.side_um),
        ),
    )


def table_as_tiles(table: ad.AnnData) -> Tiles:
    """What `tiles_as_table` wrote."""
    uns = _checked(table, "tiles")
    return Tiles(
        slide_id=str(uns["slide_id"]),
        side_um=float(uns["side_um"]),
        xy_um=_floats(table.obsm["xy_um"]),
        features=np.asarray(table.X, dtype=np.float16),
        colour=_floats(table.obsm["colour"]),
        encoder_id=str(uns["encoder_id"]),
        provenance=Provenance.from_json(str(uns["provenance"])),
    )


def regions_as_table(regions: Regions) -> ad.AnnData:
    """X expression (CSR, absent where nothing was measured); var `symbol`, `observed`."""
    obs = _region_names(regions.slide_id, regions.region_id)
    obs["patient_id"] = np.array(regions.patient_id, dtype=object)
    if regions.text_key is not None:
        obs["text_key"] = np.array(regions.text_key, dtype=object)
    return _table(
        X=regions.expression,
        obs=obs,
        var=_genes(regions.genes, regions.gene_observed),
        obsm={"xy_um": regions.xy_um},
        uns=_facts(
            "regions",
            regions.provenance,
            kind=regions.kind,
            radius_um=float(regions.radius_um),
            pitch_um=float(regions.pitch_um),
            expression_unit=regions.expression_unit,
            gene_namespace=regions.genes.namespace,
            platform=regions.platform,
        ),
    )


def table_as_regions(table: ad.AnnData) -> Regions:
    """What `regions_as_table` wrote."""
    uns = _checked(table, "regions")
    return Regions(
        kind=_word(uns, "kind"),
        region_id=_strings(table.obs, "region_id") or (),
        slide_id=_strings(table.obs, "slide_id") or (),
        patient_id=_strings(table.obs, "patient_id") or (),
        xy_um=_floats(table.obsm["xy_um"]),
        radius_um=float(uns["radius_um"]),
        pitch_um=float(uns["pitch_um"]),
        genes=_panel(table),
        expression=_sparse(table.X),
        expression_unit=_word(uns, "expression_unit"),
        gene_observed=np.asarray(table.var["observed"], dtype=bool),
        platform=str(uns["platform"]),
        provenance=Provenance.from_json(str(uns["provenance"])),
        text_key=_strings(table.obs, "text_key"),
    )


def profiles_as_table(profiles: Profiles) -> ad.AnnData:
    """X expression (CSR); obs `label`, `text`, `text_key`, `platform`, `donor_id`.

    Vectors of another model are obsm `features`, their name uns `features_by`.
    """
    obs = pd.DataFrame(index=pd.Index(profiles.profile_id, dtype=object))
    for name in PER_ROW:
        if getattr(profiles, name) is not None:
            obs[name] = np.array(getattr(profiles, name), dtype=object)
    return _table(
        X=profiles.expression,
        obs=obs,
        var=_genes(profiles.genes, profiles.gene_observed),
        obsm={} if profiles.features is None else {"features": profiles.features},
        uns=_facts(
            "profiles",
            profiles.provenance,
            expression_unit=profiles.expression_unit,
            gene_namespace=profiles.genes.namespace,
            **({} if profiles.features_by is None else {"features_by": profiles.features_by}),
        ),
    )


def table_as_profiles(table: ad.AnnData) -> Profiles:
    """What `profiles_as_table` wrote."""
    uns = _checked(table, "profiles")
    return Profiles(
        profile_id=tuple(map(str, table.obs_names)),
        expression=_sparse(table.X),
        expression_unit=_word(uns, "expression_unit"),
        genes=_panel(table),
        gene_observed=np.asarray(table.var["observed"], dtype=bool),
        provenance=Provenance.from_json(str(uns["provenance"])),
        label=_strings(table.obs, "label"),
        text=_strings(table.obs, "text"),
        text_key=_strings(table.obs, "text_key"),
        platform=_strings(table.obs, "platform") or (),
        donor_id=_strings(table.obs, "donor_id") or (),
        features=_floats(table.obsm["features"]) if "features" in table.obsm else None,
        features_by=_word(uns, "features_by") if "features_by" in uns else None,
    )


def prediction_as_table(prediction: Prediction) -> ad.AnnData:
    """X predicted mean (float32), NaN rows where a region has no cells; obsm `xy_um`."""
    return _table(
        X=prediction.mean,
        obs=_region_names(prediction.slide_id, prediction.region_id),
        var=_genes(prediction.genes),
        obsm={"xy_um": prediction.xy_um},
        uns=_facts(
            "prediction",
            prediction.provenance,
            kind=prediction.kind,
            expression_unit=prediction.unit,
            gene_namespace=prediction.genes.namespace,
            model_id=prediction.model_id,
        ),
    )


def table_as_prediction(table: ad.AnnData) -> Prediction:
    """What `prediction_as_table` wrote."""
    uns = _checked(table, "prediction")
    return Prediction(
        kind=_word(uns, "kind"),
        region_id=_strings(table.obs, "region_id") or (),
        slide_id=_strings(table.obs, "slide_id") or (),
        xy_um=_floats(table.obsm["xy_um"]),
        genes=_panel(table),
        mean=_floats(table.X),
        unit=str(uns["expression_unit"]),
        model_id=str(uns["model_id"]),
        provenance=Provenance.from_json(str(uns["provenance"])),
    )


def annotation_as_table(annotation: Annotation) -> ad.AnnData:
    """Of obs `label`, `probability` (of the label's class), `uncertainty`; obsm scores; no X.

    obsm `score`, `expression_score` and `class_probability` are unit x term, in the order of
    uns `terms`; uns `prompts` and `calibration` are JSON.
    """
    obs = _region_names(annotation.slide_id, annotation.unit_id)
    categories = list(annotation.count())
    obs["label"] = pd.Categorical(list(annotation.label), categories=categories)
    obs["probability"] = annotation.label_probability
    obs["uncertainty"] = annotation.uncertainty
    obsm = {
        "xy_um": annotation.xy_um,
        "score": annotation.score,
        "class_probability": annotation.probability,
    }
    if annotation.expression_score is not None:
        obsm["expression_score"] = annotation.expression_score
    calibration = {
        route: {
            "mean": fitted.mean.tolist(),
            "deviation": fitted.deviation.tolist(),
            "source": fitted.source,
            "n_units": fitted.n_units,
        }
        for route, fitted in annotation.calibration.items()
    }
    return _table(
        obs=obs,
        obsm=obsm,
        uns=_facts(
            "annotation",
            annotation.provenance,
            kind=annotation.kind,
            radius_um=float(annotation.radius_um),
            terms=json.dumps(annotation.terms),
            prompts=json.dumps(annotation.prompts),
            calibration=json.dumps(calibration, sort_keys=True),
            model_id=annotation.model_id,
        ),
    )


def table_as_annotation(table: ad.AnnData) -> Annotation:
    """What `annotation_as_table` wrote."""
    uns = _checked(table, "annotation")
    stored = json.loads(str(uns["calibration"]))
    calibration: dict[Route, Calibration] = {
        route: Calibration(
            mean=_floats(stored[route]["mean"]),
            deviation=_floats(stored[route]["deviation"]),
            source=stored[route]["source"],
            n_units=stored[route]["n_units"],
        )
        for route in get_args(Route)
        if route in stored
    }
    second = table.obsm.get("expression_score")
    return Annotation(
        kind=_word(uns, "kind"),
        unit_id=_strings(table.obs, "region_id") or (),
        slide_id=_strings(table.obs, "slide_id") or (),
        xy_um=_floats(table.obsm["xy_um"]),
        radius_um=float(uns["radius_um"]),
        terms=tuple(json.loads(str(uns["terms"]))),
        prompts=tuple(tuple(texts) for texts in json.loads(str(uns["prompts"]))),
        score=_floats(table.obsm["score"]),
        probability=_floats(table.obsm["class_probability"]),
        label=_strings(table.obs, "label") or (),
        uncertainty=_floats(table.obs["uncertainty"]),
        calibration=calibration,
        model_id=str(uns["model_id"]),
        provenance=Provenance.from_json(str(uns["provenance"])),
        expression_score=None if second is None else _floats(second),
    )


def _table(**parts: Any) -> ad.AnnData:  # noqa: ANN401 - AnnData's own stubs refuse arrays in obsm
    return ad.AnnData(**parts)


def _facts(noun: str, provenance: Provenance, **facts: str | float) -> dict[str, Any]:
    return {
        "noun": noun,
        "schema": SCHEMA,
        "frame": FRAME,
        "provenance": provenance.to_json(),
        **facts,
    }


def _checked(table: ad.AnnData, noun: str) -> dict[str, Any]:
    uns = dict(table.uns)
    if str(uns.get("noun")) != noun:
        raise DataError(f"stored data hold {uns.get('noun', 'something else')}; wanted {noun}")
    if int(uns["schema"]) > SCHEMA:
        raise DataError(
            f"stored {noun} have layout {int(uns['schema'])}, this version knows up to {SCHEMA}; "
            "update histoscribe"
        )
    return uns


def _region_names(slide_id: tuple[str, ...], region_id: tuple[str, ...]) -> pd.DataFrame:
    index = [f"{slide}/{region}" for slide, region in zip(slide_id, region_id, strict=True)]
    columns = {
        "region_id": np.array(region_id, dtype=object),
        "slide_id": np.array(slide_id, dtype=object),
    }
    return pd.DataFrame(columns, index=pd.Index(index, dtype=object))


def _genes(genes: GenePanel, observed: np.ndarray | None = None) -> pd.DataFrame:
    columns: dict[str, np.ndarray] = {"symbol": np.array(genes.symbols, dtype=object)}
    if observed is not None:
        columns["observed"] = observed
    return pd.DataFrame(columns, index=pd.Index(genes.ids, dtype=object))


def _panel(table: ad.AnnData) -> GenePanel:
    return GenePanel(
        ids=tuple(map(str, table.var_names)),
        symbols=_strings(table.var, "symbol") or (),
        namespace=_word(dict(table.uns), "gene_namespace"),
    )


def _numbered(n: int, prefix: str = "") -> pd.Index:
    return pd.Index([f"{prefix}{i}" for i in range(n)], dtype=object)


def _word(uns: dict[str, Any], key: str) -> Any:  # noqa: ANN401 - the noun checks the word itself
    return str(uns[key])


def _floats(values: Any) -> np.ndarray:  # noqa: ANN401 - whatever AnnData holds a column as
    return np.asarray(values, dtype=np.float32)


def _strings(frame: Any, column: str) -> tuple[str, ...] | None:  # noqa: ANN401 - as above
    return tuple(map(str, frame[column])) if column in frame else None


def _sparse(values: Any) -> Any:  # noqa: ANN401 - AnnData gives csr_matrix or csr_array
    from scipy.sparse import csr_array

    return None if values is None else csr_array(values)
