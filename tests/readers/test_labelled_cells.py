"""A small set of cells, hand-made: three types, two donors, each type with genes of its own."""

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from histoscribe.data.texts import Texts
from histoscribe.errors import ConfigError, DataError
from histoscribe.readers.cell_scale import find_cell_scale
from histoscribe.readers.labelled_cells import LabelledCellsConfig, read_labelled_cells

N_CELLS, N_GENES = 60, 41
TYPES = ("B cell", "T cell", "unknown")
IDS = {"B cell": "CL:0000236", "T cell": "CL:0000084", "unknown": "unknown"}
EASY = LabelledCellsConfig(min_genes=3, min_cells=2)


def counts():
    chance = np.random.default_rng(3)
    rate = np.where(np.arange(N_GENES) % 3 == np.arange(N_CELLS)[:, None] % 3, 4.0, 0.6)
    return chance.poisson(rate * chance.uniform(0.5, 3, (N_CELLS, 1))).astype(np.float32)


COUNTS = counts()
CP10K = 1e4 * COUNTS / COUNTS.sum(axis=1, keepdims=True)
LABELS = np.array([TYPES[row % 3] for row in range(N_CELLS)])
DONORS = np.array([f"d{row % 2}" for row in range(N_CELLS)])


def cells(X=None, **parts):
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(LABELS),
            "cell_type_ontology_term_id": pd.Categorical([IDS[name] for name in LABELS]),
            "tissue": "lung",
            "disease": "normal",
            "donor_id": pd.Categorical(DONORS),
            "assay": "10x 3' v3",
        },
        index=[f"cell{row}" for row in range(N_CELLS)],
    )
    var = pd.DataFrame(
        {"feature_name": [f"S{column}" for column in range(N_GENES)]},
        index=[f"ENSG{column:011d}" for column in range(N_GENES)],
    )
    return ad.AnnData(X=csr_matrix(COUNTS) if X is None else X, obs=obs, var=var, **parts)


def written(tmp_path, table, form=".h5ad") -> Path:
    """As .h5ad, or as Zarr of format 2 or 3."""
    path = tmp_path / ("cells.h5ad" if form == ".h5ad" else "cells.zarr")
    if form == ".h5ad":
        table.write_h5ad(path)
        return path
    with ad.settings.override(zarr_write_format=form), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what AnnData and Zarr will change one day
        table.write_zarr(path)
    return path


def mean_of(label, donor=None):
    rows = (label == LABELS) & (True if donor is None else donor == DONORS)
    return np.log1p(CP10K[rows].mean(axis=0))


@pytest.mark.parametrize("suffix", [".h5ad", 2, 3])
@pytest.mark.parametrize("form", [csr_matrix, csc_matrix, np.asarray])
def test_means_of_each_annotation_and_donor(tmp_path, suffix, form):
    said = read_labelled_cells(written(tmp_path, cells(form(COUNTS)), suffix), EASY)
    profiles = said.profiles
    assert profiles.label == ("B cell", "B cell", "T cell", "T cell")
    assert profiles.donor_id == ("d0", "d1", "d0", "d1")
    assert profiles.platform == ("10x 3' v3",) * 4
    assert profiles.text_key == ("CL:0000236",) * 2 + ("CL:0000084",) * 2
    assert profiles.text[0] == "B cell from healthy lung"
    assert profiles.profile_id[0] == "B cell | lung | normal | 10x 3' v3 | d0"
    assert profiles.genes.namespace == "ensembl"
    assert profiles.genes.symbols[7] == "S7"
    wanted = [mean_of(label, donor) for label in ("B cell", "T cell") for donor in ("d0", "d1")]
    np.testing.assert_allclose(profiles.expression.toarray(), wanted, rtol=1e-5)
    assert said.texts.wordings("CL:0000236") == ("B cell from healthy lung", "B cell")
    assert said.report.without_label == N_CELLS // 3
    assert said.report.labels == {"B cell": 20, "T cell": 20}
    assert "counts" in said.report.describe()
    assert f"{N_CELLS // 3} cells have no label" in said.report.describe()


def test_means_of_an_annotation_have_no_donor_unless_there_is_one(tmp_path):
    table = cells()
    table.obs["donor_id"] = np.where(LABELS == "T cell", "d1", DONORS)
    config = LabelledCellsConfig(pseudobulk="annotation", min_genes=3)
    profiles = read_labelled_cells(written(tmp_path, table), config).profiles
    assert profiles.donor_id == ("", "d1")
    np.testing.assert_allclose(
        profiles.expression.toarray(), [mean_of("B cell"), mean_of("T cell")], rtol=1e-5
    )


@pytest.mark.parametrize("base", ["ln1p", "log2p1", "log10p1", "linear"])
def test_the_scale_is_found_and_does_not_matter(tmp_path, base):
    form = {
        "ln1p": np.log1p,
        "log2p1": lambda x: np.log2(x + 1),
        "log10p1": lambda x: np.log10(x + 1),
    }
    values = form.get(base, lambda x: x)(CP10K).round(4)
    said = read_labelled_cells(written(tmp_path, cells(csr_matrix(values))), EASY)
    assert said.report.scale == base
    np.testing.assert_allclose(
        said.profiles.expression.toarray()[0], mean_of("B cell", "d0"), rtol=2e-3
    )


def test_counts_are_preferred_wherever_they_are(tmp_path):
    logs = csr_matrix(np.log1p(CP10K))
    layered = cells(logs, layers={"spliced": csr_matrix(COUNTS * 2), "counts": csr_matrix(COUNTS)})
    assert read_labelled_cells(written(tmp_path, layered), EASY).report.matrix == "layers/counts"
    raw = cells(csr_matrix(COUNTS))
    raw.raw = raw.copy()
    raw.X = logs
    said = read_labelled_cells(written(tmp_path, raw), EASY)
    assert said.report.matrix == "raw"
    told = LabelledCellsConfig(matrix="X", min_genes=3)
    assert read_labelled_cells(written(tmp_path, raw), told).report.scale == "ln1p"


def test_scaled_values_are_refused_unless_raw_is_there(tmp_path):
    scaled = (CP10K - CP10K.mean(axis=0)) / CP10K.std(axis=0)
    with pytest.raises(DataError, match="scaled or corrected"):
        read_labelled_cells(written(tmp_path, cells(scaled)), EASY)
    raw = cells(csr_matrix(np.log1p(CP10K)))
    raw.raw = raw.copy()
    raw.X = scaled
    assert read_labelled_cells(written(tmp_path, raw), EASY).report.matrix == "raw"


def test_values_of_no_known_scale_are_refused_unless_told(tmp_path):
    smooth = np.random.default_rng(0).gamma(2.0, 1.0, COUNTS.shape)
    path = written(tmp_path, cells(smooth))
    with pytest.raises(DataError, match="may be linear or a logarithm"):
        read_labelled_cells(path, EASY)
    told = read_labelled_cells(path, LabelledCellsConfig(scale="linear", min_genes=3))
    assert told.report.scale_reason == "as given"


@pytest.mark.parametrize(
    ("values", "told", "said"),
    [
        (COUNTS, "ln1p", "whole numbers"),
        (CP10K, "counts", "fractions"),
        (CP10K, "ln1p", "no logarithm"),
        ((COUNTS > 0).astype(float), None, "not in one scale alone"),
        (np.log1p(CP10K), "linear", "only read as ln1p"),
        (COUNTS * 0, None, "no value but 0"),
        (COUNTS * np.nan, None, "scaled or"),
    ],
)
def test_scales_that_contradict_the_values(values, told, said):
    cells = [row[row != 0].astype(np.float64) for row in values]
    with pytest.raises(DataError, match=said):
        find_cell_scale(cells, "here", told)


def test_single_cells_are_drawn_by_seed_and_stand_as_they_are(tmp_path):
    path = written(tmp_path, cells())
    config = LabelledCellsConfig(pseudobulk="none", n_cells=3, min_genes=3, seed=1)
    one, again = (read_labelled_cells(path, config).profiles for _ in range(2))
    assert one.profile_id == again.profile_id
    assert sorted(one.label) == ["B cell"] * 3 + ["T cell"] * 3
    for number, name in enumerate(one.profile_id):
        row = int(name.removeprefix("cell cell"))
        np.testing.assert_allclose(
            one.expression.toarray()[number], np.log1p(CP10K[row]), rtol=1e-5
        )
        assert one.donor_id[number] == DONORS[row]
    other = read_labelled_cells(path, LabelledCellsConfig(n_cells=3, min_genes=3, seed=2))
    assert other.report.n_means == 4
    assert set(other.profiles.profile_id[4:]) != set(one.profile_id)


def test_poor_cells_and_small_groups_are_left_out_and_counted(tmp_path):
    table = cells()
    few = (COUNTS > 0).sum(axis=1)
    least = int(np.median(few)) + 1
    config = LabelledCellsConfig(min_genes=least, min_cells=6)
    said = read_labelled_cells(written(tmp_path, table), config)
    is_named = LABELS != "unknown"
    assert said.report.below_min_genes == int((is_named & (few < least)).sum())
    rows = [(t == LABELS) & (d == DONORS) & (few >= least) for t in TYPES[:2] for d in ("d0", "d1")]
    assert said.report.n_means == sum(int(group.sum()) >= 6 for group in rows)
    assert len(said.report.small_groups) == sum(0 < int(group.sum()) < 6 for group in rows)
    n = len(said.report.small_groups)
    assert f"{n} annotations have too few cells for a mean" in said.report.describe()
    with pytest.raises(DataError, match="lower min_genes"):
        read_labelled_cells(written(tmp_path, table), LabelledCellsConfig(min_genes=99))
    with pytest.raises(DataError, match="lower min_cells"):
        read_labelled_cells(
            written(tmp_path, table), LabelledCellsConfig(min_cells=99, min_genes=3)
        )


def test_genes_by_column_of_ids_and_twins_are_one(tmp_path):
    table = cells()
    table.var["gene_ids"] = [f"ENSG{max(column, 1):011d}.{column}" for column in range(N_GENES)]
    table.var_names = [f"S{column}" for column in range(N_GENES)]
    del table.var["feature_name"]
    profiles = read_labelled_cells(written(tmp_path, table), EASY).profiles
    assert len(profiles.genes) == N_GENES - 1
    assert profiles.genes.symbols[:2] == ("S0", "S2")
    rows = (LABELS == "B cell") & (DONORS == "d0")
    np.testing.assert_allclose(
        np.expm1(profiles.expression.toarray()[0, 0]), CP10K[rows, :2].sum(axis=1).mean(), rtol=1e-4
    )


def test_labels_texts_donors_and_platforms_that_are_told(tmp_path):
    table = cells()
    table.obs = pd.DataFrame(
        {"kind": LABELS, "note": [f"seen as {name}" for name in LABELS]}, index=table.obs_names
    )
    path = written(tmp_path, table)
    with pytest.raises(DataError, match=r"no column is known to be the label.*kind, note"):
        read_labelled_cells(path, EASY)
    config = LabelledCellsConfig(label="kind", text="note", platform="p", min_genes=3)
    said = read_labelled_cells(path, config, Texts(("b cell",), ("a lymphocyte",)))
    assert said.profiles.text == ("seen as unknown", "seen as B cell", "seen as T cell")
    assert said.profiles.text_key == ("seen as unknown", "b cell", "t cell")
    assert said.profiles.platform == ("p",) * 3
    assert said.profiles.donor_id == ("",) * 3
    assert said.texts.wordings("b cell") == ("seen as B cell", "a lymphocyte")
    with pytest.raises(DataError, match="no column 'other' for the label"):
        read_labelled_cells(path, LabelledCellsConfig(label="other"))


def test_what_is_no_annotated_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_labelled_cells(tmp_path / "none.h5ad")
    (tmp_path / "x.h5ad").write_text("no table")
    with pytest.raises(DataError, match="cannot be read as AnnData"):
        read_labelled_cells(tmp_path / "x.h5ad")
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"wanted \.h5ad"):
        read_labelled_cells(tmp_path / "x.csv")
    with pytest.raises(DataError, match="no matrix 'layers/y'; it has X"):
        read_labelled_cells(written(tmp_path, cells()), LabelledCellsConfig(matrix="layers/y"))


def test_settings_that_ask_for_nothing_are_refused():
    with pytest.raises(ConfigError, match="assay"):
        LabelledCellsConfig(about=("assay",))
    with pytest.raises(ConfigError, match="n_cells"):
        LabelledCellsConfig(pseudobulk="none")


def test_the_same_file_gives_the_same_provenance_and_another_another(tmp_path):
    path = written(tmp_path, cells())
    one = read_labelled_cells(path, EASY).profiles.provenance
    assert read_labelled_cells(path, EASY).profiles.provenance == one
    path = written(tmp_path, cells(csr_matrix(COUNTS + (COUNTS > 3))))
    assert read_labelled_cells(path, EASY).profiles.provenance.key != one.key


@pytest.fixture
def labelled_dir(data_dir) -> Path:
    folder = data_dir / "labelled_cells"
    if not folder.is_dir():
        pytest.skip("no folder labelled_cells beside the real data, with the .h5ad of two packages")
    return folder


def test_pbmc_of_an_old_layout_is_read_from_raw(labelled_dir):
    path = labelled_dir / "10x_pbmc68k_reduced.h5ad"
    said = read_labelled_cells(path, LabelledCellsConfig(label="bulk_labels"))
    assert (said.report.matrix, said.report.scale) == ("raw", "ln1p")
    assert (said.report.n_cells, said.report.n_means, len(said.report.labels)) == (700, 10, 10)
    assert said.profiles.genes.ids[0] == "HES4"


def test_pancreas_has_nine_types_and_its_counts_in_raw(labelled_dir):
    path = labelled_dir / "pancreas_downsample200CT.h5ad"
    said = read_labelled_cells(path)
    assert (said.report.matrix, said.report.scale) == ("raw", "counts")
    assert (said.report.n_cells, len(said.report.labels)) == (3274, 9)
    assert said.profiles.genes.ids[0] == "ENSG00000121410"
