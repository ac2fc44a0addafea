"""The report of a run: one HTML file that needs nothing beside it and asks nobody for anything."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from histoscribe.app.study import write_text
from histoscribe.data.cells import Cells, Outlines
from histoscribe.data.slide import Slide
from histoscribe.plot import GeneMap, draw_gene_maps, draw_tissue, to_png
from histoscribe.types import Box

OVERVIEW_PX = 900
CROP_UM = 250.0


@dataclass(frozen=True)
class Picture:
    """A figure with its caption, inlined.

    Attributes:
        caption: What it shows, and how.
        png: The image.
    """

    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The image as a URI that holds the bytes itself."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class ReportTable:
    """A table as it is shown; rows whose first cell is in `strong` stand out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SamplePart:
    """What is shown of one sample."""

    title: str
    notes: tuple[str, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Report:
    """All that the page says.

    Attributes:
        title: Study and run.
        protocol: What was trained on what and scored on what, in one sentence.
        banner: A caution above all scores, or "".
        tables: Scores of the model and of every baseline.
        samples: Pictures by sample.
        provenance: (name, text) of everything that made the result.
    """

    title: str
    protocol: str
    banner: str
    tables: tuple[ReportTable, ...]
    samples: tuple[SamplePart, ...]
    provenance: tuple[tuple[str, str], ...]


def write_report(report: Report, path: Path) -> None:
    """Render the page and write it in one step.

    The page forbids itself every request (Content-Security-Policy), so that opening it tells
    nobody anything.
    """
    environment = Environment(
        loader=PackageLoader("histoscribe.app", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        title=report.title,
        protocol=report.protocol,
        banner=report.banner,
        tables=report.tables,
        samples=report.samples,
        provenance=report.provenance,
    )
    write_text(path, page)


def picture_tissue(
    slide: Slide, cells: Cells, regions_um: tuple[Float[np.ndarray, "region 2"], float]
) -> tuple[Picture, Picture]:
    """The slide as a whole, and a crop at the resolution where outlines can be judged.

    Args:
        slide: Where the pixels are read.
        cells: Its nuclei.
        regions_um: Centres and radius of the regions, µm.
    """
    whole = Box(0.0, 0.0, slide.size_px[0] * slide.mpp[0], slide.size_px[1] * slide.mpp[1])
    overview = _tissue(slide, whole, cells.outlines, regions_um, "")
    crop = _crop_around(cells, whole)
    detail = _tissue(slide, crop, cells.outlines, regions_um, "")
    n_regions = len(regions_um[0])
    circles = f"; yellow circles: the {n_regions} regions" if n_regions else ""
    return (
        Picture(f"Whole image; cyan: nuclei{circles}.", to_png(overview)),
        Picture(
            f"{crop.width_um:g} µm where nuclei are many; cyan: outlines, {len(cells):,} nuclei "
            "were found in all.",
            to_png(detail),
        ),
    )


def picture_genes(
    maps: list[GeneMap], xy_um: Float[np.ndarray, "region 2"], radius_um: float, unit: str
) -> Picture:
    """Measured beside predicted."""
    figure: Figure = draw_gene_maps(maps, xy_um, radius_um, unit)
    return Picture(
        "Measured (left) and predicted (right) on the colour scale of the measured values; the "
        "genes with the highest PCC, so not a typical sample of the panel.",
        to_png(figure, dpi=90),
    )


def as_text(record: Mapping[str, Any]) -> str:
    """Indented JSON for people."""
    return json.dumps(record, indent=1, sort_keys=True, default=str, ensure_ascii=False)


def _tissue(
    slide: Slide,
    box: Box,
    outlines: Outlines | None,
    regions_um: tuple[Float[np.ndarray, "region 2"], float],
    title: str,
) -> Figure:
    native = max(slide.mpp)
    mpp = max(native, max(box.width_um, box.height_um) / OVERVIEW_PX)
    return draw_tissue(slide.read(box, mpp), box, outlines, regions_um, title)


def _crop_around(cells: Cells, whole: Box) -> Box:
    """The square with most nuclei, on a grid of its own side, moved into the image."""
    side = min(CROP_UM, whole.width_um, whole.height_um)
    if len(cells) == 0:
        return Box(0.0, 0.0, side, side)
    places, count = np.unique(
        np.floor(cells.xy_um / side).astype(np.int64), axis=0, return_counts=True
    )
    x_um, y_um = (float(value) for value in places[np.argmax(count)] * side)
    return Box(min(x_um, whole.width_um - side), min(y_um, whole.height_um - side), side, side)
