from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse import csr_matrix

from histoscribe.errors import DataError
from histoscribe.readers.spot_table import read_spot_table
from histoscribe.slides.open import open_slide
from histoscribe.slides.pyramid import PyramidSlide

N_SPOTS, N_GENES = 13, 5


def made() -> anndata.AnnData:
    """A hexagonal lattice of 200 px pitch, counts that name their spot and gene."""
    row, column = np.divmod(np.arange(N_SPOTS), 4)
    xy = np.column_stack([150 + column * 200 + row % 2 * 100, 140 + row * 200 * np.sqrt(0.75)])
    counts = 100 * np.arange(1, N_SPOTS + 1)[:, None] + np.arange(N_GENES)
    return anndata.AnnData(
        X=csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(index=[f"AAAC{n:02d}-1" for n in range(N_SPOTS)]),
        var=pd.DataFrame(
            {"gene_ids": [f"ENSMUSG000000000{n:02d}.3" for n in range(N_GENES)]},
            index=[f"Gene{n}" for n in range(N_GENES)],
        ),
        obsm={"spatial": xy},
    )


@pytest.fixture
def slide(tmp_path: Path) -> PyramidSlide:
    Image.new("RGB", (1103, 907), (220, 150, 190)).save(tmp_path / "s.png")
    return open_slide(tmp_path / "s.png", mpp=0.5, slide_id="s")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[anndata.AnnData], Path]:
    def to_file(table: anndata.AnnData) -> Path:
        table.write_h5ad(tmp_path / "s.h5ad")
        return tmp_path / "s.h5ad"

    return to_file


def test_a_table_is_read_whole(slide: PyramidSlide, write: Callable[..., Path]) -> None:
    regions, report = read_spot_table(write(made()), slide, sample_id="s", patient_id="m")
    assert (len(regions), report.n_kept, report.n_genes) == (13, 13, 5)
    assert (regions.region_id[0], regions.region_id[-1]) == ("AAAC00-1", "AAAC12-1")
    assert (regions.genes.ids[0], regions.genes.symbols[-1]) == ("ENSMUSG00000000000", "Gene4")
    assert regions.expression is not None
    assert regions.expression.toarray()[2].tolist() == [300, 301, 302, 303, 304]
    assert regions.xy_um[5] == pytest.approx([225.0, (140 + 200 * np.sqrt(0.75)) / 2])
    assert (regions.radius_um, regions.pitch_um) == (27.5, 100.0)
    assert report.measured_pitch_um == pytest.approx(100)


def without_spatial(table: anndata.AnnData) -> None:
    del table.obsm["spatial"]


def with_fraction(table: anndata.AnnData) -> None:
    table.X = np.log1p(table.X.toarray())


def without_counts(table: anndata.AnnData) -> None:
    table.X = None


def with_sparse_fraction(table: anndata.AnnData) -> None:
    table.X[2, 4] = 1.5


def with_nan_place(table: anndata.AnnData) -> None:
    table.obsm["spatial"][3, 1] = np.nan


def with_far_place(table: anndata.AnnData) -> None:
    table.obsm["spatial"][3, 1] = 5000


def with_twin_genes(table: anndata.AnnData) -> None:
    table.var["gene_ids"] = ["ENSMUSG00000000001.1", "ENSMUSG00000000001.2", "A", "B", "C"]
    table.var["gene_ids"] = [f"ENSMUSG0000000000{n // 2}.{n}" for n in range(N_GENES)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_spatial, r'no obsm\["spatial"\]'),
        (with_fraction, r"values are not whole numbers.*AAAC00-1.*not normalised"),
        (without_counts, "there is no X"),
        (with_sparse_fraction, r"1 values are not whole numbers \(first: 1\.5 in spot AAAC02-1"),
        (with_nan_place, r"1 spots have no pixel coordinates.*AAAC03-1"),
        (with_far_place, r"1 of 13 spots lie off the slide \(first: AAAC03-1"),
        (with_twin_genes, r"2 genes occur more than once"),
    ],
)
def test_a_bad_table_has_one_clear_message(
    slide: PyramidSlide,
    write: Callable[..., Path],
    spoil: Callable[[anndata.AnnData], None],
    message: str,
) -> None:
    table = made()
    spoil(table)
    with pytest.raises(DataError, match=message):
        read_spot_table(write(table), slide, sample_id="s", patient_id="m")


def test_few_spots_and_wrong_scale_are_refused(
    slide: PyramidSlide, write: Callable[..., Path]
) -> None:
    path = write(made())
    with pytest.raises(DataError, match=r"200\.0 px = 30 µm apart.*mpp 0\.5\?"):
        read_spot_table(path, open_slide(slide.path, mpp=0.15), sample_id="s", patient_id="m")
    with pytest.raises(DataError, match="at least two"):
        read_spot_table(write(made()[:1].copy()), slide, sample_id="s", patient_id="m")
    with pytest.raises(DataError, match="empty counts, 0 spots"):
        read_spot_table(write(made()[:0].copy()), slide, sample_id="s", patient_id="m")
    path.write_bytes(b"not hdf5")
    with pytest.raises(DataError, match=r"cannot be read as \.h5ad"):
        read_spot_table(path, slide, sample_id="s", patient_id="m")
    with pytest.raises(DataError, match="no such file"):
        read_spot_table(path.with_name("no.h5ad"), slide, sample_id="s", patient_id="m")
