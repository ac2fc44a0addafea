"""The command on checkpoints: merge."""

from pathlib import Path
from typing import Annotated

import typer

from histoscribe.app.commands_machine import Json
from histoscribe.app.console import Voice


def register(app: typer.Typer) -> None:
    """Hang the command into the program."""
    app.command()(merge)


def merge(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a fit with --mode lora.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The checkpoint folder to write.")],
    json: Json = False,
) -> None:
    """Add the adapters of a fit with LoRA to its weights: a checkpoint without adapters.

        histoscribe merge study/runs/second/checkpoint --out merged/

    It predicts the same. The checkpoint with its adapters stays as it is.
    """
    from histoscribe.app.merge import merge_checkpoint

    voice = Voice(json)
    merged = merge_checkpoint(checkpoint, out)
    voice.say(f"{merged.model_id}: {len(merged.nets)} nets")
    voice.write(str(out))
    voice.result({"checkpoint": str(out), "model_id": merged.model_id, "n_nets": len(merged.nets)})
