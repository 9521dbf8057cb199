"""A finished run once more, from its stored config: the same losses and metrics, or what differs."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rtrain import config
from rtrain.api import train
from rtrain.errors import UserError
from rtrain.launch.launchers import Name
from rtrain.launch.manifest import read_starts
from rtrain.report.facts import TRIAL, code_of
from rtrain.report.words import number
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.training import history
from rtrain.training.code import Code, code_at, code_of_recipe, code_of_rtrain
from rtrain.training.surroundings import SURROUNDINGS


@dataclass(frozen=True)
class Repeated:
    """What came of it."""

    run: str
    again: str
    steps: int
    """Whose losses were compared."""
    metrics: int
    """Of the test split, that were compared."""
    different: tuple[str, ...]
    """What is not the same, each with both values."""

    @property
    def same(self) -> bool:
        """Whether all of it is, to the last bit."""
        return not self.different

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts."""
        return {**vars(self), "different": list(self.different), "same": self.same}

    def __str__(self) -> str:
        counted = f"losses of {self.steps} steps and {self.metrics} metrics of the test split"
        if self.same:
            return f"{self.again} is {self.run} again: {counted} are the same to the last bit"
        return "\n".join([f"{self.again} is not {self.run} again; of {counted} differ:", *self.different[:20]])


def repeat(target: str, name: str, *, launcher: Name = "ray", say: Callable[[str], None] = lambda _: None) -> Repeated:
    """Train a finished run's config anew, under another name beside it, and compare.

    Raises:
        UserError: there is no finished run, or the name is taken; by this repetition, interrupted, it goes on.
    """
    folder = Folder(target)
    names = folder.names()
    if TRIAL in names and "result.json" not in names:
        raise UserError(
            f"repeat: {target!r} is a trial of a search, which is not judged on the test split. Train its values "
            "(trial.json) as a run of its own"
        )
    if "run.json" not in names or "result.json" not in names:
        raise UserError(f"repeat: there is no finished run in {target!r}. Give the folder of one, such as runs/NAME")
    result = folder.read_json("result.json")
    stored: Run = config.from_dict(folder.read_json("run.json"))
    run: Run = config.override(stored, {"name": name})
    parent = {"kind": "repeat", "run": folder.uri}
    own = Folder(run.folder)
    if own.exists("run.json") and (own.exists("result.json") or not _is_begun(own, parent)):
        raise UserError(f"repeat: there is a run {name!r} already. Give another --name")
    for line in _other_code(folder, str(result.get("commit") or "")):
        say(line)
    done = train(run, launcher=launcher, parent=parent)
    assert done is not None
    made_of, makes_of = (_data(where) for where in (folder, Folder(run.folder)))
    if made_of and made_of != makes_of:
        say(f"the data were others: fingerprint {made_of} then, {makes_of} now")
    before, after = (_losses(history.read(where)) for where in (folder, Folder(run.folder)))
    pairs = [(f"loss of step {step}", value, after.get(step)) for step, value in before.items()]
    metrics = [
        (key, value, number(done.values["test"].get(key)))
        for key, value in ((key, number(value)) for key, value in result["test"].items())
        if value is not None
    ]
    different = tuple(f"{what}: {a!r} then, {b!r} now" for what, a, b in [*metrics, *pairs] if a != b)
    return Repeated(stored.name, name, len(pairs), len(metrics), different)


def _is_begun(folder: Folder, parent: Mapping[str, Any]) -> bool:
    """Whether it is the same repetition, which was interrupted."""
    starts = read_starts(folder)
    return bool(starts) and starts[-1].get("parent") == parent


def _other_code(folder: Folder, commit: str) -> list[str]:
    """What the run was trained with and is not there now; `commit`: of a run without a manifest."""
    starts = read_starts(folder)
    if not starts:
        now = code_of_recipe().short
        return [f"the code was at {commit}, and is at {now} now"] if now and commit and now != commit else []
    found = []
    for whose in ("recipe", "rtrain"):
        then = code_of(starts[-1], whose)
        root = Path(str(then.get("root") or ""))
        if not then.get("commit"):
            continue
        code = code_of_rtrain() if whose == "rtrain" else code_at(root) if root.is_dir() else Code(why=f"no {root}")
        if not code.commit:
            found.append(f"the {whose}'s code was at {_spell(then)}, which cannot be compared here ({code.why})")
        elif (code.commit, code.changes) != (then["commit"], then.get("changes") or ""):
            told = asdict(code) | {"diff": None}
            found.append(f"the {whose}'s code was at {_spell(then)}, and is at {_spell(told)} now")
    return found


def _spell(code: Mapping[str, Any]) -> str:
    said = str(code["commit"])[:12]
    if code.get("changes"):
        said += f" with changes {code['changes']}" + (f" ({code['diff']})" if code.get("diff") else "")
    return said


def _data(folder: Folder) -> str:
    return str(folder.read_json(SURROUNDINGS).get("data") or "") if folder.exists(SURROUNDINGS) else ""


def _losses(lines: list[dict[str, Any]]) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
