"""OME-Zarr (NGFF 0.4 on zarr v2, 0.5 on zarr v3): a folder, or a zip of one.

Only the chunks that a rectangle touches are read. A chunk that is not there is an error where the
store would silently make it black.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from jaxtyping import UInt8
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, StorePath, WrapperStore, ZipStore

from histoscribe.errors import DataError
from histoscribe.slides.channels import check_channels
from histoscribe.slides.ome_zarr_scale import origin_of, stated_mpp_of
from histoscribe.slides.pixels import StatedMpp, is_shaped_as
from histoscribe.slides.tiles import TileCache, paste_tiles

VERSIONS = ("0.4", "0.5")
SERIES_LAYOUT = "bioformats2raw.layout"  # its first series, "0", is the scan; labels come later
OTHER_FILL = 255  # what a chunk that is not there is read as, to tell it from a black one
BLOSC_HEADER, BLOSC_LENGTH = 16, slice(12, 16)  # bytes; the length of a chunk with its header
ORIGIN_PX = 1.0  # half a pixel aside is the usual shift of a coarse level's first centre


class WholeBlosc(WrapperStore):
    """A store of Blosc chunks that refuses those cut short.

    Blosc itself does not notice where it stored bytes as they came, and returns what lies behind
    them in memory.
    """

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """A chunk, as long as its header says.

        Raises:
            ValueError: It is shorter.
        """
        value = await super().get(key, prototype, byte_range)
        if value is None or byte_range is not None:
            return value
        head = value[:BLOSC_HEADER].to_bytes()
        stated = int.from_bytes(head[BLOSC_LENGTH], "little")
        if len(value) < max(stated, BLOSC_HEADER):
            msg = f"{len(value)} bytes of {stated or 'an unknown number'}"
            raise ValueError(msg)
        return value


class Level(NamedTuple):
    """One resolution.

    Attributes:
        size_px: Width and height.
        tile_px: Width and height of a chunk.
        array: Its pixels.
        probe: The same with another value where chunks are missing; None where the store says
            by its own fill value what they hold.
    """

    size_px: tuple[int, int]
    tile_px: tuple[int, int]
    array: zarr.Array
    probe: zarr.Array | None


def open_ome_zarr(path: Path) -> "OmeZarrSource":
    """Open the image of a store.

    Raises:
        DataError: No image of NGFF 0.4 or 0.5, broken, or not 8-bit RGB of one plane.
    """
    try:
        store = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r")
        return _open(path, zarr.open_group(store, mode="r", use_consolidated=False))
    except DataError:
        raise
    except Exception as fault:  # zarr's are of many classes
        raise _broken(path, fault) from fault


class OmeZarrSource:
    """Pixels of an OME-Zarr image; safe to read from several threads."""

    notes = ()

    def __init__(
        self,
        path: Path,
        levels: tuple[Level, ...],
        axes: tuple[str, ...],
        stated_mpp: StatedMpp | None,
    ) -> None:
        self.path = path
        self.level_size_px = tuple(level.size_px for level in levels)
        self.level_piece_px = tuple(level.tile_px for level in levels)
        self.stated_mpp = stated_mpp
        self._levels = levels
        self._axes = axes
        self._tiles = TileCache()

    def read_pixels(
        self, level: int, xy_px: tuple[int, int], size_px: tuple[int, int]
    ) -> UInt8[np.ndarray, "y x 3"]:
        """A rectangle of a level.

        Raises:
            DataError: A chunk that is broken or missing.
        """

        def tile_at(row: int, column: int) -> np.ndarray | None:
            place = (level, row, column)
            return self._tiles.get(place, partial(self._decode, *place))

        return paste_tiles(xy_px, size_px, self._levels[level].tile_px, tile_at)

    def read_thumbnail(self) -> None:
        """None: NGFF has no place for one."""

    def _decode(self, level: int, row: int, column: int) -> UInt8[np.ndarray, "y x 3"]:
        _, (width, height), array, probe = self._levels[level]
        x, y = column * width, row * height
        window = slice(y, y + height), slice(x, x + width)
        try:
            tile = self._read(array, *window)
            is_missing = (
                probe is not None
                and _has_black_channel(tile)
                and (self._read(probe, *window) != tile).any()
            )
        except Exception as fault:  # every codec has errors of its own
            where = f"level {level} at pixel ({x}, {y}): {fault}"
            raise _broken(self.path, where) from fault
        if is_missing:
            msg = (
                f"{self.path}: level {level} lacks the chunk at pixel ({x}, {y}). Copy it again "
                "from its source; if its writer leaves out black chunks, have it write them."
            )
            raise DataError(msg)
        return tile

    def _read(self, array: zarr.Array, y: slice, x: slice) -> UInt8[np.ndarray, "y x 3"]:
        where = {"y": y, "x": x, "c": slice(None)}
        pixels = np.asarray(array[tuple(where.get(axis, 0) for axis in self._axes)])
        kept = [axis for axis in self._axes if axis in where]
        return np.ascontiguousarray(pixels.transpose([kept.index(axis) for axis in "yxc"]))


def _has_black_channel(tile: UInt8[np.ndarray, "y x 3"]) -> bool:
    if tile[::16, ::16].any(axis=(0, 1)).all():  # a look that settles nearly every chunk
        return False
    return not tile.any(axis=(0, 1)).all()


def _open(path: Path, root: zarr.Group) -> OmeZarrSource:
    group, metadata = _image(path, root)
    multiscale = metadata["multiscales"][0]
    axes = tuple(_axis_name(axis) for axis in multiscale["axes"])
    arrays = [_array(path, group, one["path"]) for one in multiscale["datasets"]]
    for array in arrays:
        _check_pixels(path, array, axes)
    _check_colours(path, metadata)
    levels = tuple(_level(array, axes) for array in arrays)
    _check_levels(path, levels, multiscale)
    return OmeZarrSource(path, levels, axes, stated_mpp_of(multiscale))


def _image(path: Path, root: zarr.Group) -> tuple[zarr.Group, dict[str, Any]]:
    """The group of the image, and its metadata as 0.4 has it."""
    group, metadata = root, _ome(root)
    if SERIES_LAYOUT in metadata and "multiscales" not in metadata:
        group = root.require_group("0") if "0" in root else root
        metadata = _ome(group)
    if "multiscales" in metadata:
        stated = metadata["multiscales"][0].get("version", metadata.get("version", "0.4"))
        if stated not in VERSIONS or "axes" not in metadata["multiscales"][0]:
            msg = f"{path}: NGFF {stated}; wanted 0.4 or 0.5. Convert it to one of them."
            raise DataError(msg)
        return group, metadata
    within = ", ".join(_images_within(root))
    msg = (
        f"{path}: a zarr store whose root is no OME-Zarr image; wanted the key multiscales. "
        f"Give the folder of the image itself{f': {within}' if within else ''}."
    )
    raise DataError(msg)


def _ome(group: zarr.Group) -> dict[str, Any]:
    attributes = dict(group.attrs)
    inner = attributes.get("ome")
    return dict(inner) if isinstance(inner, dict) else attributes


def _images_within(root: zarr.Group) -> Iterator[str]:
    for name, member in root.members(max_depth=1):
        if isinstance(member, zarr.Group) and "multiscales" in _ome(member):
            yield name


def _axis_name(axis: dict[str, Any] | str) -> str:
    return axis if isinstance(axis, str) else str(axis["name"])


def _array(path: Path, group: zarr.Group, name: str) -> zarr.Array:
    member = group.get(name)
    if isinstance(member, zarr.Array):
        return member
    msg = f"{path}: lacks the level {name!r} that it names. Copy it again from its source."
    raise DataError(msg)


def _check_pixels(path: Path, array: zarr.Array, axes: tuple[str, ...]) -> None:
    sizes = dict(zip(axes, array.shape, strict=True))
    others = [axis for axis in axes if axis not in "yxc" and sizes[axis] > 1]
    is_colour = {"y", "x"} <= set(axes) and sizes.get("c") == 3
    if others or not is_colour or array.dtype != np.uint8:
        shape = " x ".join(f"{n} {axis}" for axis, n in sizes.items())
        msg = (
            f"{path}: holds {array.dtype} of {shape}; wanted one 8-bit RGB image: uint8 with axes "
            "y, x and a c of 3, any t and z of 1. Export the H&E image as that."
        )
        raise DataError(msg)


def _check_colours(path: Path, metadata: dict[str, Any]) -> None:
    channels = metadata.get("omero", {}).get("channels", [])
    if len(channels) == 3:
        names = [str(one.get("label") or "") for one in channels]
        check_channels(
            path, names, [str(one.get("color") or "").lstrip("#").upper() for one in channels]
        )


def _level(array: zarr.Array, axes: tuple[str, ...]) -> Level:
    x, y = axes.index("x"), axes.index("y")
    metadata, place = array.metadata.to_dict(), array.store_path
    if any("blosc" in type(one).__name__.lower() for one in array.compressors):
        place = StorePath(WholeBlosc(place.store), place.path)
    is_said = array.fill_value is not None and int(array.fill_value) != 0
    return Level(
        (array.shape[x], array.shape[y]),
        (array.chunks[x], array.chunks[y]),
        zarr.Array.from_dict(place, metadata),
        None if is_said else zarr.Array.from_dict(place, metadata | {"fill_value": OTHER_FILL}),
    )


def _check_levels(path: Path, levels: tuple[Level, ...], multiscale: dict[str, Any]) -> None:
    sizes = [level.size_px for level in levels]
    is_falling = all(a[0] > b[0] for a, b in pairwise(sizes))
    if not is_falling or not all(is_shaped_as(one, sizes[0]) for one in sizes):
        came = ", ".join(f"{one[0]} x {one[1]}" for one in sizes)
        msg = (
            f"{path}: levels of {came} px; wanted each smaller than the last and of the same "
            "shape. Write the pyramid again."
        )
        raise DataError(msg)
    for index, origin_px in enumerate(origin_of(multiscale)):
        if max(abs(one) for one in origin_px) > ORIGIN_PX:
            msg = (
                f"{path}: level {index} starts {origin_px[0]:.4g}, {origin_px[1]:.4g} of its "
                "pixels (x, y) from where level 0 does; wanted one corner for all. "
                "Write the pyramid again."
            )
            raise DataError(msg)


def _broken(path: Path, fault: object) -> DataError:
    return DataError(
        f"{path}: truncated or damaged OME-Zarr ({fault}); wanted a whole one. "
        "Copy it again from its source."
    )
