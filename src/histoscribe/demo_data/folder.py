"""Where the embedded data lie."""

from importlib.resources import files
from pathlib import Path


def demo_folder() -> Path:
    """The folder with manifest.csv, visium_crop.jpg, visium_crop.h5ad and their credits."""
    return Path(str(files("histoscribe.demo_data")))
