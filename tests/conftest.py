"""What every test may ask for."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real data; tests that need it skip by name where it is missing."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HISTOSCRIBE_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set HISTOSCRIBE_DATA")
    return folder
