"""Two Dask workers against one on the same six slides: wall time, and whether the bytes agree.

    python benchmarks/dask_scaling.py --study /tmp/dask-scaling --data ../shared/data/her2st

Every worker is a process of its own with one task at a time and one thread of PyTorch, OpenMP and
BLAS, and may use one core (its affinity is set before it starts, for the pipeline has threads of
its own). They are workers of a scheduler that is started here, reached by the command's
`--scheduler`, as on a cluster. Scheduler and workers are up before the clock starts; the command's
own start is within it. Each round prepares a fresh study with one worker and one with two; printed
are the medians, as Markdown. Ends with PASS or FALLS SHORT.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from small_cohort import N_SLIDES, hash_stores, make_study, run

BAR = 0.65
START_S = 120


@contextlib.contextmanager
def cluster(folder: Path, cores: list[int]) -> Iterator[str]:
    """A scheduler and one worker on each of the cores; its address."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    environment = {**os.environ}
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = "1"
    environment["DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON"] = "{'MALLOC_TRIM_THRESHOLD_': None}"
    running: list[subprocess.Popen[bytes]] = []

    def launch(*words: object, core: int | None = None) -> None:
        pin = None if core is None else (lambda: os.sched_setaffinity(0, {core}))
        command = [sys.executable, "-m", "dask", *map(str, words), "--no-dashboard"]
        running.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, preexec_fn=pin)
        )

    try:
        launch("scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", file)
        address = json.loads(wait_for(file))["address"]
        for core in cores:
            launch("worker", address, "--nthreads", 1, "--memory-limit", 0, core=core)
        wait_for_workers(address, len(cores))
        yield address
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def wait_for(file: Path) -> str:
    """The scheduler's file, once it is there."""
    deadline = time.monotonic() + START_S
    while not file.exists():
        if time.monotonic() > deadline:
            raise SystemExit("the scheduler did not start")
        time.sleep(0.05)
    return file.read_text()


def wait_for_workers(address: str, n_workers: int) -> None:
    from distributed import Client

    with Client(address) as client:
        client.wait_for_workers(n_workers, timeout=START_S)


def measure(folder: Path, words: tuple[object, ...], cores: list[int]) -> float:
    """Seconds of `prepare` on a fresh study."""
    study = folder / f"with-{len(cores)}"
    shutil.rmtree(study, ignore_errors=True)
    shutil.copytree(folder / "ingested", study)
    with cluster(folder, cores) as address:
        started = time.monotonic()
        run("prepare", study, *words, "--threads", 1, "--scheduler", address)
        return time.monotonic() - started


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--study", type=Path, required=True, help="a folder to make; all goes in it"
    )
    parser.add_argument("--data", type=Path, help="her2st; the embedded slide without")
    parser.add_argument("--side", type=int, default=1600, help="of the squares of her2st, px")
    parser.add_argument("--segmenter", default="instanseg")
    parser.add_argument("--encoder", default="instanseg")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(words)
    if options.study.exists() and any(options.study.iterdir()):
        raise SystemExit(f"{options.study} is not empty; give a folder to make")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are wanted, one for each worker")
    make_study(options.study, options.data, options.side)
    print(f"load before: {os.getloadavg()[0]:.1f} on {len(cores)} cores (above 0.5: no figure)")
    asked = ("--segmenter", options.segmenter, "--encoder", options.encoder)
    spent: dict[int, list[float]] = {1: [], 2: []}
    is_same = True
    for number in range(options.rounds):
        for n_workers in (1, 2) if number % 2 == 0 else (2, 1):
            spent[n_workers].append(measure(options.study, asked, cores[:n_workers]))
            print(f"{n_workers} workers: {spent[n_workers][-1]:.1f} s", flush=True)
        one, two = (hash_stores(options.study / f"with-{n}") for n in (1, 2))
        is_same = is_same and one == two and len(one) > N_SLIDES
    ratio = median(spent[2]) / median(spent[1])
    is_pass = ratio <= BAR and is_same
    rounds = " | ".join(f"round {number + 1}, s" for number in range(options.rounds))
    print(f"\n| workers | {rounds} | median, s |")
    print("|---" * (options.rounds + 2) + "|")
    for n_workers, seconds in spent.items():
        each = " | ".join(f"{one:.1f}" for one in seconds)
        print(f"| {n_workers} | {each} | {median(seconds):.1f} |")
    print(
        f"\n{N_SLIDES} slides, {options.segmenter} and {options.encoder}; every worker one "
        f"process, one thread, one core. Two against one: {ratio:.3f} of the wall time "
        f"(bar {BAR}); stores {'byte-identical' if is_same else 'DIFFERENT'}. "
        f"{'PASS' if is_pass else 'FALLS SHORT'}"
    )
    return 0 if is_pass else 1


if __name__ == "__main__":
    sys.exit(main())
