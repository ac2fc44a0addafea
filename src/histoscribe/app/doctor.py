"""The doctor of the machine: is it fit? `doctor_slides` looks at slides."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from histoscribe import __version__
from histoscribe.preprocess.weights import default_cache, list_weights

Verdict = Literal["good", "warning", "bad"]

NEEDED_GB = 2.0  # a study of a few sections with its features


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: The thing.
        verdict: How it is.
        text: What was found, and the mend where one is needed.
    """

    what: str
    verdict: Verdict
    text: str


def examine_installation(folder: Path) -> list[Finding]:
    """Versions, threads, accelerator, weights, disk space under `folder`, known traps."""
    return [
        Finding(
            "program",
            "good",
            f"histoscribe {__version__}, Python {platform.python_version()}, "
            f"torch {torch.__version__}, {platform.system()} {platform.machine()}",
        ),
        _examine_accelerator(),
        _examine_torchvision(),
        *_examine_weights(),
        _examine_disk(folder),
    ]


def _examine_accelerator() -> Finding:
    n_threads, n_cores = torch.get_num_threads(), os.cpu_count() or 1
    text = f"{n_threads} threads on {n_cores} cores"
    if torch.cuda.is_available():
        return Finding("compute", "good", f"{text}; GPU {torch.cuda.get_device_name(0)}")
    if n_threads > n_cores:
        return Finding("compute", "warning", f"{text}; set OMP_NUM_THREADS={n_cores}")
    return Finding("compute", "good", f"{text}; no GPU")


def _examine_torchvision() -> Finding:
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "good", "not installed, and not needed")
    version = "a copy without a version"
    try:
        version = importlib.metadata.version("torchvision")
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as fault:
        return Finding(
            "torchvision",
            "bad",
            f"{version} is installed but does not load ({fault}), which breaks transformers: "
            "'pip uninstall torchvision'; histoscribe does not use it",
        )
    return Finding("torchvision", "good", f"{version} loads; histoscribe does not use it")


def _examine_weights() -> list[Finding]:
    findings = []
    for status in list_weights():
        is_ready = status.state == "ready"
        mend = "" if is_ready else f"; 'histoscribe weights fetch {status.name}' brings them"
        findings.append(
            Finding(
                f"weights {status.name}",
                "good" if is_ready else "warning",
                f"{status.state} in {default_cache()}{mend}",
            )
        )
    return findings


def _examine_disk(folder: Path) -> Finding:
    free_gb = shutil.disk_usage(folder).free / 1e9
    text = f"{free_gb:.1f} GB free at {folder.resolve()}"
    if free_gb < NEEDED_GB:
        return Finding("disk", "warning", f"{text}; {NEEDED_GB:g} GB are comfortable")
    return Finding("disk", "good", text)
