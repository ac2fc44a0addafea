"""Given nuclei against the pixels of their slide, before hours are spent on them."""

import logging

import numpy as np
from jaxtyping import Float32, Float64

from histoscribe.data.cells import Outlines
from histoscribe.data.nuclei import GivenNuclei
from histoscribe.data.slide import Slide
from histoscribe.errors import MismatchError
from histoscribe.preprocess.fields import FieldPlan
from histoscribe.preprocess.quality import PLAUSIBLE_AREA_UM2, USUAL_AREA_UM2
from histoscribe.preprocess.segmenters.given import PlacedNuclei, labels_of_field, place_outlines

LOG = logging.getLogger(__name__)
N_PLACES = 64
SIDE_PX = 128
LEAST_MPP = 0.5  # 64 µm wide: some to fifty nuclei
LEAST_SHARE = 0.6
"""Right nuclei are the darkest at 0.97 to 1 of the places (her2st, CMU-1, NuCLS; 0.9 where they are
2 µm off). Swapped axes, half and twice the scale and nuclei of elsewhere: at 0.03 to 0.34, and at
0.58 once, in a patchwork of 15 small images that was mirrored."""
MOVED_UM = 12.0
FEW = 12  # places; with fewer nothing is said
LEAST_PIXELS = 20  # under nuclei, for a place to count


def check_given(slide: Slide, given: GivenNuclei, seed: int = 0) -> None:
    """Refuse nuclei that do not lie on what is dark in the slide, or are not as large as nuclei.

    Args:
        slide: The slide.
        given: Its nuclei.
        seed: Draws the places that are looked at.

    Raises:
        MismatchError: Their scale is wrong, x and y are swapped, or they are of another slide.
    """
    share, n_places = share_darkest(slide, given.outlines, given.xy_um, seed)
    if n_places < FEW:
        LOG.warning(
            "slide %s: that its given nuclei lie on nuclei is not checked: only %d places hold "
            "enough of them",
            slide.slide_id,
            n_places,
        )
    elif share < LEAST_SHARE:
        raise MismatchError(
            f"slide {slide.slide_id}: of {n_places} places the slide is darker under the given "
            f"nuclei than {MOVED_UM:g} µm beside them at {100 * share:.0f} % only, at least "
            f"{100 * LEAST_SHARE:g} % are wanted; {_explain(slide, given, seed)}"
        )
    low, high = PLAUSIBLE_AREA_UM2
    median = float(np.median(given.area_um2))
    if not low <= median <= high:
        factor = (median / USUAL_AREA_UM2) ** 0.5
        raise MismatchError(
            f"slide {slide.slide_id}: the median given nucleus measures {median:.3g} µm², {low:g} "
            f"to {high:g} µm² is usual: the scale of the slide (--mpp) or of the nuclei (mpp, mag) "
            f"may be wrong by a factor of about {max(factor, 1 / factor):.2g}, or the outlines are "
            "of whole cells: give those of nuclei"
        )


def share_darkest(
    slide: Slide, outlines: Outlines, xy_um: Float32[np.ndarray, "nucleus 2"], seed: int
) -> tuple[float, int]:
    """At which share of places the slide is darker under the nuclei than if they were moved.

    Places are squares of 64 µm round nuclei drawn at random. At each, the nuclei it holds are moved
    together by 12 µm along, across and aslant, eight ways; it counts if none of them is darker.
    Nuclei that have nothing to do with the slide are the darkest of nine by chance, at 1/9.
    Darkness is the optical density of red, which haematoxylin takes away and eosin leaves.

    Returns:
        The share, and the number of places.
    """
    mpp = max(LEAST_MPP, *slide.mpp)
    size_um = np.array(slide.size_px) * np.array(slide.mpp)
    inside = np.flatnonzero(np.all((xy_um >= 0) & (xy_um < size_um), axis=1))
    if not len(inside):
        return float("nan"), 0
    rng = np.random.default_rng(seed)
    centre = xy_um[rng.permutation(inside)[:N_PLACES]].astype(np.float64)
    origin = np.rint(centre / mpp - SIDE_PX / 2).astype(np.int64)
    plan = FieldPlan(origin, SIDE_PX, mpp, 0.0, None, centre)
    placed = place_outlines(outlines, xy_um, np.ones(len(xy_um), np.float32), plan)
    answers = [_is_darkest(slide, placed, place, size_um) for place in range(len(plan))]
    known = [one for one in answers if one is not None]
    return float(np.mean(known)) if known else float("nan"), len(known)


def _is_darkest(
    slide: Slide, placed: PlacedNuclei, place: int, size_um: Float64[np.ndarray, "2"]
) -> bool | None:
    """Whether pixels under nuclei are darker than under the same nuclei moved; None without enough.

    Only pixels on the slide count.
    """
    plan = placed.plan
    is_nucleus = labels_of_field(placed, place).labels > 0
    middle = (plan.origin_px[place][:, None] + np.arange(SIDE_PX) + 0.5) * plan.mpp
    is_on = (middle >= 0) & (middle < size_um[:, None])
    is_on = is_on[1][:, None] & is_on[0]
    red = slide.read(plan.box(place), plan.mpp)[..., 0].astype(np.float64)
    density = -np.log((red + 1) / 256)
    step = round(MOVED_UM / plan.mpp)
    moves = [(0, 0), *((i, j) for i in (-step, 0, step) for j in (-step, 0, step) if i or j)]
    under = [density[np.roll(is_nucleus, move, (0, 1)) & is_on] for move in moves]
    if min(map(len, under)) < LEAST_PIXELS:
        return None
    means = [one.mean() for one in under]
    return bool(means[0] > max(means[1:]))


def _explain(slide: Slide, given: GivenNuclei, seed: int) -> str:
    """Which of the usual mistakes would put the nuclei right."""
    xy, outline = given.xy_um, given.outlines
    tries = {
        "x and y look swapped": (xy[:, ::-1], outline.xy_um[:, ::-1]),
        "twice the scale would fit": (xy * 2, outline.xy_um * 2),
        "half the scale would fit": (xy / 2, outline.xy_um / 2),
    }
    for what, (centre, vertices) in tries.items():
        other = Outlines(np.ascontiguousarray(vertices), outline.start)
        share, n_places = share_darkest(slide, other, np.ascontiguousarray(centre), seed)
        if n_places >= FEW and share >= LEAST_SHARE:
            return f"{what}: mend the file, or give the right mpp or mag"
    return "the file is of another slide, or its scale or alignment is wrong"
