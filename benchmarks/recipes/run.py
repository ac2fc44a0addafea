"""From the published data of a cohort to scores, by the functions that the commands call.

    python benchmarks/recipes/run.py hest-brca --data hest/ --out brca/
    python benchmarks/recipes/run.py hest-hcc --data hest/ --out hcc/ --by-section
    python benchmarks/recipes/run.py tcga-lihc --data gdc/ --out lihc/ --search

HEST-1k: DATA holds st/, wsis/, metadata/ (and cellvit_seg/); each patient is tested once, after a
fit on all others. TCGA: DATA holds slides/ and expression/ as GDC's client downloads them,
gdc_sample_sheet.tsv and, to check files by, gdc_manifest.txt; one split of the patients, 4 : 1.

Writes OUT/manifest.csv (OUT/cohort for TCGA), OUT/study with a run a fold, and OUT/scores.csv: a
row for each fold and method. What is finished is kept: the same command goes on after any end.
Nothing is downloaded, and nothing in DATA is changed.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from hest_layout import hest_rows
from recipe import Recipe, read_recipe

from histoscribe.app.config import RunConfig, SplitConfig, make_config
from histoscribe.app.console import Voice
from histoscribe.app.ingest import ingest_manifest
from histoscribe.app.match import MANIFEST, MatchConfig, match_cohort
from histoscribe.app.prepare import prepare_study
from histoscribe.app.runs import evaluate_run, fit_run
from histoscribe.app.settings import overlay, parse_assignment
from histoscribe.app.study import Study, write_text
from histoscribe.data.splits import SplitUnit
from histoscribe.errors import ConfigError, DataError, HistoscribeError
from histoscribe.evaluate.benchmark import MEAN, ScoreTable
from histoscribe.readers.manifest import write_manifest

SHEET, GDC_MANIFEST = "gdc_sample_sheet.tsv", "gdc_manifest.txt"
METRICS = ("region_pcc", "flat_pcc", "rmse", "js", "n_regions", "n_genes", "n_constant")


@dataclass(frozen=True)
class Fold:
    """Who is tested in one run.

    Attributes:
        run: Name of the run.
        unit: What is kept apart.
        tested: Samples.
        patients: Whose they are.
    """

    run: str
    unit: SplitUnit
    tested: tuple[str, ...]
    patients: tuple[str, ...]


def main(words: Sequence[str] | None = None) -> int:
    """Run a recipe; the exit code is that of the program's commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a YAML, or the name of one beside this script")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--by-section", action="store_true", help="allow sections of one patient")
    parser.add_argument("--nuclei", choices=("ours", "hest"), help="in place of the recipe's")
    parser.add_argument("--search", action="store_true", help="find settings in every fold")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args(words)
    voice = Voice()
    try:
        run_recipe(arguments, voice)
    except HistoscribeError as fault:
        voice.fault(type(fault).__name__, str(fault), fault.exit_code)
        return fault.exit_code
    return 0


def run_recipe(arguments: argparse.Namespace, voice: Voice) -> None:
    """Manifest, ingest, prepare, a fit and scores for each fold."""
    recipe, data, out = read_recipe(arguments.recipe), arguments.data, arguments.out
    if arguments.nuclei is not None:
        recipe = replace(recipe, nuclei=arguments.nuclei)
    config = config_of(recipe, arguments.set)
    if not data.is_dir():
        raise DataError(f"{data} is no folder; name with --data where the published data lie")
    check_is_ours(out, recipe.name)
    for line in recipe.notes.strip().splitlines():
        voice.say(line)
    if recipe.layout == "hest":
        manifest = write_hest_manifest(recipe, data, out, arguments.by_section, voice)
    else:
        manifest = match_tcga(recipe, data, out, voice)
    study = ingest_manifest(manifest, out / "study", None, voice.say)
    folds = plan(recipe, study, is_by_section=arguments.by_section)
    hold_against(recipe, study, voice)
    tables = []
    with study.lock():
        prepare_study(study, config.prepare, (), voice)
        for number, fold in enumerate(folds, start=1):
            voice.say(f"fold {number} of {len(folds)}: {', '.join(fold.tested)} tested")
            split = SplitConfig(unit=fold.unit, test=fold.tested)
            of_fold = replace(config, split=split)
            fit_run(study, fold.run, of_fold, voice, is_searching=arguments.search)
            table = evaluate_run(study, fold.run, voice).table
            assert table is not None
            tables.append((fold, table))
            write_text(out / "scores.csv", to_csv(tables))
    show(recipe, tables, voice)


def config_of(recipe: Recipe, assignments: Sequence[str]) -> RunConfig:
    """The recipe's settings, below those of --set; the split is the recipe's own."""
    values = dict(recipe.settings)
    for text in assignments:
        values = overlay(values, parse_assignment(text))
    if "split" in values:
        raise ConfigError("a recipe splits by itself; leave out the settings of split")
    return make_config(values)


def check_is_ours(out: Path, name: str) -> None:
    """Note whose folder it is; ConfigError if another recipe ran there."""
    path = out / "recipe.json"
    if path.exists() and json.loads(path.read_text()).get("name") != name:
        raise ConfigError(f"{out} holds the results of another recipe; name another with --out")
    write_text(path, json.dumps({"name": name}) + "\n")


def write_hest_manifest(
    recipe: Recipe, data: Path, out: Path, is_by_section: bool, voice: Voice
) -> Path:
    rows, said = hest_rows(recipe, data, out, is_by_section=is_by_section)
    for line in said:
        voice.say(line)
    write_manifest(rows, out / "manifest.csv")
    return out / "manifest.csv"


def match_tcga(recipe: Recipe, data: Path, out: Path, voice: Voice) -> Path:
    """What `match` makes of GDC's files; a manifest that it wrote before is kept."""
    missing = [name for name in ("slides", "expression", SHEET) if not (data / name).exists()]
    if missing:
        raise DataError(
            f"{', '.join(missing)} not in {data}; wanted slides/ and expression/ as GDC's client "
            f"downloads them, and the portal's {SHEET}"
        )
    check_project(recipe, data / SHEET)
    made = out / "cohort" / MANIFEST
    if made.exists():
        return made
    given = data / GDC_MANIFEST
    config = MatchConfig(
        sample_types=recipe.sample_types,
        slide_types=recipe.slide_types,
        sample_sheet=data / SHEET,
        gdc_manifest=given if given.exists() else None,
    )
    done = match_cohort(data / "expression", [data / "slides"], out / "cohort", config)
    for line in done.lines():
        voice.say(line)
    return done.manifest


def check_project(recipe: Recipe, sheet: Path) -> None:
    """DataError if the sample sheet names another project than the recipe."""
    with sheet.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    strangers = sorted({row.get("Project ID") or recipe.project for row in rows} - {recipe.project})
    if strangers:
        raise DataError(
            f"{sheet} is of {', '.join(strangers)}, recipe {recipe.name} of {recipe.project}; give "
            "the files of this project alone"
        )


def plan(recipe: Recipe, study: Study, *, is_by_section: bool) -> list[Fold]:
    """A fold for each patient, or each section where that is asked for; one split for TCGA."""
    samples: dict[str, list[str]] = {}
    for sample in study.samples:
        samples.setdefault(sample.patient, []).append(sample.sample)
    if recipe.layout == "tcga":
        patients = sorted(samples)
        drawn = np.random.default_rng(recipe.seed).permutation(len(patients))
        n_test = max(1, round(recipe.test_share * len(patients)))
        chosen = tuple(patients[number] for number in sorted(drawn[:n_test]))
        tested = tuple(name for patient in chosen for name in samples[patient])
        return [Fold("split", "patient", tested, chosen)]
    if is_by_section:
        return [
            Fold(f"without-{sample.sample}", "section", (sample.sample,), (sample.patient,))
            for sample in study.samples
        ]
    if len(samples) < 2:
        raise DataError(
            f"recipe {recipe.name}: all {len(study.samples)} samples are of one patient "
            f"({next(iter(samples))}); split by section with --by-section, knowing that the score "
            "will be optimistic"
        )
    return [
        Fold(f"patient{number}", "patient", tuple(names), (patient,))
        for number, (patient, names) in enumerate(samples.items(), start=1)
    ]


def hold_against(recipe: Recipe, study: Study, voice: Voice) -> None:
    """Say where the data are not what the paper counted."""
    found = {
        "samples": (len(study.samples), recipe.n_samples),
        "patients": (len({sample.patient for sample in study.samples}), recipe.n_patients),
        "spots": (sum(s.report.get("n_listed", 0) for s in study.samples), recipe.n_spots),
    }
    for what, (came, wanted) in found.items():
        if wanted is not None and came != wanted:
            voice.warn(f"{came:,} {what} are here, {wanted:,} in the paper")


def to_csv(tables: Sequence[tuple[Fold, ScoreTable]]) -> str:
    """A row for each fold and method: means over the fold's slides."""
    lines = [("fold", "kept apart", "patients", "tested", "method", "gene_pcc", *METRICS)]
    for fold, table in tables:
        for row in (row for row in table.rows if row.slide == MEAN):
            facts = (repr(getattr(row.metrics, name)) for name in METRICS)
            who = (fold.run, fold.unit, " + ".join(fold.patients), " + ".join(fold.tested))
            lines.append((*who, row.method, repr(row.gene_pcc.value), *facts))
    return "".join(",".join(f'"{value}"' for value in line) + "\n" for line in lines)


def show(recipe: Recipe, tables: Sequence[tuple[Fold, ScoreTable]], voice: Voice) -> None:
    """Mean and deviation over folds, for each method."""
    values: dict[str, list[tuple[float, float]]] = {}
    for _, table in tables:
        for row in (row for row in table.rows if row.slide == MEAN):
            values.setdefault(row.method, []).append((row.gene_pcc.value, row.metrics.region_pcc))
    unit = tables[0][0].unit
    caution = "" if unit == "patient" else "; sections of one patient may be on both sides"
    voice.table(
        f"{recipe.name}: mean and deviation over {len(tables)} fold(s), one {unit} each{caution}"
        if recipe.layout == "hest"
        else f"{recipe.name}: {len(tables[0][0].patients)} patients tested, one split",
        ("method", "gene PCC", "sd", "region PCC", "sd"),
        [
            (method, *(f"{part:.3f}" for pair in _moments(pairs) for part in pair))
            for method, pairs in values.items()
        ],
    )


def _moments(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    table = np.array(pairs)
    sd = table.std(axis=0, ddof=1) if len(table) > 1 else np.full(2, np.nan)
    return list(zip(table.mean(axis=0).tolist(), sd.tolist(), strict=True))


if __name__ == "__main__":
    sys.exit(main())
