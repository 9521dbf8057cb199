"""A Ray to run on: the cluster that RAY_ADDRESS names, the one already joined, or an embedded one."""

import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import ray
from ray._private import services

from rtrain.errors import ClusterError, RtrainError
from rtrain.launch.embedded import embedded_ray
from rtrain.launch.head import watched_head
from rtrain.run import Cluster

OVERSUBSCRIBE = 4
"""Embedded workers that may share one core: enough to debug eight ranks on a laptop."""

# Ray Train reads these when its controller starts; what the user has set wins.
DEFAULTS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 s by default: the shut-down and each report wait for it
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in the driver and in the workers
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one 200 MB actor less; preemption is not handled yet
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no GPU asked for: leave the device environment alone
}
# And this when a Ray is started here; a cluster has its own.
EMBEDDED = {
    "RAY_worker_niceness": "0",  # Ray gives its workers nice 15, and a busy machine starves them
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "rtrain.serving.limits:limit_clients_of_proxy",
    # Asking again changes nothing here. HAProxy can do it only of a request that it has whole before it passes it on,
    # and Ray writes this value as it is into the section of its configuration that the option belongs to.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response\n    option http-buffer-request",
}

OWN = ("", "local")
"""Of RAY_ADDRESS: a Ray of this process's own."""
CANNOT = (ConnectionError, RuntimeError, OSError, ValueError, TimeoutError)
"""What `ray.init` raises where no Ray can be used."""


@contextmanager
def ray_session(cluster: Cluster, *, workers: int | None = None, waits: bool = True) -> Iterator[None]:
    """Join or start a Ray that can hold the workers; stop it again if it was started here.

    `waits`: until they are free; else whoever starts them does, as Ray Serve.

    Raises:
        ClusterError: the cluster does not have the workers, after waiting `cluster.wait_s`.
    """
    embedded = os.environ.get("RAY_ADDRESS", "") in OWN and not ray.is_initialized()
    for name, value in {**DEFAULTS, **(EMBEDDED if embedded else {})}.items():
        os.environ.setdefault(name, value)
    needed = workers or cluster.workers
    before = signal.getsignal(signal.SIGTERM)
    with ExitStack() as session:
        if not ray.is_initialized():
            session.callback(_forget_serve)
        if embedded:
            _start(cluster, needed, session)
            session.enter_context(watched_head())
        elif not ray.is_initialized():
            _join(os.environ["RAY_ADDRESS"])
            session.callback(ray.shutdown)
            session.enter_context(watched_head())
        _restore(before)
        if waits:
            _wait_for_room(cluster, needed)
        yield


@contextmanager
def join_running(asker: str) -> Iterator[None]:
    """Join the Ray that RAY_ADDRESS names, or that runs on this machine, and leave it as it is.

    Raises:
        ClusterError: there is none. `asker`: whose words say so.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    address = os.environ["RAY_ADDRESS"] = os.environ.get("RAY_ADDRESS") or "auto"
    if address in OWN:
        raise ClusterError(
            f"{asker}: RAY_ADDRESS={address} is a Ray that ends with this command, and what is served has to outlive "
            "it. Set RAY_ADDRESS to a cluster's HOST:PORT, or unset it"
        )
    before = signal.getsignal(signal.SIGTERM)
    try:
        _join(address)
        _restore(before)
    except ClusterError as error:
        if address != "auto":
            raise
        raise ClusterError(
            f"{asker}: no Ray runs on this machine, and what is served has to outlive this command. Start one with "
            "'ray start --head', or set RAY_ADDRESS"
        ) from error
    try:
        with watched_head():
            yield
    finally:
        ray.shutdown()
        _forget_serve()


def _forget_serve() -> None:
    """Serve keeps the controller that this process spoke to last, also when its Ray is gone: the next one asks it."""
    context = sys.modules.get("ray.serve.context")
    if context is not None:
        context._set_global_client(None)


def _restore(handler: Any) -> None:
    """SIGTERM as it was before Ray came, whose own answer is a stack of C++ on stderr and exit code 15."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _start(cluster: Cluster, workers: int, session: ExitStack) -> None:
    """An embedded Ray, stopped when `session` ends."""
    cores = os.cpu_count() or 1
    needed = math.ceil(workers * cluster.cpus_per_worker)
    if needed > OVERSUBSCRIBE * cores:
        raise ClusterError(
            f"cluster.workers: {workers} workers of {cluster.cpus_per_worker:g} CPUs need {needed} CPUs, but this "
            f"machine has {cores} (and at most {OVERSUBSCRIBE} workers share one). Lower cluster.workers to "
            f"{int(OVERSUBSCRIBE * cores / cluster.cpus_per_worker)}, or set RAY_ADDRESS to a cluster"
        )
    try:
        session.enter_context(embedded_ray(max(cores, needed)))
    except RtrainError:
        raise
    except Exception as error:  # a bare one is what Ray raises where its node is slow to start
        raise ClusterError(
            f"ray: the embedded Ray cannot be used ({' '.join(str(error).split())}). Run 'rtrain doctor'"
        ) from error


def _join(address: str) -> None:
    """The cluster at `address`."""
    _reach(address)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except CANNOT as error:
        raise ClusterError(
            f"ray: RAY_ADDRESS={address} cannot be used ({' '.join(str(error).split())}). Check that the cluster is "
            "up and that RAY_AUTH_MODE and the token are the same on both sides"
        ) from error


def _reach(address: str) -> None:
    """Knock at the cluster's door: Ray itself ends the process, from C++, when nobody is there."""
    at = address
    if address == "auto":
        with suppress(Exception):  # Ray finds none, and says so in Python
            at = services.canonicalize_bootstrap_address(address) or ""
    host, _, port = at.rpartition("://")[2].rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        found = f", {at}" if at != address else ""
        raise ClusterError(
            f"ray: nothing answers at RAY_ADDRESS={address}{found} ({error}). Start the cluster, mend the address, "
            "or unset RAY_ADDRESS to use a Ray of this machine's own"
        ) from error


def _wait_for_room(cluster: Cluster, workers: int) -> None:
    """Wait until the workers' CPUs and GPUs are free, as long as `cluster.wait_s`."""
    needed = {"CPU": workers * cluster.cpus_per_worker, "GPU": float(workers * cluster.gpus_per_worker)}
    deadline = time.monotonic() + cluster.wait_s
    announced = False
    while True:
        free = ray.available_resources()
        if all(free.get(kind, 0.0) >= amount for kind, amount in needed.items()):
            return
        if time.monotonic() >= deadline:
            break
        if not announced:
            announced = True
            print(f"waiting up to {cluster.wait_s:g} s for {_spell(needed)} to be free", file=sys.stderr, flush=True)
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
    total = ray.cluster_resources()
    raise ClusterError(
        f"cluster.workers: {workers} workers need {_spell(needed)}, but the cluster has {_spell(total)} "
        f"({_spell(free)} free) after waiting {cluster.wait_s:g} s. Lower cluster.workers, add nodes, "
        "or raise cluster.wait_s"
    )


def _spell(resources: dict[str, float]) -> str:
    return " and ".join(f"{resources.get(kind, 0.0):g} {kind}s" for kind in ("CPU", "GPU"))
