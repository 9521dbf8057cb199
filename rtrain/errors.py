"""Errors that a person can act on: where, what was got, why, what to do, on one line.

`UserError` and its kinds are the user's to mend (exit code 2, no traceback).
`RunFailed` is a run that started and did not finish (exit code 1).
All of them are built from one string, so they survive pickling between Ray processes.
"""

import difflib
from collections.abc import Iterable

MOST_SAID = 300
"""Letters that a message says of another error."""


class RtrainError(Exception):
    """Root of every error that rtrain raises on purpose; `str(error)` is the whole message."""

    exit_code = 1


class UserError(RtrainError):
    """Something that the user gave cannot be used; the message says what to change."""

    exit_code = 2


class ConfigError(UserError):
    """A config key, type or combination of values that cannot be used."""


class DataError(UserError):
    """A data file, schema, feature value or label that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing, altered, or made by something else."""


class ClusterError(UserError):
    """The machines, devices, ports or storage that the run asks for are not there."""


class RunFailed(RtrainError):
    """A run that started and did not finish; it can be resumed by its name."""


class RtrainWarning(RuntimeWarning):
    """Something that went wrong and that the run goes on without."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`"; did you mean 'lr'?"` for the closest known name, whatever its case, or that of its initials; else empty."""
    spelled = {name.lower(): name for name in known}
    close = difflib.get_close_matches(wrong.lower(), list(spelled), n=1, cutoff=0.6)
    initials = "".join(word[:1] for word in wrong.lower().split("_"))  # lr, of who asks for learning_rate
    close = close or [name for name in (initials,) if name in spelled and len(name) > 1]
    return f"; did you mean {spelled[close[0]]!r}?" if close else ""


def one_line(error: BaseException) -> str:
    """The message of any error folded into one line; a bare class name where it has no text."""
    text = " ".join(str(error).split())
    return text if isinstance(error, RtrainError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def briefly(error: BaseException) -> str:
    """The beginning of `one_line`, for a message of one's own around it."""
    return one_line(error)[:MOST_SAID]
