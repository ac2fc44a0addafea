"""Annotate: a checkpoint, slides and words in; which words fit each region or cell out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import cast

import numpy as np
from jaxtyping import Float32, Int64

from histoscribe import __version__
from histoscribe.annotate.queries import (
    Queries,
    WordClass,
    check_unit_rows,
    embed_classes,
    unit,
)
from histoscribe.annotate.scores import (
    Rows,
    Scores,
    decide,
    disagreement,
    probabilities,
    score_units,
)
from histoscribe.annotate.word_model import AnnotateConfig, WordModel
from histoscribe.data.annotation import NO_CELL, Annotation, Calibration, Route, Source
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import RegionKind
from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.train.assemble import SlideData


@dataclass(frozen=True, eq=False)
class Units:
    """Regions or cells as points of the space, by each route.

    Attributes:
        kind: Their size.
        unit_id: Their names.
        slide_id: Their slides.
        xy_um: Their centres.
        radius_um: Of regions; NaN for cells.
        embedding: By route.
    """

    kind: RegionKind
    unit_id: tuple[str, ...]
    slide_id: tuple[str, ...]
    xy_um: Float32[np.ndarray, "unit 2"]
    radius_um: float
    embedding: Mapping[Route, Rows]


@dataclass(frozen=True, eq=False)
class Finding:
    """Where one class fits: what a search gives.

    Attributes:
        units: The regions or cells.
        prompts: Texts that were averaged.
        score: Cosine of each unit, by the first route of `units`; NaN without a nucleus.
        standard: The same in deviations above the mean of the calibration's units.
        calibration: What that mean and deviation are.
    """

    units: Units
    prompts: tuple[str, ...]
    score: Float32[np.ndarray, " unit"]
    standard: Float32[np.ndarray, " unit"]
    calibration: Calibration

    def ranking(self) -> Int64[np.ndarray, " said"]:
        """Units that have a nucleus, the best fitting first."""
        order = np.argsort(-self.score, kind="stable")  # NaN goes to the end
        return order[: int(np.isfinite(self.score).sum())]


@dataclass(frozen=True)
class PhenotypeName:
    """What the words say of one cluster of cells.

    Attributes:
        phenotype: Number of the cluster.
        n_cells: Cells of it that were embedded.
        label: The class that fits best, or "unsure"; "" for a cluster without a cell.
        probability: Of that class.
        score: Cosine of the cluster's mean to each class.
    """

    phenotype: int
    n_cells: int
    label: str
    probability: float
    score: tuple[float, ...]


def annotate(
    model: WordModel,
    slides: Sequence[SlideData],
    classes: Sequence[WordClass],
    config: AnnotateConfig,
) -> Annotation:
    r"""Score every region or cell of the slides on every class, and label it.

        e_c = unit(mean_k e_T(prompt_k(c)))                 r(x, c) = e(x) . e_c
        r~(x, c) = (r(x, c) - m_c) / sd_c                   p(x, .) = softmax(s sd r~(x, .))

    with m_c and sd_c of the reference units, s the scale of training (1/.07 for the anchor loss,
    which has none) and sd the mean of the sd_c. With two routes p is their mean, and the
    uncertainty the Jensen-Shannon divergence of the two in bits. Of cells p is the image's alone
    unless both routes are asked for by name: the expression that is predicted of a cell is that of
    its surroundings in the main.

    Source: SpatialWhisperer's scoring. Departs from it: classes are calibrated, as a constant
    offset of a class moves labels though no AUROC; and the scores go back to the scale of cosines
    (sd) before the softmax, where s was learned.

    Args:
        model: The checkpoint.
        slides: Slides prepared with its encoder.
        classes: At least two; their names are the labels.
        config: How.

    Raises:
        ConfigError: Fewer than two classes, or a route or calibration the model cannot give.
        DataError: No unit has a nucleus, or a class fits all units alike.
    """
    _check_several(classes)
    queries = embed_classes(model, classes, config.templates)
    units = embed_units(model, slides, config)
    scores: dict[Route, Scores] = {
        route: score_units(rows, queries, config.composite, model.scale)
        for route, rows in units.embedding.items()
    }
    calibration: dict[Route, Calibration] = {
        route: fit_calibration(model, config, route, queries, score)
        for route, score in scores.items()
    }
    by_route = [
        probabilities(calibration[route], score, model.scale) for route, score in scores.items()
    ]
    # of cells predicted expression says little, unless it is asked for
    counted = by_route[:1] if config.level == "cell" and config.route is None else by_route
    probability = np.mean(counted, axis=0).astype(np.float32)
    uncertainty = np.full(len(probability), np.nan, np.float32)
    if len(by_route) == 2:
        uncertainty = disagreement(*by_route)
    first: Route = "image" if "image" in scores else "expression"
    return Annotation(
        kind=units.kind,
        unit_id=units.unit_id,
        slide_id=units.slide_id,
        xy_um=units.xy_um,
        radius_um=units.radius_um,
        terms=queries.classes,
        prompts=queries.prompts,
        score=scores[first],
        expression_score=scores.get("expression") if len(scores) == 2 else None,
        probability=probability,
        label=decide(probability, queries.classes, config),
        uncertainty=uncertainty,
        calibration=calibration,
        model_id=model.model_id,
        provenance=_provenance(model, slides, classes, config, tuple(scores)),
    )


def name_phenotypes(
    model: WordModel,
    slides: Sequence[SlideData],
    classes: Sequence[WordClass],
    config: AnnotateConfig,
) -> list[PhenotypeName]:
    """Name each cluster of cells by the class that the mean of its cells is nearest to.

    The mean is that of the cells' embeddings by the image route, brought to unit length; it is
    calibrated as single cells are.
    """
    _check_several(classes)
    config = replace(config, level="cell")
    queries = embed_classes(model, classes, config.templates)
    cells = check_unit_rows(model.embed_cells(slides), "cell")
    phenotype = model.phenotypes_of(slides)
    if len(phenotype) != len(cells):
        raise MismatchError(f"{len(phenotype)} phenotypes came for {len(cells)} cells")
    fitted = fit_calibration(
        model, config, "image", queries, score_units(cells, queries, config.composite, model.scale)
    )
    is_said = np.isfinite(cells).all(axis=1)
    names = []
    for number in range(int(phenotype.max(initial=-1)) + 1):
        rows = cells[is_said & (phenotype == number)]
        if not len(rows):
            names.append(PhenotypeName(number, 0, NO_CELL, float("nan"), ()))
            continue
        centre = unit(rows.mean(axis=0, keepdims=True, dtype=np.float64))
        score = score_units(centre, queries, config.composite, model.scale)
        p = probabilities(fitted, score, model.scale)
        label = decide(p, queries.classes, config)[0]
        listed = tuple(float(value) for value in score[0])
        names.append(PhenotypeName(number, len(rows), label, float(p.max()), listed))
    return names


def search(
    model: WordModel, slides: Sequence[SlideData], wanted: WordClass, config: AnnotateConfig
) -> Finding:
    """How well one class fits each region or cell; the route image to text unless told otherwise.

    Raises:
        ConfigError: A route or calibration that the model cannot give.
        DataError: No unit has a nucleus.
    """
    if config.route == "both":
        raise ConfigError("a search goes one route; take image or expression")
    config = replace(config, route=config.route or "image")
    queries = embed_classes(model, [wanted], config.templates)
    units = embed_units(model, slides, config)
    route, rows = next(iter(units.embedding.items()))
    score = score_units(rows, queries, config.composite, model.scale)
    fitted = fit_calibration(model, config, route, queries, score)
    return Finding(units, queries.prompts[0], score[:, 0], fitted.apply(score)[:, 0], fitted)


def embed_units(model: WordModel, slides: Sequence[SlideData], config: AnnotateConfig) -> Units:
    """The regions or the cells of the slides, by the routes asked for.

    Raises:
        ConfigError: The model cannot embed predicted expression, and that route was asked for.
        DataError: None of the units has a nucleus.
    """
    if not slides:
        raise DataError("no slides to annotate; name at least one")
    embedding: dict[Route, Rows] = {}
    if config.route != "expression":
        embed = model.embed_regions if config.level == "region" else model.embed_cells
        embedding["image"] = check_unit_rows(embed(slides), config.level)
    if config.route != "image":
        rows = model.embed_by_expression(slides, config.level)
        if rows is not None:
            embedding["expression"] = check_unit_rows(rows, config.level)
        elif config.route is not None:
            raise ConfigError(
                f"{model.model_id} has no expression route: it predicts no expression (fit with "
                "objective joint), or reads profiles by vectors of another model (fit without a "
                "profile embedding); take the image route"
            )
    units = _name_units(slides, config.level, embedding)
    _check_rows(units, config.level)
    return units


def _check_several(classes: Sequence[WordClass]) -> None:
    if len(classes) < 2:
        raise ConfigError(
            "one term alone gives no labels; name at least two, or look where it fits with "
            "'histoscribe search'"
        )


def _check_rows(units: Units, level: str) -> None:
    """Refuse embeddings that are not of these units, or say nothing of any."""
    for route, rows in units.embedding.items():
        if len(rows) != len(units.unit_id):
            raise MismatchError(
                f"the {route} route gave {len(rows)} rows for {len(units.unit_id)} units"
            )
        if not np.isfinite(rows).all(axis=1).any():
            raise DataError(f"no {level} has a nucleus that could be embedded")


def fit_calibration(
    model: WordModel, config: AnnotateConfig, route: str, queries: Queries, score: Scores
) -> Calibration:
    """Mean and deviation of each class's score, over what the config says.

    Raises:
        ConfigError: The checkpoint holds no reference of this level and route.
    """
    if config.calibration == "none":
        n = len(queries.classes)
        return Calibration(np.zeros(n, np.float32), np.ones(n, np.float32), "none", 0)
    if config.calibration == "reference":
        rows = model.reference(config.level, route)
        if rows is None:
            raise ConfigError(
                f"{model.model_id} holds no reference of the {config.level} level by the {route} "
                "route; calibrate transductively, by what is annotated, or not at all"
            )
        score = score_units(
            check_unit_rows(rows, "reference"), queries, config.composite, model.scale
        )
    known = score[np.isfinite(score).all(axis=1)].astype(np.float64)
    if len(known) < 2:
        raise DataError(f"{len(known)} units are too few to calibrate on; wanted two or more")
    return Calibration(
        known.mean(axis=0).astype(np.float32),
        known.std(axis=0, ddof=1).astype(np.float32),
        cast("Source", config.calibration),
        len(known),
    )


def _name_units(slides: Sequence[SlideData], level: str, embedding: Mapping[Route, Rows]) -> Units:
    if level == "cell":
        return Units(
            kind="cell",
            unit_id=tuple(str(row) for slide in slides for row in range(len(slide.cells))),
            slide_id=tuple(slide.slide_id for slide in slides for _ in range(len(slide.cells))),
            xy_um=np.concatenate([slide.cells.xy_um for slide in slides]),
            radius_um=float("nan"),
            embedding=embedding,
        )
    sizes = {(slide.regions.kind, float(slide.regions.radius_um)) for slide in slides}
    if len(sizes) > 1:
        raise MismatchError(f"slides have regions of {len(sizes)} sizes; annotate one at a time")
    radius_um = next(iter(sizes))[1]
    return Units(
        kind=slides[0].regions.kind,
        unit_id=tuple(name for slide in slides for name in slide.regions.region_id),
        slide_id=tuple(name for slide in slides for name in slide.regions.slide_id),
        xy_um=np.concatenate([slide.regions.xy_um for slide in slides]),
        radius_um=radius_um,
        embedding=embedding,
    )


def _provenance(
    model: WordModel,
    slides: Sequence[SlideData],
    classes: Sequence[WordClass],
    config: AnnotateConfig,
    routes: tuple[Route, ...],
) -> Provenance:
    inputs = {"checkpoint": model.model_id}
    for slide in slides:
        inputs[f"{slide.slide_id}/cells"] = slide.cells.provenance.key
        inputs[f"{slide.slide_id}/regions"] = slide.regions.provenance.key
    terms = {one.name: [list(term.names) for term in one.members] for one in classes}
    settings = {**asdict(config), "routes": list(routes), "terms": terms}
    return Provenance(f"histoscribe {__version__} annotate", settings, inputs)
