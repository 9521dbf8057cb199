"""Children that a signal to this process's group does not reach."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_APART = False


@contextmanager
def groups_of_their_own() -> Iterator[None]:
    """Each child that is forked within leads a process group of its own, as do those that Ray starts.

    Ray offers no such option. Python runs what is registered here in a child that `os.fork` makes, or
    `subprocess` with a `preexec_fn`, which Ray gives; a child of `subprocess` without one is not touched.
    """
    global _APART
    _APART = True
    try:
        yield
    finally:
        _APART = False


def _leave_group() -> None:
    if _APART:
        with suppress(OSError):
            os.setpgid(0, 0)


os.register_at_fork(after_in_child=_leave_group)
