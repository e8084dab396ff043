"""Errors that a user can act on.

Every message names the file or key that is wrong and says what to do; the command line prints it without a traceback
and exits with a non-zero status.
"""

# The exit status of a run that a signal stopped after it had written a checkpoint: the same command continues it.
# EX_TEMPFAIL of sysexits.h, on which batch systems can be told to repeat.
STOPPED_EXIT = 75

LONGEST_MESSAGE = 4000  # characters; what a damaged file holds may be longer


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
