"""A million nuclei: found once each, in bounded memory, in time linear in the slide's area.

    python benchmarks/million_cells.py                                   # all four sizes, one-shot
    python benchmarks/million_cells.py --size 5000 --size 10000          # to look at the slope
    python benchmarks/million_cells.py --segmenter instanseg --size 4000 --no-one-shot

Slides of 0.5 µm/px with 2,500 planted nuclei per mm² (`planted_slide.py`; 40,000 px are a million)
are prepared with the classical segmenter and the toy encoder, each in a process of its own, from
opening the file to sealed stores. Centroids are matched one to one with the planted ones within
2 µm; centres are at least 10 µm apart. Two found nuclei are one, doubled, if their outlines share
more than a tenth of the smaller: a pixel belongs to one nucleus of a field, so only two fields can
give such a pair. A planted nucleus whose halves were found as two (5 µm) is split, which is the
segmenter's doing and counts against precision.

Bars: under 4 GiB at the peak, recall and precision of at least 0.99, none doubled, an
exponent of time over area of at most 1.05 over the four sizes; and on 4,000 px the nuclei of 81
fields are those of one field that sees all at once, in place and area, bit by bit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from histoscribe.data.cells import Cells
from histoscribe.data.store import read_cells, write_cells, write_tiles
from histoscribe.preprocess.line.budget import Budget
from histoscribe.preprocess.nuclei import overlap_of_smaller
from histoscribe.preprocess.preparation import PrepareConfig, plan_preparation
from histoscribe.preprocess.run import carry_out, discard
from histoscribe.slides.open import open_slide
from planted_slide import PlantedSlide, write_slide

SIZES_PX = (5_000, 10_000, 20_000, 40_000)
ONE_SHOT_PX = 4_000
FIELD_PX, OVERLAP_PX = 512, 64
MATCH_UM, SPLIT_UM, NEAR_UM = 2.0, 5.0, 12.0
DOUBLED_SHARE = 0.1
BAR_GIB, BAR_FOUND, BAR_EXPONENT = 4.0, 0.99, 1.05
GIB = 2**30


def prepare(slide: Path, out: Path, segmenter: str, field_px: int, memory_gb: float) -> None:
    """What the child does: one slide to sealed stores; prints what it took."""
    started = time.perf_counter()
    config = PrepareConfig(
        segmenter=segmenter, encoder="toy", field_px=field_px, overlap_px=OVERLAP_PX
    )
    preparation = plan_preparation(open_slide(slide), None, config)
    planned = time.perf_counter()
    times: dict[str, Any] = {}
    cells, tiles = carry_out(
        preparation,
        workspace=out / "parts",
        budget=Budget(memory_gb),
        on_end=lambda one: times.update(one.times.to_record()),
    )
    carried = time.perf_counter()
    write_cells(cells, out)
    write_tiles(tiles, out)
    discard(out / "parts")
    ended = time.perf_counter()
    took = {
        "seconds": ended - started,
        "cpu_seconds": time.process_time(),
        "plan_seconds": planned - started,
        "store_seconds": ended - carried,
        "peak_gib": peak_gib(),
        "times": times,
    }
    print(json.dumps(took))


def peak_gib() -> float:
    """The most memory this process has had, pages of mapped files included."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / GIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def run_child(slide: Path, out: Path, asked: argparse.Namespace, field_px: int) -> dict[str, Any]:
    """Prepare a slide in a process of its own."""
    command = [sys.executable, __file__, "--child", str(slide), "--out", str(out)]
    command += ["--segmenter", asked.segmenter, "--field-px", str(field_px)]
    command += ["--memory", str(asked.memory)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def slide_of(folder: Path, size_px: int) -> tuple[PlantedSlide, Path]:
    """The slide of a size, written if it is not there."""
    planted, path = PlantedSlide(size_px), folder / f"planted-{size_px}.tif"
    if not path.is_file():
        beside = path.with_suffix(".new.tif")
        write_slide(planted, beside)
        beside.rename(path)
    return planted, path


def compare(found: Cells, planted_um: np.ndarray) -> dict[str, float]:
    """Recall, precision, planted nuclei found in halves, and nuclei that two fields gave."""
    distance, nearest = KDTree(planted_um).query(found.xy_um)
    matched = np.unique(nearest[distance <= MATCH_UM])  # one to one: the rest of a pair is extra
    n_near = np.bincount(nearest[distance <= SPLIT_UM], minlength=len(planted_um))
    pairs = KDTree(found.xy_um).query_pairs(NEAR_UM, output_type="ndarray")
    assert found.outlines is not None
    return {
        "recall": len(matched) / len(planted_um),
        "precision": len(matched) / max(len(found), 1),
        "split": int((n_near > 1).sum()),
        "doubled": int((overlap_of_smaller(found.outlines, pairs) > DOUBLED_SHARE).sum()),
    }


def measure(folder: Path, size_px: int, asked: argparse.Namespace) -> dict[str, Any]:
    """One size: prepare, and hold what was found against what was planted."""
    planted, path = slide_of(folder, size_px)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        took = run_child(path, Path(out), asked, FIELD_PX)
        found = read_cells(Path(out))
    row = {"size_px": size_px, "n_planted": len(planted), "n_found": len(found), **took}
    return {**row, **compare(found, planted.centres_um())}


def same_as_one_shot(folder: Path, asked: argparse.Namespace) -> str:
    """Whether fields give just what one field over all gives: centroids and areas."""
    _, path = slide_of(folder, ONE_SHOT_PX)
    made = []
    for field_px in (FIELD_PX, -(-(ONE_SHOT_PX + OVERLAP_PX) // 16) * 16):
        with tempfile.TemporaryDirectory(dir=folder) as out:
            run_child(path, Path(out), asked, field_px)
            cells = read_cells(Path(out))
        made.append(np.column_stack([cells.xy_um, cells.area_um2]))
    fields, one_shot = ({tuple(row) for row in one.tolist()} for one in made)
    is_same = len(made[0]) == len(made[1]) and fields == one_shot
    return (
        f"{ONE_SHOT_PX} px: {len(made[0])} nuclei by fields, {len(made[1])} in one shot, "
        f"{len(fields ^ one_shot)} differ in place or area: {verdict(is_same)}"
    )


def exponent(rows: list[dict[str, Any]], key: str) -> float:
    """Slope of log time over log area."""
    area = [2 * np.log(row["size_px"]) for row in rows]
    return float(np.polyfit(area, [np.log(row[key]) for row in rows], 1)[0])


def verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def report(rows: list[dict[str, Any]]) -> None:
    """The table, and each bar."""
    columns = "side, px | nuclei | found | s | CPU s | peak, GiB | recall | precision"
    print(f"| {columns} | split | doubled |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['size_px']:,} | {row['n_planted']:,} | {row['n_found']:,} "
            f"| {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['peak_gib']:.2f} "
            f"| {row['recall']:.5f} | {row['precision']:.5f} "
            f"| {row['split']} | {row['doubled']} |"
        )
    print()
    peak = max(row["peak_gib"] for row in rows)
    least = min(min(row["recall"], row["precision"]) for row in rows)
    n_doubled = sum(row["doubled"] for row in rows)
    print(f"- peak {peak:.2f} GiB, bar {BAR_GIB:g}: {verdict(peak < BAR_GIB)}")
    print(f"- recall and precision {least:.5f}, bar {BAR_FOUND}: {verdict(least >= BAR_FOUND)}")
    print(f"- doubled {n_doubled}, bar 0: {verdict(not n_doubled)}")
    if len(rows) > 1:
        slope = exponent(rows, "seconds")
        print(
            f"- exponent of time over area {slope:.3f} ({exponent(rows, 'cpu_seconds'):.3f} of CPU "
            f"time), bar {BAR_EXPONENT}: {verdict(slope <= BAR_EXPONENT)}"
        )
    for row in rows:
        shares = {name: round(busy, 1) for name, busy in row["times"]["busy_s"].items()}
        print(
            f"- {row['size_px']:,} px: {row['plan_seconds']:.1f} s to plan, "
            f"{row['store_seconds']:.1f} s to store; busy, s: {shares}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, action="append", help="side in px; may be repeated")
    parser.add_argument("--segmenter", default="threshold")
    parser.add_argument("--memory", type=float, default=4.0, help="GB that are asked for")
    parser.add_argument("--folder", type=Path, help="where slides are kept for the next time")
    parser.add_argument("--no-one-shot", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--field-px", type=int, default=FIELD_PX, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    asked = parse()
    if asked.child:
        prepare(asked.child, asked.out, asked.segmenter, asked.field_px, asked.memory)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"Segmenter {asked.segmenter}, {os.cpu_count()} cores, {asked.memory:g} GB asked.\n")
        report([measure(folder, size_px, asked) for size_px in asked.size or SIZES_PX])
        if not asked.no_one_shot:
            print(f"- {same_as_one_shot(folder, asked)}")


if __name__ == "__main__":
    main()
