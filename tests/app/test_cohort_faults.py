"""Failures as records: their kind, their code, and whether another attempt may help."""

import errno

import pytest

from histoscribe.app.faults import MENDS, explain, worker_died
from histoscribe.errors import ConfigError, DataError, HistoscribeError, MismatchError, MissingExtra


class OutOfMemoryError(RuntimeError):
    """As PyTorch names it."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "code", "can_pass"),
    [
        (ConfigError("x"), "ConfigError", 2, False),
        (DataError("x"), "DataError", 3, False),
        (MismatchError("x"), "MismatchError", 4, False),
        (MissingExtra("x"), "MissingExtra", 5, False),
        (OSError(errno.EIO, "Input/output error"), "OSError", 5, True),
        (OSError(errno.ENOSPC, "No space"), "MissingExtra", 5, False),
        (OSError(errno.EACCES, "Permission denied"), "DataError", 3, False),
        (TimeoutError("the share is slow"), "OSError", 5, True),
        (caused(DataError("cannot read x"), OSError(errno.ESTALE, "Stale")), "DataError", 3, True),
        (caused(DataError("no image"), OSError("truncated")), "DataError", 3, False),
        (caused(DataError("gone"), FileNotFoundError(2, "No file")), "DataError", 3, False),
        (MemoryError(), "MemoryError", 5, False),
        (RuntimeError("[enforce fail] can't allocate memory"), "MemoryError", 5, False),
        (OutOfMemoryError("CUDA out of memory"), "MemoryError", 5, False),
        (RuntimeError("shape mismatch"), "Bug", 70, False),
        (AssertionError(), "Bug", 70, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_is_named(error, kind, code, can_pass):
    fault = explain(error)
    assert (fault.kind, fault.exit_code, fault.can_pass) == (kind, code, can_pass)
    assert fault.mend == MENDS[kind]
    assert str(error) in fault.message or kind in ("MissingExtra", "DataError")


def test_a_dead_worker_may_have_been_the_only_victim():
    fault = worker_died(2)
    assert fault.can_pass
    assert "at each of 2 attempts" in fault.message
    assert "died:" in worker_died(1).message
    assert "--workers" in fault.mend


@pytest.mark.parametrize("kind", [ConfigError, DataError, MismatchError, MissingExtra])
def test_a_fault_of_ours_becomes_the_error_it_was(kind):
    error = explain(kind("what came, what was wanted")).to_error()
    assert type(error) is kind
    assert str(error) == "what came, what was wanted"
    assert kind("x").exit_code == error.exit_code


def test_another_fault_keeps_its_code():
    error = explain(ValueError("surprise")).to_error()
    assert isinstance(error, HistoscribeError)
    assert error.exit_code == 70
    assert HistoscribeError.exit_code == 1
