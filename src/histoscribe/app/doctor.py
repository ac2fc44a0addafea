"""The doctor: is this machine fit, and are these slides?"""

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
from histoscribe.errors import HistoscribeError
from histoscribe.preprocess.tissue import tissue_mask
from histoscribe.preprocess.weights import default_cache, list_weights
from histoscribe.slides.open import open_slide

Verdict = Literal["good", "warning", "bad"]

NEEDED_GB = 2.0  # a study of a few sections with its features
SECONDS_PER_MM2 = 25.0  # InstanSeg with features on two CPU cores, benchmarks/RESULTS.md
MPP_OF_SCANNERS = (0.1, 1.1)  # 100x to about 10x: outside is possible, but worth a second look


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


def examine_slide(path: Path, mpp: float | None) -> list[Finding]:
    """Whether a slide can be read, at which scale, how much tissue it has and what it will cost.

    Never raises for a bad slide: the fault becomes a finding, so that the others are looked at.
    """
    try:
        slide = open_slide(path, mpp=mpp)
        width_um, height_um = (
            side * scale for side, scale in zip(slide.size_px, slide.mpp, strict=True)
        )
        area_mm2 = tissue_mask(slide).area_mm2
    except HistoscribeError as fault:
        return [Finding(path.name, "bad", str(fault))]
    except OSError as fault:
        return [Finding(path.name, "bad", f"cannot be read: {fault}")]
    size = (
        f"{slide.size_px[0]} x {slide.size_px[1]} px at {slide.mpp[0]:.4g} µm/px = "
        f"{width_um / 1000:.2f} x {height_um / 1000:.2f} mm"
    )
    minutes = area_mm2 * SECONDS_PER_MM2 / 60
    findings = [
        Finding(path.name, "good", size),
        Finding(
            path.name,
            "good" if area_mm2 > 0 else "warning",
            f"{area_mm2:.2f} mm² of tissue; about {max(1, round(minutes))} min to prepare whole "
            "on two CPU cores",
        ),
    ]
    low, high = MPP_OF_SCANNERS
    if not all(low <= scale <= high for scale in slide.mpp):
        findings.append(
            Finding(
                path.name,
                "warning",
                f"{slide.mpp[0]:.4g} µm/px is unusual for a scanner ({low}-{high}); if it is "
                "wrong, every distance is: give the right one with --mpp",
            )
        )
    return findings


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
