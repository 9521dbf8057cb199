"""Where checkpoints lie: one folder a step under any fsspec URI, committed by a marker written last.

    {run}/checkpoints/step-00000200/rank-00000-e00000002-5f1c09aa31be.safetensors ...   every rank's share
                                    manifest-e00000002-5f1c09aa31be.json                what is in them
                                    COMMITTED              sha256 and name of the manifest; written last
                      commits/00000002-5f1c09aa31be.json   who committed what (`checkpoint.fence`)

A folder without its marker does not exist for a reader, whatever happened to its writer. All other
names carry the number of the commit and a random token of the attempt, so that no two attempts, of a
run that was started anew either, ever write one file.
"""

import json
import os
import re
from collections.abc import Callable

from rtrain.checkpoint.marker import MARKER, Marker
from rtrain.storage import Folder, Patience

Check = Callable[[], None]
"""Raises where the run is another's by now."""

STEP = re.compile(r"step-(\d{8})")
# Without a token: of an older rtrain, or of a writer that has the folder for itself.
SHARD = re.compile(r"rank-\d{5}(-e\d{8}(-[0-9a-f]{12})?)?\.safetensors")
DAMAGED = "DAMAGED"
"""Left by a reader that found the checkpoint damaged, with what it found: so it need not be read again."""


def _nobody_else() -> None:
    """What a writer that has the run for itself checks before it deletes."""


def sweep(folder: Folder, check: Check = _nobody_else) -> None:
    """Delete what a checkpoint's committed manifest does not name: left by a writer that died, or replaced.

    Raises:
        Fenced: `check` says that the run is another's by now.
    """
    there = folder.names()  # before the check: who takes the run over after it writes other names
    name = Marker.read(folder).manifest
    left_over = set(there) - {MARKER, name, *json.loads(folder.read(name))["files"]}
    if left_over:
        check()
        folder.delete(left_over)


def clear(folder: Folder, check: Check = _nobody_else) -> None:
    """Delete a checkpoint, its marker first, so that a reader never sees a committed folder with files missing.

    Raises:
        Fenced: `check` says that the run is another's by now.
    """
    there = folder.names()  # before the check, as in `sweep`
    check()
    if folder.is_local and os.path.isfile(folder.path):
        return folder.remove()  # something that is no checkpoint is in its place
    if MARKER in there:
        folder.discard(MARKER)
    folder.delete(there)


class CheckpointFolders:
    """All checkpoints of one run."""

    def __init__(self, run_uri: str, patience: Patience | None = None):
        self.root = Folder(f"{run_uri.rstrip('/')}/checkpoints", patience)
        self.log = self.root.child("commits")
        self._known: dict[tuple[int, Marker], dict[str, int]] = {}

    def of(self, step: int) -> Folder:
        """The folder of one step."""
        return self.root.child(f"step-{step:08d}")

    def steps(self) -> list[int]:
        """Every step with a folder, committed or not, ascending."""
        return [int(m[1]) for m in map(STEP.fullmatch, self.root.names()) if m]

    def committed(self) -> list[int]:
        """Steps whose marker is there, ascending."""
        return [s for s in self.steps() if self.of(s).exists(MARKER)]

    def looks_intact(self, step: int) -> bool:
        """Whether a step has its marker, the manifest of that hash, and every file of it at its size.

        One listing (and, the first time, one small manifest) and no tensor is read: what is deleted
        or cut off is seen. A file that was altered at its size is seen by who reads it: a resume
        leaves a note in the folder (`DAMAGED`), and this is believed.
        """
        folder = self.of(step)
        sizes = folder.sizes()
        if MARKER not in sizes or DAMAGED in sizes:
            return False
        marker = Marker.read(folder)
        if (step, marker) not in self._known:
            manifest = marker.manifest_in(folder) if marker.manifest in sizes else None
            if manifest is None:
                return False
            files = json.loads(manifest)["files"]
            self._known[step, marker] = {marker.manifest: len(manifest)} | {n: f["bytes"] for n, f in files.items()}
        return all(sizes.get(name) == size for name, size in self._known[step, marker].items())

    def _files_of(self, step: int) -> dict[str, int]:
        """Manifest and shards of a step that looked intact, with their sizes."""
        return self._known[step, Marker.read(self.of(step))]

    def prune(self, keep: int, spare: set[int], *, under_way: bool = False, check: Check = _nobody_else) -> list[int]:
        """Delete all but the newest `keep` intact steps (`looks_intact`) and those in `spare`.

        Half-written ones go too; damaged ones that are newer than the oldest that stays are left to
        be looked at, and count for nothing. `under_way`: someone else may be writing the run now, so a
        half-written one that is newer than all others stays too. `check` is asked before each delete; what
        an attempt has begun to write after it said yes has other names and stays.

        Raises:
            Fenced: `check` says that the run is another's by now.
            OSError: the first step that could not be deleted, once the others are.
        """
        steps = self.steps()
        intact = [s for s in steps if self.looks_intact(s)]
        kept = set(intact[-keep:])
        failed: list[OSError] = []
        for step in [] if under_way else intact:
            if step in kept | spare and len(self.of(step).names()) > 1 + len(self._files_of(step)):
                try:
                    sweep(self.of(step), check)
                except OSError as error:
                    failed.append(error)
        oldest = min(kept, default=0)
        half = [s for s in steps if not self.of(s).exists(MARKER)]
        if under_way:
            half = [s for s in half if s < max(intact, default=0)]
        gone = [s for s in steps if s not in kept | spare and (s in half or (s < oldest and self.of(s).exists(MARKER)))]
        for step in gone:
            try:
                clear(self.of(step), check)
            except OSError as error:  # one that cannot be deleted keeps no other
                failed.append(error)
        if failed:
            raise failed[0]
        return gone
