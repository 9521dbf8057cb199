"""What a run's folder holds, read so that a file which is missing or broken costs only its section."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rtrain.errors import UserError, one_line
from rtrain.report.words import number
from rtrain.storage import Folder
from rtrain.tracking import mask

FILES = ("run.json", "history.jsonl", "placement.json", "result.json")
SEARCH, TRIALS, TRIAL = "search.json", "trials", "trial.json"
"""In a search's folder: what it searches, and the folder of its trials, each of which is a run; in a trial's, what
became of it."""


@dataclass
class Facts:
    """The files of one run."""

    folder: Folder
    run: dict[str, Any] = field(default_factory=dict)
    """run.json: the tree of `config.to_dict`."""
    history: list[dict[str, Any]] = field(default_factory=list)
    placement: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    """curves.json: label -> ROC, calibration and scores of the test split; empty of a language model's run."""
    surroundings: dict[str, Any] = field(default_factory=dict)
    trial: dict[str, Any] = field(default_factory=dict)
    """Of a search's trial what its journal says: `ended`, `step`, `best_step`, `values`; empty of a member that another
    run has taken the place of (`replaced`), and of what is no trial."""
    replaced: bool = False
    starts: list[dict[str, Any]] = field(default_factory=list)
    """Of manifest.json, the oldest first; empty of a run that an older rtrain trained."""
    refused: str = ""
    """Why the workers would not go on; empty when they did not say so."""
    alive_at: float | None = None
    """When the run last wrote its history, in seconds since 1970."""
    problems: dict[str, str] = field(default_factory=dict)
    """File -> why it could not be read."""

    @property
    def name(self) -> str:
        """The run's name; its folder's where no file tells."""
        stored = self.result.get("run") or self.run.get("name")
        return str(stored) if stored else self.folder.path.rstrip("/").rpartition("/")[2]

    @property
    def data(self) -> str:
        """Fingerprint of what it was trained on; empty where no file tells."""
        return str(self.surroundings.get("data") or "")

    @property
    def commit(self) -> str:
        """That the run was last started from, with `+changes` where files differed from it; empty where none tells."""
        stored = str(self.result.get("commit") or "")
        code = code_of(self.starts[-1], "recipe") if self.starts else {}
        if stored or not code.get("commit"):
            return stored
        return str(code["commit"])[:12] + ("+changes" if code.get("changes") else "")

    @property
    def parent(self) -> dict[str, Any]:
        """What the run was made from, as its manifest says; empty where it was made from nothing."""
        parent = self.starts[-1].get("parent") if self.starts else None
        return parent if isinstance(parent, dict) else {}

    @property
    def valid(self) -> dict[str, float]:
        """Metrics of the validation split: of a trial that has ended at its best step, else the newest."""
        lines = self.lines("valid")
        newest = {name: value for name, value in numbers(lines[-1]).items() if name != "step"} if lines else {}
        best = numbers(self.trial.get("values")) if self.trial.get("ended") else {}
        return newest | {name: value for name, value in best.items() if name in newest}

    def lines(self, kind: str) -> list[dict[str, Any]]:
        """History of one kind, in the order of steps."""
        return [line for line in self.history if line["kind"] == kind]

    def flat(self) -> dict[str, object]:
        """The config as dotted keys, secrets masked; empty without run.json."""
        flat: dict[str, object] = {}
        _flatten(self.run, "", flat)
        return mask(flat)

    @property
    def monitor(self) -> str:
        """The metric that decides."""
        evaluation = self.run.get("evaluation")
        stored = evaluation.get("monitor") if isinstance(evaluation, dict) else None
        return str(self.result.get("monitor") or stored or "auc")


def code_of(start: Mapping[str, Any], whose: str) -> dict[str, Any]:
    """What a start says of a work tree, the `recipe`'s or that of `rtrain`; empty where it says nothing."""
    code = start.get("code")
    told = code.get(whose) if isinstance(code, dict) else None
    return told if isinstance(told, dict) else {}


class Missing(Exception):
    """Why a section has nothing to show."""


def why(facts: Facts, name: str, otherwise: str) -> str:
    """Why there is nothing of a file: what is wrong with it, else `otherwise`."""
    problem = facts.problems.get(name)
    if problem is None:
        return otherwise
    hint = " It is written when the run finishes." if name == "result.json" and "not there" in problem else ""
    return f"{problem}.{hint}"


def numbers(values: object) -> dict[str, float]:
    """The finite numbers among some fields."""
    if not isinstance(values, Mapping):
        return {}
    return {str(k): v for k, x in values.items() if (v := number(x)) is not None}


def read_facts(uri: str) -> Facts:
    """Read a run's folder.

    Raises:
        UserError: none of the run's files is there.
    """
    facts = Facts(Folder(uri))
    names = facts.folder.names()
    if not any(name in names for name in FILES):
        raise UserError(f"there is no run in {uri!r} (none of {', '.join(FILES)}). Give a run's own folder")
    for name in FILES:
        if name not in names:
            facts.problems[name] = f"{name} is not there"
    facts.run = _read_object(facts, "run.json")
    facts.placement = _read_object(facts, "placement.json")
    facts.result = _read_object(facts, "result.json")
    _read_history(facts)
    for name, attribute in (("curves.json", "curves"), ("surroundings.json", "surroundings")):
        if name in names:  # older runs have none
            setattr(facts, attribute, _read_object(facts, name))
    if "manifest.json" in names:
        starts = _read_object(facts, "manifest.json").get("starts")
        facts.starts = [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    _read_trial(facts)
    if "refused.json" in names:
        facts.refused = str(_read_object(facts, "refused.json").get("text", ""))
    return facts


def _read_trial(facts: Facts) -> None:
    """A population's member that is in its second run (`trial-0003-g1`) is told of in the folder of its first."""
    if not facts.parent.get("search"):
        return
    facts.problems.pop("result.json", None)  # no trial has one
    above, _, name = facts.folder.uri.rstrip("/").rpartition("/")
    first = Folder(f"{above}/{name.partition('-g')[0]}")
    try:
        entry = first.read_json(TRIAL) if first.exists(TRIAL) else {}
        facts.replaced = bool(entry) and entry["run"] != name
        facts.trial = {} if facts.replaced else dict(entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        facts.problems[TRIAL] = f"{TRIAL} cannot be read ({one_line(error)})"


def _read_object(facts: Facts, name: str) -> dict[str, Any]:
    if name in facts.problems:
        return {}
    try:
        value = json.loads(facts.folder.read(name))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not an object")
    except (OSError, ValueError) as error:
        facts.problems[name] = f"{name} cannot be read ({one_line(error)})"
        return {}
    return value


def _read_history(facts: Facts) -> None:
    name = "history.jsonl"
    if name in facts.problems:
        return
    bad = 0
    try:
        text = facts.folder.read(name).decode(errors="replace")
        modified = facts.folder.fs.modified(f"{facts.folder.path}/{name}")
        facts.alive_at = modified.timestamp()
    except NotImplementedError:  # a file system that keeps no times
        pass
    except OSError as error:
        facts.problems[name] = f"{name} cannot be read ({one_line(error)})"
        return
    for line in text.splitlines():
        try:
            value = json.loads(line)
            if isinstance(value["kind"], str) and number(value["step"]) is not None:
                facts.history.append(value)
        except (ValueError, KeyError, TypeError):
            bad += 1
    facts.history.sort(key=lambda value: value["step"])
    if bad:
        what = "1 line cannot be read and is" if bad == 1 else f"{bad} lines cannot be read and are"
        facts.problems[name] = f"{name}: {what} left out"


def _flatten(value: Any, key: str, flat: dict[str, object]) -> None:
    if isinstance(value, dict):
        for name, child in value.items():
            _flatten(child, f"{key}.{name}" if key else str(name), flat)
    elif isinstance(value, list) and any(isinstance(child, dict) for child in value):
        for index, child in enumerate(value):
            _flatten(child, f"{key}.{index}", flat)
    else:
        flat[key] = value
