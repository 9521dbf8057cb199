"""Conductors as actors of the Ray that is joined, found by the endpoint's name."""

import time
from contextlib import suppress
from typing import Any

import ray

from rtrain.endpoint.conductor import Conductor
from rtrain.errors import ClusterError

NAMESPACE = "rtrain"
ENDED_S = 30.0
"""Seconds that a conductor has to be gone."""


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
    """A new one, which Ray restarts wherever it dies; one that is left of what was ended beside it goes first."""
    end_conductor(name)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3, max_concurrency=32)(Conductor)
    return actor.options(name=actor_name(name), namespace=NAMESPACE, lifetime="detached").remote(state)


def end_conductor(name: str) -> None:
    """End the one that runs, if there is one, until its name is free.

    Raises:
        ClusterError: it does not end.
    """
    until = time.monotonic() + ENDED_S
    with suppress(ClusterError):
        ray.kill(conductor_of(name))
    while name in endpoints():
        if time.monotonic() > until:
            raise ClusterError(f"endpoint {name!r}: its conductor does not end in {ENDED_S:g} s. See ray status")
        time.sleep(0.1)


def endpoints() -> list[str]:
    """Names of those that run on the Ray that is joined."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    prefix = actor_name("")
    return sorted(
        of["name"].removeprefix(prefix)
        for of in actors
        if of["namespace"] == NAMESPACE and of["name"].startswith(prefix)
    )
