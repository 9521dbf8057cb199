"""Where Ray Serve listens: one HTTP port of a cluster, and gRPC's beside it."""

import logging
import socket
import warnings

from ray import serve as ray_serve
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from rtrain.errors import ClusterError, ConfigError, RtrainWarning
from rtrain.serving.bodies import MAX_BYTES, REQUEST_S
from rtrain.serving.place import has, take

STARTED = "/"
"""The place of the Serve that rtrain started: no application's name."""
CALLBACK, LIMITS = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "rtrain.serving.limits:limit_clients_of_proxy"
PATIENT_S = 5.0
NO_LINE_EACH = LoggingConfig(enable_access_log=False)
"""Of Serve and of each application: no line of a log for each request."""


def check_rpc_port(port: int, grpc_port: int) -> None:
    """Whether it can be gRPC's, beside HTTP's.

    Raises:
        ConfigError: it can not.
    """
    if not 0 < grpc_port < 1 << 16 or grpc_port == port:
        raise ConfigError(f"grpc_port: a port within 1 and 65535, and not HTTP's {port}, got {grpc_port}")


def listen(host: str, port: int) -> None:
    """Start Ray Serve's HTTP there, if it does not run on this cluster yet.

    A Serve that an earlier command left on another port, without anything that is served, is ended before.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    there = bool(ray_serve.status().proxies)
    if there and _get_global_client().http_config.port != port and _ours_and_idle():
        ray_serve.shutdown()
        there = False
    ray_serve.start(
        http_options={"host": host, "port": port, "request_timeout_s": REQUEST_S, "keep_alive_timeout_s": 30},
        logging_config=NO_LINE_EACH,
    )
    if not there:
        take(STARTED, _serve_there())
    if lets_clients_do_as_they_like(host, port):
        warnings.warn(
            "Ray Serve of this cluster limits no client that is slow or sends too much: one can take all places of its "
            f"replicas. Start Ray on each node with {CALLBACK}={LIMITS} in its environment",
            RtrainWarning,
            stacklevel=2,
        )


def lets_clients_do_as_they_like(host: str, port: int) -> bool:
    """Whether Serve's own proxy takes a request that says to be too long; of HAProxy this says nothing."""
    asked = (
        f"POST /-/healthz HTTP/1.1\r\nHost: {host}\r\nContent-Length: {MAX_BYTES + 1}\r\nExpect: 100-continue\r\n\r\n"
    )
    try:
        with socket.create_connection((host, port), timeout=PATIENT_S) as client:
            client.sendall(asked.encode())
            answer = client.recv(4096)
    except OSError:  # it is not there yet, or elsewhere
        return False
    return b"server: uvicorn" in answer and not answer.startswith(b"HTTP/1.1 413")


def _serve_there() -> str:
    """Which Serve this cluster has now: the id of its controller."""
    found: str = _get_global_client()._controller._actor_id.hex()
    return found


def _ours_and_idle() -> bool:
    """Whether rtrain started the Serve of this cluster, and nothing is served there any more."""
    return not ray_serve.status().applications and has(STARTED, _serve_there())


def check_port(host: str, port: int, field: str = "port", option: str = "--port (of a recipe --handoff.port)") -> None:
    """Whether Serve can listen there; `field` and `option` are what it was asked for by.

    Raises:
        ClusterError: something else listens there.
    """
    if ray_serve.status().proxies:  # Serve runs on this cluster already, and listens on one port
        own = _get_global_client().http_config.port
        if own == port:
            return
        if not _ours_and_idle():
            there = ", ".join(sorted(ray_serve.status().applications)) or "nothing now: ray.serve.shutdown() ends it"
            raise ClusterError(
                f"{field}: {port}, but Ray Serve of this cluster listens on {own} already. Set it to {own}, or "
                f"stop what is served there ({there})"
            )
    check_free(host, port, field, option)


def check_free(host: str, port: int, field: str, option: str) -> None:
    """Whether nothing listens there.

    Raises:
        ClusterError: something does.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"{field}: {port} on {host} cannot be used ({error.strerror}). Stop what listens there, "
                f"or set another with {option} {port + 1}"
            ) from error
