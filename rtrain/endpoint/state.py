"""What an endpoint is, as it is kept on storage."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from rtrain import config
from rtrain.endpoint.canary import Canary
from rtrain.version import refuse_newer

STATE = "endpoint.json"
DECISIONS = 200
"""Newest decisions that are kept with the endpoint; the audit log has all."""


def stamp() -> str:
    """Of a decision."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A version of a model that runs as an application of its own."""

    app: str
    """Name at Ray Serve, `MODEL-NUMBER-` and what no other one has."""
    number: int
    """In the registry."""
    export: str
    run: str
    stages: dict[str, Any] | None = None
    """Of one of two stages both, a `TwoStages` as `config.to_dict` has it: what comes after takes the other from it."""
    decoding: dict[str, Any] | None = None
    """Of a language model how it answers, the same of a `Decoding`; none: by the defaults."""
    scale: dict[str, Any] | None = None
    """Its replicas, a `Scale` as `config.to_dict` has it: what comes after has them too, if nothing else is said."""


@dataclass(kw_only=True)
class State:
    """One endpoint."""

    model: str
    registry: str
    audit: str
    champion: Deployed
    candidate: Deployed | None = None
    canary: Canary = field(default_factory=Canary)
    step: int = 0
    held: float | None = None
    """Share that a person gave the candidate: no step follows by itself."""
    number: int = 1
    had: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of versions that were champions, by number, the two stages they were of: what goes back is of these again."""
    decisions: list[dict[str, Any]] = field(default_factory=list)
    to_do: list[dict[str, Any]] = field(default_factory=list)
    """What follows from decisions and is not done yet, in order: a conductor that starts again goes on with it."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return asdict(self) | {"canary": config.to_dict(self.canary)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "State":
        """What `to_json` gave.

        Raises:
            CheckpointError: a newer rtrain gave it.
        """
        for kind, told in ((cls, stored), (Deployed, stored["champion"]), (Deployed, stored["candidate"] or {})):
            refuse_newer(STATE, kind, told)
        deployed = {k: Deployed(**stored[k]) if stored[k] else None for k in ("champion", "candidate")}
        return cls(**{**stored, **deployed, "canary": config.from_dict(stored["canary"])})

    def crown(self, champion: Deployed) -> Deployed:
        """The champion from here on; gives the one before."""
        gone, self.champion = self.champion, champion
        if gone.stages:
            self.had[str(gone.number)] = gone.stages
        return gone

    def decide(
        self,
        what: str,
        why: str,
        by: str,
        *,
        version: int | None,
        share: float,
        seen: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a decision, and that the log is to have it; `share`: of all requests, what the version has from then."""
        details, at = {"version": version, "share": share}, stamp()
        decision = {"at": at, "what": what, "why": why, "by": by, **details}
        self.decisions.append(decision if seen is None else decision | {"seen": seen})
        del self.decisions[:-DECISIONS]
        logged = {"endpoint": self.model, **details, "told": by, "champion": self.champion.number, "since": at}
        self.to_do.append({"do": "log", "what": what, "why": why, "details": logged})

    def after(self, before: "State") -> None:
        """Go on from the state of a Ray that is gone, with all that ran on it: what it left undone is said, or done."""
        self.decisions, self.had = before.decisions, before.had
        self.to_do = [task for task in before.to_do if task["do"] == "log"]
        if lost := before.candidate:
            why = f"the Ray that it ran on ended while it was being tried; version {self.champion.number} answers"
            self.decide("take back", why, "endpoint", version=lost.number, share=0.0)
        for task in before.to_do:
            if task["do"] in ("promote", "rollback") and task["number"] != self.champion.number:
                why = (
                    f"version {task['number']} was to be the champion, but its Ray ended before the registry was told. "
                    "Release it again"
                )
                self.decisions.append({"at": stamp(), "what": "problem", "why": why, "by": "endpoint"})
