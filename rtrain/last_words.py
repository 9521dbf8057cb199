"""What a command says, and how it ends, where a library would end its process from C++ without a word."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Facts = Callable[[str], tuple[str, dict[str, Any] | None]]
"""Given why it ends: what the command has to say of its work, as text, and as its answer in JSON where it has one."""
End = Callable[[str, dict[str, Any] | None], None]

_facts: list[Facts] = []
_ends: list[End] = []


@contextmanager
def said_by(end: End) -> Iterator[None]:
    """`end` says it and ends the process, from any thread, for the main one may never come back."""
    _ends.append(end)
    try:
        yield
    finally:
        _ends.remove(end)


@contextmanager
def knowing(facts: Facts) -> Iterator[None]:
    """While this lasts, `facts` are what is known of the work."""
    _facts.append(facts)
    try:
        yield
    finally:
        _facts.remove(facts)


def end(why: str) -> bool:
    """End the process with its last words; false where nobody has said how, as in a notebook, whose process goes on."""
    if not _ends:
        return False
    _ends[-1](*(_facts[-1](why) if _facts else (why, None)))
    return True
