from pathlib import Path

import numpy as np
import pytest

from histoscribe.demo_data.folder import demo_folder
from histoscribe.readers.legacy_st import her2st_manifest
from histoscribe.readers.manifest import read_manifest, write_manifest
from histoscribe.readers.sample import read_sample
from histoscribe.slides.open import open_slide
from histoscribe.types import Box


def test_the_embedded_section_reads() -> None:
    (row,) = read_manifest(demo_folder() / "manifest.csv")
    slide = open_slide(row.slide, row.mpp, row.sample)
    read = read_sample(row, slide)
    assert read is not None
    regions, report = read
    assert (len(regions), len(regions.genes)) == (49, 1999)
    assert (regions.region_id[0], regions.region_id[-1]) == (
        "AAATTGCGGCGGTTCT-1",
        "TTCGCATCCGGAAGCA-1",
    )
    assert regions.genes.namespace == "ensembl"
    assert report.measured_pitch_um == pytest.approx(100, rel=0.01)
    # the spots lie on tissue: the discs are more coloured than the glass in the corner
    glass = slide.read(Box(0.0, 0.0, 60.0, 60.0), 1.0).astype(float)
    for x, y in regions.xy_um:
        disc = slide.read(Box(float(x) - 20, float(y) - 20, 40.0, 40.0), 1.0).astype(float)
        assert np.ptp(disc.mean((0, 1))) > 3 * np.ptp(glass.mean((0, 1)))


def test_the_embedded_section_is_small_and_credited() -> None:
    files = {path.name: path.stat().st_size for path in demo_folder().iterdir() if path.is_file()}
    assert sum(files.values()) < 1_000_000
    assert {"CREDITS.md", "LICENSE-squidpy"} <= set(files)


def test_a_slide_without_counts_has_no_regions(tmp_path: Path) -> None:
    image = (demo_folder() / "visium_crop.jpg").as_posix()
    path = tmp_path / "manifest.csv"
    path.write_text(f"sample,patient,slide,mpp,expression\nA,p,{image},0.7252,\n")
    (row,) = read_manifest(path)
    assert read_sample(row, open_slide(row.slide, row.mpp, row.sample)) is None


def test_published_sections_read_by_a_manifest(data_dir: Path, tmp_path: Path) -> None:
    write_manifest(her2st_manifest(data_dir / "her2st", 0.69), tmp_path / "manifest.csv")
    rows = read_manifest(tmp_path / "manifest.csv")
    assert [row.sample for row in rows] == ["C2", "C3", "C4", "C5"]
    read = read_sample(rows[0], open_slide(rows[0].slide, rows[0].mpp, rows[0].sample))
    assert read is not None
    assert (len(read[0]), read[0].slide_id[0]) == (185, "C2")
