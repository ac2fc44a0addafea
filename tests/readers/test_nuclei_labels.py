"""Label images of every kind, and what is mistaken for one."""

import gzip
import pickle

import imagecodecs
import numpy as np
import pytest
import shapely
import tifffile
from skimage import draw

from histoscribe.data.toy import ToySlide
from histoscribe.errors import DataError
from histoscribe.readers import nuclei_labels
from histoscribe.readers.nuclei import read_nuclei
from histoscribe.readers.nuclei_config import NucleiConfig

SIZE = (321, 257)  # x, y
NUMBERS = (3, 7, 8, 60_001)


def slide(factor=1.0):
    white = np.broadcast_to(np.uint8(255), (round(SIZE[1] * factor), round(SIZE[0] * factor), 3))
    return ToySlide("S1", white, (0.5, 0.5))


def planted(dtype=np.int32):
    """Four ellipses whose numbers are not contiguous; the last one is cut by the edge."""
    labels = np.zeros(SIZE[::-1], dtype)
    places = [(40, 50, 8, 11), (41, 66, 6, 5), (200, 300, 14, 9), (253, 100, 9, 9)]
    for number, (y, x, down, across) in zip(NUMBERS, places, strict=True):
        rows, columns = draw.ellipse(y, x, down, across, shape=labels.shape)
        labels[rows, columns] = number
    return labels


def save(labels, path):
    if path.suffix == ".npy":
        np.save(path, labels)
    elif path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(labels))
    else:
        tifffile.imwrite(path, labels)
    return path


def assert_planted(given, labels, mpp=0.5):
    numbers = np.unique(labels)[1:]
    assert len(given) == len(numbers)
    for row, number in enumerate(numbers):
        y, x = np.nonzero(labels == number)
        assert given.area_um2[row] == pytest.approx(len(y) * mpp**2)
        middle = ((x.mean() + 0.5) * mpp, (y.mean() + 0.5) * mpp)
        np.testing.assert_allclose(given.xy_um[row], middle, atol=1e-3)
        first, last = given.outlines.start[row : row + 2]
        polygon = shapely.Polygon(given.outlines.xy_um[first:last])
        assert polygon.is_valid
        # The outline cuts off the corners of pixels: at most half a pixel for each on the way.
        assert abs(polygon.area - given.area_um2[row]) < 0.1 * given.area_um2[row]
        assert polygon.centroid.distance(shapely.Point(middle)) < 0.2 * mpp


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("l.tif", np.int32),
        ("l.tif", np.uint16),
        ("l.npy", np.int64),
        ("l.npy", np.uint16),
        ("l.png", np.uint16),
        ("l.npy", ">u4"),
    ],
)
def test_every_kind_gives_each_nucleus_with_the_area_of_its_pixels(tmp_path, name, dtype):
    labels = planted(dtype)
    given, report = read_nuclei(save(labels, tmp_path / name), slide())
    assert_planted(given, labels)
    assert report.format == given.source == "labels"
    assert report.n_listed == report.n_kept == 4
    assert given.cell_type is None


def test_windows_make_no_difference(tmp_path, monkeypatch):
    path = save(planted(), tmp_path / "l.npy")
    one, _ = read_nuclei(path, slide())
    monkeypatch.setattr(nuclei_labels, "PIXELS_AT_ONCE", 17 * SIZE[0])
    monkeypatch.setattr(nuclei_labels, "TILE_PX", 23)
    other, _ = read_nuclei(path, slide())
    assert np.array_equal(one.outlines.xy_um, other.outlines.xy_um)
    assert np.array_equal(one.xy_um, other.xy_um)


def test_labels_at_another_scale_need_it(tmp_path):
    path = save(planted(), tmp_path / "l.tif")
    large = slide(4)
    with pytest.raises(DataError, match=r"321 x 257 px, slide S1 has 1284 x 1028 .*give its mpp"):
        read_nuclei(path, large)
    given, _ = read_nuclei(path, large, NucleiConfig(mpp=2.0))
    assert_planted(given, planted(), 2.0)
    with pytest.raises(DataError, match="give its right mpp"):
        read_nuclei(path, large, NucleiConfig(mpp=1.0))


def test_numbers_beyond_32_bits_are_taken(tmp_path):
    labels = planted(np.int64)
    labels[labels == 8] = 2**40
    given, _ = read_nuclei(save(labels, tmp_path / "l.npy"), slide())
    assert_planted(given, labels)


def test_a_nucleus_in_pieces_is_its_largest(tmp_path):
    labels = planted()
    labels[5:8, 5:9] = 7
    given, report = read_nuclei(save(labels, tmp_path / "l.tif"), slide())
    assert_planted(given, planted())
    assert report.notes == ("1 labels are in several pieces; the largest of each is kept",)


def test_what_spreads_over_the_slide_is_no_nucleus(tmp_path, monkeypatch):
    monkeypatch.setattr(nuclei_labels, "LARGEST_PX", 100)
    labels = planted()
    labels[5:8, 5:9] = 8
    given, report = read_nuclei(save(labels, tmp_path / "l.tif"), slide())
    assert len(given) == 3
    assert report.dropped == {"wider than 100 px": 1}


def test_single_pages_of_stacks_are_taken_and_stacks_refused(tmp_path):
    assert_planted(read_nuclei(save(planted()[None], tmp_path / "l.npy"), slide())[0], planted())
    stack = np.stack([planted()] * 3)
    with pytest.raises(DataError, match="an image of 3 x 257 x 321; wanted labels"):
        read_nuclei(save(stack, tmp_path / "l.npy"), slide())


def test_swapped_axes_are_told(tmp_path):
    with pytest.raises(DataError, match="x and y look swapped: transpose it"):
        read_nuclei(save(planted().T.copy(), tmp_path / "l.npy"), slide())


@pytest.mark.parametrize("dtype", [np.float32, bool])
def test_floats_and_masks_are_refused(tmp_path, dtype):
    with pytest.raises(DataError, match=f"labels of type {np.dtype(dtype)}; wanted whole numbers"):
        read_nuclei(save(planted().astype(dtype), tmp_path / "l.npy"), slide())


def test_a_mask_of_all_nuclei_is_refused(tmp_path):
    mask = ((planted() > 0) * 255).astype(np.uint8)
    with pytest.raises(DataError, match="a mask of all nuclei; wanted a number for each"):
        read_nuclei(save(mask, tmp_path / "l.png"), slide())


def test_negative_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match="labels below 0"):
        read_nuclei(save(-planted(), tmp_path / "l.npy"), slide())


def test_numbers_cut_off_at_16_bits_are_refused(tmp_path):
    labels = planted(np.uint16)
    labels[100:104, 30:39] = 65535
    assert len(read_nuclei(save(labels, tmp_path / "l.tif"), slide())[0]) == 5
    labels[240:244, 200:209] = 7  # what was 65,543
    with pytest.raises(DataError, match="larger ones were cut off"):
        read_nuclei(save(labels, tmp_path / "l.tif"), slide())


def test_colours_are_refused(tmp_path):
    colours = np.repeat((planted() % 251).astype(np.uint8)[..., None], 3, axis=2)
    with pytest.raises(DataError, match="257 x 321 x 3; wanted labels"):
        read_nuclei(save(colours, tmp_path / "l.png"), slide())


def test_pickles_are_never_read(tmp_path):
    class Boom:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    np.save(tmp_path / "p.npy", np.array({"masks": Boom()}, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="without pickled objects"):
        read_nuclei(tmp_path / "p.npy", slide())
    (tmp_path / "cells.pt").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(DataError, match="a pickle or serialised object, which is never read"):
        read_nuclei(tmp_path / "cells.pt", slide())


def test_broken_files_and_archives_are_refused(tmp_path):
    whole = save(planted(), tmp_path / "l.tif").read_bytes()
    (tmp_path / "half.tif").write_bytes(whole[:300])
    (tmp_path / "half.png").write_bytes(
        save(planted(np.uint16), tmp_path / "l.png").read_bytes()[:90]
    )
    np.savez(tmp_path / "l.npz", planted())
    (tmp_path / "l.npy.gz").write_bytes(
        gzip.compress(save(planted(), tmp_path / "l.npy").read_bytes())
    )
    for name in ("half.tif", "half.png", "l.npz", "l.npy.gz"):
        with pytest.raises(DataError, match=rf"{name}: no label image that can be read"):
            read_nuclei(tmp_path / name, slide())


def test_an_image_without_nuclei_is_refused(tmp_path):
    with pytest.raises(DataError, match="no nuclei"):
        read_nuclei(save(np.zeros(SIZE[::-1], np.int32), tmp_path / "l.npy"), slide())
