"""Who has a place of this cluster, as an application's name: Ray Serve does not say, and one can take another's."""

import uuid

from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_initialized,
    _internal_kv_put,
)

_SPACE = "rtrain-serving"


def take(name: str, mark: str = "") -> str:
    """From now on it is the one who has that mark, or a new one; gives it."""
    mark = mark or uuid.uuid4().hex
    _internal_kv_put(name, mark, namespace=_SPACE)
    return mark


def is_taken(name: str, mark: str) -> bool:
    """Whether another took the place since."""
    return _holder(name) not in ("", mark)


def has(name: str, mark: str) -> bool:
    """Whether it is the one with that mark."""
    return _holder(name) == mark


def leave(name: str) -> None:
    """It is nobody any more."""
    _internal_kv_del(name, namespace=_SPACE)


def _holder(name: str) -> str:
    """Of no cluster, where none is joined, it is not known."""
    found = _internal_kv_get(name, namespace=_SPACE) if _internal_kv_initialized() else None
    return found.decode() if found else ""
