"""A version of an endpoint as an application of its own, without an address."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ray import serve as ray_serve
from ray.exceptions import RayError

from rtrain.endpoint.answering import Answering
from rtrain.endpoint.state import Deployed
from rtrain.errors import CheckpointError, RtrainError, RunFailed, briefly
from rtrain.release.audit import AuditLog
from rtrain.release.registry import Version, other_than_registered
from rtrain.serving.app import application_of
from rtrain.serving.replacing import run_app
from rtrain.serving.waiting import saying_what_it_waits_for, what_failed

VERSION = r"\d+-[0-9a-f]{4}"
"""Behind the endpoint's name and a dash what its applications are called."""


@contextmanager
def deployed(version: Version, endpoint: str, answering: Answering, audit: str, first: int = 0) -> Iterator[Deployed]:
    """`deploy`, and gone again where what is done with it fails: what answers now goes on alone.

    Raises:
        RunFailed: it did not load, which is logged.
    """
    made = deploy(version, endpoint, answering, audit, first)
    try:
        yield made
    except BaseException:
        ray_serve.delete(made.app)
        raise


def deploy(version: Version, endpoint: str, answering: Answering, audit: str, first: int = 0) -> Deployed:
    """Start it, until all its replicas answer; `first`: replicas that it begins with, where they go by the load.

    Raises:
        RunFailed: it did not load, which is logged.
    """
    # Never a name that an application had which is being ended meanwhile.
    app = f"{endpoint}-{version.version}-{secrets.token_hex(2)}"
    try:
        if why := other_than_registered(version):
            raise CheckpointError(f"it {why}")
        if answering.stages:
            answering = replace(answering, stages=answering.stages.having(version.export))
        application = application_of(
            answering.stages or version.export, endpoint, answering.scale, decoding=answering.decoding, first=first,
            max_constructor_retry_count=2,
        )  # fmt: skip
        with saying_what_it_waits_for(app):
            run_app(application, app, None)
    except (RtrainError, RayError, RuntimeError, TimeoutError) as error:
        why = f"version {version.version} does not load ({what_failed(app) or briefly(error)})"
        ray_serve.delete(app)
        AuditLog(audit).append("refused", why, {"endpoint": endpoint, "version": version.version})
        goes_on = ". What answered before goes on" if endpoint in ray_serve.status().applications else ""
        raise RunFailed(f"endpoint {endpoint!r}: {why}{goes_on}") from error
    except BaseException:  # who wanted it gave up, as by Ctrl-C: nobody else would end it
        ray_serve.delete(app)
        raise
    return Deployed(app=app, number=version.version, export=version.export, run=version.run, **answering.to_json())
