"""Hand-written fields of PathoCell, Lizard and PanNuke, in the layouts they are published in."""

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.labelled_pixels import read_split
from histoscribe.readers.lizard import read_lizard
from histoscribe.readers.pannuke import open_npy, read_pannuke, read_tissues
from histoscribe.readers.pathocell import read_pathocell, read_patients, to_8_bit

NUMBERS = np.zeros((41, 53), np.int32)
NUMBERS[3:9, 5:12] = 1
NUMBERS[20:27, 30:36] = 7
NUMBERS[33:38, 2:8] = 9


def write_pathocell(folder, name="reg001_A", **changed):
    home = folder / "pathocell_hdf"
    home.mkdir(parents=True, exist_ok=True)
    coarse = np.zeros_like(NUMBERS)
    coarse[NUMBERS == 1] = 5
    coarse[NUMBERS == 7] = 12
    coarse[20:22, 30:36] = 9  # two of seven rows of nucleus 7
    coarse[NUMBERS == 9] = 14
    pixels = np.random.default_rng(0).integers(0, 4000, (3, *NUMBERS.shape)).astype(np.uint16)
    arrays = {"img": pixels, "gt_inst": NUMBERS[None], "gt_ct_coarse": coarse[None],
              "gt_ct": coarse[None], **changed}  # fmt: skip
    with h5py.File(home / f"{name}.hdf", "w") as file:
        for key, array in arrays.items():
            if array is not None:
                file[key] = array
    return folder


def test_pathocell_gives_each_nucleus_the_class_of_most_of_its_pixels(tmp_path):
    write_pathocell(tmp_path, "reg002_B")
    (field, other) = read_pathocell(write_pathocell(tmp_path), 0.377)
    assert (field.image_id, other.image_id) == ("reg001_A", "reg002_B")
    assert field.nuclei.cell_type == ("T cells", "Tumor cells", "Other cells")
    assert np.allclose(field.nuclei.xy_um[0], np.array([8.5, 6.0]) * 0.377, atol=1e-5)
    assert np.allclose(field.nuclei.area_um2, np.array([42, 42, 30]) * 0.377**2, rtol=1e-5)
    assert field.pixels.shape == (41, 53, 3)
    assert field.pixels.dtype == np.uint8
    assert field.patient_id is None
    (only,) = read_pathocell(tmp_path / "pathocell_hdf", 0.377, only={"reg002_B"})
    assert only.image_id == "reg002_B"


def test_pathocell_colours_are_stretched_to_white():
    image = np.linspace(0, 5000, 3 * 4 * 25).reshape(3, 4, 25).astype(np.uint16)
    bright = to_8_bit(image)
    assert bright.shape == (4, 25, 3)
    for channel in range(3):
        white = np.percentile(image[channel], 99)
        wanted = np.rint(np.minimum(image[channel] / white, 1) * 255)
        assert np.array_equal(bright[..., channel], wanted)
    as_is = (image // 20).astype(np.uint8)
    assert np.array_equal(to_8_bit(as_is), np.moveaxis(as_is, 0, -1))


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("region,patient\nreg001_A,p1\n", ""),
        ("Region,patients,x\nreg001_A,p1,3\nreg001_A,p1,4\n", ""),
        ("region,patient\nreg001_A,p1\nreg001_A,p2\n", "two patients"),
        ("region,patient\nreg009_A,p1\n", "does not name region reg001_A"),
        ("name,who\n", "no column"),
    ],
)
def test_patients_of_pathocell_come_from_a_table(tmp_path, text, fails):
    table = tmp_path / "patients.csv"
    table.write_text(text)
    write_pathocell(tmp_path)
    if not fails:
        assert read_patients(table) == {"reg001_A": "p1"}
        (field,) = read_pathocell(tmp_path, 0.377, patients=table)
        assert field.patient_id == "p1"
        return
    with pytest.raises(DataError, match=fails):
        list(read_pathocell(tmp_path, 0.377, patients=table))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"gt_inst": None}, "gt_inst"),
        ({"img": np.zeros((3, 7, 9), np.uint16)}, "wanted"),
        ({"gt_ct_coarse": np.full((1, 41, 53), 15)}, "class 15"),
        ({"img": np.array([b"x"])}, "img"),
    ],
)
def test_other_layouts_of_pathocell_are_refused(tmp_path, changed, match):
    with pytest.raises(DataError, match=match):
        list(read_pathocell(write_pathocell(tmp_path, **changed), 0.377))


def write_lizard(folder, name="consep_1", **changed):
    images, labels = folder / "Lizard_Images1", folder / "Lizard_Labels" / "Labels"
    for home in (images, labels):
        home.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 255, (*NUMBERS.shape, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(images / f"{name}.png")
    content = {"inst_map": NUMBERS, "id": np.array([[9], [1], [7]]),
               "class": np.array([[4], [1], [6]]), "bbox": np.zeros((3, 4)),
               "centroid": np.zeros((3, 2)), **changed}  # fmt: skip
    savemat(labels / f"{name}.mat", {k: v for k, v in content.items() if v is not None})
    (folder / "Lizard_Labels" / "info.csv").write_text(
        "Filename,Source,Split\nconsep_1,consep,1\ndpath_3,dpath,3\n"
    )
    return folder


def test_lizard_matches_classes_to_nuclei_by_id(tmp_path):
    write_lizard(tmp_path, "dpath_3")
    (one, two) = read_lizard(write_lizard(tmp_path), 0.5)
    assert (one.image_id, two.image_id) == ("consep_1", "dpath_3")
    assert one.nuclei.cell_type == ("Neutrophil", "Connective tissue", "Plasma")
    assert one.size_um == (26.5, 20.5)
    (third,) = read_lizard(tmp_path, 0.5, split=3)
    assert third.image_id == "dpath_3"


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"class": None}, "no labels of Lizard"),
        ({"class": np.array([[4], [1], [7]])}, "wanted 1 to 6"),
        ({"id": np.array([[1], [7]])}, "2 ids"),
        ({"inst_map": NUMBERS[:-2]}, "41"),
        ({"inst_map": np.array(["text"])}, "no labels of Lizard"),
    ],
)
def test_other_layouts_of_lizard_are_refused(tmp_path, changed, match):
    with pytest.raises(DataError, match=match):
        list(read_lizard(write_lizard(tmp_path, **changed), 0.5))


def write_pannuke(folder, n=7, side=24, types=None):
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (n, side, side, 3)).astype(np.float64)
    masks = np.zeros((n, side, side, 6))
    for tile in range(n):
        masks[tile, 2:8, 3:9, tile % 5] = 4
        masks[tile, 12:17, 10:18, 0] = 9
    masks[..., 5] = masks[..., :5].sum(axis=-1) == 0
    for name, array in (("images", images), ("masks", masks)):
        home = folder / ("masks" if name == "masks" else "images") / "fold2"
        home.mkdir(parents=True, exist_ok=True)
        np.save(home / f"{name}.npy", array)
    tissue = np.array(["Breast", "Colon", "Bile-duct", "Lung", "Skin", "Liver", "Ovary"][:n])
    np.save(folder / "images" / "fold2" / "types.npy", tissue if types is None else types)
    return folder, images


def test_pannuke_becomes_mosaics_whose_tiles_lie_on_a_lattice(tmp_path):
    folder, images = write_pannuke(tmp_path / "Fold 2")
    (first, second) = read_pannuke(folder, 0.25, n_tiles=4, gap_um=4.0)
    assert (first.image_id, second.image_id) == ("Fold2-tiles-0000-0003", "Fold2-tiles-0004-0006")
    assert first.pitch_um == 10.0  # 24 px and 16 px of white
    assert first.pixels.shape == (80, 80, 3)
    centre_px = np.array([1.5, 0.5]) * first.pitch_um / 0.25
    left, top = (centre_px - 12).astype(int)
    assert np.array_equal(first.pixels[top : top + 24, left : left + 24], images[1])
    assert (first.pixels[:8] == 255).all()
    # tile 0 has two nuclei of one class, tile 1 one of another
    assert sorted(first.nuclei.cell_type) == sorted(
        ["Neoplastic"] * 5 + ["Inflammatory", "Connective", "Dead"]
    )
    row = first.nuclei.cell_type.index("Inflammatory")
    assert np.allclose(first.nuclei.xy_um[row], (np.array([40 + 8 + 6, 8 + 5])) * 0.25)
    assert read_tissues(folder)[:2] == ("Breast", "Colon")


def test_pickled_arrays_are_never_read(tmp_path):
    folder, _ = write_pannuke(tmp_path, types=np.array(["Breast"] * 7, dtype=object))
    with pytest.raises(DataError, match="pickled"):
        list(read_pannuke(folder, 0.25))
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(DataError, match="archive"):
        open_npy(tmp_path / "a.npz")


def test_a_folder_of_two_folds_or_of_none_is_refused(tmp_path):
    write_pannuke(tmp_path / "a")
    write_pannuke(tmp_path / "b")
    with pytest.raises(DataError, match="2 files images"):
        list(read_pannuke(tmp_path, 0.25))
    for read in (read_pathocell, read_lizard, read_pannuke):
        with pytest.raises(DataError):
            list(read(tmp_path / "none", 0.25))
        with pytest.raises(ConfigError, match="mpp"):
            list(read(tmp_path, None))
        with pytest.raises(ConfigError, match="mpp"):
            list(read(tmp_path, 40.0))


def test_a_split_names_its_samples(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("sample_name,train_test_val_split\nreg001_A.hdf,test\nreg002_A.hdf,train\n")
    assert read_split(path, "test") == {"reg001_A"}
    with pytest.raises(DataError, match="test, train"):
        read_split(path, "valid")
