"""Parts to the nuclei and squares of a slide: each once, in an order that no plan of fields shows.

Small columns are held in memory; outlines and features, of which a million cells have gigabytes,
go from the parts straight to their place in an array that may live in a file.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64

from histoscribe.data.cells import Outlines
from histoscribe.data.mapped import as_read_only, release
from histoscribe.preprocess.line.parts import Parts
from histoscribe.preprocess.nuclei import find_twins, is_at_seam


class SlideNuclei(NamedTuple):
    """All nuclei of a slide, ordered by y, then x."""

    xy_um: Float32[np.ndarray, "nucleus 2"]
    area_um2: Float32[np.ndarray, " nucleus"]
    outlines: Outlines
    features: Float16[np.ndarray, "nucleus feature"]


class SlideSquares(NamedTuple):
    """All squares of a slide's tile grid that were described, ordered by y, then x."""

    xy_um: Float32[np.ndarray, "square 2"]
    features: Float16[np.ndarray, "square feature"]
    colour: Float32[np.ndarray, "square 6"]


def gather_nuclei(parts: Parts, mapped_bytes: int) -> SlideNuclei:
    """All nuclei, each once.

    Args:
        parts: All parts of the slide.
        mapped_bytes: After so many bytes the pages of an array in a file are given back.
    """
    xy_um = whole(parts, "xy_um")
    kept = np.flatnonzero(~seen_twice(parts, xy_um))
    order = kept[np.lexsort((xy_um[kept, 0], xy_um[kept, 1]))]
    return SlideNuclei(
        xy_um[order],
        whole(parts, "area_um2")[order],
        gather_outlines(parts, order, mapped_bytes),
        gather_rows(parts, "features", order, mapped_bytes),
    )


def gather_squares(parts: Parts, mapped_bytes: int) -> SlideSquares:
    """All squares; a plan describes each once."""
    xy_um = whole(parts, "square_um")
    order = np.lexsort((xy_um[:, 0], xy_um[:, 1]))
    return SlideSquares(
        xy_um[order],
        gather_rows(parts, "square_features", order, mapped_bytes),
        whole(parts, "square_colour")[order],
    )


def whole(parts: Parts, name: str) -> np.ndarray:
    """A column of all parts, one after another."""
    return np.concatenate(list(parts.column(name)))


def seen_twice(
    parts: Parts, xy_um: Float32[np.ndarray, "nucleus 2"]
) -> Bool[np.ndarray, " nucleus"]:
    """Which nuclei another field has given already; only outlines at seams are looked at."""
    excess_um = whole(parts, "excess_um")
    at_seam = is_at_seam(excess_um)
    first, found = 0, []
    columns = zip(parts.column("n_vertices"), parts.column("vertex_um"), strict=True)
    for n_vertices, vertex_um in columns:
        rows = np.flatnonzero(at_seam[first : first + len(n_vertices)])
        found.append(Outlines(vertex_um, starts(n_vertices)).take(rows))
        first += len(n_vertices)
    outlines = concatenate_outlines(found)
    field = whole(parts, "field")
    twice = at_seam.copy()
    twice[at_seam] = find_twins(field[at_seam], xy_um[at_seam], excess_um[at_seam], outlines)
    return twice


def gather_rows(
    parts: Parts, name: str, order: Int64[np.ndarray, " row"], mapped_bytes: int
) -> np.ndarray:
    """Rows of a column of all parts, in another order, read-only.

    Args:
        parts: The parts.
        name: A column of features.
        order: Which row of the parts, one after another, each row of the answer is.
        mapped_bytes: As `gather_nuclei` has it.
    """
    shapes = parts.shapes(name)
    goes_to = np.full(sum(n_rows for n_rows, _ in shapes), -1)
    goes_to[order] = np.arange(len(order))
    array = parts.new_array(name, (len(order), max(width for _, width in shapes)), np.float16)
    first = n_bytes = 0
    for values in parts.column(name):
        place = goes_to[first : first + len(values)]
        if len(values):  # those of a part that could not be read have no columns
            array[place[place >= 0]] = values[place >= 0]
        first, n_bytes = first + len(values), n_bytes + values.nbytes
        if n_bytes > mapped_bytes:
            release(array)
            n_bytes = 0
    return as_read_only(array)


def gather_outlines(parts: Parts, order: Int64[np.ndarray, " row"], mapped_bytes: int) -> Outlines:
    """Outlines of all parts in another order, as `gather_rows`."""
    n_vertices = whole(parts, "n_vertices")
    start = starts(n_vertices[order])
    goes_to = np.full(len(n_vertices), -1)
    goes_to[order] = start[:-1]
    array = parts.new_array("vertex_um", (int(start[-1]), 2), np.float32)
    first = n_bytes = 0
    columns = zip(parts.column("n_vertices"), parts.column("vertex_um"), strict=True)
    for counts, vertex_um in columns:
        place = goes_to[first : first + len(counts)]
        shift = np.repeat(place - starts(counts)[:-1], counts)
        is_kept = np.repeat(place >= 0, counts)
        array[(np.arange(len(vertex_um)) + shift)[is_kept]] = vertex_um[is_kept]
        first, n_bytes = first + len(counts), n_bytes + vertex_um.nbytes
        if n_bytes > mapped_bytes:
            release(array)
            n_bytes = 0
    return Outlines(as_read_only(array), start)


def starts(sizes: Int64[np.ndarray, " one"]) -> Int64[np.ndarray, " one_plus_1"]:
    """Where each of several runs begins that lie one after another, and where the last ends."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def concatenate_outlines(found: list[Outlines]) -> Outlines:
    """Outlines one after another."""
    sizes = np.concatenate([np.diff(one.start) for one in found])
    return Outlines(np.concatenate([one.xy_um for one in found]), starts(sizes))
