"""A failure as a record: what happened, in our words, what mends it, and whether it can pass."""

import errno
from dataclasses import dataclass

from histoscribe.errors import (
    ConfigError,
    DataError,
    HistoscribeError,
    MismatchError,
    MissingExtra,
    can_pass,
)

BUG = 70  # EX_SOFTWARE of sysexits.h
MACHINE = MissingExtra.exit_code

OUR_WORDS = {
    errno.ENOSPC: "The disk is full",
    errno.EDQUOT: "The disk quota is used up",
    errno.EROFS: "The disk is read-only",
    errno.EACCES: "Permission denied",
    errno.EPERM: "Permission denied",
    errno.ENOTDIR: "A folder is wanted, a file lies there",
    errno.EEXIST: "A folder is wanted, a file lies there",
    errno.EISDIR: "A file is wanted, a folder lies there",
    errno.ENAMETOOLONG: "The name is too long",
}
WRONG_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)

OURS = {kind.__name__: kind for kind in (ConfigError, DataError, MismatchError, MissingExtra)}
WORKER_DIED = "WorkerDied"

MENDS = {
    "ConfigError": "Change the setting that is named and run the same command again.",
    "DataError": (
        "Mend or replace the file that is named (and 'histoscribe ingest' it anew if it changed), "
        "then run the same command again; 'histoscribe doctor SLIDE' looks at one slide alone."
    ),
    "MismatchError": "Bring the parts that are named together and run the same command again.",
    "MissingExtra": "Bring what is missing to the machine and run the same command again.",
    "OSError": (
        "The disk or the network share did not answer: see that the slide can be read, then run "
        "the same command again."
    ),
    "MemoryError": (
        "Run the same command again with fewer --workers or a smaller --memory, or on a machine "
        "with more memory; it goes on from where it was."
    ),
    WORKER_DIED: (
        "Most often the system ended it for want of memory: run the same command again with fewer "
        "--workers or a smaller --memory. If it dies at this slide again, the slide is at fault: "
        "see 'histoscribe doctor SLIDE'."
    ),
    "Bug": "Send the record that is named with your report.",
}


@dataclass(frozen=True)
class Fault:
    """Why something failed.

    Attributes:
        kind: ConfigError, DataError, MismatchError, MissingExtra, OSError, MemoryError,
            WorkerDied or Bug.
        message: What happened, in one sentence.
        mend: What to do about it.
        exit_code: What a command leaves with whose only failure it is.
        can_pass: Whether another attempt may go well with nothing changed.
    """

    kind: str
    message: str
    mend: str
    exit_code: int
    can_pass: bool = False

    def to_error(self) -> HistoscribeError:
        """The error that says it, to be raised."""
        error = OURS.get(self.kind, HistoscribeError)(self.message)
        error.exit_code = self.exit_code
        return error


def explain(error: BaseException) -> Fault:
    """A failure in our words.

    Args:
        error: What was raised. What is none of ours, no fault of the machine and no want of
            memory is a bug.
    """
    if isinstance(error, HistoscribeError):
        return make_fault(type(error).__name__, str(error), error.exit_code, can_pass(error))
    if is_out_of_memory(error):
        return make_fault("MemoryError", f"The memory did not suffice: {error}", MACHINE)
    if isinstance(error, OSError):
        if error.errno in OUR_WORDS:
            return explain(in_our_words(error))
        return make_fault("OSError", f"The system refused: {error}.", MACHINE, can_pass=True)
    text = f"This is a bug in histoscribe, not in your data: {type(error).__name__}: {error}."
    return make_fault("Bug", text, BUG)


def worker_died(n_begun: int) -> Fault:
    """The process that prepared a sample ended without a word.

    Args:
        n_begun: How often the sample was begun.
    """
    if n_begun > 1:
        when = f" at each of {n_begun} attempts"
    else:
        when = "" if n_begun else " before it began the sample, again and again"
    message = f"The worker process died{when}: it was killed, or crashed in foreign code."
    return make_fault(WORKER_DIED, message, MACHINE, can_pass=True)


def make_fault(kind: str, message: str, exit_code: int, can_pass: bool = False) -> Fault:
    """A fault with the mend of its kind."""
    return Fault(kind, message, MENDS.get(kind, ""), exit_code, can_pass)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; PyTorch says so in its own ways, on the host and on a GPU."""
    is_torch = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return isinstance(error, MemoryError) or is_torch or type(error).__name__ == "OutOfMemoryError"


def in_our_words(error: OSError) -> HistoscribeError:
    """A full disk, a closed door: what the machine refuses, and what to do."""
    reason = OUR_WORDS[error.errno or 0]
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return MissingExtra(
            f"{reason}{where}. Make room or choose another folder; "
            "nothing half-written was kept, and the same command goes on from there."
        )
    if error.errno in WRONG_PLACE:
        return DataError(f"{reason}{where}. Give another path.")
    return DataError(f"{reason}{where}. Check who may read and write there.")
