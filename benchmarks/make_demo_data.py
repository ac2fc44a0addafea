"""Make the embedded demo data from two files of squidpy's source distribution. Run once.

    python benchmarks/make_demo_data.py tests/_data/test_img.jpg tests/_data/test_data.h5ad OUT

The expression there is log1p of counts scaled per spot. A spot's smallest value above zero is
one count, since every spot here has hundreds of genes seen once; dividing by it gives the
counts back, and the distance from whole numbers shows whether that holds.

The scale of the image is taken from the spots: Visium centres are 100 µm apart. (The file's
spot_diameter_fullres would give 0.615 µm/px if it were 55 µm; the Space Ranger of that time
meant 65 µm by it, and at 0.615 the spots would be 84 µm apart.)
"""

import hashlib
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.spatial import KDTree

PITCH_UM = 100.0
LARGEST_RESIDUAL = 0.01  # of a count


def counts_from_log(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Whole counts of log1p-scaled rows, and the largest distance from a whole number."""
    scaled = np.expm1(values.astype(np.float64))
    one_count = np.where(scaled > 0, scaled, np.inf).min(axis=1, keepdims=True)
    counts = scaled / one_count
    return np.rint(counts), float(np.abs(counts - np.rint(counts)).max())


def mpp_from_spots(xy_px: np.ndarray) -> float:
    """µm per pixel: the mean distance of neighbours (six on a full place) is the pitch."""
    nearest = np.median(KDTree(xy_px).query(xy_px, k=2)[0][:, 1])
    distance, _ = KDTree(xy_px).query(xy_px, k=7)
    neighbours = distance[:, 1:]
    return PITCH_UM / float(neighbours[neighbours < 1.2 * nearest].mean())


def main(image: Path, table: Path, out: Path) -> None:
    source = anndata.read_h5ad(table)
    counts, residual = counts_from_log(source.X.toarray())
    if residual > LARGEST_RESIDUAL:
        raise SystemExit(f"not whole counts: off by up to {residual:.3g}")
    xy_px = np.asarray(source.obsm["spatial"], dtype=np.float64)
    made = anndata.AnnData(
        X=csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(index=source.obs_names.astype(str)),
        var=pd.DataFrame(
            {"gene_ids": source.var["gene_ids"].astype(str)},
            index=source.var_names.astype(str),
        ),
        obsm={"spatial": xy_px},
    )
    out.mkdir(parents=True, exist_ok=True)
    made.write_h5ad(out / "visium_crop.h5ad", compression="gzip", compression_opts=9)
    (out / "visium_crop.jpg").write_bytes(image.read_bytes())
    mpp = round(mpp_from_spots(xy_px), 4)
    (out / "manifest.csv").write_text(
        "sample,patient,slide,mpp,expression,platform\n"
        f"visium_crop,mouse,visium_crop.jpg,{mpp},visium_crop.h5ad,h5ad\n"
    )
    totals = counts.sum(axis=1)
    print(f"{counts.shape[0]} spots x {counts.shape[1]} genes, {mpp} µm/px")
    print(f"counts off whole numbers by at most {residual:.2g}, largest count {counts.max():.0f}")
    print(f"counts per spot {totals.min():.0f} to {totals.max():.0f}")
    for path in sorted(out.iterdir()):
        print(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
