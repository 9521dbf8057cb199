"""A run that goes on from another one's checkpoint: its folder begins with a copy of that."""

import json

from rtrain.checkpoint.folders import CheckpointFolders
from rtrain.checkpoint.marker import MARKER
from rtrain.errors import CheckpointError
from rtrain.storage import Folder
from rtrain.training import history


def fork(source: str, step: int, target: str) -> None:
    """Copy the committed checkpoint of a step, and the curve up to it, to a run that has none (folders: any URI).

    The marker comes last, so a copy that was cut off is none, and is made again.

    Raises:
        CheckpointError: the source has no such checkpoint.
    """
    there = CheckpointFolders(target)
    if there.committed():
        return
    before = CheckpointFolders(source).of(step)
    names = before.names()
    if MARKER not in names:
        raise CheckpointError(
            f"{source}: no checkpoint of step {step} to go on from, which another trial should have left"
        )
    folder = there.of(step)
    folder.fs.makedirs(folder.path, exist_ok=True)
    for name in sorted(names, key=lambda name: name == MARKER):
        if name == MARKER:
            folder.write(name, before.read(name))
        else:
            folder.fs.cp_file(f"{before.path}/{name}", f"{folder.path}/{name}")
    lines = [line for line in history.read(Folder(source)) if line["step"] <= step]
    Folder(target).write(history.NAME, "".join(json.dumps(line) + "\n" for line in lines).encode())
