"""What Ray Serve of the Ray that is joined says of itself."""

import ray
from ray import serve as ray_serve
from ray.serve.context import _get_global_client


def host_of_serve() -> str:
    """What it listens on."""
    return str(_get_global_client().http_config.host)


def port_of_serve() -> int:
    """Where it listens; 0: it does not run, or no Ray is joined."""
    if not ray.is_initialized():  # to ask Serve would start or join one
        return 0
    return int(_get_global_client().http_config.port) if ray_serve.status().proxies else 0


def running(app: str) -> int:
    """Replicas that answer of the deployment of an application that has most; 0: there is none."""
    found = ray_serve.status().applications.get(app)
    return max((of.replica_states.get("RUNNING", 0) for of in found.deployments.values()), default=0) if found else 0
