"""manifest.json: how a run came about and what came of it, an entry for each start.

    {"starts": [{"number": 1, "at": "2026-11-28T13:50:20Z", "rtrain": "0.1.0", "code": {...}, "command": "...",
                 "environment": {...}, "hardware": {...}, "data": "89abcdef01234567", "seed": 0, "plan": {...},
                 "parent": null, "outcome": {"state": "finished", "step": 780, "reason": "", "at": "..."}}]}

The config is in run.json beside it, the diff to the commit in manifest/SHA256.diff. No value of an environment
variable is in either. A start that could not say how it ended, since it was killed or another one took the run, is
told to be lost by the next one.
"""

import hashlib
import platform
import shlex
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rtrain import config
from rtrain.checkpoint.fence import Fenced
from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.errors import one_line
from rtrain.mesh import lay_out
from rtrain.run import Run
from rtrain.storage import Folder
from rtrain.tracking import mask, mask_command, mask_text
from rtrain.training import history
from rtrain.training.code import Code, code_of_recipe, code_of_rtrain
from rtrain.training.preemption import Preempted
from rtrain.training.records import PLACEMENT
from rtrain.training.surroundings import SURROUNDINGS, machine, versions
from rtrain.version import VERSION

MANIFEST, DIFFS = "manifest.json", "manifest"
State = Literal["finished", "failed", "stopped", "lost"]
Parent = Mapping[str, Any]
"""What a run was made from: `kind` (fork, trial, fine-tune or repeat), and that run, its step, search or files."""


@dataclass(frozen=True)
class Codes:
    """The code of a start: it is looked at once, by whoever starts."""

    recipe: Code
    rtrain: Code
    command: str
    """That started it, secrets masked."""

    @staticmethod
    def here(command: str = "") -> "Codes":
        """Of this process; `command`: as a user would write it, else its own arguments."""
        words = command.split()
        script = next((word for word in words if word.endswith(".py")), "")
        given = command or shlex.join([sys.orig_argv[0], *sys.argv])
        return Codes(code_of_recipe(script), code_of_rtrain(), mask_command(given))


def begin(run: Run, codes: Codes, *, data: str = "", parent: Parent | None = None) -> int:
    """Add this start to the manifest; its number. `data`: the fingerprint of what is trained on."""
    folder = Folder(run.folder)
    starts = read_starts(folder)
    for start in starts:
        if not start.get("outcome"):
            reason = "it never told how it ended: it was killed, or another start took the run"
            start["outcome"] = {"state": "lost", "step": None, "reason": reason, "at": None}
    told = {name: _told(folder, code) for name, code in (("recipe", codes.recipe), ("rtrain", codes.rtrain))}
    before = next((start["parent"] for start in reversed(starts) if start.get("parent")), None)
    starts.append({
        "number": len(starts) + 1,
        "at": _now(),
        "rtrain": VERSION,
        "code": told,
        "command": codes.command,
        "environment": versions(),
        "hardware": _hardware(run),
        "data": data,
        "seed": run.seed,
        "config": _digest(run),
        "plan": {
            "world": run.cluster.workers,
            "axes": asdict(lay_out(run.parallel, run.cluster.workers)),
            "parallel": mask(config.flatten(run.parallel)),
            "placement": PLACEMENT,
        },
        "parent": dict(parent) if parent else before or _first_weights(run),
        "outcome": None,
    })  # fmt: skip
    folder.write_json(MANIFEST, {"starts": starts})
    return len(starts)


def end(run: Run, number: int, error: BaseException | None) -> None:
    """Say what came of a start; `error`: what ended it. A storage that is gone must not hide that."""
    if isinstance(error, Fenced):
        return  # the folder is another driver's by now
    folder = Folder(run.folder)
    with suppress(Exception):
        starts = read_starts(folder)
        if len(starts) >= number:
            start = starts[number - 1]
            start["outcome"] = _outcome(folder, run, error)
            if not start["data"] and folder.exists(SURROUNDINGS):  # a trial's, whose rows only its workers open
                start["data"] = folder.read_json(SURROUNDINGS).get("data") or ""
            folder.write_json(MANIFEST, {"starts": starts})


def read_starts(folder: Folder) -> list[dict[str, Any]]:
    """The entries; none where there is no manifest, or none that can be read."""
    if not folder.exists(MANIFEST):
        return []
    try:
        starts = folder.read_json(MANIFEST)["starts"]
    except (ValueError, KeyError, TypeError):  # cut off by a full disk, or not ours: a record is no reason to refuse
        return []
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


def _told(folder: Folder, code: Code) -> dict[str, Any] | None:
    """What the manifest says of a work tree, with its diff stored beside it; none of an installed rtrain."""
    if not code.root and not code.why:
        return None
    told = {name: value for name, value in asdict(code).items() if name != "text"} | {"diff": None}
    if code.text:
        content = code.text.encode()
        name = f"{hashlib.sha256(content).hexdigest()}.diff"
        beside = folder.child(DIFFS)
        if not beside.exists(name):
            beside.write(name, content)
        told["diff"] = f"{DIFFS}/{name}"
    return told


def _hardware(run: Run) -> dict[str, Any]:
    """This machine, and the nodes of the Ray that is joined."""
    ray = sys.modules.get("ray")
    joined = ray is not None and ray.is_initialized()
    here = machine(gpus=bool(run.cluster.gpus_per_worker) and not joined)
    found: dict[str, Any] = {"host": socket.gethostname(), "platform": platform.platform(), **here}
    if ray is not None and joined:
        with suppress(Exception):  # a cluster that does not answer is told of by the training, not by its record
            found["nodes"] = [_node(node) for node in ray.nodes() if node.get("Alive")]
    return found


def _node(node: Mapping[str, Any]) -> dict[str, Any]:
    has = node.get("Resources", {})
    kinds = [key.partition(":")[2] for key in has if key.startswith("accelerator_type:")]
    return {
        "node": node.get("NodeManagerHostname"),
        "address": node.get("NodeManagerAddress"),
        "cores": has.get("CPU", 0.0),
        "memory_bytes": int(has.get("memory", 0)),
        "gpus": has.get("GPU", 0.0),
        "gpu": ", ".join(kinds),
    }


def _first_weights(run: Run) -> dict[str, Any] | None:
    """Files that tables get their first rows from: that is a fine-tuning of what lies in them."""
    files = {table.name: mask_text(table.vectors) for table in run.blueprint.tables if table.vectors}
    return {"kind": "fine-tune", "vectors": files} if files else None


def _digest(run: Run) -> str:
    """Of the resolved config, which lies in run.json."""
    return hashlib.sha256(repr(sorted(mask(config.flatten(run)).items())).encode()).hexdigest()[:16]


def _outcome(folder: Folder, run: Run, error: BaseException | None) -> dict[str, Any]:
    state: State = "finished"
    reason = ""
    if isinstance(error, KeyboardInterrupt | SystemExit | Preempted):
        state, reason = "stopped", one_line(error)
    elif error is not None:
        state, reason = "failed", one_line(error)
    stored = folder.read_json("result.json") if error is None and folder.exists("result.json") else {}
    step = stored.get("steps")
    if step is None:
        lines: list[dict[str, Any]] = []
        with suppress(ValueError):  # a line that cannot be read
            lines = history.read(folder)
        step = max([*(line["step"] for line in lines), *CheckpointFolders(run.folder).committed()], default=0)
        total = max((line["total_steps"] for line in lines if line["kind"] == "start"), default=0)
        if error is None and step < total:  # a trial, of which there is no result
            state, reason = "stopped", f"before its last step, {total}: by its search, or its own patience"
    return {"state": state, "step": step, "reason": mask_text(reason or str(stored.get("stop") or "")), "at": _now()}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
