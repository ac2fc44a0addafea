"""Slides of any size whose nuclei are known: planted in textured tissue, written in bands.

Nuclei sit on a shaken lattice: one in each square of 20 µm (2,500 per mm²), its centre moved by up
to 5 µm along each axis, so that centres are at least 10 µm apart and none is cut by the slide's
edge. They are ellipses with half axes of 2.6 to 3.9 µm and an uneven, soft-edged haematoxylin
stain; the tissue between them is eosin of an uneven, fibrous density with a little haematoxylin.
Colours follow Beer and Lambert, each pixel has noise of its own, and JPEG (quality 90) blurs it.

All is drawn from the seed; a band of the slide depends on its place alone, never on the bands
before it, and memory holds one band.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MPP = 0.5
PITCH_PX = 40
SHAKE_UM = 5.0
MIN_SPACING_UM = PITCH_PX * MPP - 2 * SHAKE_UM
HALF_AXES_UM = (2.6, 3.9)
EDGE_UM = 0.35  # over which the stain fades
BAND_ROWS = 5  # of the lattice
# Optical densities of haematoxylin and eosin in red, green and blue: Ruifrok & Johnston 2001.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], np.float32)
PERIODS_PX = (997, 1013, 1019)  # of the textures: prime, so that their sum does not repeat
TILE_PX = 256


@dataclass(frozen=True)
class PlantedSlide:
    """A square slide that is not drawn yet.

    Attributes:
        size_px: Its side, a multiple of 200 px.
        seed: Draws everything.
    """

    size_px: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size_px < 1 or self.size_px % (PITCH_PX * BAND_ROWS):
            raise SystemExit(f"a side of {self.size_px} px; give a multiple of 200")

    def __len__(self) -> int:
        return (self.size_px // PITCH_PX) ** 2

    def centres_um(self) -> np.ndarray:
        """Where the nuclei are, "nucleus 2" in µm, band by band."""
        n_bands = self.size_px // (PITCH_PX * BAND_ROWS)
        return np.concatenate([self._nuclei(band)[0] for band in range(n_bands)])

    def bands(self) -> Iterator[np.ndarray]:
        """The image, 200 rows at a time, from top to bottom."""
        textures = [self._texture(number) for number in range(len(PERIODS_PX))]
        for band in range(self.size_px // (PITCH_PX * BAND_ROWS)):
            yield self._draw(band, textures)

    def _generator(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.size_px, *what])

    def _nuclei(self, band: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Centres in µm, half axes in µm, angles and densities of the nuclei of a band."""
        rng = self._generator(1, band)
        n_columns = self.size_px // PITCH_PX
        column, row = np.meshgrid(np.arange(n_columns), np.arange(BAND_ROWS) + band * BAND_ROWS)
        lattice = (np.stack([column, row], axis=-1).reshape(-1, 2) + 0.5) * PITCH_PX * MPP
        n = len(lattice)
        return (
            lattice + rng.uniform(-SHAKE_UM, SHAKE_UM, (n, 2)),
            rng.uniform(*HALF_AXES_UM, (n, 2)),
            rng.uniform(0, np.pi, n),
            rng.uniform(0.9, 1.5, n),
        )

    def _texture(self, number: int) -> np.ndarray:
        """A periodic field of mean 0 and deviation 1; fibres along its own direction."""
        period, rng = PERIODS_PX[number], self._generator(2, number)
        fy, fx = np.meshgrid(np.fft.fftfreq(period), np.fft.rfftfreq(period), indexing="ij")
        angle = rng.uniform(0, np.pi)
        along = fx * np.cos(angle) + fy * np.sin(angle)
        across = fy * np.cos(angle) - fx * np.sin(angle)
        # Fibres about 3 px thick and 20 px long over clouds of 60 px.
        power = np.exp(-((along * 20) ** 2) - (across * 3) ** 2) / 6 + np.exp(
            -((fx**2 + fy**2) * 60**2)
        )
        noise = np.fft.rfft2(rng.normal(size=(period, period)))
        field = np.fft.irfft2(noise * power, s=(period, period))
        return ((field - field.mean()) / field.std()).astype(np.float32)

    def _draw(self, band: int, textures: list[np.ndarray]) -> np.ndarray:
        rows = np.arange(band * BAND_ROWS * PITCH_PX, (band + 1) * BAND_ROWS * PITCH_PX)
        columns = np.arange(self.size_px)
        first, second, third = (
            texture[np.ix_(rows % len(texture), columns % len(texture))] for texture in textures
        )
        eosin = np.clip(0.45 + 0.06 * first + 0.05 * second, 0.2, None)
        inside, density = self._stained(band)
        haematoxylin = np.clip(0.05 + 0.015 * third, 0, None) * (1 - inside)
        haematoxylin += inside * density * np.clip(1 + 0.12 * second, 0.6, None)
        eosin *= 1 - 0.6 * inside
        optical = haematoxylin[..., None] * STAINS[0] + eosin[..., None] * STAINS[1]
        image = 255 * np.exp(-optical)
        rng = self._generator(3, band)
        image += rng.integers(-4, 5, image.shape, dtype=np.int8)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    def _stained(self, band: int) -> tuple[np.ndarray, np.ndarray]:
        """How far each pixel lies in a nucleus (0 to 1), and how dense that one is."""
        centre_um, axes_um, angle, density = self._nuclei(band)
        n_columns = self.size_px // PITCH_PX
        inside = np.empty((BAND_ROWS, PITCH_PX, n_columns, PITCH_PX), np.float32)
        shape = (BAND_ROWS, 1, n_columns, 1)
        step = ((np.arange(PITCH_PX) + 0.5) * MPP).astype(np.float32)
        corner = np.floor(centre_um / (PITCH_PX * MPP)) * PITCH_PX * MPP
        local = (centre_um - corner).astype(np.float32)
        x = step[None, None, None, :] - local[:, 0].reshape(shape)
        y = step[None, :, None, None] - local[:, 1].reshape(shape)
        cos, sin = (f(angle).astype(np.float32).reshape(shape) for f in (np.cos, np.sin))
        a, b = (axes_um[:, i].astype(np.float32).reshape(shape) for i in (0, 1))
        radius = np.hypot((x * cos + y * sin) / a, (y * cos - x * sin) / b)
        depth_um = (1 - radius) * np.minimum(a, b)
        inside[:] = 1 / (1 + np.exp(np.clip(-4 * depth_um / EDGE_UM, -40, 40)))
        dense = np.broadcast_to(density.astype(np.float32).reshape(shape), inside.shape)
        flat = (BAND_ROWS * PITCH_PX, self.size_px)
        return inside.reshape(flat), dense.reshape(flat)


def write_slide(planted: PlantedSlide, path: Path) -> None:
    """Write a tiled, pyramidal TIFF (JPEG) of 0.5 µm/px; a raw image beside it meanwhile."""
    import pyvips  # a development dependency, for this alone

    raw = path.with_suffix(".raw")
    try:
        with raw.open("wb") as file:
            for band in planted.bands():
                file.write(band)
        side = planted.size_px
        image = pyvips.Image.rawload(str(raw), side, side, 3, access="sequential")
        per_mm = 1000 / MPP
        image = image.copy(interpretation="srgb", xres=per_mm, yres=per_mm)
        options = {"tile_width": TILE_PX, "tile_height": TILE_PX, "compression": "jpeg", "Q": 90}
        image.tiffsave(str(path), tile=True, pyramid=True, bigtiff=True, resunit="cm", **options)
    finally:
        raw.unlink(missing_ok=True)
