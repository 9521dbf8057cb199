"""The runs of a folder: what each is, how far it came, how good it is; found, narrowed and put in order."""

import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cmp_to_key
from typing import Any

from rtrain.errors import UserError, did_you_mean
from rtrain.report.facts import FILES, SEARCH, TRIALS, Facts, code_of, numbers, read_facts
from rtrain.report.origin import parent_name
from rtrain.report.words import DASH, is_better, number, spell_metric, spell_seconds, spell_time
from rtrain.storage import Folder

COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge, "<=": operator.le, "!=": operator.ne, ">": operator.gt, "<": operator.lt, "=": operator.eq,
}  # fmt: skip
CONDITION = re.compile(r"\s*([^<>=!\s]+)\s*(>=|<=|!=|>|<|=)\s*(.*?)\s*")


OWN = (
    "name", "model", "state", "steps", "seconds", "written", "commit", "data", "branch", "parent", "made", "outcome",
)  # fmt: skip


@dataclass(frozen=True)
class Listed:
    """One run."""

    name: str
    folder: str
    model: str
    """The class of its config."""
    state: str
    """finished, or unfinished; of a trial also stopped, failed, refused, or replaced by a run of a better member's."""
    steps: int
    """The last one that is known of."""
    monitor: str
    metrics: Mapping[str, float]
    """Of the test split; of an unfinished run the newest of the validation split, of a trial those of its best step."""
    seconds: float | None
    """That the last start took."""
    written: float | None
    """When it last wrote its history, seconds since 1970."""
    commit: str
    data: str
    """Fingerprint of what it was trained on: of the same data the same."""
    branch: str
    parent: str
    """Name of the run or search that it was made from, of a trial always the search; `made` says how: fork, trial,
    fine-tune or repeat."""
    made: str
    outcome: str
    """Of its last start: finished, failed, stopped or lost; empty while it goes on."""
    config: Mapping[str, object] = field(repr=False)
    """Dotted key -> value, secrets masked."""

    def value(self, key: str) -> object:
        """Of a column, a metric or a key of the config; none where the run has no such thing."""
        own = {name: getattr(self, name) for name in OWN}
        return own.get(key, self.metrics.get(key, self.config.get(key)))

    @property
    def keys(self) -> set[str]:
        """All that `value` knows."""
        return {*OWN, *self.metrics, *self.config}

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, without the config."""
        return {name: value for name, value in vars(self).items() if name != "config"} | {"metrics": dict(self.metrics)}


def runs_in(storage: str, where: Sequence[str] = (), by: str = "") -> list[Listed]:
    """Runs whose folders lie in `storage`, that which wrote last first; broken ones as far as they can be read.

    Of a search among them, or if `storage` is the folder of one, its trials, named `search/trial-0003`.

    Args:
        storage: a path or URI, as `Run.storage`.
        where: conditions that all hold, as `auc>=0.7`, `state=finished`, `model.dim=16`: a run without the key is left
            out.
        by: a metric by which the best comes first, or another key, by its value; runs without it come last.

    Raises:
        UserError: there is no run in it, a condition that is none, or a key that no run has.
    """
    found = [_listed(read_facts(folder.uri), search) for search, folder in _runs(Folder(storage))]
    if not found:
        raise UserError(f"there is no run in {storage!r}. Give the folder that runs lie in, as --storage has it")
    known = set[str]().union(*(run.keys for run in found))
    for text in where:
        key, holds = _condition(text)
        _refuse_unknown(key, known, "--where")
        found = [run for run in found if holds(run.value(key))]
    found.sort(key=lambda run: -(run.written or 0))
    if by:
        _refuse_unknown(by, known, "--by")
        found = _ordered(found, by)
    return found


def spell_runs(runs: Sequence[Listed], by: str = "") -> str:
    """A table for the terminal."""
    heads = ("run", "model", "state", "steps", "metric", "took", "written", "commit")
    rows = [heads, *(_cells(run, by) for run in runs)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cells(run: Listed, by: str) -> tuple[str, ...]:
    metric = by if by in run.metrics else run.monitor
    value = run.metrics.get(metric)
    told = f"{metric} {spell_metric(value)}" if value is not None else DASH
    if by and by not in run.metrics and run.value(by) is not None:
        told = f"{by} {run.value(by)}"
    when = spell_time(run.written)[:16] if run.written else DASH
    return run.name, run.model, run.state, f"{run.steps:,}", told, spell_seconds(run.seconds), when, run.commit or DASH


def _runs(storage: Folder) -> Iterator[tuple[str, Folder]]:
    """Each run's folder, with the name of the search that it is a trial of; empty: of none."""
    names = storage.names()
    if SEARCH in names:
        search = storage.uri.rstrip("/").rpartition("/")[2]
        found = storage.child(TRIALS)
        yield from ((search, found.child(name)) for name in found.names() if _is_run(found.child(name).names()))
        return
    for child in map(storage.child, names):
        inside = child.names()
        if SEARCH in inside:
            yield from _runs(child)
        elif _is_run(inside):
            yield "", child


def _is_run(names: Collection[str]) -> bool:
    return any(name in names for name in FILES)


def _listed(facts: Facts, search: str) -> Listed:
    result, trial = facts.result, facts.trial
    steps = [int(line["step"]) for line in facts.history]
    model = facts.run.get("model")
    kind = str(model.get("$type", "")) if isinstance(model, dict) else ""
    last = facts.starts[-1] if facts.starts else {}
    outcome = last.get("outcome")
    ended = str(outcome.get("state") or "") if isinstance(outcome, dict) else ""
    return Listed(
        name=f"{search}/{facts.name}" if search else facts.name,
        folder=facts.folder.uri,
        model=kind.rpartition(":")[2],
        state="finished" if result else _state_of(facts, ended),
        steps=int(result.get("steps") or trial.get("step") or max(steps, default=0)),
        monitor=facts.monitor,
        metrics=numbers(result.get("test")) if result else facts.valid,
        seconds=number(result.get("seconds") or (trial.get("values") or {}).get("seconds")),
        written=facts.alive_at,
        commit=facts.commit,
        data=facts.data,
        branch=str(code_of(last, "recipe").get("branch") or ""),
        parent=parent_name(facts.parent),
        made=str(facts.parent.get("kind") or ""),
        outcome=ended,
        config=facts.flat(),
    )


def _state_of(facts: Facts, ended: str) -> str:
    """Of a run without a result; `ended`: how its last start did, as its manifest says."""
    otherwise = "finished" if ended == "finished" else "unfinished"
    return "replaced" if facts.replaced else str(facts.trial.get("ended") or otherwise)


def _condition(text: str) -> tuple[str, Callable[[object], bool]]:
    parsed = CONDITION.fullmatch(text)
    if not parsed:
        raise UserError(f"--where: a key, one of {' '.join(COMPARED)} and a value, as auc>=0.7, got {text!r}")
    key, sign, wanted = parsed.groups()
    compare = COMPARED[sign]

    def holds(value: object) -> bool:
        if value is None:
            return False
        if isinstance(value, bool) or not isinstance(value, int | float):
            if sign not in ("=", "!="):
                raise UserError(f"--where: {key} is {value!r}, no number; only = and != compare it")
            return compare(str(value).lower(), wanted.lower())
        try:
            return compare(value, float(wanted))
        except ValueError:
            raise UserError(f"--where: {key} is a number, got {wanted!r}") from None

    return key, holds


def _refuse_unknown(key: str, known: set[str], option: str) -> None:
    if key not in known:
        near = did_you_mean(key, known) or f". Metrics, keys of rtrain config, {', '.join(OWN)}"
        raise UserError(f"{option}: no run has {key!r}{near}")


def _ordered(runs: list[Listed], by: str) -> list[Listed]:
    metrics = any(by in run.metrics for run in runs)
    having = [run for run in runs if (run.metrics.get(by) if metrics else run.value(by)) is not None]
    if metrics:

        def before(a: Listed, b: Listed) -> int:
            return -1 if is_better(by, a.metrics[by], b.metrics[by]) else 1

        having.sort(key=cmp_to_key(before))
    else:
        having.sort(key=lambda run: _sortable(run.value(by)))
    return having + [run for run in runs if run not in having]


def _sortable(value: object) -> tuple[int, float, str]:
    """Numbers by their size, before all else by its letters."""
    known = number(value)
    return (1, 0.0, str(value)) if known is None else (0, known, "")
