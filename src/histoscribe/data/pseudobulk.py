"""Pseudo-bulk: spots put together to larger regions, whose counts are the sums of theirs."""

import re
from dataclasses import replace

import numpy as np
from jaxtyping import Int, Int64
from scipy.sparse import csr_array

from histoscribe.data.blocks import Blocks
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import Regions
from histoscribe.errors import DataError

ON_LATTICE = re.compile(r"(-?\d+)x(-?\d+)")
"""A spot named by its column and row, as first-generation ST does."""


def lattice_of(regions: Regions) -> Int64[np.ndarray, "region 2"]:
    """Column and row of each spot, from names like "10x21".

    Raises:
        DataError: If a name is not of this kind.
    """
    found = [ON_LATTICE.fullmatch(name) for name in regions.region_id]
    for name, match in zip(regions.region_id, found, strict=True):
        if match is None:
            raise DataError(
                f"region {name} of {regions.slide_id[0]} does not say where it lies on a lattice; "
                "give columns and rows, or regions named like 10x21"
            )
    return np.array([[int(n) for n in match.groups()] for match in found if match], np.int64)


def cut_patches(
    lattice: Int[np.ndarray, "region 2"], side: int = 3, least: int | None = None
) -> Int64[np.ndarray, " region"]:
    """Disjoint patches of side x side neighbouring spots; -1 for spots in none.

    Of the side^2 ways to lay the grid the one with the most patches is taken, the first of equals.
    Patches are numbered row by row.

    Args:
        lattice: Column and row of each spot, each place once.
        side: Spots along the side of a patch.
        least: Spots that a patch must have, at least 1; None wants all, without a gap.
    """
    wanted = side * side if least is None else least
    if side < 1 or not 1 <= wanted <= side * side:
        raise DataError(
            f"patches of {side} x {side} spots with at least {wanted}; give a side of 1 or more, "
            "and 1 to side x side spots"
        )
    best = np.full(len(lattice), -1, dtype=np.int64)
    for dx, dy in np.ndindex(side, side):
        square = (lattice + np.array([dx, dy])) // side
        _, patch, n_spots = np.unique(
            square[:, ::-1], axis=0, return_inverse=True, return_counts=True
        )
        is_kept = n_spots >= wanted
        number = np.where(is_kept, np.cumsum(is_kept) - 1, -1)[patch.ravel()]
        if number.max(initial=-1) > best.max(initial=-1):
            best = number
    return best


def sum_regions(regions: Regions, group: Int[np.ndarray, " region"]) -> tuple[Regions, Blocks]:
    """Spots of one slide as bulk regions: one for each group, their counts added up.

    Each spot becomes a block, so that the cells of the new region are those of its spots, no more
    and no fewer. Spots that are left out are blocks of no region: surroundings of the others.

    Args:
        regions: Spots of one slide with counts.
        group: Group of each spot, 0 to n - 1; -1 leaves it out.

    Returns:
        The bulk regions, named "SLIDE-bulk0", "SLIDE-bulk1", ... with the mean place of their
        spots, and their blocks.

    Raises:
        DataError: If there are no counts, or several slides, or a group is empty.
    """
    if regions.kind != "spot" or regions.expression is None or regions.expression_unit != "counts":
        raise DataError(
            f"regions of kind {regions.kind} in {regions.expression_unit} cannot be added up; give "
            "spots with raw counts"
        )
    if len(group) != len(regions):
        raise DataError(f"{len(group)} groups for {len(regions)} spots; give one for each")
    if len(set(regions.slide_id)) != 1:
        raise DataError("spots of several slides were given; put those of one slide together")
    n_groups = int(group.max(initial=-1)) + 1
    member = np.flatnonzero(group >= 0)
    n_spots = np.bincount(group[member], minlength=n_groups)
    if not n_groups or (n_spots == 0).any():
        raise DataError("a group of spots is empty; number the groups 0, 1, 2, ...")
    adding = csr_array(
        (np.ones(len(member), regions.expression.dtype), (group[member], member)),
        shape=(n_groups, len(regions)),
    )
    xy_um = np.asarray(adding @ regions.xy_um) / n_spots[:, None]
    order = np.argsort(group, kind="stable")
    blocks = Blocks(regions.xy_um[order], group[order].astype(np.int64), regions.radius_um, "disc")
    made = Provenance(
        "sum_regions",
        {"group": [int(g) for g in group]},
        {"regions": regions.provenance.key},
    )
    bulk = replace(
        regions.take(np.arange(n_groups)),
        kind="bulk",
        region_id=tuple(f"{regions.slide_id[0]}-bulk{number}" for number in range(n_groups)),
        xy_um=xy_um.astype(np.float32),
        radius_um=np.inf,
        pitch_um=np.nan,
        expression=csr_array(adding @ regions.expression),
        text_key=None,
        provenance=made,
    )
    return bulk, blocks
