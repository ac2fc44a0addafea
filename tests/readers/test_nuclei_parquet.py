"""HEST's GeoParquet and Xenium's vertices, as those programs write them."""

import gzip

import geopandas
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from histoscribe.errors import ConfigError, DataError, MismatchError
from histoscribe.readers.nuclei import read_nuclei
from histoscribe.readers.nuclei_config import NucleiConfig
from histoscribe.readers.nuclei_parquet import split_closed
from histoscribe.readers.rings import RingCollector

PIXEL_UM = 0.2125
NAMES = ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
ALIGNED = NucleiConfig(is_aligned=True)


def assert_planted(given, contours_um):
    assert len(given) == len(contours_um)
    for row, contour in enumerate(contours_um):
        first, last = given.outlines.start[row : row + 2]
        np.testing.assert_allclose(given.outlines.xy_um[first:last], contour, atol=2e-3)
        assert given.area_um2[row] == pytest.approx(shapely.Polygon(contour).area, rel=1e-3)


def hest(contours, path, **columns):
    frame = geopandas.GeoDataFrame(
        {
            "class": [NAMES[n % 5] for n in range(len(contours))],
            "cell_id": np.arange(len(contours)),
        }
        | columns,
        geometry=[shapely.Polygon(contour) for contour in contours],
    )
    frame.to_parquet(path)
    return path


def vertices(contours_um, *, with_label=True, as_bytes=False):
    """One row a vertex, rings closed, coordinates float32."""
    rows = [
        (f"aaaa{chr(97 + number // 16)}{chr(97 + number % 16)}ba-1", x, y, number + 1)
        for number, contour in enumerate(contours_um)
        for x, y in [*contour, contour[0]]
    ]
    table = pd.DataFrame(rows, columns=["cell_id", "vertex_x", "vertex_y", "label_id"])
    table = table.astype({"vertex_x": np.float32, "vertex_y": np.float32})
    if as_bytes:
        table["cell_id"] = table["cell_id"].str.encode("ascii")
    return table if with_label else table.drop(columns="label_id")


def um(contours, factor=0.25, first_px=0.0):
    return [(np.array(contour) + first_px) * factor for contour in contours]


def test_hest_polygons_are_read_with_their_classes(tmp_path, blank_slide, contours):
    given, report = read_nuclei(hest(contours, tmp_path / "T_cellvit_seg.parquet"), blank_slide)
    assert_planted(given, um(contours, first_px=0.5))
    assert report.format == given.source == "hest"
    assert given.cell_type == tuple(NAMES[n % 5] for n in range(23))
    assert given.type_probability is None
    assert report.classes["Neoplastic"] == 5


def test_many_batches_pieces_holes_and_repeats(tmp_path, blank_slide, contours, monkeypatch):
    from histoscribe.readers import nuclei_parquet

    monkeypatch.setattr(nuclei_parquet, "BATCH", 5)
    polygons = [shapely.Polygon(contour) for contour in contours]
    small = shapely.affinity.scale(polygons[9], 0.2, 0.2)
    polygons[9] = shapely.MultiPolygon([shapely.affinity.translate(small, 90, 0), polygons[9]])
    polygons[11] = polygons[11].difference(shapely.affinity.scale(polygons[11], 0.3, 0.3))
    polygons[13] = shapely.Point(4, 4)
    ids = np.arange(23)
    ids[17] = 3
    frame = geopandas.GeoDataFrame({"cell_id": ids}, geometry=polygons)
    frame.to_parquet(tmp_path / "seg.parquet")
    given, report = read_nuclei(tmp_path / "seg.parquet", blank_slide)
    kept = [n for n in range(23) if n not in (13, 17)]
    assert len(given) == 21
    areas = [shapely.Polygon(contours[n]).area / 16 for n in kept]
    np.testing.assert_allclose(given.area_um2, areas, rtol=1e-4)
    assert report.dropped == {"no polygon": 1, "repeated id": 1}
    assert report.n_listed == 23
    assert report.notes == ("1 holes of outlines are filled",)
    assert given.cell_type is None


def test_classes_that_are_missing_or_numbers(tmp_path, blank_slide, contours):
    names = ["Dead", None, "Dead"] * 7 + ["Dead", " Dead "]
    given, _ = read_nuclei(hest(contours, tmp_path / "a.parquet", **{"class": names}), blank_slide)
    assert given.cell_type[:3] == ("Dead", "", "Dead")
    assert given.cell_type[-1] == "Dead"
    numbers = hest(contours, tmp_path / "b.parquet", **{"class": np.arange(23)})
    assert read_nuclei(numbers, blank_slide)[0].cell_type[3] == "type 3"


@pytest.mark.parametrize("with_label", [True, False])
@pytest.mark.parametrize("kind", ["parquet", "bytes", "csv", "csv.gz"])
def test_xenium_boundaries_in_every_packing(tmp_path, blank_slide, contours, kind, with_label):
    table = vertices(um(contours), with_label=with_label, as_bytes=kind == "bytes")
    path = tmp_path / f"nucleus_boundaries.{kind}"
    if kind in ("parquet", "bytes"):
        table.to_parquet(path, index=False)
    else:
        text = table.to_csv(index=False, quoting=2).encode()  # names and ids in quotes
        path.write_bytes(gzip.compress(text) if kind == "csv.gz" else text)
    given, report = read_nuclei(path, blank_slide, ALIGNED)
    assert_planted(given, um(contours))
    assert report.format == "xenium"
    assert given.cell_type is None


def test_the_nuclei_of_one_cell_are_several(tmp_path, blank_slide, contours):
    table = vertices(um(contours))
    table.loc[table["label_id"].isin([4, 5]), "cell_id"] = "aaaaaaab-1"
    table.to_parquet(tmp_path / "n.parquet", index=False)
    assert len(read_nuclei(tmp_path / "n.parquet", blank_slide, ALIGNED)[0]) == 23
    table.drop(columns="label_id").to_parquet(tmp_path / "n.parquet", index=False)
    given, report = read_nuclei(tmp_path / "n.parquet", blank_slide, ALIGNED)
    assert_planted(given, um(contours))  # the early 2.0.0 run them together
    assert report.dropped == {}


def test_runs_of_closed_rings_are_taken_apart():
    found = RingCollector()
    a, b = [[0, 0], [4, 0], [4, 3], [0, 0]], [[9, 9], [9, 12], [7, 11], [8, 9], [9, 9]]
    for run in ([*a, *b, *a], b, a[:3], [*a, *b[:3]], [a[0], *a], []):
        found.add(run)
    rings, run = split_closed(found.rings())
    parts = [rings.xy[i:j].tolist() for i, j in zip(rings.start[:-1], rings.start[1:], strict=True)]
    assert run.tolist()[:8] == [0, 0, 0, 1, 2, 3, 3, 4]
    assert parts[:8] == [a, b, a, b, a[:3], a, b[:3], [a[0], *a]]


def test_nothing_says_how_xenium_lies_on_the_slide(tmp_path, blank_slide, contours):
    vertices(um(contours)).to_parquet(tmp_path / "n.parquet", index=False)
    with pytest.raises(ConfigError, match=r"give alignment .* or is_aligned"):
        read_nuclei(tmp_path / "n.parquet", blank_slide)
    with pytest.raises(ConfigError, match="give one"):
        NucleiConfig(alignment=tmp_path / "a.csv", is_aligned=True)


TURNED = np.array([[0.011, 1.2896, 807.97], [-1.2896, 0.011, 7309.65], [0, 0, 1]])
"""H&E pixels to morphology pixels, turned by a quarter as in the maker's own example."""


def on_morphology(contours, pixel_um=PIXEL_UM):
    """Where full-resolution pixels of the slide are in µm of the morphology image."""
    return [
        (np.column_stack([contour, np.ones(len(contour))]) @ TURNED.T)[:, :2] * pixel_um
        for contour in contours
    ]


@pytest.fixture
def he_slide(blank_slide):
    mpp = PIXEL_UM * float(np.sqrt(abs(np.linalg.det(TURNED))))
    assert mpp == pytest.approx(0.274, abs=1e-3)
    return type(blank_slide)("HE", blank_slide.pixels, (mpp, mpp))


def test_the_alignment_brings_xenium_onto_the_slide(tmp_path, he_slide, contours):
    path, matrix = tmp_path / "nucleus_boundaries.parquet", tmp_path / "x_he_imagealignment.csv"
    vertices(on_morphology(contours)).to_parquet(path, index=False)
    np.savetxt(matrix, TURNED, delimiter=",", fmt="%.8f")
    given, _ = read_nuclei(path, he_slide, NucleiConfig(alignment=matrix))
    assert_planted(given, um(contours, he_slide.mpp[0]))
    points = np.random.default_rng(0).uniform(0, 3000, (5, 2))
    fixed = (np.column_stack([points, np.ones(5)]) @ TURNED.T)[:, :2]
    table = pd.DataFrame(
        np.column_stack([fixed, points]), columns=["fixedX", "fixedY", "alignmentX", "alignmentY"]
    )
    table.to_csv(tmp_path / "keypoints.csv", index=False)
    again, _ = read_nuclei(path, he_slide, NucleiConfig(alignment=tmp_path / "keypoints.csv"))
    np.testing.assert_allclose(again.outlines.xy_um, given.outlines.xy_um, atol=1e-3)
    assert again.identity != given.identity
    (tmp_path / "experiment.xenium").write_text('{"pixel_size": 0.2}')
    vertices(on_morphology(contours, 0.2)).to_parquet(path, index=False)
    other = type(he_slide)("HE", he_slide.pixels, (he_slide.mpp[0] * 0.2 / PIXEL_UM,) * 2)
    moved, _ = read_nuclei(path, other, NucleiConfig(alignment=matrix))
    assert moved.provenance.settings["morphology_mpp"] == 0.2
    assert_planted(moved, um(contours, other.mpp[0]))


def test_an_alignment_of_another_slide_or_the_wrong_way_round_is_refused(
    tmp_path, he_slide, blank_slide, contours
):
    path, matrix = tmp_path / "n.parquet", tmp_path / "a.csv"
    vertices(on_morphology(contours)).to_parquet(path, index=False)
    np.savetxt(matrix, TURNED, delimiter=",")
    with pytest.raises(MismatchError, match=r"makes the slide's pixels 0.274 µm wide.*has 0.25"):
        read_nuclei(path, blank_slide, NucleiConfig(alignment=matrix))
    np.savetxt(matrix, np.linalg.inv(TURNED), delimiter=",")
    with pytest.raises(MismatchError, match=r"0.1648 µm wide"):
        read_nuclei(path, he_slide, NucleiConfig(alignment=matrix))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,0\n0,1\n",
        "1,0,0\n0,1,0\n0,0,2\n",
        "a,b,c\n1,2,3\n4,5,6\n",
        "0,0,0\n0,0,0\n0,0,1\n",
        "fixedX,fixedY,alignmentX,alignmentY\n1,1,1,1\n2,2,2,2\n3,3,3,3\n",
    ],
)
def test_what_is_no_alignment_is_refused(tmp_path, he_slide, contours, text):
    path, matrix = tmp_path / "n.parquet", tmp_path / "a.csv"
    vertices(on_morphology(contours)).to_parquet(path, index=False)
    matrix.write_text(text)
    with pytest.raises(DataError, match=r"a\.csv: .*wanted three"):
        read_nuclei(path, he_slide, NucleiConfig(alignment=matrix))


def test_tables_of_something_else_are_refused(tmp_path, blank_slide, contours):
    pd.DataFrame({"x": [1], "y": [2]}).to_parquet(tmp_path / "cells.parquet")
    with pytest.raises(DataError, match="a table with the columns x, y; wanted polygons"):
        read_nuclei(tmp_path / "cells.parquet", blank_slide)
    table = vertices(um(contours)).sample(frac=1, random_state=0)
    table.to_parquet(tmp_path / "n.parquet", index=False)
    with pytest.raises(DataError, match="do not stand together"):
        read_nuclei(tmp_path / "n.parquet", blank_slide, ALIGNED)
    table = vertices(um(contours), with_label=False)
    table.loc[3, "cell_id"] = None
    table.to_parquet(tmp_path / "n.parquet", index=False)
    with pytest.raises(DataError, match="1 rows have no cell_id"):
        read_nuclei(tmp_path / "n.parquet", blank_slide, ALIGNED)
    (tmp_path / "n.csv").write_text('"cell_id","vertex_x","vertex_y"\n"a",1,2\n"a",x,2\n')
    with pytest.raises(DataError, match="cannot be read as a table of outlines"):
        read_nuclei(tmp_path / "n.csv", blank_slide, ALIGNED)
    whole = hest(contours, tmp_path / "w.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read as a table of outlines"):
        read_nuclei(tmp_path / "half.parquet", blank_slide)
    broken = pa.table({"geometry": pa.array([b"\x01\x03\x00"])})
    pq.write_table(broken, tmp_path / "wkb.parquet")
    with pytest.raises(DataError, match="cannot be read as a table of outlines"):
        read_nuclei(tmp_path / "wkb.parquet", blank_slide)


def corrupt(path, n_bytes=600):
    """Overwrite what lies before the footer: the pages, not the schema."""
    with path.open("r+b") as stream:
        stream.seek(8)
        stream.write(b"\xa5" * n_bytes)
    return path


def test_torn_pages_are_told_with_the_file(tmp_path, blank_slide, contours):
    with pytest.raises(DataError, match=r"h\.parquet: cannot be read as a table of outlines"):
        read_nuclei(corrupt(hest(contours, tmp_path / "h.parquet")), blank_slide)
    vertices(um(contours)).to_parquet(tmp_path / "x.parquet", index=False)
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as a table of outlines"):
        read_nuclei(corrupt(tmp_path / "x.parquet"), blank_slide, ALIGNED)


@pytest.mark.parametrize("column", ["class", "cell_id"])
@pytest.mark.parametrize("values", [[[1]], [{"a": 1}], [True], [1.5]])
def test_names_and_ids_that_are_none_are_refused(tmp_path, blank_slide, contours, column, values):
    table = pq.read_table(hest(contours, tmp_path / "h.parquet"))
    odd = pa.array(values * len(contours))
    table = table.set_column(table.column_names.index(column), column, odd)
    pq.write_table(table, tmp_path / "h.parquet")
    with pytest.raises(
        DataError, match=rf"h\.parquet: {column} is of type .*wanted names or whole"
    ):
        read_nuclei(tmp_path / "h.parquet", blank_slide)


@pytest.mark.parametrize("geo", [b"[1]", b'{"primary_column": ["x"]}', b'{"columns": 7}', b"{"])
def test_a_record_of_geoparquet_that_is_none_is_refused(tmp_path, blank_slide, contours, geo):
    table = pq.read_table(hest(contours, tmp_path / "h.parquet"))
    pq.write_table(table.replace_schema_metadata({b"geo": geo}), tmp_path / "h.parquet")
    with pytest.raises(DataError, match=r"h\.parquet: "):
        read_nuclei(tmp_path / "h.parquet", blank_slide)


@pytest.mark.parametrize("values", [["1", "2", "3"], [True, False, True], [[1.0], [2.0], [3.0]]])
def test_vertices_that_are_no_numbers_are_refused(tmp_path, blank_slide, values):
    table = pa.table({"cell_id": ["a"] * 3, "vertex_x": pa.array(values), "vertex_y": [1.0, 2, 3]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: vertex_x is of type .*wanted numbers"):
        read_nuclei(tmp_path / "x.parquet", blank_slide, ALIGNED)


def test_cell_ids_that_are_none_are_refused(tmp_path, blank_slide):
    table = pa.table({"cell_id": [[1]] * 3, "vertex_x": [1.0, 2, 3], "vertex_y": [1.0, 2, 3]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: "):
        read_nuclei(tmp_path / "x.parquet", blank_slide, ALIGNED)


def test_another_alignment_is_another_input(tmp_path, he_slide, contours):
    path, matrix = tmp_path / "n.parquet", tmp_path / "a.csv"
    vertices(on_morphology(contours)).to_parquet(path, index=False)
    seen = set()
    for digits in (8, 9):
        np.savetxt(matrix, TURNED, delimiter=",", fmt=f"%.{digits}f")
        given, _ = read_nuclei(path, he_slide, NucleiConfig(alignment=matrix))
        seen |= {given.identity, given.provenance.inputs["nuclei_alignment"]}
    assert len(seen) == 4
