"""Merge: the adapters of a checkpoint added to its weights."""

from pathlib import Path

from histoscribe.errors import ConfigError
from histoscribe.train.checkpoint import Checkpoint


def merge_checkpoint(folder: Path, out: Path) -> Checkpoint:
    """Write a checkpoint without adapters that predicts the same; returns it.

    Raises:
        ConfigError: If there are no adapters, or the folder to write exists.
        DataError: If the checkpoint is missing or broken.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; give --out a folder that does not")
    checkpoint = Checkpoint.load(folder)
    if checkpoint.adapters is None:
        raise ConfigError(
            f"{folder} has no adapters to merge; use it as it is, or name the checkpoint of a fit "
            "with --mode lora"
        )
    merged = checkpoint.merged()
    merged.save(out)
    return merged
