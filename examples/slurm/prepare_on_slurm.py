"""Prepare a cohort on a SLURM cluster: one job a worker, one slide at a time in each.

    pip install dask-jobqueue
    python prepare_on_slurm.py STUDY --jobs 20 --partition cpu -- --around-regions
    python prepare_on_slurm.py STUDY --jobs 4 --partition gpu --gpus 1
    python prepare_on_slurm.py STUDY --show          only print the script that SLURM would be given

Start it where jobs are submitted from (it takes next to nothing itself), in tmux or as a small job.
It starts a Dask scheduler in its own process, submits the workers as jobs, and runs
`histoscribe prepare STUDY --scheduler ADDRESS` with whatever follows `--`. Slides go to workers as
these come up; a worker process that dies is started again within its job, and slides of a job that
ended (at its time limit, say) go to the others: give `--retries` room for that. When all is done,
or on Ctrl-C, the jobs end. The study and its slides must lie on a file system that all nodes see
under the same path.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from dask_jobqueue import SLURMCluster


def read_words() -> argparse.Namespace:
    """What is asked for on the command line; what follows "--" is for `histoscribe prepare`."""
    ours = list(sys.argv[1:])
    theirs: list[str] = []
    if "--" in ours:
        at = ours.index("--")
        ours, theirs = ours[:at], ours[at + 1 :]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", type=Path)
    parser.add_argument("--jobs", type=int, default=8, help="workers, each a job of its own")
    parser.add_argument("--cores", type=int, default=4, help="of a job")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="of a job")
    parser.add_argument("--hours", type=int, default=12, help="limit of a job")
    parser.add_argument("--partition", help="SLURM's; its default if left out")
    parser.add_argument("--account", help="SLURM's; its default if left out")
    parser.add_argument("--gpus", type=int, default=0, help="of a job")
    parser.add_argument("--interface", help="network interface that the nodes share, e.g. ib0")
    parser.add_argument("--show", action="store_true", help="print the job script, submit nothing")
    parser.set_defaults(words=theirs)
    return parser.parse_args(ours)


def make_cluster(asked: argparse.Namespace) -> SLURMCluster:
    """A scheduler here; no job is submitted before `scale`."""
    variables = [
        f"export {name}={asked.cores}"
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    ]
    # Dask's workers give freed memory back at once, which slows PyTorch on CPUs down by a fourth.
    trim = "{'MALLOC_TRIM_THRESHOLD_': None}"
    variables.append(f'export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON="{trim}"')
    return SLURMCluster(
        queue=asked.partition,
        account=asked.account,
        cores=1,  # tasks at a time: one slide is in memory
        job_cpu=asked.cores,  # what SLURM gives: PyTorch and the readers use them all
        processes=1,
        memory=f"{asked.memory_gb:g}GB",
        walltime=f"{asked.hours:02d}:00:00",
        interface=asked.interface,
        python=sys.executable,
        job_script_prologue=variables,
        job_extra_directives=[f"--gres=gpu:{asked.gpus}"] if asked.gpus else [],
        worker_extra_args=["--no-dashboard", "--memory-limit", "0"],
        scheduler_options={"dashboard_address": ":0"},
    )


def main() -> int:
    """Start the workers, prepare, end the workers; the exit code of `histoscribe prepare`."""
    asked = read_words()
    with make_cluster(asked) as cluster:
        if asked.show:
            sys.stdout.write(cluster.job_script())
            return 0
        cluster.scale(jobs=asked.jobs)
        command = [sys.executable, "-m", "histoscribe.app.cli", "prepare", str(asked.study)]
        # A slide may take what the job has, but for what Python and Dask take beside it.
        memory = ["--memory", f"{0.8 * asked.memory_gb:.1f}"]
        address = ["--scheduler", cluster.scheduler_address]
        return subprocess.run([*command, *memory, *address, *asked.words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
