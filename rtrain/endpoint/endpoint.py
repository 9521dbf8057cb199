"""An endpoint from outside: release a version to it, ask how it is, give shares, take back, stop."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import ray
from ray import serve as ray_serve
from ray.exceptions import RayActorError, RayTaskError

from rtrain import config
from rtrain.endpoint.actor import conductor_of, end_conductor, endpoints, start_conductor
from rtrain.endpoint.answering import Answering
from rtrain.endpoint.canary import Canary
from rtrain.endpoint.deploying import VERSION, deploy, deployed
from rtrain.endpoint.of_serve import host_of_serve, port_of_serve, running
from rtrain.endpoint.router import Router
from rtrain.endpoint.state import STATE, Deployed, State
from rtrain.errors import ClusterError, RtrainError, UserError, one_line
from rtrain.export.artifact import export_in
from rtrain.export.huggingface import is_language
from rtrain.language.decoding import Decoding
from rtrain.release.gate import who
from rtrain.release.registry import CHALLENGER, CHAMPION, Registry, Version
from rtrain.serving.ports import check_free, check_port, check_rpc_port, listen
from rtrain.serving.replacing import run_app
from rtrain.serving.rpc import end_rpc, listen_rpc
from rtrain.serving.scale import Scale
from rtrain.stages.config import TwoStages
from rtrain.storage import Folder
from rtrain.storage.paths import located

NAME = re.compile(r"[A-Za-z0-9_-]+")
PORT = 8000
ROUTERS = 2
ANSWER_S = 60.0
"""Seconds that a conductor has for an answer."""
LOGGED_S = 10.0
"""Seconds that an endpoint which is to stop has for its log."""
SAY_S = 10.0
"""Seconds after which it is said again how far a step is."""
LOCAL = ("127.0.0.1", "localhost", "::1")
LOOK_S = 0.5
"""Seconds between two looks at a release that goes on."""


@dataclass(frozen=True)
class Settled:
    """How a release ended."""

    version: int
    champion: bool
    """Whether the version answers all requests now."""
    why: str
    """What was decided of it last, and why."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model's versions behind one address, on the Ray that is joined: `http://HOST:PORT/NAME/predict`."""

    name: str
    """The model in the registry, and the path."""
    port: int | None = None
    """Of Ray Serve; none: its own where it runs, else 8000."""
    host: str = "127.0.0.1"
    routers: int | None = None
    """Replicas that pass requests on, from when the endpoint starts; none: two."""
    replicas: int | Scale | Mapping[str, Any] | None = None
    """Of each version: so many, all of a `Scale`, or fields of one as `rtrain.override` takes them, `{"gpus": 0.25}`.
    What is not said is as of what answers now; at first one replica."""
    decoding: Decoding | Mapping[str, Any] | None = None
    """Of language models how each version answers: all of it, or fields, the others as of what answers now."""
    registry: str = "sqlite:///runs/registry.db"
    audit: str = "runs/audit"
    state: str = "runs/endpoints"
    """Folder or URI where endpoints are kept, which their conductors must reach."""
    stages: TwoStages | Mapping[str, Any] | None = None
    """Where versions are one of two stages: what is released takes the place of its kind, the other is this one's.
    All of them, or fields, the others as of what answers now."""
    grpc_port: int | None = None
    """Where gRPC answers too, on `host` of the head node, from when the endpoint starts; none: nowhere."""
    page: bool | None = None
    """Whether `/NAME/-/` shows all who reach it versions, runs, decisions and who made them; none: where Ray Serve
    listens to this machine alone. Behind a proxy, which asks from this machine, shut that path there."""

    def __post_init__(self) -> None:
        kind, _, path = self.registry.partition("sqlite:///")
        if not kind and path:  # the conductor works in another folder
            object.__setattr__(self, "registry", f"sqlite:///{located(path)}")
        for name in ("audit", "state"):
            object.__setattr__(self, name, located(getattr(self, name)))
        if not NAME.fullmatch(self.name):
            raise UserError(f"endpoint {self.name!r}: letters, digits, - and _ alone, for it is a path of the address")
        if self.routers is not None and self.routers < 1:
            raise UserError(f"endpoint {self.name!r}: routers must be at least 1, got {self.routers}")
        Answering.after(None, self.replicas if isinstance(self.replicas, int) else None)
        if self.grpc_port is not None:
            check_rpc_port(self.port or 0, self.grpc_port)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self.host}:{self._port()}/{self.name}"

    def release(
        self, run: str, reason: str, canary: Canary | None = None, *, say: Callable[[str], None] = lambda _: None
    ) -> Version:
        """Begin to release a finished run's export, whose gate was passed; the first one answers all requests at once.

        Returns as soon as it has its first share; `settled` waits for the end. The version that answers already, told
        to answer otherwise (more replicas, another guard), starts anew so and takes its own place at once.

        Raises:
            UserError: as `Registry.promote`; another version is being tried; it is no stage where versions are, or one
                where they are not.
            RunFailed: it does not load: it was taken back.
        """
        if self.grpc_port is not None and is_language(export_in(run)):
            raise UserError(f"endpoint {self.name!r}: a language model answers by HTTP alone. Leave out grpc_port")
        there = self._there()
        if there and (self.routers, self.grpc_port, self.page) != (None, None, None):
            say("routers, grpc_port and page are of when an endpoint starts: it runs, and has them as it began")
        before = self._before(there)
        answering = self._answering(before, there)  # what it names is here, or nothing begins
        if answering.stages:
            answering.stages.having(export_in(run))
        self.refuse_while_tried()
        registry = Registry(self.registry, self.audit)
        version = registry.register(self.name, run, reason)
        champion = registry.holder(self.name, CHAMPION)
        # Of an endpoint that runs it counts what it serves: the registry may be ahead, by another region or a person.
        if there and before and before.number == version.version:
            if answering.is_of(before):
                raise UserError(f"endpoint {self.name!r}: version {version.version} answers all requests already")
            changed = answering.of_all_at_once(before, canary or Canary(), self.name)
            say(f"version {version.version} ({version.run}) starts anew, to answer as it is told")
            with self._deployed(version, answering, before) as anew:
                self._told("replace", asdict(anew), "change", f"{reason}{changed}", who())
            return version
        if not (champion and champion.version == version.version):
            registry.promote(self.name, version.version, reason, alias=CHALLENGER)
        with self._or_withdrawn(registry, version):
            if not there:
                first = champion or version
                # What is said is of the version that is released: the one before it starts as it was.
                was = answering
                if before and first.version != version.version:
                    was = Answering.after(before)
                    was = replace(was, stages=was.stages or answering.stages)
                say(f"version {first.version} ({first.run}) starts")
                self._open(deploy(first, self.name, was, self.audit), reason)
                if first is version:
                    registry.promote(self.name, version.version, reason, answers=True)
                if first.version == version.version:
                    return version
            say(f"version {version.version} ({version.run}) starts")
            by = canary or Canary()
            with self._deployed(version, answering, before if by.shares[0] == 1 else None) as candidate:
                self._told("begin", asdict(candidate), config.to_dict(by), reason, who())
        return version

    def stages_of_release(self) -> TwoStages | None:
        """The two stages that a release is to be one of, without it; none: versions answer alone.

        Raises:
            UserError: stages are asked for, and the champion is no stage.
        """
        there = self._there()
        return self._answering(self._before(there), there).stages

    def settled(self, version: int, *, timeout_s: float, say: Callable[[str], None] = lambda _: None) -> Settled | None:
        """How the release of a version ended; none where it goes on after `timeout_s`, or waits for a person."""
        deadline, said, again = time.monotonic() + timeout_s, "", 0.0
        while time.monotonic() < deadline:
            status = self.status()
            roles = {of["version"]: of["role"] for of in status["versions"]}
            newest = next((d for d in status["decisions"] if d.get("version") == version), {"what": "", "why": ""})
            if roles.get(version) != "candidate":
                why = f"{newest['what']}: {newest['why']}" if newest["what"] else "it is the first"
                return Settled(version, roles.get(version) == "champion", why)
            if status["step"] != said or time.monotonic() > again:
                said, again = status["step"], time.monotonic() + SAY_S
                answers = sum(of["answers"] for of in status["versions"] if of["version"] == version)
                asked, took = status["canary"], status["seconds"]
                say(f"{said}, {answers} of {asked['answers']} answers, {took:.0f} of {asked['seconds']:g} s")
            time.sleep(LOOK_S)
        return None

    def status(self) -> dict[str, Any]:
        """Versions, shares, rates and decisions, newest first."""
        found: dict[str, Any] = self._told("status")
        return found | {"url": self.url}

    def hold(self, share: float, reason: str) -> None:
        """Give the version that is being tried a share of the requests, and leave it at that; at 1 it is the champion.

        Raises:
            UserError: none is being tried, or it is no share.
        """
        _reasoned(reason)
        self._told("hold", share, reason, who())

    def rollback(self, reason: str) -> str:
        """Take back the version that is being tried; where none is, the champion: the one before it answers again.

        Raises:
            UserError: there was no champion before, or the registry has one that this endpoint never served.
            ClusterError: it went back, and the registry cannot be told yet: its conductor goes on trying.
        """
        _reasoned(reason)
        if self._told("take_back", reason, who()):
            return "the version that was being tried is taken back"
        self._at_rest()
        registry = Registry(self.registry, self.audit)
        serves, holder = self.status()["versions"][0]["version"], registry.holder(self.name, CHAMPION)
        if holder and holder.version > serves:
            raise UserError(
                f"endpoint {self.name!r}: it serves version {serves}, and the registry's champion is {holder.version}. "
                "Release that, or roll the registry back without --endpoint first"
            )
        # The registry is one for all regions, and was taken back by the first of them.
        behind = holder is not None and holder.version < serves
        back = holder if holder and behind else registry.before(self.name)
        before = self._before(there=True)
        answering = self._answering(before, there=True)
        if answering.stages and self._knows("had") and (had := self._told("had", back.version)):
            answering = replace(answering, stages=config.from_dict(had))
        with self._deployed(back, answering, before) as champion:
            self._told("replace", asdict(champion), "roll back", reason, who(), not behind)
        self._at_rest()
        told = f"version {back.version} ({back.run}) answers again"
        holder = registry.holder(self.name, CHAMPION)
        if not holder or holder.version != back.version:
            has = f"version {holder.version}" if holder else "nobody"
            raise ClusterError(
                f"endpoint {self.name!r}: {told}, but the registry's champion is {has}. rtrain endpoints says why"
            )
        return told

    def as_registered(self) -> bool:
        """Whether the registry's champion answers all requests."""
        champion, *tried = self.status()["versions"]
        holder = Registry(self.registry, self.audit).holder(self.name, CHAMPION)
        return not tried and holder is not None and holder.version == champion["version"]

    def stop(self, reason: str = "it was told to stop") -> None:
        """Take the endpoint down, with all versions, for a reason that is logged; the registry stays as it is."""
        _reasoned(reason)
        if of_now := self._knows("stopping"):
            self._told("stopping", reason, who())
        end_rpc(self.name)
        ray_serve.delete(self.name)
        for app in list(ray_serve.status().applications):
            if app.startswith(f"{self.name}-") and re.fullmatch(VERSION, app.removeprefix(f"{self.name}-")):
                ray_serve.delete(app)
        if of_now:
            with suppress(ClusterError):  # what is not logged by now is when it starts again
                self._at_rest(LOGGED_S)
        end_conductor(self.name)

    def _before(self, there: bool) -> Deployed | None:
        """What answers now, or did when its Ray ended; none: nothing ever."""
        if there:
            champion: Deployed = self._told("champion")
            return champion
        return self._kept()

    def _answering(self, before: Deployed | None, there: bool) -> Answering:
        """As it is said, and else as what answered before.

        Raises:
            UserError: stages are asked for, and what answers is no stage.
            ConfigError: as `Answering.after`.
        """
        if there and before and before.stages is None and self.stages:
            raise UserError(
                f"endpoint {self.name!r}: what answers there is one model, not two stages, and clients ask it by other "
                "paths. Release stages under another name"
            )
        return Answering.after(before, self.replicas, self.decoding, self.stages)

    @contextmanager
    def _or_withdrawn(self, registry: Registry, version: Version) -> Iterator[None]:
        """The challenger is none any more where it does not come to be tried."""
        try:
            yield
        except BaseException as error:
            with suppress(ClusterError):
                if self._tried() != version.version:  # begun by another command meanwhile
                    registry.withdraw(self.name, version.version, f"it was not tried ({type(error).__name__})")
            raise

    def refuse_while_tried(self) -> None:
        """Raises UserError where a version is being tried: the next one waits."""
        if tried := self._tried():
            raise UserError(
                f"endpoint {self.name!r}: version {tried} is being tried. Wait for its end, or take it back with "
                f"rtrain rollback {self.name} --endpoint"
            )

    def _tried(self) -> int:
        """The version that is being tried; 0: none is, or the endpoint is not there."""
        if self.name not in endpoints():
            return 0
        return next((int(of["version"]) for of in self.status()["versions"] if of["role"] == "candidate"), 0)

    def _deployed(
        self, version: Version, answering: Answering, instead: Deployed | None
    ) -> AbstractContextManager[Deployed]:
        """`instead`: of that which answers all requests now; none: of nothing at once."""
        first = running(instead.app) if instead else 0
        return deployed(version, self.name, answering, self.audit, first)

    def _kept(self) -> Deployed | None:
        """The champion that an endpoint had whose Ray is gone."""
        folder = Folder(f"{self.state}/{self.name}")
        return State.from_json(folder.read_json(STATE)).champion if folder.exists(STATE) else None

    def _open(self, champion: Deployed, reason: str) -> None:
        """The conductor, which goes on from what is on storage if there is anything, and the routers."""
        state = f"{self.state}/{self.name}"
        first = State(model=self.name, registry=self.registry, audit=self.audit, champion=champion)
        folder = Folder(state)
        if folder.exists(STATE):
            first.after(State.from_json(folder.read_json(STATE)))
            first.decide("start", reason, who(), version=champion.number, share=1.0)
        folder.write_json(STATE, first.to_json())
        start_conductor(self.name, folder.uri)
        self._told("status")
        listen(self.host, self._port())
        router = cast(Any, Router).options(num_replicas=self.routers or ROUTERS, ray_actor_options={"num_cpus": 0.1})
        shown = self.page if self.page is not None else host_of_serve() in LOCAL
        run_app(router.bind(self.name, shown), self.name, f"/{self.name}")
        if self.grpc_port is not None:
            listen_rpc(self.name, self.host, self.grpc_port)

    def _at_rest(self, timeout_s: float = ANSWER_S) -> None:
        """Wait until the registry knows what was decided last.

        Raises:
            ClusterError: it does not, after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while self.status()["to_do"]:
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"endpoint {self.name!r}: what was decided last is not in the log or the registry yet, which are "
                    "told again until they have it. rtrain endpoints and its page say why"
                )
            time.sleep(LOOK_S)

    def _there(self) -> bool:
        """Whether it runs; starts Ray Serve if it does not."""
        port = self._port()
        check_port(self.host, port)
        if self.grpc_port is not None:
            check_rpc_port(port, self.grpc_port)
        listen(self.host, port)
        there = self.name in ray_serve.status().applications
        if self.grpc_port is not None and not there:
            check_free(self.host, self.grpc_port, "grpc_port", "--grpc-port")
        return there

    def _port(self) -> int:
        """That Ray Serve listens on, or is to."""
        return self.port if self.port is not None else port_of_serve() or PORT

    def _knows(self, what: str) -> bool:
        """Whether its conductor is told this; that of an older rtrain may not be."""
        return hasattr(conductor_of(self.name), what)

    def _told(self, what: str, *words: Any) -> Any:
        ask = getattr(conductor_of(self.name), what, None)
        if ask is None:
            raise ClusterError(
                f"endpoint {self.name!r}: another rtrain began it, whose conductor knows no {what!r}. Stop it with "
                f"rtrain endpoints {self.name} --stop, and release again"
            )
        try:
            return ray.get(ask.remote(*words), timeout=ANSWER_S)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, RtrainError):
                raise cause from None
            raise
        except RayActorError as error:
            raise ClusterError(f"endpoint {self.name!r}: its conductor died ({one_line(error)})") from error


def _reasoned(reason: str) -> None:
    if not reason.strip():
        raise UserError("reason: it is empty. Say why, for those who read the log")
