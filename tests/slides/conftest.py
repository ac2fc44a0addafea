"""Slides written for the tests."""

import io
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

SERIES = "1.2.826.0.1.3680043.9.7.31"
SYNTAXES = {
    "native": (ExplicitVRLittleEndian, "RGB"),
    "implicit": (ImplicitVRLittleEndian, "RGB"),
    "planar": (ExplicitVRLittleEndian, "RGB"),
    "jpeg": (JPEGBaseline8Bit, "YBR_FULL_422"),
    "jpeg-rgb": (JPEGBaseline8Bit, "RGB"),
    "jpeg2000": (JPEG2000Lossless, "YBR_RCT"),
}


@pytest.fixture
def noise() -> np.ndarray:
    """An image in which every pixel differs from its neighbours."""
    return np.random.default_rng(3).integers(0, 256, (173, 211, 3), dtype=np.uint8)


@pytest.fixture
def smooth() -> np.ndarray:
    """An image that JPEG keeps to within a few grey values."""
    y, x = np.mgrid[:301, :407]
    return np.stack([x * 255 / 407, y * 255 / 301, 128 + 60 * np.sin(x / 40)], axis=2).astype(
        np.uint8
    )


def halved(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    blocks = image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


@pytest.fixture
def pyramid(noise: np.ndarray) -> list[np.ndarray]:
    """The noise and its halves, of odd sizes: 211, 105, 52 wide."""
    return [noise, halved(noise), halved(halved(noise))]


@pytest.fixture
def write_pyramid(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiled three-level TIFF, its lower levels as SubIFDs or as pages."""

    def write(image: np.ndarray, name: str, *, subifds: bool, **options: object) -> Path:
        path = tmp_path / name
        levels = [image, halved(image), halved(halved(image))]
        with tifffile.TiffWriter(path, ome=name.endswith("ome.tif")) as file:
            common = {"tile": (64, 48), "photometric": "rgb", "compression": "deflate"}
            file.write(levels[0], subifds=2 if subifds else 0, **common, **options)
            for level in levels[1:]:
                file.write(level, subfiletype=1, **common)
        return path

    return write


def encode_frame(tile: np.ndarray, encoding: str) -> bytes:
    if encoding == "planar":
        return np.ascontiguousarray(tile.transpose(2, 0, 1)).tobytes()
    if encoding == "jpeg":
        stream = io.BytesIO()
        Image.fromarray(tile).save(stream, "jpeg", quality=95)
        return stream.getvalue()
    if encoding == "jpeg-rgb":
        stored = imagecodecs.jpeg_encode(tile, level=95, colorspace="RGB", outcolorspace="RGB")
        return without_colours(stored)
    if encoding == "jpeg2000":
        return imagecodecs.jpeg2k_encode(tile, level=0, codecformat="j2k", reversible=True)
    return tile.tobytes()


def without_colours(stored: bytes) -> bytes:
    """An RGB JPEG as scanners have it: nothing in it says so, neither Adobe's mark nor names."""
    at = stored.index(b"\xff\xee")
    marked = bytearray(stored)
    frame, scan = stored.index(b"\xff\xc0") + 10, stored.index(b"\xff\xda") + 5
    for n in range(3):
        assert marked[frame + 3 * n] == marked[scan + 2 * n] == b"RGB"[n]
        marked[frame + 3 * n] = marked[scan + 2 * n] = n + 1
    return bytes(marked[:at] + marked[at + 2 + int.from_bytes(stored[at + 2 : at + 4], "big") :])


def dicom_picture(
    image: np.ndarray, kind: str, encoding: str, mpp: tuple[float, float] | None, number: int
) -> tuple[Dataset, list[bytes]]:
    """Header and frames of one file of a series; frames of 48 x 64 px."""
    height, width, n_wide, n_high = *image.shape[:2], 48, 64
    n_across, n_down = -(-width // n_wide), -(-height // n_high)
    padded = np.full((n_down * n_high, n_across * n_wide, 3), 77, dtype=np.uint8)
    padded[:height, :width] = image
    tiles = padded.reshape(n_down, n_high, n_across, n_wide, 3).transpose(0, 2, 1, 3, 4)
    frames = [encode_frame(tile, encoding) for tile in tiles.reshape(-1, n_high, n_wide, 3)]
    syntax, colours = SYNTAXES[encoding]
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    header.SOPInstanceUID = generate_uid(entropy_srcs=[kind, str(number)])
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.SeriesInstanceUID, header.StudyInstanceUID = SERIES, f"{SERIES}.1"
    header.Modality, header.InstanceNumber, header.FrameOfReferenceUID = "SM", number, SERIES + ".2"
    is_first = number == 0
    header.ImageType = [
        *(("ORIGINAL", "PRIMARY", kind, "NONE") if is_first else ("DERIVED", "PRIMARY", kind)),
        *(() if is_first else ("RESAMPLED",)),
    ]
    header.DimensionOrganizationType = "TILED_FULL"
    header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows = width, height
    header.TotalPixelMatrixFocalPlanes = header.NumberOfOpticalPaths = 1
    header.Columns, header.Rows, header.NumberOfFrames = n_wide, n_high, len(frames)
    header.SamplesPerPixel, header.PlanarConfiguration = 3, int(encoding == "planar")
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    header.PhotometricInterpretation = colours
    if mpp is not None:
        measures, group = Dataset(), Dataset()
        measures.PixelSpacing = [mpp[1] / 1000, mpp[0] / 1000]  # down, across
        measures.SliceThickness = 0.001
        group.PixelMeasuresSequence = [measures]
        header.SharedFunctionalGroupsSequence = [group]
    return header, frames


def save_dicom(path: Path, header: Dataset, frames: list[bytes], table: str = "basic") -> None:
    """Write with a basic, an extended or no table of offsets."""
    if not header.file_meta.TransferSyntaxUID.is_compressed:
        header.PixelData = b"".join(frames)
    elif table == "extended":
        parts = encapsulate_extended(frames)
        header.PixelData, header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths = parts
    else:
        header.PixelData = encapsulate(frames, has_bot=table == "basic")
    header["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


@pytest.fixture
def write_dicom(tmp_path: Path) -> Callable[..., Path]:
    """Writes a series, a file for each level, and a label, and gives its folder."""

    def write(
        levels: list[np.ndarray],
        encoding: str = "native",
        mpp: tuple[float, float] | None = (0.5, 0.5),
        table: str = "basic",
        edit: Callable[[Dataset], None] = lambda header: None,
    ) -> Path:
        folder = tmp_path / "series"
        for number, level in enumerate(levels):
            scale = levels[0].shape[1] // level.shape[1]
            spacing = None if mpp is None else (mpp[0] * scale, mpp[1] * scale)
            header, frames = dicom_picture(level, "VOLUME", encoding, spacing, number)
            edit(header)
            save_dicom(folder / f"level{number}.dcm", header, frames, table)
        label = np.zeros((64, 48, 3), dtype=np.uint8)
        save_dicom(folder / "a-label.dcm", *dicom_picture(label, "LABEL", "native", None, 7))
        return folder

    return write


@pytest.fixture
def write_ome_zarr(tmp_path: Path) -> Callable[..., Path]:
    """Writes levels as OME-Zarr 0.4 or 0.5, with the axes asked for."""

    def write(
        levels: list[np.ndarray],
        version: str = "0.5",
        axes: str = "cyx",
        scale: tuple[float, float] = (0.5, 0.5),
        unit: str | None = "micrometer",
        name: str = "slide.ome.zarr",
        edit: Callable[[dict], None] = lambda multiscale: None,
        **options: object,
    ) -> Path:
        zarr_format = 2 if version == "0.4" else 3
        root = zarr.open_group(tmp_path / name, mode="w", zarr_format=zarr_format)
        if zarr_format == 2:
            options = {"chunk_key_encoding": {"name": "v2", "separator": "/"}, **options}
        data_sets = []
        for index, level in enumerate(levels):
            kept = [axis for axis in axes if axis in "yxc"]
            image = level.transpose(["yxc".index(axis) for axis in kept])
            shape = [image.shape[kept.index(axis)] if axis in kept else 1 for axis in axes]
            chunks = [{"y": 64, "x": 48}.get(axis, 1) for axis in axes]
            made = {"shape": shape, "chunks": chunks, "dtype": "uint8"} | options
            root.create_array(str(index), **made)[...] = image.reshape(shape)
            factor = levels[0].shape[1] // level.shape[1]
            sizes = {"x": scale[0] * factor, "y": scale[1] * factor}
            step = {"type": "scale", "scale": [sizes.get(axis, 1.0) for axis in axes]}
            data_sets.append({"path": str(index), "coordinateTransformations": [step]})
        described = [describe_axis(axis, unit) for axis in axes]
        multiscale = {"axes": described, "datasets": data_sets, "name": "he"}
        if version == "0.4":
            multiscale["version"] = version
        edit(multiscale)
        inner = {"multiscales": [multiscale]}
        root.attrs.update(
            inner if version == "0.4" else {"ome": inner | {"version": version}},
        )
        return tmp_path / name

    return write


def describe_axis(name: str, unit: str | None) -> dict[str, str]:
    kind = {"c": "channel", "t": "time"}.get(name, "space")
    said = {"name": name, "type": kind}
    return said | ({"unit": unit} if kind == "space" and unit else {})
