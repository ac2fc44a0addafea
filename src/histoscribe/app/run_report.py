"""What the report of a run says: gathered from its study, checkpoint and scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from histoscribe.app.report import (
    Picture,
    Report,
    ReportTable,
    SamplePart,
    as_text,
    picture_genes,
    picture_tissue,
    write_report,
)
from histoscribe.app.runs import Sides
from histoscribe.app.search_run import search_table
from histoscribe.app.study import Sample, Study, read_json
from histoscribe.data.genes import GenePanel
from histoscribe.data.regions import Regions
from histoscribe.data.slide import Slide
from histoscribe.evaluate.benchmark import MEAN, ScoreTable, split_by_slide
from histoscribe.evaluate.metrics import gene_pcc
from histoscribe.plot import GeneMap, draw_scores, to_png
from histoscribe.predict import predict_regions
from histoscribe.slides.open import open_slide
from histoscribe.train.assemble import SlideData
from histoscribe.train.checkpoint import Checkpoint
from histoscribe.train.targets import measure

N_BEST = 4
ILLUSTRATION = "Illustration, not evidence"
UNSCORED = (
    "Trained on all samples: none was kept apart, so nothing is scored. Use the scores of a run "
    "with the same settings that left some out."
)
FEW_REGIONS = 100
"""Below it, a per-gene correlation is mostly chance: its standard error is above 0.1."""


def report_run(
    study: Study, run: str, sides: Sides, checkpoint: Checkpoint, table: ScoreTable
) -> Path:
    """Write report.html beside the scores; returns its path."""
    folder = study.run_folder(run)
    record = read_json(folder / "run.json")
    test = sides.of(sides.split.test)
    answers = split_by_slide(predict_regions(checkpoint, test), test)
    space = checkpoint.scaling.target.space
    parts = []
    for slide, answer in zip(test, answers, strict=True):
        sample = sides.sample_of[slide.slide_id]
        image = open_slide(study.path_of(sample.slide), mpp=sample.mpp, slide_id=sample.sample)
        measured = measure(slide.regions, checkpoint.panel, space)[0]
        pictures = _pictures(image, slide, checkpoint, measured, answer)
        parts.append(SamplePart(slide.slide_id, _notes(sample, slide.regions, answer), pictures))
    scores = SamplePart("Model and baselines", (), (_picture_scores(table),))
    report = Report(
        title=f"histoscribe: study {study.folder.resolve().name}, run {run}",
        protocol=table.protocol,
        banner=banner_of(sides, table),
        tables=(
            _score_table(table, record.get("noise_ceiling")),
            _gain_table(table),
            *_search_tables(folder, record),
        ),
        samples=(scores, *parts),
        provenance=_provenance(study, sides, checkpoint, record),
    )
    path = folder / "report.html"
    write_report(report, path)
    return path


def report_unscored(study: Study, run: str, sides: Sides, checkpoint: Checkpoint) -> Path:
    """Write the report.html of a run on all samples, which has no scores; returns its path."""
    folder = study.run_folder(run)
    record = read_json(folder / "run.json")
    report = Report(
        title=f"histoscribe: study {study.folder.resolve().name}, run {run}",
        protocol=f"Trained on {', '.join(sides.split.train)}; tested on none.",
        banner=UNSCORED,
        tables=_search_tables(folder, record),
        samples=(),
        provenance=_provenance(study, sides, checkpoint, record),
    )
    path = folder / "report.html"
    write_report(report, path)
    return path


def _search_tables(folder: Path, record: Mapping[str, Any]) -> tuple[ReportTable, ...]:
    return (search_table(folder),) if "found" in record else ()


def _provenance(
    study: Study, sides: Sides, checkpoint: Checkpoint, record: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """Everything that made the run, by name."""
    return (
        ("Settings", as_text(record["config"])),
        *((("Found by search", as_text(record["found"])),) if "found" in record else ()),
        ("Model", checkpoint.model_id + "\n" + as_text({"nets": list(checkpoint.report)})),
        ("Made by", checkpoint.provenance.to_json()),
        *(
            (f"Sample {sample.sample}", as_text(_origin(study, sample)))
            for sample in {s.sample: s for s in sides.sample_of.values()}.values()
        ),
    )


def _pictures(
    image: Slide,
    slide: SlideData,
    checkpoint: Checkpoint,
    measured: Float[np.ndarray, "region gene"],
    answer: Float[np.ndarray, "region gene"],
) -> tuple[Picture, ...]:
    """The tissue with its nuclei, and maps of genes where regions have a place."""
    regions = slide.regions
    if regions.kind == "bulk":
        nowhere = np.empty((0, 2), np.float32)
        return tuple(picture_tissue(image, slide.cells, (nowhere, 0.0)))
    maps = best_genes(checkpoint.panel, measured, answer)
    regions_um = (regions.xy_um, regions.radius_um)
    unit = checkpoint.scaling.target.space.replace("_", " ")
    return (
        *picture_tissue(image, slide.cells, regions_um),
        picture_genes(maps, *regions_um, unit),
    )


def banner_of(sides: Sides, table: ScoreTable) -> str:
    """The caution above the scores: where the data cannot carry a claim."""
    n_regions = table.row("model").metrics.n_regions
    if sides.split.unit == "strip" or n_regions < FEW_REGIONS:
        return f"{ILLUSTRATION}: n = {n_regions} test regions."
    return ""


def best_genes(
    panel: GenePanel,
    measured: Float[np.ndarray, "region gene"],
    predicted: Float[np.ndarray, "region gene"],
) -> list[GeneMap]:
    """The genes with the highest PCC, best first."""
    pcc = gene_pcc(predicted, measured)
    order = np.argsort(-np.nan_to_num(pcc, nan=-2.0))[:N_BEST]
    return [
        GeneMap(panel.symbols[gene], measured[:, gene], predicted[:, gene], float(pcc[gene]))
        for gene in order
    ]


def _score_table(table: ScoreTable, ceiling: float | None) -> ReportTable:
    rows = [row for row in table.rows if row.slide == MEAN]
    first = rows[0].metrics
    notes = [
        f"{table.unit}, {table.n_panel} genes; {first.n_regions} regions; {first.n_genes} genes "
        f"count, {first.n_constant} are constant (summed over test slides). Intervals: 95 %, "
        f"bootstrap over regions, {table.n_draws} draws."
    ]
    if ceiling is not None:
        notes.append(
            f"A perfect predictor would reach a gene PCC of about {ceiling:.2f} against these "
            "noisy counts (binomial thinning, training slides)."
        )
    return ReportTable(
        title="Mean over test slides",
        columns=("method", "gene PCC", "95 % interval", "region PCC", "flat PCC", "RMSE", "JS"),
        rows=tuple(
            (
                row.method,
                f"{row.gene_pcc.value:.3f}",
                f"{row.gene_pcc.low:.3f} to {row.gene_pcc.high:.3f}",
                f"{row.metrics.region_pcc:.3f}",
                f"{row.metrics.flat_pcc:.3f}",
                f"{row.metrics.rmse:.3f}",
                f"{row.metrics.js:.3f}",
            )
            for row in rows
        ),
        strong=("model",),
        notes=tuple(notes),
    )


def _gain_table(table: ScoreTable) -> ReportTable:
    return ReportTable(
        title="Paired gains in gene PCC",
        columns=("method", "over", "slide", "gain", "95 % interval"),
        rows=tuple(
            (
                gain.method,
                gain.over,
                gain.slide,
                f"{gain.gain.value:+.3f}",
                f"{gain.gain.low:+.3f} to {gain.gain.high:+.3f}",
            )
            for gain in table.gains
        ),
    )


def _picture_scores(table: ScoreTable) -> Picture:
    rows = [row for row in table.rows if row.slide == MEAN]
    values = np.array([[r.gene_pcc.value, r.gene_pcc.low, r.gene_pcc.high] for r in rows])
    names = [row.method for row in rows]
    centre, low, high = np.nan_to_num(values).T
    figure = draw_scores(names, centre, low, high, "mean per-gene PCC")
    return Picture("Mean per-gene PCC with 95 % intervals.", to_png(figure))


def _notes(
    sample: Sample, regions: Regions, answer: Float[np.ndarray, "region gene"]
) -> tuple[str, ...]:
    notes = [f"Sample {sample.sample} of patient {sample.patient}: {len(regions)} regions shown."]
    n_empty = int(np.isnan(answer).all(axis=1).sum())
    if n_empty:
        notes.append(f"{n_empty} regions hold no nucleus: not predicted, not scored.")
    for key, text in (
        ("without_counts", "selected spots have no counts and were dropped"),
        ("below_min_counts", "spots have too few counts and were dropped"),
    ):
        if dropped := sample.report.get(key):
            notes.append(f"{len(dropped)} {text}: {', '.join(dropped[:10])}.")
    return tuple(notes)


def _origin(study: Study, sample: Sample) -> dict[str, object]:
    return {
        "inputs": dict(sample.inputs),
        "mpp": sample.mpp,
        "prepared": study.prepared_record(sample),
        "reader": dict(sample.report),
    }
