"""Tissue masks as GeoJSON: written for QuPath, and read back after a person or a program drew."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from jaxtyping import Bool, Float64

from histoscribe.data.atomic import replacing
from histoscribe.data.slide import Slide
from histoscribe.errors import ConfigError, DataError
from histoscribe.preprocess.artefacts import Artefacts, check_grid
from histoscribe.preprocess.mask_polygons import fill_rings, trace_pieces
from histoscribe.preprocess.tissue import TissueMask, mask_of, tissue_mask, whole_of
from histoscribe.readers.json_stream import JsonStream
from histoscribe.readers.nuclei_geojson import ANNOTATION, KINDS
from histoscribe.readers.packed import open_text

TISSUE = "Tissue"
CUT_OUT = {"pen", "blur", "fold", "exclude", "ignore"}
"""Classes that are taken out of the tissue, in small letters; QuPath's own is "Ignore*"."""
REMARKS = ("Pen?", "Blur?", "Fold?")
"""Classes of what was found, and may be: no tissue of their own, and not cut out until renamed."""
MOST_OFF_SLIDE = 0.05
"""Share of the drawn area that may lie outside: a hand slips over the edge, not by more."""
LEAST_ON_STAIN = 0.2
"""Share of the drawn area that the slide must show stain on: fat is pale, but not all of it."""
SWAPPED_BY = 0.4
"""So much more of the area lies on stain with x and y swapped, if they were."""


class Drawn(NamedTuple):
    """One polygon of a file, valid, in full-resolution pixels."""

    shape: shapely.Geometry
    is_cut_out: bool


def write_mask(
    mask: TissueMask, path: Path, mpp: tuple[float, float], artefacts: Artefacts | None = None
) -> None:
    """Write one annotation of class Tissue for each piece of tissue, with its holes.

    Outlines run along the edges of mask pixels, so that `read_mask` gives the very mask back, with
    or without artefacts. The last row and column of a mask may reach half a mask pixel over the
    edge of the slide.

    Args:
        mask: The tissue.
        path: The file to write, .geojson; it appears whole or not at all.
        mpp: µm per pixel (x, y) of the slide; coordinates are pixels of its full-resolution level,
            as QuPath has them.
        artefacts: Pen, blur and folds, written as remarks that `read_mask` passes over: "Pen?",
            "Blur?" and "Fold?". Without its question mark, a class is cut out of the tissue.

    Raises:
        ConfigError: An `mpp` that is not above 0.
        MismatchError: Artefacts of another grid.
    """
    if not all(one > 0 for one in mpp):
        raise ConfigError(f"mpp = {mpp}; give µm per pixel, (x, y), above 0")
    scale = mask.mpp / np.array(mpp, dtype=np.float64)
    grids = {TISSUE: mask.mask}
    if artefacts is not None:
        check_grid(mask, artefacts)
        grids |= dict(zip(REMARKS, (artefacts.pen, artefacts.blur, artefacts.fold), strict=True))
    pieces = [(name, piece) for name, grid in grids.items() for piece in trace_pieces(grid)]
    with replacing(path) as (new,), new.open("w", encoding="utf-8") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for number, (name, piece) in enumerate(pieces):
            text = json.dumps(_feature_of(name, piece, scale), separators=(",", ":"))
            file.write(("," if number else "") + "\n" + text)
        file.write("\n]}\n")


def read_mask(path: Path, slide: Slide, mpp: float = 8.0) -> TissueMask:
    """Read the tissue of a slide from GeoJSON, on the grid that `tissue_mask` has.

    A mask pixel is tissue if its centre is inside a polygon and not in a hole of it. Annotations
    of any class, or of none, are tissue, but those of class Pen, Blur, Fold, Exclude or Ignore*,
    which are cut out of it. Those of class "Pen?", "Blur?" and "Fold?", and cells, detections and
    tiles of QuPath, are passed over. The tissue contours of HEST and TRIDENT are read as they are.

    Args:
        path: GeoJSON in pixels of the full-resolution level, plain, .gz, or a zip of one file.
        slide: The slide that it was drawn on.
        mpp: Resolution of the mask.

    Raises:
        ConfigError: An `mpp` that is not above 0.
        DataError: No GeoJSON; more than 5 % of its area off the slide, or less than 20 % on stain
            though the slide has it elsewhere; or no tissue is left.
    """
    if not mpp > 0:
        raise ConfigError(f"mpp = {mpp} for a tissue mask; give µm per mask pixel, above 0")
    with open_text(path) as file:
        [(_, document)] = JsonStream(file, path).walk(lambda _: False)
    drawn = [one for feature in _features(document, path) for one in _drawn(feature, path)]
    tissue = [one.shape for one in drawn if not one.is_cut_out]
    if not tissue:
        raise DataError(
            f"{path}: no polygon of tissue among its annotations; draw the tissue and export it "
            "again, or leave the column tissue empty to have it found"
        )
    _check_place(tissue, path, slide, mpp)
    box = whole_of(slide, mpp)
    shape = (round(box.height_um / mpp), round(box.width_um / mpp))
    scale = np.array(slide.mpp, dtype=np.float64) / mpp
    is_tissue = _fill(tissue, scale, shape)
    _check_stain(mask_of(is_tissue, mpp), tissue, path, slide)
    is_tissue &= ~_fill([one.shape for one in drawn if one.is_cut_out], scale, shape)
    if not is_tissue.any():
        raise DataError(
            f"{path}: no tissue is left on a mask of {mpp:g} µm per pixel: its polygons are "
            "smaller than a pixel, or cut out; are the coordinates full-resolution pixels, not µm?"
        )
    return mask_of(is_tissue, mpp)


def _feature_of(name: str, piece: shapely.Polygon, scale: np.ndarray) -> dict[str, Any]:
    rings = [shapely.get_coordinates(one) * scale for one in _rings(piece)]
    coordinates = [np.round(one, 3).tolist() for one in rings]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": coordinates},
        "properties": {"objectType": "annotation", "classification": {"name": name}},
    }


def _features(document: Any, path: Path) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401
    """The features of a collection, a list, one feature or a bare geometry, with those below."""
    if isinstance(document, Mapping) and isinstance(document.get("features"), list):
        members = document["features"]
    else:
        members = document if isinstance(document, list) else [document]
    for member in members:
        if not isinstance(member, Mapping):
            raise _not_geojson(path)
        if "geometry" in member:
            yield from _with_children(member)
        elif "coordinates" in member or "geometries" in member:
            yield {"geometry": member}
        else:
            raise _not_geojson(path)


def _with_children(feature: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A feature and the objects below it."""
    yield feature
    for holder in (feature, feature.get("properties")):
        children = holder.get("childObjects") if isinstance(holder, Mapping) else None
        for child in children if isinstance(children, list) else ():
            if isinstance(child, Mapping):
                yield from _with_children(child)


def _not_geojson(path: Path) -> DataError:
    return DataError(
        f"{path}: JSON, but no GeoJSON; wanted a FeatureCollection of polygons, as QuPath, HEST "
        "and TRIDENT export tissue"
    )


def _drawn(feature: Mapping[str, Any], path: Path) -> Iterator[Drawn]:
    """The polygons of a feature that is an annotation."""
    properties = feature.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    kinds = (feature.get("id"), *(properties.get(n) for n in ("objectType", "object_type", "type")))
    if any(KINDS.get(kind, ANNOTATION) != ANNOTATION for kind in kinds if isinstance(kind, str)):
        return
    names = _class_names(properties.get("classification"))
    if any(remark.lower() in names for remark in REMARKS):
        return
    is_cut_out = any(name.rstrip("*") in CUT_OUT for name in names)
    polygons = list(_polygons(feature.get("geometry"), path))
    if isinstance(holes := properties.get("hole"), list):
        polygons = [_without_holes(polygons, holes)]
    for polygon in polygons:
        if polygon is not None and shapely.area(polygon) > 0:
            yield Drawn(polygon, is_cut_out)


def _class_names(value: Any) -> list[str]:  # noqa: ANN401 - as the file has it
    """The names of a class, or of the classes that it is derived from, in small letters."""
    if isinstance(value, Mapping):
        value = value.get("names") or value.get("name")
    names = value if isinstance(value, list) else str(value or "").split(":")
    return [str(name).strip().lower() for name in names]


def _polygons(geometry: Any, path: Path) -> Iterator[shapely.Geometry | None]:  # noqa: ANN401
    """The polygons of a geometry in their order, None for one without area."""
    if not isinstance(geometry, Mapping):
        return
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    try:
        if kind == "Polygon":
            yield _polygon_of(coordinates)
        elif kind == "MultiPolygon":
            yield from [_polygon_of(rings) for rings in coordinates]  # pyright: ignore[reportOptionalIterable]
    except (TypeError, ValueError, IndexError) as fault:
        raise DataError(
            f"{path}: the coordinates of a {kind} cannot be read ({fault}); wanted rings of finite "
            "[x, y]: export it again"
        ) from fault
    if kind == "GeometryCollection" and isinstance(geometry.get("geometries"), list):
        for part in geometry["geometries"]:
            yield from _polygons(part, path)


def _polygon_of(rings: Any) -> shapely.Geometry | None:  # noqa: ANN401
    """A valid polygon of an outline and its holes; what crosses itself is mended."""
    solid = [_ring_of(ring) if len(ring) > 2 else None for ring in rings]
    if not solid or solid[0] is None:
        return None
    polygon = shapely.Polygon(solid[0], [one for one in solid[1:] if one is not None])
    if polygon.is_valid:
        return polygon
    return shapely.make_valid(polygon, method="structure", keep_collapsed=False)


def _ring_of(points: Any) -> Float64[np.ndarray, "vertex 2"]:  # noqa: ANN401
    xy = np.array(points, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] < 2 or not np.isfinite(xy).all():
        raise ValueError("a ring is no list of numbers in twos")
    return xy[:, :2]


def _without_holes(polygons: list[shapely.Geometry | None], holes: list[Any]) -> shapely.Geometry:
    """Old HEST: some polygons of a feature, told by their place in it, are holes of the others.

    From large to small, so that an island in a hole stays.
    """
    is_hole = [number in holes for number in range(len(polygons))]
    sized = [(one, hole) for one, hole in zip(polygons, is_hole, strict=True) if one is not None]
    whole: shapely.Geometry = shapely.Polygon()
    for polygon, hole in sorted(sized, key=lambda pair: -shapely.area(pair[0])):
        whole = whole.difference(polygon) if hole else whole.union(polygon)
    return whole


def _check_place(tissue: list[shapely.Geometry], path: Path, slide: Slide, mpp: float) -> None:
    """Refuse what lies off the slide by more than a slip.

    Raises:
        DataError: More than 5 % of the area is off it.
    """
    margin = mpp / np.array(slide.mpp, dtype=np.float64)  # masks are whole pixels
    far = np.array(slide.size_px) + margin
    off = _share_off(tissue, -margin, far)
    if off <= MOST_OFF_SLIDE:
        return
    if _share_off(tissue, -margin[::-1], far[::-1]) <= MOST_OFF_SLIDE:
        mend = "x and y look swapped: wanted (x, y)"
    else:
        mend = "wanted pixels of the full-resolution level; is it another slide, or another level?"
    width, height = slide.size_px
    x_0, y_0, x_1, y_1 = shapely.total_bounds(tissue)
    raise DataError(
        f"{path}: {off:.0%} of its tissue is off {slide.path.name}, {width:,} x {height:,} px; its "
        f"x goes from {x_0:,.0f} to {x_1:,.0f}, its y from {y_0:,.0f} to {y_1:,.0f}; {mend}"
    )


def _check_stain(
    given: TissueMask, tissue: list[shapely.Geometry], path: Path, slide: Slide
) -> None:
    """Refuse what lies on glass, while the slide has tissue elsewhere.

    Not judged where the slide shows less stained tissue than half of what was drawn: the drawing
    may be there because the stain is too pale to be found.

    Raises:
        DataError: Less than 20 % of the area is on stain, or far less than with x and y swapped.
    """
    found = tissue_mask(slide, given.mpp).mask
    n_given = int(given.mask.sum())
    if not n_given or found.sum() < n_given / 2:
        return
    on_stain = (given.mask & found).sum() / n_given
    is_swapped = False
    if on_stain < 1 - SWAPPED_BY:
        turned = [shapely.transform(one, lambda xy: xy[:, ::-1]) for one in tissue]
        scale = np.array(slide.mpp, dtype=np.float64) / given.mpp
        swapped = _fill(turned, scale, found.shape)
        is_swapped = (swapped & found).sum() / n_given > on_stain + SWAPPED_BY
    if on_stain >= LEAST_ON_STAIN and not is_swapped:
        return
    mend = (
        "x and y look swapped: wanted (x, y)"
        if is_swapped
        else "wanted pixels of the full-resolution level; is it another level, or µm?"
    )
    raise DataError(
        f"{path}: {on_stain:.0%} of its tissue lies where {slide.path.name} is stained, and there "
        f"is stained tissue elsewhere; {mend}"
    )


def _share_off(shapes: list[shapely.Geometry], near: np.ndarray, far: np.ndarray) -> float:
    """Share of the area of shapes that is outside a rectangle."""
    inside = shapely.intersection(np.array(shapes, dtype=object), shapely.box(*near, *far))
    return 1 - float(shapely.area(inside).sum() / shapely.area(shapes).sum())


def _fill(
    shapes: list[shapely.Geometry], scale: np.ndarray, shape: tuple[int, int]
) -> Bool[np.ndarray, "y x"]:
    """The mask pixels whose centres are in one of the shapes."""
    filled = np.zeros(shape, dtype=bool)
    for polygon in shapely.get_parts(np.array(shapes, dtype=object)):
        outline, *holes = (shapely.get_coordinates(one) * scale for one in _rings(polygon))
        (left, top), inside = _fill_ring(outline, shape)
        for hole in holes:
            (x, y), hollow = _fill_ring(hole, shape)
            height, width = hollow.shape
            inside[y - top : y - top + height, x - left : x - left + width] &= ~hollow
        filled[top : top + inside.shape[0], left : left + inside.shape[1]] |= inside
    return filled


def _rings(polygon: shapely.Polygon) -> tuple[shapely.LinearRing, ...]:
    return polygon.exterior, *polygon.interiors


def _fill_ring(
    ring: Float64[np.ndarray, "vertex 2"], shape: tuple[int, int]
) -> tuple[tuple[int, int], Bool[np.ndarray, "y x"]]:
    """The inside of a ring in a window of the grid that just holds it, and its corner (x, y)."""
    limit = np.array(shape[::-1], dtype=np.float64)
    first = np.clip(np.floor(ring.min(axis=0)), 0, limit)
    width, height = np.clip(np.ceil(ring.max(axis=0)), first, limit) - first
    corner = (int(first[0]), int(first[1]))
    return corner, fill_rings([ring - first], (int(height), int(width)))
