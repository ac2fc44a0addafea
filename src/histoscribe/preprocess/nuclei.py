"""Nuclei of fields: which belong to a field, none cut at a seam, and which two fields have."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import shapely
from jaxtyping import Bool, Float16, Float32, Int, Int32, Int64
from scipy.spatial import KDTree

from histoscribe.data.cells import Outlines
from histoscribe.data.outlines import trace_outlines
from histoscribe.preprocess.fields import BAND_UM, FieldPlan

SEAM_UM = 12.0  # how far from a border of ownership two readings of one nucleus are looked for
PAIR_UM = 8.0  # centroids of two readings of one nucleus, one of them perhaps merged with another
SAME_SHARE = 0.5  # of the smaller outline lies in the other: one nucleus, seen twice


class Found(NamedTuple):
    """The nuclei of a field that belong to it, before they are described."""

    labels: Int32[np.ndarray, "y x"]  # those alone, 1 to n
    xy_um: Float32[np.ndarray, "nucleus 2"]
    area_um2: Float32[np.ndarray, " nucleus"]
    excess_um: Float32[np.ndarray, " nucleus"]  # beyond the field's own area; negative inside


@dataclass(frozen=True)
class FieldNuclei:
    """What a field gives to the slide.

    Attributes:
        field: Number of the field in its plan.
        xy_um: Centroids, slide frame.
        area_um2: Areas.
        excess_um: How far each centroid lies beyond the field's own area; negative inside.
        outlines: Polygons, slide frame.
        features: What the encoder says of each.
    """

    field: int
    xy_um: Float32[np.ndarray, "nucleus 2"]
    area_um2: Float32[np.ndarray, " nucleus"]
    excess_um: Float32[np.ndarray, " nucleus"]
    outlines: Outlines
    features: Float16[np.ndarray, "nucleus feature"]

    def __len__(self) -> int:
        return len(self.xy_um)


def take_owned(labels: Int32[np.ndarray, "y x"], plan: FieldPlan, field: int) -> Found:
    """The nuclei of a field whose centroid it owns (or nearly) and that its border does not cut.

    A nucleus whose centroid is up to `BAND_UM` beyond is taken too, if a field owns the place:
    two fields may see its centroid a little apart, each on the other's side. `find_twins` tells
    what both took.
    """
    y, x = np.nonzero(labels)
    nucleus = labels[y, x] - 1
    n = int(labels.max(initial=0))
    n_pixels = np.bincount(nucleus, minlength=n)
    middle = [np.bincount(nucleus, axis + 0.5, minlength=n) for axis in (x, y)]
    centre_px = np.stack(middle, axis=1) / np.maximum(n_pixels, 1)[:, None]
    xy_um = ((centre_px + plan.origin_px[field]) * plan.mpp).astype(np.float32)
    excess = plan.excess_um(field, xy_um)
    taken = (excess <= BAND_UM) & (plan.owner(xy_um) >= 0) & (n_pixels > 0)
    border = [labels[0], labels[-1], labels[:, 0], labels[:, -1]]
    cut = np.unique(np.concatenate(border))
    taken[cut[cut > 0] - 1] = False
    number = np.concatenate([[0], np.where(taken, np.cumsum(taken), 0)]).astype(np.int32)
    return Found(
        number[labels],
        xy_um[taken],
        (n_pixels[taken] * plan.mpp**2).astype(np.float32),
        excess[taken].astype(np.float32),
    )


def outline_found(found: Found, plan: FieldPlan, field: int) -> Outlines:
    """Outlines of a field's nuclei, slide frame."""
    pixels = trace_outlines(found.labels)
    xy_um = ((pixels.xy_px + plan.origin_px[field]) * plan.mpp).astype(np.float32)
    return Outlines(xy_um, pixels.start)


def describe_found(
    found: Found, outlines: Outlines, field: int, features: Float32[np.ndarray, "nucleus feature"]
) -> FieldNuclei:
    """A field's nuclei with outlines and features; those without finite features are left out."""
    stored = to_float16(features)
    sound = np.flatnonzero(np.isfinite(stored).all(axis=1))
    return FieldNuclei(
        field,
        found.xy_um[sound],
        found.area_um2[sound],
        found.excess_um[sound],
        outlines.take(sound),
        stored[sound],
    )


def to_float16(features: Float32[np.ndarray, "row feature"]) -> Float16[np.ndarray, "row feature"]:
    """As features are kept; values beyond 65504 become infinite, and their rows are left out."""
    with np.errstate(over="ignore"):
        return features.astype(np.float16)


def find_twins(
    field: Int64[np.ndarray, " nucleus"],
    xy_um: Float32[np.ndarray, "nucleus 2"],
    excess_um: Float32[np.ndarray, " nucleus"],
    outlines: Outlines,
) -> Bool[np.ndarray, " nucleus"]:
    """Which nuclei another field has given already, of those at seams (`is_at_seam`).

    Two nuclei of different fields are one if more than half of the smaller lies in the other.
    The one that its field owns stays; if both are owned (one field saw two nuclei where the other
    saw one), that of the earlier field.
    """
    is_twin = np.zeros(len(xy_um), bool)
    if len(xy_um) < 2:
        return is_twin
    pairs = KDTree(xy_um).query_pairs(PAIR_UM, output_type="ndarray")
    pairs = pairs[field[pairs[:, 0]] != field[pairs[:, 1]]]
    overlap = overlap_of_smaller(outlines, pairs)
    pairs = pairs[overlap > SAME_SHARE]
    standing = np.empty(len(xy_um), np.int64)  # the smaller, the better the claim
    standing[np.lexsort((xy_um[:, 0], xy_um[:, 1], field, excess_um > 0))] = np.arange(len(xy_um))
    better = np.where(standing[pairs[:, 0]] < standing[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    worse = pairs.sum(axis=1) - better
    for index in np.lexsort((standing[worse], standing[better])):
        if not is_twin[better[index]]:
            is_twin[worse[index]] = True
    return is_twin


def is_at_seam(excess_um: Float32[np.ndarray, " nucleus"]) -> Bool[np.ndarray, " nucleus"]:
    """Which nuclei lie so near to what another field owns that it may have given them too."""
    return excess_um > -SEAM_UM


def overlap_of_smaller(
    outlines: Outlines, pairs: Int[np.ndarray, "pair 2"]
) -> Float32[np.ndarray, " pair"]:
    """The share of the smaller polygon of each pair that lies in the other."""
    members, place = np.unique(pairs, return_inverse=True)
    chosen = outlines.take(members)
    sizes = np.diff(chosen.start)
    rings = (
        shapely.linearrings(
            chosen.xy_um.astype(np.float64), indices=np.repeat(np.arange(len(members)), sizes)
        )
        if len(members)
        else np.zeros(0, object)
    )
    polygons = np.asarray(shapely.make_valid(shapely.polygons(rings)))
    first, second = polygons[place.reshape(pairs.shape).T]
    smaller = np.minimum(shapely.area(first), shapely.area(second))
    shared = shapely.area(shapely.intersection(first, second))
    return (shared / np.maximum(smaller, 1e-6)).astype(np.float32)
