"""What can go wrong, in the user's words: what came, what was wanted, the mend."""

import errno

MAY_PASS = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.ENOLCK,
    errno.EMFILE,
    errno.ENFILE,
}
"""What a network share or a loaded machine answers now, and not in a minute."""


class HistoscribeError(Exception):
    """Any fault that the user can mend; the command line prints it without a traceback.

    `exit_code` is what the command line leaves with: 2 for a wrong request, 3 for data that do
    not hold up, 4 for parts that do not fit each other, 5 for something missing on the machine.
    """

    exit_code = 1


class ConfigError(HistoscribeError):
    """A setting that is unknown, out of range or contradicts another."""

    exit_code = 2


class DataError(HistoscribeError):
    """A file or table that is missing, broken, empty or not what it says."""

    exit_code = 3


class MismatchError(HistoscribeError):
    """Two parts, each sound, that do not belong together (encoder, gene panel, study)."""

    exit_code = 4


class MissingExtra(HistoscribeError):  # noqa: N818 - the name the house gives it
    """Something this machine lacks: weights, an optional package, disk space."""

    exit_code = 5


def can_pass(error: BaseException | None) -> bool:
    """Whether an error is, or only words, a fault of the machine that may pass."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in MAY_PASS:
            return True
        error = error.__cause__
    return False
