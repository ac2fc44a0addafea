"""The nouns refuse what does not hold up, in our words, and cannot be changed after."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from scipy.sparse import csr_array

from histoscribe.data.cells import Outlines
from histoscribe.data.genes import GenePanel
from histoscribe.data.prediction import Prediction
from histoscribe.data.provenance import Provenance
from histoscribe.data.regions import check_unit
from histoscribe.data.slide import Slide
from histoscribe.data.toy import toy_world
from histoscribe.errors import DataError, HistoscribeError, MismatchError
from histoscribe.types import Box

WORLD = toy_world(3)


def counts_with(value, at=(2, 5)):
    dense = WORLD.regions.expression.toarray()
    dense[at] = value
    return csr_array(dense)


def swap(array, row, value):
    copy = np.array(array)
    copy[row] = value
    return copy


REGION_FAULTS = {
    "repeats": {"region_id": ("a", "a", *WORLD.regions.region_id[2:])},
    "is empty": {"region_id": ("", *WORLD.regions.region_id[1:])},
    "patients": {"patient_id": ("other", *WORLD.regions.patient_id[1:])},
    "entries": {"slide_id": WORLD.regions.slide_id[1:]},
    "not finite in row 4": {"xy_um": swap(WORLD.regions.xy_um, 4, np.nan)},
    "radius_um is nan": {"radius_um": np.nan},
    "check the unit": {"radius_um": 55.0, "pitch_um": 100.0},
    "no integers": {"expression": counts_with(1.5)},
    "negative": {"expression": counts_with(-1)},
    "not finite": {"expression": counts_with(np.nan)},
    "looks transposed": {"expression": csr_array(WORLD.regions.expression.T)},
    "not observed": {"gene_observed": swap(WORLD.regions.gene_observed, 1, False)},
}


@pytest.mark.parametrize("message", REGION_FAULTS)
def test_regions_refuse_what_does_not_hold_up(message):
    with pytest.raises(DataError, match=message):
        replace(WORLD.regions, **REGION_FAULTS[message])


TYPES = ("T cell", "", "tumour") * (len(WORLD.cells) // 3) + ("T cell",) * (len(WORLD.cells) % 3)
SHARES = np.linspace(0, 1, len(WORLD.cells), dtype=np.float32)
CELL_FAULTS = {
    "not finite in row 7": {"features": swap(WORLD.cells.features, 7, np.inf)},
    "xy_um of the cells of toy-a is not finite": {"xy_um": swap(WORLD.cells.xy_um, 1, np.nan)},
    "has no area": {"area_um2": swap(WORLD.cells.area_um2, 9, 0)},
    "encoder_id is ''": {"encoder_id": ""},
    "cell_type has 2": {"cell_type": ("a", "b")},
    "cell_type of toy-a is ' T cell'": {"cell_type": (" T cell", *TYPES[1:])},
    "type_probability and no cell_type": {"type_probability": SHARES},
    "type_probability of cell 4 .* is 1.5; wanted 0 to 1": {
        "cell_type": TYPES,
        "type_probability": swap(SHARES, 4, 1.5),
    },
    "outlines has": {"outlines": WORLD.cells.outlines.take(np.arange(5))},
}


@pytest.mark.parametrize("message", CELL_FAULTS)
def test_cells_refuse_what_does_not_hold_up(message):
    with pytest.raises(DataError, match=message):
        replace(WORLD.cells, **CELL_FAULTS[message])


def test_an_unknown_unit_is_refused():
    with pytest.raises(DataError, match="expression unit 'cpm'; wanted one of"):
        check_unit("cpm")


def test_nouns_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        WORLD.cells.xy_um[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        WORLD.regions.expression.data[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        replace(WORLD.cells, cell_type=TYPES, type_probability=SHARES.copy()).type_probability[
            0
        ] = 0
    with pytest.raises(AttributeError):
        WORLD.cells.slide_id = "other"


def test_taken_cells_keep_their_outlines():
    rows = np.array([17, 3, 3, 101])
    some = WORLD.cells.take(rows)
    for new, old in enumerate(rows):
        first, last = WORLD.cells.outlines.start[old : old + 2]
        start, end = some.outlines.start[new : new + 2]
        assert np.array_equal(
            some.outlines.xy_um[start:end], WORLD.cells.outlines.xy_um[first:last]
        )
        assert np.array_equal(some.features[new], WORLD.cells.features[old])


def test_taken_cells_keep_their_types():
    cells = replace(WORLD.cells, cell_type=TYPES, type_probability=swap(SHARES, 3, np.nan))
    some = cells.take(np.array([17, 3, 0]))
    assert some.cell_type == (TYPES[17], TYPES[3], TYPES[0])
    np.testing.assert_array_equal(some.type_probability, [SHARES[17], np.nan, SHARES[0]])


def test_an_outline_needs_three_vertices():
    with pytest.raises(DataError, match="fewer than 3"):
        Outlines(np.zeros((5, 2), np.float32), np.array([0, 3, 5]))


def test_taken_regions_keep_their_counts():
    rows = np.array([5, 0, 11])
    some = WORLD.regions.take(rows)
    assert some.region_id == tuple(WORLD.regions.region_id[row] for row in rows)
    dense = WORLD.regions.expression.toarray()
    assert np.array_equal(some.expression.toarray(), dense[rows])


def test_aligned_genes_are_masked_where_missing_and_never_zero_by_invention():
    ids = WORLD.regions.genes.ids
    wanted = GenePanel((ids[4], "ENSG99999999999", ids[0]), ("B", "new", "A"), "ensembl")
    aligned = WORLD.regions.align(wanted)
    dense = WORLD.regions.expression.toarray()
    assert aligned.gene_observed.tolist() == [True, False, True]
    assert np.array_equal(aligned.expression.toarray()[:, [0, 2]], dense[:, [4, 0]])
    assert aligned.expression.toarray()[:, 1].sum() == 0


def test_align_refuses_other_names():
    symbols = GenePanel(("ALPHA1",), ("ALPHA1",), "symbol")
    with pytest.raises(MismatchError, match="ensembl here and by symbol"):
        WORLD.regions.align(symbols)
    with pytest.raises(MismatchError, match="none of the 1 genes"):
        WORLD.regions.align(GenePanel(("ENSG99999999999",), ("x",), "ensembl"))


def test_a_gene_panel_has_no_repeats_and_no_versions():
    with pytest.raises(DataError, match=r"gene panel repeats 'ACTB' \(columns 1, 3\)"):
        GenePanel(("A", "ACTB", "B", "ACTB"), ("A", "ACTB", "B", "ACTB"), "symbol")
    with pytest.raises(DataError, match="carries a version"):
        GenePanel(("ENSG00000075624.17",), ("ACTB",), "ensembl")
    with pytest.raises(DataError, match="symbols"):
        GenePanel(("A", "B"), ("A",), "symbol")


def test_provenance_survives_json_and_refuses_what_json_cannot_say():
    made = Provenance("here", {"rings_um": (250.0, 450.0), "n": 3}, {"slide": "ab"})
    assert Provenance.from_json(made.to_json()) == made
    assert Provenance("here", {"n": 4}).key != Provenance("here", {"n": 3}).key
    for value in (np.float32(1), float("nan"), object()):
        with pytest.raises(DataError, match="cannot be written as JSON"):
            Provenance("here", {"x": value})
    with pytest.raises(DataError, match="no provenance record"):
        Provenance.from_json("{}")


def test_a_prediction_is_nan_for_a_whole_region_or_not_at_all():
    regions = WORLD.regions
    mean = np.ones((len(regions), len(regions.genes)), np.float32)
    parts = {
        "kind": "spot",
        "region_id": regions.region_id,
        "slide_id": regions.slide_id,
        "xy_um": regions.xy_um,
        "genes": regions.genes,
        "unit": "counts",
        "model_id": "m",
        "provenance": Provenance("test"),
    }
    mean[3] = np.nan
    assert len(Prediction(mean=mean, **parts)) == len(regions)
    mean[4, 2] = np.nan
    with pytest.raises(DataError, match=regions.region_id[4]):
        Prediction(mean=mean, **parts)


def test_every_error_has_its_exit_code():
    import_module("histoscribe.app.cohort")  # brings one of its own
    codes = {error.exit_code for error in HistoscribeError.__subclasses__()}
    assert codes == {2, 3, 4, 5, 6}


def test_the_toy_slide_reads_areas_and_is_white_outside():
    slide = WORLD.slide
    assert isinstance(slide, Slide)
    part = slide.read(Box(100.0, 60.0, 33.0, 21.0), 1.5)
    assert part.shape == (14, 22, 3)
    mean = slide.pixels[120:162, 200:266].mean(axis=(0, 1))  # 60..81 µm and 100..133 µm at 0.5
    assert np.abs(part.mean(axis=(0, 1)) - mean).max() < 0.6
    corner = slide.read(Box(-30.0, -20.0, 30.0, 20.0), 0.5)
    assert (corner == 255).all()
    exact = slide.read(Box(50.0, 40.0, 11.5, 7.0), 0.5)
    assert np.array_equal(exact, slide.pixels[80:94, 100:123])


def test_the_toy_world_plants_what_it_says():
    again = toy_world(3)
    assert np.array_equal(again.slide.pixels, WORLD.slide.pixels)
    assert (again.regions.expression != WORLD.regions.expression).nnz == 0
    row, column = (WORLD.cells.xy_um / 0.5).astype(int).T[::-1]
    darkness = 255 - WORLD.slide.pixels[row, column].mean(axis=1)
    kind = WORLD.kind_of_cell
    assert darkness[kind == 0].max() < darkness[kind == 1].min()
    assert len(toy_world(3, has_lumen=True).cells) < len(WORLD.cells)
