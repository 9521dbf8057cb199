"""Which process serves under a name of this cluster: Ray Serve does not say, and one can take another's place."""

import uuid

from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_initialized,
    _internal_kv_put,
)

_SPACE = "rtrain-serving"


def take(name: str) -> str:
    """From now on it is this process; gives the mark by which it knows its place."""
    mark = uuid.uuid4().hex
    _internal_kv_put(name, mark, namespace=_SPACE)
    return mark


def is_taken(name: str, mark: str) -> bool:
    """Whether another process took the place since; of no cluster, where none is joined, it is not known to."""
    if not _internal_kv_initialized():
        return False
    found = _internal_kv_get(name, namespace=_SPACE)
    return found is not None and found.decode() != mark


def leave(name: str) -> None:
    """Nobody serves under that name any more."""
    _internal_kv_del(name, namespace=_SPACE)
