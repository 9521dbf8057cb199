"""One application of Ray Serve in the place of another: the new replicas start beside those that answer."""

import random
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.schema import ReplicaState

from rtrain.serving.ports import NO_LINE_EACH
from rtrain.serving.scale import Scale

SURGE = 25
"""Replicas more than it has, in percent and at least one, while new ones start."""


def run_app(app: Any, name: str, prefix: str | None) -> None:
    """Run it by this name until it answers, as a new version of whatever ran by it.

    Raises:
        RuntimeError: it does not start.
    """
    with drawn_afresh():
        ray_serve.run(app, name=name, route_prefix=prefix, logging_config=NO_LINE_EACH)


@contextmanager
def drawn_afresh() -> Iterator[None]:
    """Within it, Python's own `random` as nobody seeded it; as it was after.

    Ray Serve draws the name of a version by it. Seeded alike before two of them, as two trainings in one process do,
    the second is no new version to Serve: what it was to take the place of goes on answering, and no error says so.
    """
    before = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(before)


def answering(app: str) -> Set[str]:
    """Its deployments, if each has a replica that runs; else none."""
    found = ray_serve.status().applications.get(app)
    deployments = found.deployments if found else {}
    runs = all(of.replica_states.get(ReplicaState.RUNNING.value, 0) for of in deployments.values())
    return set(deployments) if runs else set()


def has_room(scale: Scale) -> bool:
    """Whether the cluster has what one more replica needs; where it has not, an old one has to end first."""
    needs, free = scale.options()["ray_actor_options"], ray.available_resources()
    return all(free.get(of, 0.0) >= needs.get(option, 0.0) for option, of in (("num_cpus", "CPU"), ("num_gpus", "GPU")))


def goes_on(app: str, before: Set[str]) -> bool:
    """Whether what answered before still does, after what was to take its place did not start.

    Ray Serve stops such an update and keeps the old replicas; of another set of deployments it has ended the old ones.
    """
    return bool(before) and answering(app) == before
