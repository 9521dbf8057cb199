"""Exports on Ray Serve: a ranking model's answers for rows, a retrieval model's items for users, texts."""

import asyncio
import atexit
import json
import warnings
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import httpx
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client

from rtrain.errors import ClusterError, ConfigError, DataError, RtrainWarning, RunFailed, UserError, briefly, one_line
from rtrain.export.artifact import Prediction, Predictor, is_retrieval, modules_of
from rtrain.export.encoders import Encoders
from rtrain.export.huggingface import is_language
from rtrain.language.decoding import Decoding
from rtrain.serving.language import language_application
from rtrain.serving.place import is_taken, leave, take
from rtrain.serving.ports import check_free, check_port, check_rpc_port, listen
from rtrain.serving.ranker import Ranker
from rtrain.serving.recommender import Recommends
from rtrain.serving.replacing import SURGE, answering, goes_on, has_room, run_app
from rtrain.serving.retriever import Retriever
from rtrain.serving.rpc import end_rpc, listen_rpc, listens_rpc
from rtrain.serving.scale import Scale
from rtrain.serving.sent import as_json, rows_of, several
from rtrain.serving.shards import TableShard
from rtrain.serving.waiting import saying_what_it_waits_for, what_failed
from rtrain.stages.config import TwoStages
from rtrain.stages.features import StoreError
from rtrain.stages.recommender import Recommender

APPLICATION = "rtrain"
"""Name of what `rtrain serve` and `rtrain.serve` serve."""
ONE = Scale()
JSON = {"content-type": "application/json"}
_OWN: dict[str, "Served"] = {}
"""Applications that this process serves; a notebook that serves another model means to replace them."""


@atexit.register  # after Ray's own, so before it
def _let_go() -> None:
    """The Ray that was started for them ends while Python is still whole; on a cluster they go on."""
    for own in list(_OWN.values()):
        own._is_gone()


@dataclass(frozen=True)
class Served:
    """A running application."""

    name: str
    url: str
    asked: str
    """The path that answers."""
    session: ExitStack = field(repr=False)
    """Left when the application is stopped: the Ray that was started for it, or nothing."""
    export: str = field(repr=False, default="")
    """What is served."""
    rpc: str = ""
    """Where it answers over gRPC, as `HOST:PORT`; empty: nowhere."""
    mark: str = field(repr=False, default="")
    """By which it knows its place (`rtrain/serving/place.py`)."""

    def predict(self, rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> list[Prediction]:
        """Probabilities over HTTP, for one row or several, or those of a pandas DataFrame, in which NaN is missing.

        Raises:
            UserError: what is served scores no rows.
            DataError: the server refused the rows (its words), or they are what JSON cannot say.
        """
        self._refuse_other("predict")
        predictions: list[Prediction] = self._post("predict", {"rows": rows_of(rows)})["predictions"]
        return predictions

    def recommend(self, whom: Sequence[Any], k: int = 10, **more: Any) -> list[list[tuple[Any, float]]]:
        """The best items for each of those who ask, over HTTP; `more`: `times` and `seen`, as `Encoders.recommend`.

        Raises:
            UserError: what is served finds no items.
            DataError: the server refused the request (its words), or it is what JSON cannot say.
        """
        self._refuse_other("recommend")
        asked = several(whom, "whom", "those who ask, as [196, 22], or their histories")
        answer = self._post("recommend", {"whom": asked, "k": k} | more)
        pairs = zip(answer["items"], answer["scores"], strict=True)
        return [list(zip(items, scores, strict=True)) for items, scores in pairs]

    def loss(self, tokens: Sequence[int]) -> float:
        """Of a language model: what tokens cost it over HTTP, each after those before it, in nats, summed.

        Raises:
            DataError: the server refused them (its words).
        """
        body = {"model": self.model, "prompt": list(tokens), "max_tokens": 0, "echo": True, "logprobs": 0}
        (choice,) = self._post("v1/completions", body)["choices"]
        return -float(sum(choice["logprobs"]["token_logprobs"][1:]))

    @cached_property
    def model(self) -> str:
        """What a language model is called by those who ask it."""
        answer = httpx.get(f"{self.url}/v1/models", timeout=60)
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])

    def _refuse_other(self, asked: str) -> None:
        """
        Raises:
            UserError: it answers something else.
        """
        if asked != self.asked:
            raise UserError(f"{self.url}: {self.export} answers /{self.asked} alone, not /{asked}")

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self._stopped:
            how = f"{_OWN[self.name].export} took its place" if self.name in _OWN else "it was stopped"
            raise UserError(f"{self.url}: {self.export} is served no more, {how}. Serve it again")
        if self.replaced():
            raise UserError(f"{self.url}: another process took the place of {self.export}. Serve it again")
        try:
            text = as_json(body)
        except DataError as error:
            raise DataError(f"{self.url}/{path}: {error}") from None
        answer = httpx.post(f"{self.url}/{path}", content=text, headers=JSON, timeout=60)
        if answer.status_code in (400, 404, 413, 422):
            told = answer.json()
            raise DataError(f"{self.url}/{path}: {told['detail'] if 'detail' in told else told['error']['message']}")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def predict_concurrently(self, requests: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Prediction]]:
        """One HTTP request for each of `requests`, all under way at once, so that the server batches them."""

        with ThreadPoolExecutor(max_workers=min(32, len(requests))) as pool:
            return list(pool.map(self.predict, requests))

    @property
    def _stopped(self) -> bool:
        return _OWN.get(self.name) is not self

    def stop(self) -> None:
        """Take the application down, and the Ray that was started for it; a cluster stays, and what took its place."""
        if self._stopped:
            return
        if not self.replaced():
            end(self.name)
        self._is_gone()

    def _is_gone(self) -> None:
        del _OWN[self.name]
        self.session.close()

    def replaced(self) -> bool:
        """Whether another process serves in its place, as by `rtrain serve --replace`."""
        return is_taken(self.name, self.mark)


def application_of(
    served: "str | TwoStages",
    called: str = "",
    scale: Scale = ONE,
    *,
    decoding: Decoding | None = None,
    first: int = 0,
    **more: Any,
) -> Any:
    """What serves an intact export, or two; `more`: options of its deployment, beside those of its scale.

    `called`: the name of a language model for those who ask it; by default its run's. `decoding`: how such a model
    answers; none: by the defaults. `first`: replicas that it begins with, where they go by the load.

    Raises:
        CheckpointError: there is no intact export.
        ConfigError: no replica can import a class of its model, two stages do not fit each other, or something is asked
            for that would not be used, as GPUs or guesses.
    """
    options = scale.options(first) | more
    if isinstance(served, str) and is_language(served):
        if scale.tables != "device" or scale.shards:
            raise ConfigError("Scale.tables, shards: a language model's lie with the rest of it. Leave them out")
        decoding = decoding or Decoding()
        if decoding.engine == "vllm":
            return _on_vllm()(served, called, decoding, scale, first, **more)
        return language_application(served, called=called, **decoding.options(), **options)
    if decoding:
        raise ConfigError("decoding: of a language model alone. Leave it out")
    deployment: Any
    ranks = not (isinstance(served, TwoStages) or is_retrieval(served))
    if scale.shards and not ranks:
        raise ConfigError("Scale.shards: of a model that scores rows alone. Leave it out")
    if scale.gpus and not ranks:
        raise ConfigError("Scale.gpus: what finds items computes on CPU. Leave it out")
    if isinstance(served, TwoStages):
        both = Recommender(served)
        # A notebook has a loop of its own; and nodes may have a password that this process has not.
        with ThreadPoolExecutor(1) as apart, suppress(StoreError):
            apart.submit(asyncio.run, _looked_at(both)).result()
        heads, deployment = [both.encoders.head, both.ranker.head], Recommends
    elif is_retrieval(served):
        heads, deployment = [Encoders(served).head], Retriever
    else:
        heads, deployment = [Predictor(served).head], Ranker
    modules = sorted({module for head in heads for module in modules_of(head)})
    where: tuple[Any, ...] = ()
    if deployment is Ranker:
        tables: Any = TableShard
        # Replicas never ask the shards of another export, while one takes its place.
        of = sha256(json.dumps(heads[0]["files"], sort_keys=True).encode()).hexdigest()[:8]
        sharing = [
            tables.options(
                name=f"Tables{shard}-{of}", num_replicas=scale.copies,
                max_surge_percent=options.get("max_surge_percent", 0),
            ).bind(served, modules)
            for shard in range(scale.shards)
        ]  # fmt: skip
        where = scale.tables, sharing
    return deployment.options(**options).bind(served, modules, *where)


async def _looked_at(both: Recommender) -> None:
    """What a replica says as it starts, said to who deploys it.

    Raises:
        ConfigError: as `Recommender.start`.
    """
    try:
        await both.start()
    finally:
        await both.known.store.close()


def _on_vllm() -> Any:
    """`vllm_application`, imported where it is asked for: vLLM is no dependency.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from rtrain.serving.vllm import vllm_application
    except ImportError as error:
        raise ConfigError(
            f"Decoding.engine: vllm cannot be imported ({briefly(error)}). Run pip install 'rtrain[vllm]'"
        ) from None
    return vllm_application


def deploy(
    served: "str | TwoStages",
    *,
    name: str,
    port: int,
    prefix: str = "/",
    scale: Scale = ONE,
    host: str = "127.0.0.1",
    session: ExitStack | None = None,
    grpc_port: int | None = None,
    replace: bool = False,
    decoding: Decoding | None = None,
) -> Served:
    """Serve an export, or two, on the Ray that is joined, and wait until it answers; with a `grpc_port` over gRPC too.

    What is served by that name answers until the new one does, where there is room for both, and goes on where that
    does not start.

    `prefix`: of its paths. `replace`: also where another process serves on this cluster by that name.

    Raises:
        ClusterError: a port is taken, another process serves already, or another application has the prefix.
        CheckpointError: there is no intact export.
        ConfigError: gRPC of what has none.
        RunFailed: it does not start.
    """
    before = answering(name)
    on_vllm = decoding is not None and decoding.engine == "vllm"
    surge: dict[str, Any] = {"max_surge_percent": SURGE} if before and has_room(scale) and not on_vllm else {}
    # Here, where the error is one line, before any replica starts.
    app = application_of(served, scale=scale, decoding=decoding, **surge)
    if grpc_port is not None:
        _check_rpc(served, port, grpc_port)
    check_port(host, port)
    there = ray_serve.status().applications
    if name in there and name not in _OWN and not replace:
        raise ClusterError(
            f"serve: another process serves {name!r} on this cluster already ({there[name].status.value}), or did and "
            "ended. Take its place: --replace, or replace=True; or end it: rtrain serve --stop"
        )
    if other := _at(prefix) - {name}:
        raise ClusterError(
            f"serve: {min(other)!r} answers at {prefix} of this cluster already. Stop it, or serve on another cluster"
        )
    if not before:  # of one that was killed
        end_rpc(name)
    if grpc_port is not None and not listens_rpc(name, host, grpc_port):
        check_free(host, grpc_port, "grpc_port", "--grpc-port")
    mark, rpc = _started(app, name, prefix, (host, port), grpc_port, before)
    session = session or ExitStack()
    if own := _OWN.get(name):  # the Ray that was started for it goes on for this one
        session.enter_context(own.session.pop_all())
    url = f"http://{host}:{port}{prefix.rstrip('/')}"
    _OWN[name] = made = Served(
        name=name, url=url, asked=_asked(served), session=session, export=str(served), rpc=rpc, mark=mark
    )
    return made


def end(name: str) -> bool:
    """Take an application down whoever serves it on the Ray that is joined; whether there was one."""
    there = name in ray_serve.status().applications
    end_rpc(name)
    if there:
        ray_serve.delete(name)
    leave(name)
    return there


def _started(
    app: Any, name: str, prefix: str, at: tuple[str, int], grpc_port: int | None, before: Set[str]
) -> tuple[str, str]:
    """Run it until it answers; the mark of its place, and where gRPC answers. `before`: what answered there.

    Raises:
        RunFailed: it does not start.
    """
    host, port = at
    try:
        listen(host, port)
        with saying_what_it_waits_for(name):
            run_app(app, name, prefix)
        end_rpc(name)  # of what it took the place of
        rpc = ""
        if grpc_port is not None:
            check_free(host, grpc_port, "grpc_port", "--grpc-port")
            rpc = listen_rpc(name, host, grpc_port)
        mark = take(name)
    except KeyboardInterrupt:
        if before:  # whoever serves there will stop it, too
            text = "serve: it goes on to take the place of what answers. rtrain serve --stop ends both"
            warnings.warn(text, RtrainWarning, stacklevel=2)
        else:
            ray_serve.delete(name)
        raise
    except (RayError, RuntimeError, TimeoutError) as error:
        if why := what_failed(name):
            if goes_on(name, before):
                raise RunFailed(
                    f"serve: a replica does not start ({why}). What was served there goes on answering"
                ) from error
            ray_serve.delete(name)
            if own := _OWN.get(name):
                own._is_gone()
            raise RunFailed(f"serve: a replica does not start ({why}){_nothing_left(before)}") from error
        raise RunFailed(
            f"serve: Ray Serve did not start on {host}:{port} ({one_line(error)}). The machine may be busy: the same "
            "command tries again; of a run the training is done and kept"
        ) from error
    return mark, rpc


def _nothing_left(before: Set[str]) -> str:
    return ". What was served there had to end for it, so nothing is served there now" if before else ""


def _at(prefix: str) -> set[str]:
    """Applications of this cluster that answer there."""
    if not ray_serve.status().applications:
        return set()
    there = _get_global_client().get_serve_details()["applications"]
    return {name for name, told in there.items() if told["route_prefix"] == prefix}


def _asked(served: "str | TwoStages") -> str:
    """The path that answers."""
    if isinstance(served, str) and is_language(served):
        return "v1/completions"
    return "recommend" if isinstance(served, TwoStages) or is_retrieval(served) else "predict"


def _check_rpc(served: "str | TwoStages", port: int, grpc_port: int) -> None:
    """Refuse what cannot be had over gRPC.

    Raises:
        ConfigError: a language model, or no port.
    """
    if isinstance(served, str) and is_language(served):
        raise ConfigError("grpc_port: a language model answers OpenAI's HTTP alone. Leave it out")
    check_rpc_port(port, grpc_port)
