"""The example for SLURM: the job script that it would submit. Nothing is submitted here."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "slurm" / "prepare_on_slurm.py"


@pytest.mark.slow
def test_the_job_script_asks_for_what_a_slide_needs():
    if find_spec("dask_jobqueue") is None:  # not imported here: it takes Ctrl-C for itself
        pytest.skip("no dask-jobqueue: pip install dask-jobqueue")
    words = ["study", "--cores", "6", "--memory-gb", "12", "--partition", "gpu", "--gpus", "1"]
    done = subprocess.run(
        [sys.executable, EXAMPLE, *words, "--show", "--", "--retries", "3"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for wanted in (
        "#SBATCH -p gpu",
        "#SBATCH --cpus-per-task=6",
        "#SBATCH --mem=12G",
        "#SBATCH --gres=gpu:1",
        "export OMP_NUM_THREADS=6",
    ):
        assert wanted in lines
    assert lines[-1].startswith(sys.executable)
    assert " --nthreads 1 " in lines[-1]
    assert lines[-1].endswith("--memory-limit 0")
