"""The gate: a list of checks, their decisions, and the record of them that stays with the model."""

import getpass
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from rtrain import config, notices
from rtrain.errors import CheckpointError, UserError, one_line
from rtrain.release.finished import Finished
from rtrain.release.judged import Check, Decision, Judged
from rtrain.release.quality import Calibrated, NotWorse, SlicesNotWorse
from rtrain.release.servable import Faithful, SameRequests, Servable, Within
from rtrain.release.together import Together
from rtrain.stages.config import TwoStages
from rtrain.stages.fit import refuse_heads
from rtrain.storage import check_writable
from rtrain.version import VERSION, refuse_newer

RECORD = "gate.json"
FORMAT = 1
ANEW = "Run rtrain gate anew"
PASSED, REFUSED = "passed", "refused"


@dataclass(frozen=True)
class Verdict:
    """What a gate decided of an export; `gate.json` beside it."""

    run: str
    export: str
    model: str
    """sha256 of the export's head: of a model that was written anew this record says nothing."""
    champion: Mapping[str, str] | None
    """Its `run`, `export` and `model`; none: there was none."""
    decisions: Sequence[Decision]
    at: str
    by: str
    """Whose process it was, and on which machine."""
    stages: Mapping[str, Any] | None = None
    """The two that it was judged as one of, as `pair_of` has them; none: it was judged alone."""
    rtrain: str = VERSION
    format: int = FORMAT

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(decision.passed for decision in self.decisions)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return {"passed": self.passed} | asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Verdict":
        """What `to_json` gave.

        Raises:
            CheckpointError: a newer rtrain gave it, or nobody did: it is no such record, or says another verdict than
                its decisions.
        """
        try:
            plain = {key: value for key, value in stored.items() if key != "passed"}
            refuse_newer(RECORD, cls, plain)
            for one in stored["decisions"]:
                refuse_newer(RECORD, Decision, one)
            found = cls(**plain | {"decisions": tuple(Decision(**one) for one in stored["decisions"])})
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"{RECORD}: it is no record of a gate ({one_line(error)}). {ANEW}") from error
        if stored.get("passed") is not found.passed:
            raise CheckpointError(f"{RECORD}: it says another verdict than its decisions: it was altered. {ANEW}")
        return found

    def __str__(self) -> str:
        against = f" against {self.champion['run']}" if self.champion else ""
        lines = [f"{self.run}{against}: {PASSED if self.passed else REFUSED}"]
        wide = max(len(one.check) for one in self.decisions)
        for one in self.decisions:
            lines.append(f"  {PASSED if one.passed else REFUSED:<8} {one.check:<{wide}}  {one.said}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Checks that a model has to pass before it may take another one's place."""

    checks: Sequence[Check] = field(
        default=(Servable(), Faithful(), SameRequests(), NotWorse(), SlicesNotWorse(), Calibrated(), Within())
    )
    """All are asked, in this order; one's own is any frozen dataclass with `decide`."""

    def __post_init__(self) -> None:
        if not self.checks:
            raise UserError("Gate.checks: there are none, and whatever is asked would pass. Give at least one")

    @notices.aside()
    def judge(
        self,
        run: str,
        champion: str | None = None,
        *,
        stages: TwoStages | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Verdict:
        """Judge a finished run's export, and leave the record beside it.

        Args:
            run: its folder, or its export's.
            champion: those of the run that answers now; none: there is none yet.
            stages: that it is to be one of, with the other one; `Together` is then asked too, last.
            say: is told what is asked.

        Raises:
            UserError: no finished run there, or one without an export.
            ConfigError: its config names a class that this process has not imported (of a champion only what it
                recorded is read); or of the two stages the other one is not said, or does not fit.
        """
        candidate, before = Finished.read(run), Finished.read(champion) if champion else None
        _ = candidate.run  # a class that was not imported is the caller's error, and nobody's refusal
        check_writable(candidate.export.uri, key="gate", mend="The record stays beside it. Judge it as who may write")
        pair = pair_of(candidate, stages)
        if stages:
            refuse_heads(stages.having(candidate.export.uri))
        of, decisions = Judged(candidate, before, stages), list[Decision]()
        own = any(isinstance(check, Together) for check in self.checks)
        for check in self.checks if own or not stages else (*self.checks, Together()):
            say(type(check).__name__)
            decisions.append(check.decide(of))
        them = {"run": before.name, "export": before.export.uri, "model": before.digest} if before else None
        at = datetime.now(UTC).isoformat(timespec="seconds")
        verdict = Verdict(
            candidate.name, candidate.export.uri, candidate.digest, them, tuple(decisions), at, who(),
            stages=pair,
        )  # fmt: skip
        candidate.export.write_json(RECORD, verdict.to_json())
        return verdict


def pair_of(candidate: Finished, stages: TwoStages | None) -> dict[str, Any] | None:
    """Two stages of which a candidate is one, in JSON's own types."""
    pair = config.to_dict(stages.having(candidate.export.uri)) if stages else None
    found: dict[str, Any] | None = json.loads(json.dumps(pair))
    return found


def who() -> str:
    """Whose process this is, and on which machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def verdict_of(candidate: Finished) -> Verdict | None:
    """The record beside an export, if it is of the model that is there now.

    Raises:
        CheckpointError: what lies there is no record, or a newer rtrain's.
    """
    if not candidate.export.exists(RECORD):
        return None
    try:
        stored = candidate.export.read_json(RECORD)
    except ValueError as error:
        raise CheckpointError(f"{candidate.export.uri}/{RECORD}: it is no JSON ({one_line(error)}). {ANEW}") from error
    verdict = Verdict.from_json(stored)
    return verdict if verdict.model == candidate.digest else None
