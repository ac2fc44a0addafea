"""What `import histoscribe` offers, and what it does not drag in."""

import subprocess
import sys

import pytest

import histoscribe


@pytest.mark.parametrize("name", sorted(histoscribe.HOMES))
def test_every_public_name_is_at_its_home(name):
    assert getattr(histoscribe, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'predcit'"):
        histoscribe.predcit  # noqa: B018 - the access is the test


def test_the_import_is_light():
    heavy = "torch", "anndata", "lightning", "transformers", "matplotlib"
    code = f"import histoscribe, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
