"""GeoJSON of nuclei: QuPath's, and the lists of CellViT and HEST that hold one feature a class."""

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from histoscribe.data.export import PROBABILITY
from histoscribe.data.slide import Slide
from histoscribe.errors import DataError
from histoscribe.readers.json_stream import JsonStream, Place
from histoscribe.readers.json_values import share_of
from histoscribe.readers.nuclei_config import MIDDLE_PX, NucleiConfig, pixels_to_um
from histoscribe.readers.packed import open_text
from histoscribe.readers.rings import RawNuclei, RingCollector, Rings, largest_of

CELL, DETECTION, ANNOTATION, OTHER = range(4)
KINDS = {
    "cell": CELL,
    "detection": DETECTION,
    "annotation": ANNOTATION,
    "PathCellObject": CELL,
    "PathDetectionObject": DETECTION,
    "PathAnnotationObject": ANNOTATION,
    "PathTileObject": OTHER,
    "PathRootObject": OTHER,
}
"""objectType of QuPath 0.3 and later, and the id of 0.2, which was the same for all."""
GEOMETRIES = ("geometry", "nucleusGeometry")
AREAS = ("Polygon", "MultiPolygon", "GeometryCollection")
OF_A_FEATURE = {("id",), ("properties",), ("childObjects",), *((name,) for name in GEOMETRIES)}
GONE_INTO = {(), *((name,) for name in GEOMETRIES), *((n, "coordinates") for n in GEOMETRIES)}


class Features(NamedTuple):
    """All features of a file, and all rings of their polygons."""

    rings: Rings
    owner: Int64[np.ndarray, " ring"]  # the feature
    is_nucleus: Bool[np.ndarray, " ring"]  # of nucleusGeometry
    kind: Int64[np.ndarray, " feature"]
    name: list[str]
    probability: Float32[np.ndarray, " feature"]
    is_repeat: Bool[np.ndarray, " feature"]
    n_holes: int
    is_list: bool


class FeatureCollector:
    """Features as they come, piece by piece."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rings = RingCollector()
        self.owner, self.is_nucleus, self.n_holes = array("q"), array("b"), array("q")
        self.kind, self.probability = array("q"), array("f")
        self.name: list[str] = []
        self.is_repeat = array("b")
        self._no_area: set[int] = set()
        self._names: dict[str, str] = {}
        self._seen: set[str | int] = set()
        self._row = -1

    def begin(self) -> None:
        """Another feature; what is added next is of it."""
        self._row = len(self.kind)
        self.kind.append(ANNOTATION)  # as QuPath takes what does not say
        self.probability.append(np.nan)
        self.name.append("")
        self.is_repeat.append(False)

    def add_id(self, value: Any) -> None:  # noqa: ANN401 - as the file has it
        """The id of a feature: in QuPath 0.2 its kind."""
        if isinstance(value, bool) or not isinstance(value, str | int):
            return
        if value in KINDS:
            self.kind[self._row] = KINDS[str(value)]
        else:
            self.is_repeat[self._row] = value in self._seen
            self._seen.add(value)

    def add_type(self, which: str, value: Any) -> None:  # noqa: ANN401
        """The type of a geometry, which may follow its coordinates: lines and points have no area.

        The coordinates of a MultiLineString look like those of a polygon.
        """
        if not _has_area(value):
            self._no_area.add(2 * self._row + (which == "nucleusGeometry"))

    def add_member(self, which: str, number: int, value: Any) -> None:  # noqa: ANN401
        """A member of the coordinates: a ring of a polygon, or a polygon of several."""
        depth = _depth(value)
        if depth == 3:
            self._add_polygon(which, value)
        elif depth == 2 and number == 0:
            self._add_polygon(which, [value])
        elif depth == 2 and len(self.owner) and self.owner[-1] == self._row:
            self.n_holes[-1] += 1

    def add_geometries(self, which: str, value: Any) -> None:  # noqa: ANN401
        """The polygons of a collection."""
        for part in value if isinstance(value, list) else ():
            if not isinstance(part, Mapping) or not _has_area(part.get("type")):
                continue
            if isinstance(part.get("coordinates"), list):
                for number, member in enumerate(part["coordinates"]):
                    self.add_member(which, number, member)

    def add_properties(self, value: Any) -> None:  # noqa: ANN401
        """Kind, class, probability, and the objects below this one."""
        if not isinstance(value, Mapping):
            return
        kind = value.get("objectType") or value.get("object_type") or value.get("type")
        if kind is not None:
            self.kind[self._row] = KINDS.get(kind, OTHER) if isinstance(kind, str) else OTHER
        name = _class_of(value.get("classification"))
        self.name[self._row] = self._names.setdefault(
            name, name
        )  # one string a class, not one a nucleus
        self.probability[self._row] = share_of(
            self._path,
            f"feature {self._row} has {PROBABILITY}",
            _probability_of(value.get("measurements")),
        )
        self.add_children(value.get("childObjects"))

    def add_children(self, value: Any) -> None:  # noqa: ANN401
        """The objects below a feature, which is then gone on with."""
        row = self._row
        for child in value if isinstance(value, list) else ():
            self.add_whole(child)
        self._row = row

    def add_whole(self, feature: Any) -> None:  # noqa: ANN401
        """A feature that was decoded at once."""
        if not isinstance(feature, Mapping):
            return
        self.begin()
        self.add_id(feature.get("id"))
        for which in GEOMETRIES:
            shape = feature.get(which)
            if isinstance(shape, Mapping):
                self.add_geometries(which, [shape])
                self.add_geometries(which, shape.get("geometries"))
        self.add_properties(feature.get("properties"))
        self.add_children(feature.get("childObjects"))

    def _add_polygon(self, which: str, polygon: list[Any]) -> None:
        self.rings.add(polygon[0])
        self.owner.append(self._row)
        self.is_nucleus.append(which == "nucleusGeometry")
        self.n_holes.append(len(polygon) - 1)

    def finish(self, *, is_list: bool) -> Features:
        """All of them."""
        owner = np.frombuffer(self.owner, dtype=np.int64)
        is_nucleus = np.frombuffer(self.is_nucleus, dtype=bool)
        kept = np.flatnonzero(~np.isin(2 * owner + is_nucleus, list(self._no_area)))
        return Features(
            self.rings.rings().take(kept) if self._no_area else self.rings.rings(),
            owner[kept],
            is_nucleus[kept],
            np.frombuffer(self.kind, dtype=np.int64),
            self.name,
            np.frombuffer(self.probability, dtype=np.float32),
            np.frombuffer(self.is_repeat, dtype=bool),
            int(np.frombuffer(self.n_holes, dtype=np.int64)[kept].sum()),
            is_list,
        )


def read_geojson(path: Path, slide: Slide, config: NucleiConfig) -> RawNuclei:
    """Read GeoJSON in pixels of the full-resolution level.

    Of QuPath's objects cells are taken, and if there are none detections; of a cell its nucleus
    where it has one. CellViT and HEST write a bare list with one feature a class, which holds all
    outlines of the class.

    Raises:
        DataError: Broken, or annotations alone.
    """
    features = collect(path)
    if len(features.kind) and not len(features.owner):
        raise DataError(
            f"{path}: {len(features.kind)} features and no polygon among them; wanted outlines of "
            "nuclei, not their middles: give cells.geojson, not cell_detection.geojson"
        )
    is_by_class = features.is_list and _is_one_a_class(features)
    if config.format in ("cellvit", "hest") or (config.format is None and is_by_class):
        return _by_class(features, slide, config)
    return _by_object(features, path, slide, config)


def collect(path: Path) -> Features:
    """All features of a file: a collection, a list, or one feature."""
    found = FeatureCollector(path)
    is_list, current = False, None
    with open_text(path) as file:
        for place, value in JsonStream(file, path).walk(_opens):
            is_list = is_list or isinstance((*place, "")[0], int)
            feature, inside = _split(place)
            if inside[:1] not in OF_A_FEATURE:
                continue
            if feature != current:
                found.begin()
                current = feature
            _add_piece(found, inside, value)
    return found.finish(is_list=is_list)


def _opens(place: Place) -> bool:
    return place == ("features",) or _split(place)[1] in GONE_INTO


def _split(place: Place) -> tuple[int, Place]:
    """Which feature a place is in (-1: the document itself, which may be one), and where in it."""
    if place[:1] == ("features",):
        place = place[1:]
    if place and isinstance(place[0], int):
        return place[0], place[1:]
    return -1, place


def _add_piece(found: FeatureCollector, inside: Place, value: Any) -> None:  # noqa: ANN401
    if inside == ("id",):
        found.add_id(value)
    elif inside == ("properties",):
        found.add_properties(value)
    elif inside == ("childObjects",):
        found.add_children(value)
    elif inside[0] in GEOMETRIES and inside[1:] == ("type",):
        found.add_type(str(inside[0]), value)
    elif inside[0] in GEOMETRIES and len(inside) == 3 and isinstance(inside[2], int):
        found.add_member(str(inside[0]), inside[2], value)
    elif inside[0] in GEOMETRIES and inside[1:] == ("geometries",):
        found.add_geometries(str(inside[0]), value)


def _is_one_a_class(features: Features) -> bool:
    """Whether this is a list of annotations, each a class of its own with several outlines."""
    if not len(features.kind) or not (features.kind == ANNOTATION).all():
        return False
    names = features.name
    return "" not in names and len(set(names)) == len(names) and len(features.owner) > len(names)


def _by_class(features: Features, slide: Slide, config: NucleiConfig) -> RawNuclei:
    """Every outline is a nucleus, its class that of the feature.

    Where classes are names CellViT drew the outlines, through the middles of pixels; where they
    are running numbers HEST turned Xenium's into GeoJSON, which have no pixels.
    """
    names = features.name
    notes = _hole_notes(features.n_holes)
    is_numbered = bool(names) and all(name.isdecimal() for name in names)
    if is_numbered:
        notes += ("its classes are running numbers, which are no cell types; they are left out",)
    has_types = any(names) and not is_numbered
    return RawNuclei(
        format="hest" if config.format == "hest" else "cellvit",
        rings=features.rings,
        to_um=pixels_to_um(slide, config, 0.0 if is_numbered else MIDDLE_PX),
        cell_type=tuple(names[one] for one in features.owner) if has_types else None,
        notes=notes,
    )


def _by_object(features: Features, path: Path, slide: Slide, config: NucleiConfig) -> RawNuclei:
    """Every object is a nucleus, its largest outline that of the nucleus."""
    is_taken = _taken(features, path, config)
    wants_nucleus = config.outline == "nucleus"
    has_wanted = np.zeros(len(features.kind), dtype=bool)
    has_wanted[features.owner[features.is_nucleus == wants_nucleus]] = True
    # The other outline stands in where a cell has but one.
    is_right = (features.is_nucleus == wants_nucleus) | ~has_wanted[features.owner]
    chosen = np.flatnonzero(is_taken[features.owner] & is_right)
    order = chosen[np.argsort(features.owner[chosen], kind="stable")]
    rings, row = largest_of(features.rings.take(order), features.owner[order])
    dropped = {
        "another kind of object": int((~is_taken).sum()),
        "no polygon": int(is_taken.sum()) - len(row),
    }
    notes = _hole_notes(features.n_holes)
    if len(order) > len(row):
        notes += (f"{len(order) - len(row)} smaller pieces of nuclei in pieces are left out",)
    if wants_nucleus and (n := int((~has_wanted[row] & (features.kind[row] == CELL)).sum())):
        notes += (f"{n} cells have no nucleus outline; their cell outline is taken",)
    names = [features.name[one] for one in row]
    share = features.probability[row]
    has_types = any(names)
    return RawNuclei(
        format="qupath",
        rings=rings,
        to_um=pixels_to_um(slide, config),
        settings={"outline": config.outline, "takes_annotations": config.takes_annotations},
        cell_type=tuple(names) if has_types else None,
        type_probability=share if has_types and np.isfinite(share).any() else None,
        is_repeat=features.is_repeat[row],
        dropped=dropped,
        notes=notes,
    )


def _taken(features: Features, path: Path, config: NucleiConfig) -> Bool[np.ndarray, " feature"]:
    kind = features.kind
    is_taken = kind == CELL if (kind == CELL).any() else kind == DETECTION
    if config.takes_annotations:
        is_taken = is_taken | (kind == ANNOTATION)
    n_annotations = int((kind == ANNOTATION).sum())
    if n_annotations and not is_taken.any():
        raise DataError(
            f"{path}: {n_annotations} annotations, no cells and no detections; if the annotations "
            "are nuclei, say takes_annotations, or give the format (cellvit, hest)"
        )
    return is_taken


def _hole_notes(n_holes: int) -> tuple[str, ...]:
    return (f"{n_holes} holes of outlines are filled",) if n_holes else ()


def _has_area(value: Any) -> bool:  # noqa: ANN401
    """Whether a geometry of this type may be a polygon; one that does not say may."""
    return not isinstance(value, str) or value in AREAS


def _depth(value: Any) -> int:  # noqa: ANN401
    """How deep lists are nested: 1 a point, 2 a ring, 3 a polygon; 0 for anything else."""
    depth = 0
    while isinstance(value, list) and value:
        depth += 1
        value = value[0]
    return depth


def _class_of(value: Any) -> str:  # noqa: ANN401
    """The name of a class; of several names, one after another as QuPath shows them."""
    if isinstance(value, Mapping):
        names = value.get("names")
        if isinstance(names, list):
            return ": ".join(str(name).strip() for name in names)
        value = value.get("name")
    return value.strip() if isinstance(value, str) else ""


def _probability_of(value: Any) -> Any:  # noqa: ANN401
    """The measurement of this name or None; an object since QuPath 0.4, a list before."""
    if not isinstance(value, list):
        return value.get(PROBABILITY) if isinstance(value, Mapping) else None
    named = [one for one in value if isinstance(one, Mapping) and one.get("name") == PROBABILITY]
    return named[-1].get("value") if named else None
