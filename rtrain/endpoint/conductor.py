"""Who decides for an endpoint: an actor of its own, which goes on when the command that began a release has ended.

It hears from each router what it counted, judges, and says what each is to do. What it decides is kept on storage, so
that it goes on after a restart; counts are not, so a step begins again then.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rtrain import config
from rtrain.endpoint.online import Online
from rtrain.endpoint.routing import Routing, salt_of
from rtrain.endpoint.state import STATE, Deployed, State, stamp
from rtrain.endpoint.tally import Tally
from rtrain.errors import ClusterError, UserError, one_line
from rtrain.release.audit import AuditLog
from rtrain.storage import Folder

GONE_S = 30.0
"""Seconds without an exchange after which a router is gone, and waited for no more."""
AGAIN_S = 1.0
MOST_AGAIN_S = 60.0
"""Seconds until who was away is told again: at first, twice as long each time, and at most."""


class Conductor:
    """See the file's docstring. Methods are called by several threads; what takes long is done by one of its own."""

    def __init__(self, state: str):
        """`state`: the folder that it is kept in."""
        self._folder = Folder(state)
        if not self._folder.exists(STATE):
            raise UserError(f"endpoint: there is none in {state!r}")
        self._state = State.from_json(self._folder.read_json(STATE))
        self._lock = threading.RLock()
        self._tallies: dict[str, Tally] = {}
        self._heard: dict[str, tuple[float, int]] = {}
        self._began = time.monotonic()
        self._asking, self._next_asked = False, 0.0
        self._later: queue.Queue[Callable[[], object]] = queue.Queue()
        self._pause_s, self._again = 0.0, math.inf
        self._away = set[str]()
        if self._state.to_do:
            self._later.put(self._settle)
        threading.Thread(target=self._work, name="rtrain-conductor", daemon=True).start()

    def exchange(self, router: str, number: int, told: Mapping[str, Tally]) -> Routing:
        """What a router counted since, and which routing it has; the one that it should have."""
        with self._lock:
            self._heard[router] = time.monotonic(), number
            for app, tally in told.items():
                self._tallies.setdefault(app, Tally()).add(tally)
            self._judge()
            return self._routing()

    def begin(self, candidate: dict[str, Any], canary: dict[str, Any], reason: str, by: str) -> None:
        """Try a version that runs.

        Raises:
            UserError: another one is being tried.
        """
        with self._lock:
            state = self._state
            if state.candidate:
                raise UserError(
                    f"endpoint {state.model!r}: version {state.candidate.number} is being tried. Take it back first, "
                    "with rtrain rollback --endpoint"
                )
            state.candidate, state.canary = Deployed(**candidate), config.from_dict(canary)
            state.step, state.held = 0, None
            self._decided("begin", reason, by)

    def hold(self, share: float, reason: str, by: str) -> None:
        """Give the candidate a share of the requests, and leave it at that; it is judged as before. With all of them it
        is the champion.

        Raises:
            UserError: no version is being tried, or it is no share.
        """
        with self._lock:
            if not self._state.candidate:
                raise UserError(f"endpoint {self._state.model!r}: no version is being tried. Release one")
            if not 0 <= share <= 1:
                raise UserError(f"endpoint {self._state.model!r}: a share is 0 to 100 %, got {100 * share:.6g} %")
            if share == 1:
                return self._crown(reason, by)
            self._state.held = share
            self._decided("hold", reason, by)

    def take_back(self, reason: str, by: str) -> bool:
        """Take the candidate back; whether there was one."""
        with self._lock:
            if there := self._state.candidate is not None:
                self._drop_candidate(reason, by)
            return there

    def replace(self, champion: dict[str, Any], what: str, reason: str, by: str, back: bool = False) -> None:
        """Let another version that runs answer all requests at once, instead of any that do; `what`: as it is logged.

        `back`: the registry goes back to it too.

        Raises:
            UserError: a version is being tried.
        """
        with self._lock:
            state = self._state
            if state.candidate:
                raise UserError(f"endpoint {state.model!r}: version {state.candidate.number} is being tried")
            gone = state.crown(Deployed(**champion))
            then: list[dict[str, Any]] = []
            if back:
                then.append({"do": "rollback", "number": state.champion.number, "why": reason})
            if gone.app != state.champion.app:
                then.append({"do": "remove", "app": gone.app})
            self._decided(what, reason, by, of=state.champion, share=1.0, then=then)

    def had(self, number: int) -> dict[str, Any] | None:
        """The two stages that a version was of when it last had all requests; none: it answered alone, or never."""
        with self._lock:
            return self._state.had.get(str(number))

    def stopping(self, reason: str, by: str) -> None:
        """The endpoint is taken down, with all applications, by who tells this: say it, and that nobody has a version
        any more that is being tried."""
        with self._lock:
            state = self._state
            if state.candidate:
                self._drop_candidate(reason, by)
            state.to_do = [task for task in state.to_do if _told_to(task) != "serve"]
            self._decided("stop", reason, by, of=state.champion, share=0.0)

    def champion(self) -> Deployed:
        """The version that answers now, as it was deployed."""
        with self._lock:
            return self._state.champion

    def status(self) -> dict[str, Any]:
        """All of it, for people and for machines."""
        with self._lock:
            state, now = self._state, time.monotonic()
            versions = [
                {"version": of.number, "run": of.run, "export": of.export, "role": role, "share": share, "app": of.app}
                | {"engine": (of.decoding or {}).get("engine")}
                | self._tally(of).to_json()
                for role, of, share in (
                    ("champion", state.champion, 1 - self._share()),
                    ("candidate", state.candidate, self._share()),
                )
                if of
            ]
            return {
                "endpoint": state.model,
                "versions": versions,
                "seconds": now - self._began,
                "step": self._step_name(),
                "everywhere": self.everywhere(),
                "to_do": len(state.to_do) or self._later.unfinished_tasks,
                "routers": sum(now - at < GONE_S for at, _ in self._heard.values()),
                "canary": config.to_dict(state.canary) if state.candidate else None,
                "decisions": list(reversed(state.decisions)),
            }

    def everywhere(self) -> bool:
        """Whether every router that is there does as it was told last."""
        with self._lock:
            now = time.monotonic()
            mine = [number for at, number in self._heard.values() if now - at < GONE_S]
            return bool(mine) and all(number >= self._state.number for number in mine)

    def _judge(self) -> None:
        state = self._state
        if not state.candidate:
            return
        # Of a champion that has no share there is only what was under way as it lost it: nothing to be compared with.
        champion = self._tally(state.champion) if self._share() < 1 else Tally()
        new, seconds, canary = self._tally(state.candidate), time.monotonic() - self._began, state.canary
        if why := canary.limits.exceeded(new, champion):
            return self._drop_candidate(why, "endpoint")
        online = canary.limits.online
        if online and not self._asking and time.monotonic() >= self._next_asked:
            self._asking, candidate, before = True, state.candidate, state.champion
            self._later.put(lambda: self._ask_online(online, candidate, before))
        if self._waits_for_a_person():
            return
        if why := canary.unseen(new, seconds):
            return self._drop_candidate(why, "endpoint")
        if canary.over(new, seconds):
            self._advance(new, seconds)

    def _ask_online(self, online: Online, candidate: Deployed, champion: Deployed) -> None:
        """Read the event log, which takes long."""
        try:
            why = online.exceeded(candidate.number, champion.number)
        finally:
            self._asking, self._next_asked = False, time.monotonic() + online.every_s
        with self._lock:
            if why and self._state.candidate == candidate:
                self._drop_candidate(why, "endpoint")

    def _advance(self, new: Tally, seconds: float) -> None:
        state = self._state
        why = f"{new.answers} answers in {seconds:.0f} s, {new.failed} failed, no limit was exceeded"
        if state.step + 1 < len(state.canary.shares):  # the only step of a blue-green release is its last
            state.step += 1
            self._decided("advance", why, "endpoint")
        if state.canary.shares[state.step] >= 1:
            self._crown(why, "endpoint")

    def _crown(self, why: str, by: str) -> None:
        """The candidate has all requests from here on."""
        state = self._state
        crowned = state.candidate
        assert crowned is not None
        before, state.candidate, state.step, state.held = state.crown(crowned), None, 0, None
        then: list[dict[str, Any]] = [{"do": "promote", "number": crowned.number, "why": why}]
        then.append({"do": "remove", "app": before.app})
        self._decided("champion", why, by, of=crowned, share=1.0, then=then)

    def _drop_candidate(self, why: str, by: str) -> None:
        state = self._state
        gone = state.candidate
        assert gone is not None
        share = self._share()
        state.candidate, state.step, state.held = None, 0, None
        then: list[dict[str, Any]] = [{"do": "withdraw", "number": gone.number, "why": why}]
        then.append({"do": "remove", "app": gone.app})
        self._decided("take back", why, by, of=gone, share=share, then=then)

    def _decided(
        self,
        what: str,
        why: str,
        by: str,
        of: Deployed | None = None,
        share: float | None = None,
        then: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Make it known: to routers at once, to storage, the log and what is to be done `then` behind."""
        state = self._state
        state.number += 1
        of = of or state.candidate
        there = [one.app for one in (state.champion, state.candidate) if one]
        memory = {app: Tally(memory=tally.memory) for app, tally in self._tallies.items() if app in there}
        seen = {app: tally.to_json() for app, tally in self._tallies.items()}
        self._tallies, self._began = memory, time.monotonic()
        share = self._share() if share is None else share
        state.decide(what, why, by, version=of.number if of else None, share=share, seen=seen)
        state.to_do += then
        self._later.put(self._settle)

    def _settle(self) -> None:
        """Keep what was decided, and do what follows from it: each in order, until it is done or refused.

        What storage or the registry is to be told waits while they are away; applications end meanwhile.
        """
        away = set[str]()
        while True:
            with self._lock:
                stored = self._state.to_json()
            if "state" not in away and not self._done("state", lambda: self._folder.write_json(STATE, stored)):  # noqa: B023
                away.add("state")  # what is served goes on without storage
            task = next((task for task in stored["to_do"] if _told_to(task) not in away), None)
            if task is None:
                break
            if self._done(_told_to(task), lambda: self._do(task)):  # noqa: B023
                with self._lock, suppress(ValueError):  # an endpoint that stops has nothing removed any more
                    self._state.to_do.remove(task)
            else:
                away.add(_told_to(task))
        self._away = away
        self._pause_s = min(2 * self._pause_s or AGAIN_S, MOST_AGAIN_S) if away else 0.0
        self._again = time.monotonic() + self._pause_s if away else math.inf

    def _done(self, to: str, work: Callable[[], object]) -> bool:
        """Whether there is nothing left of it to do: not where who is told is away, which is said the first time."""
        try:
            work()
        except Exception as error:
            refused = isinstance(error, UserError) and not isinstance(error, ClusterError)
            if refused or to not in self._away:
                self._problem(error)
            return refused
        return True

    def _do(self, task: Mapping[str, Any]) -> None:
        if task["do"] == "log":
            newest = AuditLog(self._state.audit).append(task["what"], task["why"], task["details"])
            # Where MLflow is away the log alone has it: that it could be cut off unseen is no reason to lose it.
            with suppress(ClusterError, OSError):
                self._seal(newest)
        elif task["do"] == "remove":
            self._remove(task["app"])
        else:
            self._mark(task["do"], task["number"], task["why"])

    def _tally(self, of: Deployed) -> Tally:
        return self._tallies.get(of.app, Tally())

    def _share(self) -> float:
        state = self._state
        if not state.candidate:
            return 0.0
        return state.held if state.held is not None else state.canary.shares[state.step]

    def _waits_for_a_person(self) -> bool:
        state = self._state
        return state.held is not None or (state.step == len(state.canary.shares) - 1 and state.canary.shares[-1] < 1)

    def _step_name(self) -> str:
        state = self._state
        if not state.candidate:
            return "no version is being tried"
        if state.held is not None:
            return f"held at {state.held:.0%} by a person"
        shadowed = " (shadow)" if state.canary.shadow and not state.step else ""
        name = f"step {state.step + 1} of {len(state.canary.shares)}: {state.canary.shares[state.step]:.0%}{shadowed}"
        return f"{name}, until rtrain share or rollback" if self._waits_for_a_person() else name

    def _routing(self) -> Routing:
        state = self._state
        plain = Routing(number=state.number, champion=state.champion.app)
        if not state.candidate:
            return plain
        shadow = state.canary.shadow if state.held is None and not state.step else 0.0
        return replace(
            plain,
            candidate=state.candidate.app,
            share=self._share(),
            shadow=shadow,
            timeout_s=state.canary.timeout_s,
            salt=salt_of(state.model, state.candidate.number),
        )

    def _mark(self, how: str, number: int, why: str) -> None:
        from rtrain.release.registry import CHAMPION, Registry

        registry, model = Registry(self._state.registry, self._state.audit), self._state.model
        if how == "promote":
            registry.promote(model, number, why, answers=True)
        elif how == "withdraw":
            registry.withdraw(model, number, why)
        elif not ((holder := registry.holder(model, CHAMPION)) and holder.version == number):  # asked again: once only
            registry.rollback(model, why)

    def _seal(self, newest: str) -> None:
        from rtrain.release.registry import Registry

        Registry(self._state.registry, self._state.audit).seal(self._state.model, newest)

    def _remove(self, app: str) -> None:
        """End an application that no router asks any more."""
        from ray import serve as ray_serve

        deadline = time.monotonic() + GONE_S
        while not self.everywhere() and time.monotonic() < deadline:
            time.sleep(0.1)
        ray_serve.delete(app)

    def _work(self) -> None:
        """One after the other."""
        while True:
            try:
                job = self._later.get(timeout=1)
            except queue.Empty:
                if time.monotonic() >= self._again:
                    self._again = math.inf
                    self._later.put(self._settle)
                continue
            try:
                job()
            except Exception as error:
                self._problem(error)
            finally:
                self._later.task_done()

    def _problem(self, error: Exception) -> None:
        """Say it among the decisions, once."""
        problem = {"at": stamp(), "what": "problem", "why": one_line(error), "by": "endpoint"}
        with self._lock:
            told = self._state.decisions[-1:]
            if not told or (told[0]["what"], told[0]["why"]) != (problem["what"], problem["why"]):
                self._state.decisions.append(problem)


def _told_to(task: Mapping[str, Any]) -> str:
    """Ray Serve, or those who keep what was decided: the log, then the registry, in this order."""
    return "serve" if task["do"] == "remove" else "records"
