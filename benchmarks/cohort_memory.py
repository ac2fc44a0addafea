"""Peak memory of a fit against the number of slides: each slide more should cost little.

    python benchmarks/cohort_memory.py --slides 2,4,8 --cells 100000

Each slide is a whole sample of one patient, drawn as in `whole_slide.py`, written to a store and
read back, as `histoscribe fit` does; the figures are of cost, and say nothing of quality. Each
number of slides runs in a process of its own. Three figures of each: all memory at its peak
(pages of files included, which the system takes back when it needs them), that which is in no file
(which it cannot take back), and how much more of the latter each added slide takes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from histoscribe.data.splits import Split
from histoscribe.data.store import read_cells, read_tiles, write_cells, write_tiles
from histoscribe.train.assemble import SlideData
from histoscribe.train.fit import fit
from histoscribe.train.fit_config import FitConfig
from whole_slide import make_panel, make_slide

KEYS = ("VmRSS", "RssAnon")


def memory_mib() -> dict[str, float]:
    """Memory of this process: all of it, and that which is in no file."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {f[0][:-1]: int(f[1]) / 1024 for f in lines if f and f[0][:-1] in KEYS}


def watch(peak: dict[str, float], is_done: threading.Event) -> None:
    """Keep the peaks; looked at fifty times a second."""
    while not is_done.wait(0.02):
        peak.update({key: max(peak[key], now) for key, now in memory_mib().items()})


def read_slide(number: int, n_cells: int) -> SlideData:
    """Slide of a patient, drawn in memory and read back from a store."""
    drawn, name = make_slide(n_cells, make_panel(200)), f"slide-{number}"
    regions = replace(drawn.regions, region_id=(name,), slide_id=(name,), patient_id=(name,))
    with tempfile.TemporaryDirectory() as folder:
        write_cells(replace(drawn.cells, slide_id=name), Path(folder))
        write_tiles(replace(drawn.tiles, slide_id=name), Path(folder))
        return SlideData(read_cells(Path(folder)), read_tiles(Path(folder)), regions)


def measure(n_slides: int, n_cells: int) -> dict[str, float]:
    """Seconds of a fit of one epoch on so many slides, and the peaks of this process."""
    slides = [read_slide(number, n_cells) for number in range(n_slides)]
    split = Split(tuple(slide.slide_id for slide in slides), ("another",), "patient")
    config = FitConfig(target_space="log1p_tpm", max_epochs=1, n_folds=2)
    peak, is_done = dict.fromkeys(KEYS, 0.0), threading.Event()
    watcher = threading.Thread(target=watch, args=(peak, is_done))
    watcher.start()
    started = time.monotonic()
    try:
        fit(slides, split, make_panel(200), config=config)
    finally:
        is_done.set()
        watcher.join()
    return {**peak, "seconds": time.monotonic() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", default="2,4,8")
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.cells)))
        return
    print(f"Slides of {options.cells:,} cells\n")
    print("| slides | peak, MiB | of it in no file, MiB | the same a slide more, MiB | s |")
    print("|---|---|---|---|---|")
    before: tuple[int, float] | None = None
    for n_slides in map(int, options.slides.split(",")):
        command = [sys.executable, __file__, "--one", n_slides, "--cells", options.cells]
        made = subprocess.run(
            list(map(str, command)), stdout=subprocess.PIPE, check=True, text=True
        )
        found = json.loads(made.stdout.splitlines()[-1])
        own = found["RssAnon"]
        more = "" if before is None else f"{(own - before[1]) / (n_slides - before[0]):.0f}"
        print(
            f"| {n_slides} | {found['VmRSS']:.0f} | {own:.0f} | {more} | {found['seconds']:.0f} |"
        )
        before = (n_slides, own)


if __name__ == "__main__":
    main()
