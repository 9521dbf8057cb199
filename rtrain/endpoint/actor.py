"""Conductors as actors of the Ray that is joined, found by the endpoint's name."""

from contextlib import suppress
from typing import Any

import ray

from rtrain.endpoint.conductor import Conductor
from rtrain.errors import ClusterError

NAMESPACE = "rtrain"


def actor_name(name: str) -> str:
    """Of an endpoint's conductor."""
    return f"endpoint-{name}"


def conductor_of(name: str) -> Any:
    """The one that runs on the Ray that is joined.

    Raises:
        ClusterError: there is none.
    """
    with suppress(ValueError):
        return ray.get_actor(actor_name(name), namespace=NAMESPACE)
    raise ClusterError(f"endpoint {name!r}: none of that name runs on this Ray. rtrain endpoints lists those that do")


def start_conductor(name: str, state: str) -> Any:
    """The one that runs, or a new one, which Ray restarts wherever it dies."""
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3, max_concurrency=32)(Conductor)
    return actor.options(name=actor_name(name), namespace=NAMESPACE, lifetime="detached", get_if_exists=True).remote(
        state
    )
