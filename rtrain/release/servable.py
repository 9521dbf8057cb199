"""Checks of whether a candidate can be served: by a process of its own, for the same clients, within a budget."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

from rtrain.errors import ConfigError, RtrainError, one_line
from rtrain.export.artifact import apart_of
from rtrain.export.index import Stated
from rtrain.export.tokenizer import has_chat
from rtrain.handoff.served import SAME
from rtrain.release.finished import Finished, Kind
from rtrain.release.judged import Decision, Judged
from rtrain.release.probe import SIZES

SCHEMA = "input.schema.json"
SAID: Mapping[Kind, str] = {
    "ranks rows": "answers differ from",
    "finds items": "lists of items have scores that differ from",
    "writes text": "losses of rows differ from",
}
DOUBT = 3.0
"""Standard errors by which two measurements of one recall may differ."""


@dataclass(frozen=True, kw_only=True)
class Servable:
    """A process of its own loads the export, whose files are as they were written, and every answer is a number.

    After TFX's InfraValidator.
    """

    def decide(self, of: Judged) -> Decision:
        """See `Check`."""
        try:
            seen = of.probed
        except RtrainError as error:  # the data that it would be asked with
            return Decision("servable", False, one_line(error), {})
        if seen.error:
            return Decision("servable", False, seen.error, {})
        said = f"loaded in {seen.load_s:.1f} s, answered {seen.answered} of {seen.asked} with numbers"
        numbers = {"load_s": seen.load_s, "asked": float(seen.asked), "answered": float(seen.answered)}
        return Decision("servable", 0 < seen.asked == seen.answered, said, numbers)


@dataclass(frozen=True, kw_only=True)
class Faithful:
    """Its answers are those of the trainer, of the same test rows: no skew between training and serving.

    Lists that an index finds are those of all items compared, which are held against the trainer's, but for the share
    that its export states.
    """

    most: float = SAME
    """Largest difference of an answer, of a number beyond 1 by its share; beside what quantised tables are stated to
    make of it."""

    def decide(self, of: Judged) -> Decision:
        """See `Check`."""
        if problem := _problem(of):
            return Decision("faithful", False, problem, {})
        difference = of.probed.difference
        if difference is not None and isnan(difference):
            return Decision("faithful", False, "some answers are no numbers", {})
        if difference is None:
            return Decision("faithful", True, "the trainer ranked drawn items alone, which says nothing of all", {})
        what = SAID[of.candidate.kind]
        most = self.most + apart_of(of.candidate.head)
        said = f"{of.probed.answered} {what} the trainer's by {difference:.1e} at most; {most:g} may be"
        numbers, passed = {"difference": difference}, difference <= most
        if (recall := of.probed.recall) is not None:
            stated = Stated.from_json(of.candidate.head["index"])
            doubt = DOUBT * (stated.error**2 + of.probed.recall_error**2) ** 0.5
            said += f"; the index finds {recall:.2%} of the best, {stated.recall:.2%} +- {doubt:.2%} is stated"
            numbers, passed = numbers | {"recall": recall}, passed and recall >= stated.recall - doubt
        return Decision("faithful", passed, said, numbers)


@dataclass(frozen=True, kw_only=True)
class Within:
    """Budgets, in a process with one thread; none: no bound."""

    size_mb: float | None = None
    """All files of the export, 10^6 bytes."""
    memory_mb: float | None = None
    """Most that the process held, libraries and all."""
    latency_ms: float | None = None
    """99th percentile of a request's time, without the network; of a language model until an answer's first token, of
    prompts as long as they may be."""
    rows: int = 1
    """Rows of that request, 1 or 64."""

    def __post_init__(self) -> None:
        if self.rows not in SIZES:
            raise ConfigError(f"Within.rows: must be one of {', '.join(map(str, SIZES))}, got {self.rows}")
        for name in ("size_mb", "memory_mb", "latency_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"Within.{name}: must be above 0, got {value}")

    def decide(self, of: Judged) -> Decision:
        """See `Check`."""
        if problem := _problem(of):
            return Decision("within budget", False, problem, {})
        sizes, files = of.candidate.export.sizes(), of.candidate.head["files"]
        size = sum(sizes[name] for name in files) / 1e6
        if str(self.rows) not in of.probed.latency_ms:
            return Decision("within budget", False, "of a language model one request is timed. Set rows to 1", {})
        latency = of.probed.latency_ms[str(self.rows)][1]
        what = "ms to a first token" if of.candidate.kind == "writes text" else f"ms for {self.rows} rows"
        found = [
            ("size_mb", "MB on disk", size, self.size_mb),
            ("memory_mb", "MB in memory", of.probed.peak_bytes / 1e6, self.memory_mb),
            ("latency_ms", f"{what} (p99)", latency, self.latency_ms),
        ]
        over = [name for name, _, value, most in found if most is not None and value > most]
        said = ", ".join(f"{v:.4g} {what}" + (f" of {most:g}" if most else "") for _, what, v, most in found)
        return Decision("within budget", not over, said, {name: value for name, _, value, _ in found})


@dataclass(frozen=True, kw_only=True)
class SameRequests:
    """Every request that the champion takes, the candidate takes too: nobody who asks has to change."""

    def decide(self, of: Judged) -> Decision:
        """See `Check`."""
        check = "same requests"
        if of.champion is None:
            return Decision(check, True, "there is no champion whose clients it would have", {})
        if of.candidate.kind != of.champion.kind:
            kinds = of.champion.kind, of.candidate.kind
            said = f"the champion {kinds[0]}, the candidate {kinds[1]}. Give it a model's name of its own"
            said += "" if "writes text" in kinds else ", or make it one of two stages (--retriever, --ranker)"
            return Decision(check, False, said, {})
        if of.candidate.kind == "ranks rows":
            ours, theirs = (one.export.read_json(SCHEMA) for one in (of.candidate, of.champion))
            problem = narrower(ours, theirs)
        elif of.candidate.kind == "writes text":
            problem = _other_speaker(of.candidate, of.champion)
        else:
            problem = _other_asker(of.candidate.head, of.champion.head)
        if problem:
            return Decision(check, False, f"{problem}. Give it an endpoint of its own, whose clients ask so", {})
        return Decision(check, True, "what the champion takes, it takes", {})


def narrower(candidate: dict[str, Any], champion: dict[str, Any]) -> str:
    """Of two JSON Schemas of a row, what the first refuses of what the second takes; empty: nothing."""
    ours, theirs = candidate["properties"], champion["properties"]
    for name, before in theirs.items():
        if name not in ours:
            return f"it takes no {name!r}"
        if problem := _refuses(ours[name], before):
            return f"{name}: {problem}"
    needed = set(candidate.get("required", [])) - set(champion.get("required", []))
    if needed:
        return f"it needs {sorted(needed)[0]!r}, which the champion's clients may leave out"
    return ""


def _refuses(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Of two JSON Schemas of a value; bounds may be wider, all else has to be alike."""
    if "anyOf" in ours or "anyOf" in theirs:
        kinds, before = ours.get("anyOf", [ours]), theirs.get("anyOf", [theirs])
        found = [[_refuses(kind, one) for kind in kinds] for one in before]
        return next((problems[0] for problems in found if all(problems)), "")
    one, other = ({k: v for k, v in part.items() if k not in TOLD} for part in (ours, theirs))
    if one.get("type") != other.get("type"):
        return f"it takes {one.get('type', 'anything')}, the champion {other.get('type', 'anything')} too"
    for bound, sign in BOUNDS.items():
        mine, its = one.pop(bound, None), other.pop(bound, None)
        if mine is not None and (its is None or sign * mine < sign * its):
            return f"{bound} {mine}, the champion's is {'none' if its is None else its}"
    mine, its = one.pop("items", {}), other.pop("items", {})
    if problem := _refuses(mine, its) if mine else "":
        return problem
    return "" if one == other else f"it takes {one}, the champion {other}"


TOLD = ("title", "description", "default", "examples")
MOST, LEAST = (
    ("maximum", "exclusiveMaximum", "maxLength", "maxItems"),
    ("minimum", "exclusiveMinimum", "minLength", "minItems"),
)
BOUNDS = dict.fromkeys(MOST, 1) | dict.fromkeys(LEAST, -1)


def _other_asker(candidate: dict[str, Any], champion: dict[str, Any]) -> str:
    ours, theirs = (("length" in head["data"], bool(head["timed"])) for head in (candidate, champion))
    if ours[0] != theirs[0]:
        return f"the champion is asked for {'histories' if theirs[0] else 'users'}, and it is not"
    if ours[1] and not theirs[1]:
        return "it needs the times of histories, which the champion's clients do not give"
    return ""


def _other_speaker(candidate: Finished, champion: Finished) -> str:
    ours, theirs = (one.head["language"] for one in (candidate, champion))
    if ours["context"] < theirs["context"]:
        return f"its context has {ours['context']} tokens, the champion's {theirs['context']}"
    if ours["tokenizer"] != theirs["tokenizer"]:
        return "it has another tokenizer: prompts given as tokens, and counts of them, would mean something else"
    if has_chat(champion.export.uri) and not has_chat(candidate.export.uri):
        return "it has no chat template, and the champion's clients may ask /v1/chat/completions"
    return ""


def _problem(of: Judged) -> str:
    try:
        return of.probed.error
    except RtrainError as error:
        return one_line(error)
