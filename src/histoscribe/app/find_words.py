"""Search a study for words: a heat map and a table of scores for every sample."""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from histoscribe.annotate.label import Finding, search
from histoscribe.annotate.queries import WordClass
from histoscribe.annotate.word_model import WordModel
from histoscribe.app.annotate_run import (
    CELL_RADIUS_UM,
    Asked,
    ending_of,
    image_of,
    load_places,
    tissue_of,
)
from histoscribe.app.console import Voice
from histoscribe.app.study import Study, write_text
from histoscribe.data.atomic import replacing
from histoscribe.data.texts import Term, key_of
from histoscribe.errors import ConfigError
from histoscribe.plot import draw_heat_map, to_png

COLUMNS = ("rank", "unit", "x_um", "y_um", "score", "deviations_above_mean")


@dataclass(frozen=True)
class Found:
    """What became of one sample."""

    sample: str
    finding: Finding
    table: Path
    picture: Path


def search_study(
    study: Study, model: WordModel, asked: Asked, text: str, out: Path, voice: Voice
) -> list[Found]:
    """Score every unit of the samples on a text; "a | b" are synonyms.

    All maps share the measure, deviations above the mean of the calibration's units; each its own
    colour scale.
    """
    synonyms = tuple(dict.fromkeys(part.strip() for part in text.split("|") if part.strip()))
    if not synonyms:
        raise ConfigError("nothing to search for; give a text, e.g. 'plasma cells'")
    wanted = WordClass(synonyms[0], (Term(key_of(synonyms[0]), synonyms),))
    folder = out / slug(synonyms[0])
    found = []
    for sample, slide in load_places(study, model, asked):
        finding = search(model, [slide], wanted, asked.config)
        ending = ending_of(sample, asked)
        table = folder / f"{sample.sample}{ending}.csv"
        picture = folder / f"{sample.sample}{ending}.png"
        write_text(table, to_csv(finding))
        units = finding.units
        radius_um = CELL_RADIUS_UM if units.kind == "cell" else units.radius_um
        figure = draw_heat_map(
            finding.standard,
            units.xy_um,
            radius_um,
            tissue_of(image_of(study, sample), units.xy_um, radius_um),
            f"{sample.sample}: {wanted.name}",
            "cosine"
            if finding.calibration.source == "none"
            else f"standard deviations above the mean ({finding.calibration.source})",
        )
        with replacing(picture) as (new,):
            new.write_bytes(to_png(figure))
        voice.say(f"{sample.sample}: {len(finding.ranking()):,} units ranked, {picture}")
        found.append(Found(sample.sample, finding, table, picture))
    study.log("search", model_id=model.model_id, text=text, n_samples=len(found))
    return found


def to_csv(finding: Finding) -> str:
    """Units from best to worst; those without a nucleus are left out."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    units = finding.units
    for rank, row in enumerate(finding.ranking(), start=1):
        x_um, y_um = units.xy_um[row]
        place = f"{x_um:.2f}", f"{y_um:.2f}"
        score = f"{finding.score[row]:.6f}", f"{finding.standard[row]:.4f}"
        writer.writerow((rank, units.unit_id[row], *place, *score))
    return stream.getvalue()


def slug(text: str) -> str:
    """A text as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-") or "search"
