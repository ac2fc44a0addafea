"""Figures from arrays and nouns: no reading, no fitting, no global state of matplotlib.

All axes are in µm of the slide frame, x to the right and y down, and carry a scale bar. The
colour map is cividis, whose order survives colour blindness and grey print (Nuñez et al. 2018).
"""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from histoscribe.data.annotation import UNSURE
from histoscribe.data.cells import Outlines
from histoscribe.types import Box

COLOURS = "cividis"
OUTLINE = "#00e5ff"  # cyan: far from haematoxylin's blue and eosin's pink in hue and lightness
SPOT = "#ffd54f"
GROUPS = ("#00204d", "#c7a30a", "#7c7b78")  # far apart in lightness: grey print keeps them apart
LABELS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#332288",
)  # fmt: skip
"""Colours of labels: Okabe and Ito 2008, told apart by the colour blind, and an indigo."""
UNSURE_GREY = "#b5b5b5"
DAYS_A_YEAR = 365.25


@dataclass(frozen=True)
class GeneMap:
    """One gene of one slide, measured and predicted in the same unit.

    Attributes:
        symbol: The name people know it by.
        measured: One value a region; NaN where it was not measured.
        predicted: One value a region; NaN where there were no cells.
        pcc: Pearson correlation of the two over the regions, NaN where it is not defined.
    """

    symbol: str
    measured: Float[np.ndarray, " region"]
    predicted: Float[np.ndarray, " region"]
    pcc: float


@dataclass(frozen=True, eq=False)
class SurvivalCurve:
    """The Kaplan-Meier curve of a group of patients.

    Attributes:
        name: Of the group.
        step_days: Where the curve steps, from 0.
        alive: Share that is alive from each step on.
        low: Lower end of its interval.
        high: Upper end of its interval.
        followed_days: How long each patient was followed.
        has_died: Whether that ended by death.
    """

    name: str
    step_days: Float[np.ndarray, " step"]
    alive: Float[np.ndarray, " step"]
    low: Float[np.ndarray, " step"]
    high: Float[np.ndarray, " step"]
    followed_days: Float[np.ndarray, " patient"]
    has_died: Bool[np.ndarray, " patient"]

    def n_at_risk(self, days: float) -> int:
        """Patients that were followed at least until then."""
        return int((self.followed_days >= days).sum())


@dataclass(frozen=True, eq=False)
class Tissue:
    """A piece of a slide.

    Attributes:
        box: Where it is, µm.
        image: Its pixels, at any resolution.
    """

    box: Box
    image: UInt8[np.ndarray, "y x 3"]


def draw_tissue(
    image: UInt8[np.ndarray, "y x 3"],
    box: Box,
    outlines: Outlines | None = None,
    regions_um: tuple[Float[np.ndarray, "region 2"], float] | None = None,
    title: str = "",
) -> Figure:
    """The H&E of a box with nuclei outlines and, if given, the regions as circles.

    Args:
        image: Pixels of the box, at any resolution.
        box: What the image shows, µm.
        outlines: Nuclei of the slide; those outside the box are left out.
        regions_um: Centres and radius of the regions, µm.
        title: A line above.

    Returns:
        The figure, at most 7 inches wide and 8 high.
    """
    shape = box.height_um / box.width_um
    width = min(7.0, 8.0 / shape)
    figure = Figure(figsize=(width, width * shape + 0.3), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(image, extent=_extent(box), interpolation="antialiased")
    if outlines is not None:
        lines = _lines_in(outlines, box)
        width = 0.9 if box.width_um < 600 else 0.35
        axes.add_collection(LineCollection(lines, colors=OUTLINE, linewidths=width))
    if regions_um is not None:
        centres, radius_um = regions_um
        axes.add_collection(_discs(centres, radius_um, axes, facecolors="none", edgecolors=SPOT))
    _finish(axes, box, title)
    return figure


def draw_gene_maps(
    maps: list[GeneMap],
    xy_um: Float[np.ndarray, "region 2"],
    radius_um: float,
    unit: str,
) -> Figure:
    """Measured beside predicted, gene after gene, each on the colour scale of its measured values.

    Args:
        maps: The genes, in the order they are to be shown.
        xy_um: Centres of the regions, slide frame.
        radius_um: Their radius; drawn true to scale.
        unit: Unit of the values, for the colour bar.

    Returns:
        The figure.
    """
    margin = 2.0 * radius_um
    low, high = xy_um.min(axis=0) - margin, xy_um.max(axis=0) + margin
    high[1] += 0.08 * (high[1] - low[1])  # a foot for the scale bar
    box = Box(float(low[0]), float(low[1]), *(float(side) for side in high - low))
    shape = box.height_um / box.width_um
    n_across = int(np.clip(round(shape), 1, len(maps)))  # upright slides go side by side
    n_down = -(-len(maps) // n_across)
    width = 3.2 / n_across
    figure = Figure(
        figsize=(2 * n_across * (width + 0.35), n_down * (width * min(shape, 6.0) + 0.45)),
        layout="constrained",
    )
    panels = figure.subplots(n_down, 2 * n_across, squeeze=False).reshape(-1, 2)
    for left, right in panels[len(maps) :]:
        left.set_axis_off()
        right.set_axis_off()
    for (left, right), gene in zip(panels, maps, strict=False):
        scale = _scale_of(gene.measured)
        for axes, values in ((left, gene.measured), (right, gene.predicted)):
            discs = _discs(xy_um, radius_um, axes, cmap=COLOURS, norm=scale)
            discs.set_array(np.ma.masked_invalid(values))
            axes.add_collection(discs)
            axes.set_facecolor("#eeeeee")
        name = gene.symbol if len(gene.symbol) < 10 else f"{gene.symbol[:8]}…"
        _finish(left, box, f"{name}\nmeasured")
        _finish(right, box, f"predicted\nPCC {_number(gene.pcc)}")
        figure.colorbar(discs, ax=[left, right], label=unit, shrink=0.8)
    return figure


def draw_label_map(
    labels: list[str],
    names: list[str],
    xy_um: Float[np.ndarray, "unit 2"],
    radius_um: float,
    tissue: Tissue,
    title: str = "",
) -> Figure:
    """The tissue, and each unit in the colour of its label, with the counts beside the names.

    Args:
        labels: One a unit; "" is not drawn.
        names: The labels in the order of the legend; "unsure" is grey.
        xy_um: Centres of the units, slide frame.
        radius_um: Radius they are drawn with, true to scale.
        tissue: What the map shows.
        title: A line above.
    """
    figure, axes = _open_map(tissue, title)
    colours = iter(np.tile(LABELS, 1 + len(names) // len(LABELS)))
    for name in names:
        rows = [row for row, label in enumerate(labels) if label == name]
        colour = UNSURE_GREY if name == UNSURE else str(next(colours))
        if rows:
            style = {"facecolors": colour, "edgecolors": "none"}
            axes.add_collection(_discs(xy_um[rows], radius_um, axes, **style))
        axes.plot([], [], "o", color=colour, label=f"{name} ({len(rows):,})")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=7, frameon=False)
    _finish(axes, tissue.box, "")
    return figure


def draw_heat_map(
    score: Float[np.ndarray, " unit"],
    xy_um: Float[np.ndarray, "unit 2"],
    radius_um: float,
    tissue: Tissue,
    title: str = "",
    unit: str = "",
) -> Figure:
    """The tissue, and each unit in the colour of its score, cut at the 1st and 99th percentile.

    A unit whose score is NaN is not drawn.
    """
    figure, axes = _open_map(tissue, title)
    discs = _discs(xy_um, radius_um, axes, cmap=COLOURS, norm=_scale_of(score), linewidths=0)
    discs.set_array(np.ma.masked_invalid(score))
    axes.add_collection(discs)
    figure.colorbar(discs, ax=axes, label=unit, shrink=0.7)
    _finish(axes, tissue.box, "")
    return figure


def draw_scores(
    names: list[str],
    centre: Float[np.ndarray, " row"],
    low: Float[np.ndarray, " row"],
    high: Float[np.ndarray, " row"],
    label: str,
) -> Figure:
    """Scores of model and baselines with their intervals, the best name on top as given."""
    figure = Figure(figsize=(7, 0.38 * len(names) + 0.8), layout="constrained")
    axes = figure.add_subplot()
    rows = np.arange(len(names))
    axes.errorbar(
        centre,
        rows,
        xerr=np.abs(np.stack([centre - low, high - centre])),
        fmt="o",
        color="#00204d",
        ecolor="#7c7b78",
        capsize=3,
    )
    axes.axvline(0.0, color="#bbbbbb", linewidth=0.8)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_survival(curves: list[SurvivalCurve], title: str = "") -> Figure:
    """Kaplan-Meier curves with intervals, ticks where patients were censored, numbers at risk.

    Args:
        curves: At most three groups.
        title: A line above, e.g. the method and the log-rank p.

    Returns:
        The figure; time is in years where anybody was followed for over two.
    """
    last = max(float(curve.followed_days.max(initial=1.0)) for curve in curves)
    per, unit = (DAYS_A_YEAR, "years") if last > 2 * DAYS_A_YEAR else (1.0, "days")
    figure = Figure(figsize=(6, 3.6 + 0.2 * len(curves)), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 0.25 + 0.22 * len(curves)])
    for curve, colour in zip(curves, GROUPS, strict=False):
        days = curve.step_days / per
        axes.fill_between(days, curve.low, curve.high, step="post", color=colour, alpha=0.15, lw=0)
        n_died = int(curve.has_died.sum())
        label = f"{curve.name} ({len(curve.has_died)} patients, {n_died} died)"
        axes.step(days, curve.alive, where="post", color=colour, label=label)
        censored = curve.followed_days[~curve.has_died]
        height = curve.alive[np.searchsorted(curve.step_days, censored, side="right") - 1]
        axes.plot(censored / per, height, "|", color=colour, markersize=6)
    axes.set_xlim(0, last / per)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share alive")
    axes.set_title(title, fontsize=9, loc="left")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _count_at_risk(below, curves, [tick for tick in axes.get_xticks() if tick * per <= last], per)
    below.set_xlabel(unit)
    return figure


def to_png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def scale_bar_um(width_um: float) -> float:
    """A round length (1, 2 or 5 times a power of ten) of about a fifth of the width."""
    wanted = width_um / 5
    power = 10.0 ** np.floor(np.log10(wanted))
    return float(max(step * power for step in (1, 2, 5) if step * power <= wanted * (1 + 1e-9)))


def _open_map(tissue: Tissue, title: str) -> tuple[Figure, Axes]:
    """The tissue, and beside it an empty map on grey with room for a legend at its right."""
    shape = tissue.box.height_um / tissue.box.width_um
    width = min(4.2, 6.0 / shape)
    figure = Figure(figsize=(2 * width + 2.1, width * shape + 0.4), layout="constrained")
    left, axes = figure.subplots(1, 2)
    left.imshow(tissue.image, extent=_extent(tissue.box), interpolation="antialiased")
    _finish(left, tissue.box, title)
    axes.set_facecolor("#eeeeee")
    return figure, axes


def _finish(axes: Axes, box: Box, title: str) -> None:
    left, right, bottom, top = _extent(box)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=7 if "\n" in title else 9, loc="left")
    length = scale_bar_um(max(box.width_um, min(2.5 * box.width_um, box.height_um)))
    x, y = left + 0.04 * box.width_um, bottom - 0.05 * box.height_um
    for colour, width in (("white", 5.0), ("black", 2.2)):
        axes.plot([x, x + length], [y, y], color=colour, linewidth=width, solid_capstyle="butt")
    text = f"{length:g} µm" if length < 1000 else f"{length / 1000:g} mm"
    axes.text(
        x + length / 2,
        y - 0.02 * box.height_um,
        text,
        ha="center",
        va="bottom",
        fontsize=7,
        bbox={"facecolor": "white", "alpha": 0.8, "pad": 1, "linewidth": 0},
    )


def _count_at_risk(
    axes: Axes, curves: list[SurvivalCurve], ticks: list[float], days_a_tick: float
) -> None:
    """A line of numbers a group, below the ticks of the axis above."""
    for row, (curve, colour) in enumerate(zip(curves, GROUPS, strict=False)):
        for tick in ticks:
            text = str(curve.n_at_risk(tick * days_a_tick))
            axes.text(tick, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_ylim(len(curves) - 0.5, -0.5)
    axes.set_yticks(range(len(curves)), [curve.name for curve in curves], fontsize=8)
    axes.set_title("at risk", fontsize=8, loc="left")
    axes.tick_params(length=0)
    axes.tick_params(axis="y", pad=14)  # the numbers at 0 stand astride the axis
    axes.spines[:].set_visible(False)


def _discs(
    centres: Float[np.ndarray, "region 2"],
    radius_um: float,
    axes: Axes,
    **style: object,
) -> EllipseCollection:
    """Circles of their true size on the glass."""
    sides = np.full(len(centres), 2.0 * radius_um)
    return EllipseCollection(
        sides,
        sides,
        np.zeros(len(centres)),
        units="xy",
        offsets=centres,
        offset_transform=axes.transData,
        **style,
    )


def _lines_in(outlines: Outlines, box: Box) -> list[np.ndarray]:
    """Closed polygons whose first vertex is in the box."""
    first = outlines.xy_um[outlines.start[:-1]]
    corner = np.array([box.x_um, box.y_um])
    side = np.array([box.width_um, box.height_um])
    rows = np.flatnonzero(((first >= corner) & (first <= corner + side)).all(axis=1))
    polygons = (outlines.xy_um[outlines.start[row] : outlines.start[row + 1]] for row in rows)
    return [np.concatenate([polygon, polygon[:1]]) for polygon in polygons]


def _scale_of(values: Float[np.ndarray, " region"]) -> Normalize:
    """From the 1st to the 99th percentile of what was measured."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return Normalize(0.0, 1.0)
    low, high = np.percentile(known, [1, 99])
    return Normalize(float(low), float(max(high, low + 1e-6)))


def _extent(box: Box) -> tuple[float, float, float, float]:
    return box.x_um, box.x_um + box.width_um, box.y_um + box.height_um, box.y_um


def _number(value: float) -> str:
    return "not defined" if np.isnan(value) else f"{value:.2f}"
