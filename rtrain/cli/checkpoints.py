"""The verb `rtrain checkpoints`."""

import argparse
import json
from typing import Any

from rtrain.errors import UserError


def checkpoints(options: argparse.Namespace) -> int:
    """The verb `rtrain checkpoints`."""
    from rtrain.checkpoint import examine
    from rtrain.checkpoint.folders import CheckpointFolders

    folders, steps = CheckpointFolders(options.target), options.steps
    wanted = {"list": (0, 0), "show": (0, 1), "compare": (2, 2), "export": (0, 1), "prune": (0, 0)}
    fewest, most = wanted.get(options.action, (0, len(steps)))
    if not fewest <= len(steps) <= most:
        raise UserError(f"rtrain checkpoints {options.action}: it takes {most} steps, got {len(steps)}")
    if not folders.steps():
        raise UserError(f"rtrain checkpoints: {folders.root.uri} holds none. Give a run's folder, such as runs/NAME")
    text: str | None = None
    code = 0
    answer: Any
    if options.action == "list":
        rows = examine.listing(folders)
        answer, text = [row.to_json() for row in rows], "\n".join(map(line_of, rows))
    elif options.action == "verify":
        found = examine.verify(folders, steps or folders.committed())
        answer = {str(step): problem for step, problem in found.items()}
        text = "\n".join(problem or f"checkpoint step {step}: intact" for step, problem in found.items())
        code = 1 if any(found.values()) else 0
    elif options.action == "show":
        answer = examine.show(examine.at(folders, steps[0] if steps else None))
    elif options.action == "compare":
        answer = examine.compare(*(examine.at(folders, step) for step in steps))
    elif options.action == "export":
        if not options.to:
            raise UserError("rtrain checkpoints export: say where to with --to FOLDER")
        answer = examine.export(examine.at(folders, steps[0] if steps else None), options.to)
        text = answer["uri"]
    else:
        if options.keep is None or options.keep < 1:
            raise UserError("rtrain checkpoints prune: say how many stay with --keep N, at least 1")
        best = {row.step for row in examine.listing(folders) if row.best}
        answer = {"deleted": folders.prune(options.keep, best, under_way=True), "left": folders.committed()}
        text = f"deleted {answer['deleted'] or 'none'}; left {answer['left']}"
    print(
        json.dumps(answer) if options.json else text if text is not None else json.dumps(answer, indent=1), flush=True
    )
    return code


def line_of(row: Any) -> str:
    """A checkpoint of `examine.listing` as a person reads it."""
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in row.metrics.items())
    if row.metrics_step is not None:
        metrics += f"  (of step {row.metrics_step})"
    who = f"attempt {row.attempt}, {row.world_size} ranks" if row.attempt is not None else ""
    best = "best" if row.best else ""
    return (
        f"step {row.step:>8}  {row.state:<12}  {row.bytes / 2**20:>9.1f} MiB  {best:<4}  {who:<20}  {metrics}".rstrip()
    )
