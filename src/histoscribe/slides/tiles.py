"""What the tiled formats share: decoded tiles kept for the next read, and a rectangle of them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np
from jaxtyping import UInt8

CACHE_BYTES = 128 * 2**20  # of one slide: neighbouring reads share tiles, strips and chunks


class TileCache:
    """The tiles decoded last, at most 128 MiB of them; safe to use from several threads."""

    def __init__(self) -> None:
        self._tiles: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], np.ndarray | None]) -> np.ndarray | None:
        """The tile of that key, decoded where it is not at hand; None if the file has none.

        Two threads that ask for one tile at one time may both decode it: decoding is not locked.
        """
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
                return self._tiles[key]
        tile = decode()
        if tile is None:
            return None
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = tile
                self._n_bytes += tile.nbytes
            while self._n_bytes > CACHE_BYTES and len(self._tiles) > 1:
                self._n_bytes -= self._tiles.popitem(last=False)[1].nbytes
        return tile


def paste_tiles(
    xy_px: tuple[int, int],
    size_px: tuple[int, int],
    tile_px: tuple[int, int],
    tile_at: Callable[[int, int], np.ndarray | None],
) -> UInt8[np.ndarray, "y x 3"]:
    """A rectangle, pasted from the tiles that touch it; white where there is no tile.

    Args:
        xy_px: Its corner, in pixels of the level.
        size_px: Its width and height.
        tile_px: Width and height of a tile; the last ones may be larger than the level or cut.
        tile_at: The tile of a row and a column of tiles.
    """
    (x, y), (width, height), (n_wide, n_high) = xy_px, size_px, tile_px
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    for row in range(y // n_high, -(-(y + height) // n_high)):
        for column in range(x // n_wide, -(-(x + width) // n_wide)):
            tile = tile_at(row, column)
            if tile is not None:
                paste(tile, (column * n_wide - x, row * n_high - y), pixels)
    return pixels


def paste(
    tile: UInt8[np.ndarray, "tile_y tile_x sample"],
    xy_px: tuple[int, int],
    pixels: UInt8[np.ndarray, "y x sample"],
) -> None:
    """Lay a tile into `pixels` with its corner at `xy_px`; what reaches out is cut off."""
    left, top = xy_px
    n_y, n_x = tile.shape[:2]
    rows = slice(max(top, 0), min(top + n_y, pixels.shape[0]))
    columns = slice(max(left, 0), min(left + n_x, pixels.shape[1]))
    pixels[rows, columns] = tile[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
