"""gRPC before what answers HTTP: each call is put to the replicas as HTTP's request, so there is one path for both.

Ray Serve has a gRPC proxy too. It listens on all interfaces, whatever HTTP's host is, takes messages of 2 GB, can not
be started beside a Serve that runs, and refuses what is too much without a word of when to ask again. So this one is an
application of its own, of one replica on the head node, which Serve starts anew if it dies.
"""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection
from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from rtrain.serving.answers import KEY_HEADER, VERSION_HEADER
from rtrain.serving.bodies import MAX_BYTES, REQUEST_S, RETRY_S
from rtrain.serving.place import has, leave, take
from rtrain.serving.replacing import run_app
from rtrain.serving.wire import PATHS, SERVICE, Answer, Question, Refused, refused, refused_as

ENVELOPE_BYTES = 1 << 10
"""More than a message is longer than its body."""
AT_ONCE = 1000
"""Calls that may be under way; gRPC itself refuses further ones, as RESOURCE_EXHAUSTED."""
GRACE_S = 5.0
"""Seconds for calls under way when it is taken down."""


@ray_serve.deployment(name="Rpc", ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}})
class Rpc:
    """Listens for one application."""

    async def __init__(self, application: str, host: str, port: int):  # type: ignore[misc]  # Serve awaits it
        self._application = application
        # Ray's own gRPC has another loop of this process, and either is woken in vain for the other's events.
        asyncio.get_running_loop().set_exception_handler(_not_woken_in_vain)
        # Options begin to listen for its replicas: a handle that first does so at a call, when the application has been
        # ended meanwhile, would wait for some.
        self._replicas = ray_serve.get_app_handle(application).options()
        self._server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", MAX_BYTES + ENVELOPE_BYTES), ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=AT_ONCE,
        )
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                partial(self._call, *http),
                request_deserializer=_read,
                response_serializer=Answer.SerializeToString,
            )
            for name, http in PATHS.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        reflection.enable_server_reflection((SERVICE, reflection.SERVICE_NAME), self._server)
        self._server.add_insecure_port(f"{host}:{port}")
        await self._server.start()

    async def _call(self, method: str, path: str, question: Any, context: Any) -> Any:
        """One call: its answer, or the end of it with a status."""
        if question is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is no Question of model.proto")
        given = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        found = await self._asked(method, path, question.json, given)
        if isinstance(found, Refused):
            await context.abort(found.code, found.why, found.trailers)
        if found.version:
            context.set_trailing_metadata(((VERSION_HEADER, found.version),))
        return Answer(json=found.body)

    async def _asked(self, method: str, path: str, body: bytes, given: dict[str, str]) -> Any:
        wanted = given.get("application", self._application)
        if wanted != self._application:
            why = f"application {wanted!r}: there is none here, but {self._application!r}"
            return refused(grpc.StatusCode.NOT_FOUND, why)
        headers = ((KEY_HEADER, given[KEY_HEADER]),) if KEY_HEADER in given else ()
        asked = self._replicas.relay.remote(method, path, b"", body, headers)
        try:
            found = await asyncio.wait_for(asked, REQUEST_S)
        except asyncio.CancelledError:  # the client has gone, or its time is up
            with suppress(Exception):
                asked.cancel()
            raise
        except TimeoutError:
            return refused(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer in {REQUEST_S:g} s")
        except BackPressureError:
            why = "as many wait as may. Ask again"
            return refused(grpc.StatusCode.RESOURCE_EXHAUSTED, why, retry_s=RETRY_S)
        except (DeploymentUnavailableError, RayActorError):
            return refused(grpc.StatusCode.UNAVAILABLE, "no replica answered. Ask again", retry_s=RETRY_S)
        except Exception as error:
            return refused(grpc.StatusCode.INTERNAL, f"the replica failed ({type(error).__name__})")
        return found if found.status == 200 else refused_as(found.status, found.body, RETRY_S)

    async def __del__(self) -> None:
        """Serve awaits it: calls under way end, further ones are UNAVAILABLE."""
        if hasattr(self, "_server"):
            await self._server.stop(GRACE_S)


def _read(message: bytes) -> Any:
    """None, where it is no question: what is raised here gRPC answers as UNKNOWN."""
    try:
        return Question.FromString(message)
    except DecodeError:
        return None


def _not_woken_in_vain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)


def name_of(application: str) -> str:
    """The application that listens for another one."""
    return f"{application}-grpc"


def listens_rpc(application: str, host: str, port: int) -> bool:
    """Whether an application's calls are answered there."""
    listener = name_of(application)
    return listener in ray_serve.status().applications and has(listener, f"{host}:{port}")


def end_rpc(application: str) -> None:
    """Answer no calls of an application any more, if any are."""
    if name_of(application) in ray_serve.status().applications:
        ray_serve.delete(name_of(application))
    leave(name_of(application))


def listen_rpc(application: str, host: str, port: int) -> str:
    """Answer an application's calls there; where that is.

    Raises:
        RuntimeError: it does not start.
    """
    run_app(Rpc.bind(application, host, port), name_of(application), None)  # type: ignore[attr-defined]
    return take(name_of(application), f"{host}:{port}")
