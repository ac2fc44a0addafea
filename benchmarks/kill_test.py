"""Kill -9 a cohort at random moments, resume it, and compare every byte with an unbroken run.

    python benchmarks/kill_test.py --study /tmp/kill-test --data ../shared/data/her2st
    python benchmarks/kill_test.py --study /tmp/kill-test        (tiles of the embedded slide)

Six slides, two worker processes. A study is begun, and its whole process group is killed at a
moment drawn between its start and the time that an unbroken run takes. It is begun again, and
killed again, a few times; then it runs to its end, and the SHA-256 of every file of every sample is
compared. What was at work at a kill is read afterwards from what the dead processes had noted.

After the random moments, as many more as are needed to have hit every stage at least `--least`
times: these wait until the stage that is wanted is at work, and up to 0.1 s longer. Prints a
Markdown table; ends with PASS or FALLS SHORT.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from histoscribe.app.workspace import Workspace
from histoscribe.preprocess.line.status import read_status
from small_cohort import N_SLIDES, end_group, hash_stores, make_study, start

STAGES = ("reading", "segmenting", "encoding", "writing")
STAGE_OF = {
    "reading": "reading",
    "segmenting": "segmenting",
    "finding": "segmenting",
    "describing": "encoding",
    "writing": "writing",
}
"""What the pipeline calls its stages, and what they are counted as."""
LOOK_EVERY_S = 0.002
MOST_AIMED = 200


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        moment_s: After the start of the command.
        aimed_at: The stage that was waited for; "" at a random moment.
        busy: Stages at work, of both workers; beside `STAGES` "planning", "resuming", "joining".
        n_done: Samples that were finished before.
        n_parts: Finished parts of the others on disk.
    """

    moment_s: float
    aimed_at: str
    busy: frozenset[str]
    n_done: int
    n_parts: int


@dataclass
class Trial:
    """A study that is killed again and again, and all that was seen.

    Attributes:
        folder: Where studies are made.
        words: What `prepare` is told.
        wanted: Hashes of the unbroken run.
        seconds: What the unbroken run took.
        kills: Each kill.
        n_same: Studies that ended with the same bytes.
        n_other: Studies that did not.
    """

    folder: Path
    words: tuple[object, ...]
    wanted: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    kills: list[Kill] = field(default_factory=list)
    n_same: int = 0
    n_other: int = 0

    @property
    def study(self) -> Path:
        """The one that is killed."""
        return self.folder / "study"

    def begin(self) -> None:
        """A study in which nothing is prepared."""
        shutil.rmtree(self.study, ignore_errors=True)
        shutil.copytree(self.folder / "ingested", self.study)

    def start(self) -> subprocess.Popen[str]:
        """Begin, or go on."""
        return start("prepare", self.study, *self.words)

    def measure(self) -> None:
        """The unbroken run."""
        self.begin()
        started = time.monotonic()
        self.finish()
        self.seconds = time.monotonic() - started
        self.wanted = hash_stores(self.study)

    def finish(self) -> None:
        """Run to the end."""
        process = self.start()
        said = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"prepare failed with {process.returncode}: {said}")

    def kill(self, moment_s: float, aimed_at: str = "") -> bool:
        """Start, and kill; False if the command had ended before."""
        process, started = self.start(), time.monotonic()
        while process.poll() is None:
            if aimed_at and aimed_at in busy_stages(self.study, process.pid):
                time.sleep(moment_s)
                break
            if not aimed_at and time.monotonic() - started >= moment_s:
                break
            time.sleep(LOOK_EVERY_S)
        if process.poll() is not None:
            process.communicate()
            return False
        spent_s = time.monotonic() - started
        end_group(process)
        busy = frozenset(busy_stages(self.study, process.pid))
        homes = [Workspace(path) for path in self.study.glob("samples/*")]
        n_done = sum((one.home / "prepare.json").exists() for one in homes)
        n_parts = sum(len(list(one.parts.glob("part-*.safetensors"))) for one in homes)
        self.kills.append(Kill(spent_s, aimed_at, busy, n_done, n_parts))
        return True

    def compare(self) -> None:
        """Run to the end; are all bytes those of the unbroken run?"""
        self.finish()
        found = hash_stores(self.study)
        if found == self.wanted:
            self.n_same += 1
            return
        self.n_other += 1
        differ = {path for path, _ in set(found.items()) ^ set(self.wanted.items())}
        print(f"DIFFERENT after {self.kills[-1]}: {', '.join(sorted(differ)[:20])}", flush=True)

    def count(self) -> Counter[str]:
        """How many kills hit each stage."""
        return Counter(stage for kill in self.kills for stage in kill.busy)


def busy_stages(study: Path, pid: int) -> set[str]:
    """What the samples of a run had in hand, by what its workers noted.

    Args:
        study: The study.
        pid: The command's process; workers note the run by it.
    """
    found: set[str] = set()
    for home in (study / "samples").glob("*"):
        space = Workspace(home)
        attempt = read_note(space.folder / "attempt.json")
        run = str(attempt.get("run", ""))
        progress = space.read_progress(run)
        if run.rsplit("-", 2)[1:2] != [str(pid)] or not progress:
            continue  # of a run before
        if progress["stage"] != "working":
            found.add(progress["stage"])
            continue
        status = read_status(space.parts)
        if status.get("pid") == progress["pid"]:
            at_work = [name for name, numbers in status.items() if isinstance(numbers, list)]
            found |= {STAGE_OF.get(name, name) for name in at_work if status[name]}
    return found


def read_note(path: Path) -> dict[str, Any]:
    """A record; {} where there is none, or it is just being replaced."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def kill_at_random(trial: Trial, n_kills: int, per_study: int, rng: np.random.Generator) -> None:
    """Random moments, `per_study` of them in one study, then its end and the comparison."""
    while len(trial.kills) < n_kills:
        trial.begin()
        n_before = len(trial.kills)
        while len(trial.kills) < min(n_kills, n_before + per_study):
            is_killed = trial.kill(rng.uniform(0, trial.seconds))
            if not is_killed or trial.kills[-1].n_done == N_SLIDES:
                break  # all is done: its bytes are compared, and the next study begun
        if len(trial.kills) > n_before:
            trial.compare()
            print(f"{len(trial.kills)} kills, {trial.n_same} studies the same", flush=True)


def kill_at_stages(trial: Trial, least: int, per_study: int, rng: np.random.Generator) -> None:
    """More kills, aimed at the stages that random moments did not hit often enough."""
    n_aimed = n_here = 0
    while missing := [stage for stage in STAGES if trial.count()[stage] < least]:
        if n_aimed == MOST_AIMED:
            break
        if not n_here:
            trial.begin()
        n_aimed += 1
        n_here += 1
        is_over = not trial.kill(rng.uniform(0, 0.1), missing[0])
        if is_over or n_here == per_study:
            trial.compare()
            n_here = 0
    if n_here:
        trial.compare()


def print_table(trial: Trial, least: int) -> bool:
    """The kills, how often each stage was hit, and the verdict."""
    print("\n| kill | s | aimed at | samples done | parts on disk | at work |")
    print("|---|---|---|---|---|---|")
    for number, kill in enumerate(trial.kills, start=1):
        print(
            f"| {number} | {kill.moment_s:.2f} | {kill.aimed_at or '-'} | {kill.n_done} "
            f"| {kill.n_parts} | {', '.join(sorted(kill.busy)) or 'no sample begun'} |"
        )
    counts, n_random = trial.count(), sum(not kill.aimed_at for kill in trial.kills)
    print("\n| stage | kills during it | at random moments |")
    print("|---|---|---|")
    for stage in (*STAGES, *sorted(set(counts) - set(STAGES))):
        at_random = sum(stage in kill.busy and not kill.aimed_at for kill in trial.kills)
        print(f"| {stage} | {counts[stage]} | {at_random} |")
    is_hit = all(counts[stage] >= least for stage in STAGES)
    is_pass = is_hit and trial.n_same > 0 and not trial.n_other
    n_studies = trial.n_same + trial.n_other
    print(
        f"\n{len(trial.kills)} kills ({n_random} at random moments) in {n_studies} studies of "
        f"{N_SLIDES} slides, {len(trial.wanted)} files each; unbroken {trial.seconds:.0f} s. "
        f"Byte-identical after resuming: {trial.n_same} of {n_studies}. Each stage at least "
        f"{least} times: {'yes' if is_hit else 'no'}. {'PASS' if is_pass else 'FALLS SHORT'}"
    )
    return is_pass


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--study", type=Path, required=True, help="a folder to make; all goes in it"
    )
    parser.add_argument("--data", type=Path, help="her2st; the embedded slide without")
    parser.add_argument("--side", type=int, default=800, help="of the squares of her2st, px")
    parser.add_argument("--segmenter", default="instanseg")
    parser.add_argument("--encoder", default="instanseg")
    parser.add_argument("--field", type=int, default=256, help="px; small, so that there are parts")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--per-study", type=int, default=3, help="kills before it may end")
    parser.add_argument("--least", type=int, default=5, help="kills during each stage")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    if options.study.exists() and any(options.study.iterdir()):
        raise SystemExit(f"{options.study} is not empty; give a folder to make")
    make_study(options.study, options.data, options.side)
    trial = Trial(
        options.study,
        ("--segmenter", options.segmenter, "--encoder", options.encoder, "--workers",
         options.workers, "--set", f"prepare.field_px={options.field}"),
    )  # fmt: skip
    trial.measure()
    print(f"unbroken: {trial.seconds:.1f} s, {len(trial.wanted)} files", flush=True)
    rng = np.random.default_rng(options.seed)
    kill_at_random(trial, options.kills, options.per_study, rng)
    kill_at_stages(trial, options.least, options.per_study, rng)
    return 0 if print_table(trial, options.least) else 1


if __name__ == "__main__":
    sys.exit(main())
