"""Errors that a user can act on.

Every message names the file or key that is wrong and says what to do; the command line prints it without a traceback
and exits with a non-zero status.
"""

import difflib
import errno
from collections.abc import Iterable

# The exit status of a run that a signal stopped after it had written a checkpoint: the same command continues it.
# EX_TEMPFAIL of sysexits.h, on which batch systems can be told to repeat.
STOPPED_EXIT = 75
# The exit status of a process that lost contact with the others of its run: what ended them says why.
LOST_EXIT = 76

LONGEST_MESSAGE = 4000  # The most characters of a message; what a damaged file holds may be longer.

# What helps when the system refuses to read or write a file.
_REMEDIES = {
    errno.ENOSPC: "free some space; everything written so far is intact",
    errno.EDQUOT: "free some space or raise the quota; everything written so far is intact",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f); everything written so far is intact",
    errno.EROFS: "mount it for writing, or choose another folder",
    errno.EACCES: "change its permissions or owner, or choose another folder",
    errno.EPERM: "change its permissions or owner, or choose another folder",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away",
    errno.EISDIR: "a folder stands where a file is needed: move it away",
    errno.EEXIST: "a file stands where a folder is needed: move it away",
    errno.EIO: "the disk or the network storage fails: check it, then run `wmse verify`",
}


def explain(error: OSError) -> str:
    """`PATH: No space left on device: free some space; ... Then run the same command again`."""
    where = f"{error.filename2 or error.filename}: " if error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0)
    advice = f": {remedy}. Then run the same command again" if remedy else ""
    return f"{where}{error.strerror or error}{advice}"


class WmseError(Exception):
    """Base of all errors that are reported to the user as one message."""

    def __str__(self) -> str:
        message = super().__str__()
        return message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 3] + "..."


class ConfigError(WmseError):
    """The configuration or a run specification is invalid; the message names the key and the allowed values."""


class DataError(WmseError):
    """A data set is missing, damaged or not what its description says; the message names the file."""


class CheckpointError(WmseError):
    """A checkpoint cannot be used; the message names the file and the reason."""


class TrainingError(WmseError):
    """Pretraining cannot go on (for example a singular covariance); the message names run, step and likely cause."""


class OutOfMemoryError(WmseError):
    """The device's or the machine's memory does not suffice; the message names the peak and what to lower."""


# --- the words of a message -------------------------------------------------------------------------------------------


def unknown(what: str, name: str, allowed: Iterable[str]) -> str:
    """'unknown <what> <name>', with the likely meaning and the allowed values."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name[:100], names, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f"unknown {what} '{shorten(name)}'{hint}; allowed: {', '.join(names)}"


def shorten(text: str, width: int = 200) -> str:
    """Text for a message of one line: at most `width` characters, control characters escaped."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= width else text[: width - 3] + "..."


def show(value: object) -> str:
    """A value for a message, as Python writes it."""
    try:
        return shorten(repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list of lists of lists
        return f"some {type(value).__name__}"
